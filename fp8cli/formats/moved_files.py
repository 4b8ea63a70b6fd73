"""Any file system that fsspec can write to as the place a checkpoint is sent to.

Little is asked of it: files grow in a hidden folder beside the place, and are moved when all are there, config.json
last. A file that was cut off is sent anew. sftp://, abfs://, file:// and the rest go this way.
"""

# Imports inside functions: a local run needs none of it.
# ruff: noqa: PLC0415

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.addresses import Address
from fp8cli.formats.bucket_errors import explain
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.destinations import Notes, Sent, Standing, Upload

_BLOCK_BYTES: Final = 16 * 2**20
_HIDDEN: Final = ".fp8-partial"


@dataclass(frozen=True)
class MovedFiles:
    """A folder on a file system of fsspec; see `destinations.Destination`."""

    address: Address

    @property
    def label(self) -> str:
        """The address."""
        return self.address.text

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system and the path on it. Any, because fsspec has no types."""
        import fsspec

        try:
            files, path = fsspec.url_to_fs(self.address.text, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as problem:
            message = f"the package that writes to `{self.label}` is not installed: {problem}"
            raise CannotRun(message, hint="install it beside fp8cli, then run the command again") from problem
        except ValueError as problem:
            message = f"`{self.address.scheme}://` is no kind of address that is known"
            raise UsageError(message, hint="write hf://ORG/NAME, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER") from problem
        return files, path.rstrip("/")

    def _hidden(self, name: str = "") -> str:
        folder, own = posixpath.split(self._place[1])
        # Beside a bucket there is nothing but other buckets.
        hidden = f"{folder.rstrip('/')}/.{own}{_HIDDEN}" if folder else f"{own}/{_HIDDEN}"
        return f"{hidden}/{name}" if name else hidden

    def look(self) -> Standing | None:
        """List what lies in the folder."""
        files, path = self._place
        with self._explained():
            if not files.exists(path):
                return None
            found = files.find(path)
        # Some file systems put a slash in front of every name, and some do not.
        names = (each.lstrip("/").removeprefix(path.lstrip("/")).lstrip("/") for each in found)
        return Standing(files=tuple(name for name in names if not name.startswith(f"{_HIDDEN}/")))

    def prepare(self, standing: Standing | None) -> Standing:
        """Make the hidden folder, which does nothing where folders are only names."""
        with self._explained():
            self._place[0].makedirs(self._hidden(), exist_ok=True)
        return standing or Standing(files=())

    def begin(self, name: str, size: int) -> Upload:
        """Say where it grows."""
        del size
        return Upload(id=self._hidden(name))

    def send(self, name: str, file: Path, before: Upload | None, notes: Notes) -> tuple[Upload, str]:
        """Write the file into the hidden folder, from its beginning."""
        del before
        upload, digest = self.begin(name, 0), hashlib.sha256()
        notes.begun(upload)
        with self._explained(), file.open("rb") as reading:
            self._make_folder_of(upload.id)
            with self._place[0].open(upload.id, "wb", block_size=_BLOCK_BYTES) as writing:
                while data := reading.read(_BLOCK_BYTES):
                    digest.update(data)
                    writing.write(data)
                    notes.sent(len(data))
        return upload, digest.hexdigest()

    def holds(self, name: str, size: int, upload: Upload) -> bool:
        """Whether the file is there with its size, under one of its two names."""
        return size in {self._size(upload.id), self._size(self._final(name))}

    def commit(self, large: Sequence[Sent], small: Mapping[str, Path], standing: Standing) -> None:
        """Move all files to their names, config.json last, and remove what else was there."""
        files, path = self._place
        with self._explained():
            files.makedirs(path, exist_ok=True)
            if CONFIG in standing.files:
                self._remove(self._final(CONFIG))
            for sent in large:
                self._move(sent.upload.id, self._final(sent.name), sent.file.stat().st_size)
            for name in sorted(small, key=lambda name: name == CONFIG):
                # Written beside, then moved: a file under its own name is whole.
                self._make_folder_of(self._hidden(name))
                files.pipe_file(self._hidden(name), small[name].read_bytes())
                self._move(self._hidden(name), self._final(name), small[name].stat().st_size)
            for name in set(standing.files) - set(small) - {sent.name for sent in large}:
                self._remove(self._final(name))
            self._remove_hidden()
        self._check({**{sent.name: sent.file for sent in large}, **small})

    def abort(self, uploads: Mapping[str, Upload]) -> None:
        """Remove the hidden folder."""
        del uploads
        with self._explained():
            self._remove_hidden()

    def _final(self, name: str) -> str:
        return f"{self._place[1]}/{name}"

    def _check(self, wanted: Mapping[str, Path]) -> None:
        """Look whether all is there with its size. Raises CannotRun."""
        for name, file in wanted.items():
            size, found = file.stat().st_size, self._size(self._final(name))
            if found != size:
                message = f"`{name}` was sent to `{self.label}` with {size:,} bytes and has {found or 0:,} there"
                raise CannotRun(message, hint="is something else writing there? run the same command again")

    def _make_folder_of(self, path: str) -> None:
        self._place[0].makedirs(posixpath.dirname(path), exist_ok=True)

    def _size(self, path: str) -> int | None:
        with self._explained():
            try:
                return int(self._place[0].info(path)["size"])
            except FileNotFoundError:
                return None

    def _move(self, here: str, there: str, size: int) -> None:
        if self._size(here) is None and self._size(there) == size:
            return  # By a run that was cut short.
        self._make_folder_of(there)
        self._remove(there)  # Not every file system replaces what is there.
        self._place[0].mv(here, there)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._place[0].rm_file(path)

    def _remove_hidden(self) -> None:
        with suppress(FileNotFoundError):
            self._place[0].rm(self._hidden(), recursive=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Fp8Error:
            raise
        except Exception as problem:
            raise explain(problem, self.address) from problem
