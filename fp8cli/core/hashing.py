"""SHA-256 of files, by threads of its own while others work: whatever is done by then costs no time at the end.

Or by somebody else, who promises it: a node of a cluster. What nobody there could do is done here after all.

OpenSSL computes it without Python's lock, at 1 to 2 GB/s and thread. A file that was just read or written is still in
memory, so that it comes from no disk a second time.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fp8cli.errors import CannotRun

_READ_BYTES: Final = 2**20


Hash = tuple[int, str]
"""Length and SHA-256 of a file."""

Ask = Callable[[], "Future[Hash | None]"]
"""Has somebody else hash a file, who answers None where nobody could."""


class StoppedError(Exception):
    """The hash is not wanted any more."""


def sha256_of(pieces: Iterable[bytes | memoryview], told: Callable[[int], None], stop: threading.Event) -> str:
    """Return the SHA-256 of bytes that come in pieces, as hexadecimal digits. `told`: the length of each piece.

    Raises StoppedError in the middle once `stop` is set: a file may take minutes.
    """
    digest = hashlib.sha256()
    for piece in pieces:
        if stop.is_set():
            raise StoppedError
        digest.update(piece)
        told(len(piece))
    return digest.hexdigest()


def pieces_of(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file, each piece valid until the next one. Raises OSError."""
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]


class Hashes:
    """The files to be hashed, and what came of it. Used as a context manager: at its end no thread is left."""

    def __init__(self, threads: int, found: Callable[[Path, str], None] = lambda _path, _digest: None) -> None:
        """Begin with no file. `found` is told of every hash, by any thread, as soon as it is there."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fp8-hash")
        self._found = found
        self._jobs: dict[Path, Future[Hash | None]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._done_bytes = 0
        self._told: Callable[[Path, int], None] | None = None

    def __enter__(self) -> Self:
        """Let it work."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what is not done."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def add(self, path: Path, ask: Ask | None = None) -> None:
        """Have a file hashed, once. Returns at once; any thread may call it."""
        with self._lock:
            if path in self._jobs or self._stop.is_set():
                return
            job = self._jobs[path] = self._pool.submit(self._hash, path) if ask is None else ask()
        if ask is not None:
            job.add_done_callback(lambda done: self._take(path, done))

    def know(self, path: Path, digest: str) -> None:
        """Take the hash of a file that was found before. Raises OSError for one that is not there."""
        job: Future[Hash | None] = Future()
        job.set_result((path.stat().st_size, digest))
        with self._lock:
            if path not in self._jobs:
                self._jobs[path] = job
                self._done_bytes += path.stat().st_size

    def wait(self, begins: Callable[[int], None], told: Callable[[Path, int], None]) -> None:
        """Wait for all of them. `begins` is told how many bytes are left, `told` of every piece after that.

        Raises CannotRun for a file that cannot be read.
        """
        with self._lock:
            waiting = [job for job in self._jobs.values() if not job.done()]
            left = sum(path.stat().st_size for path in self._jobs if path.exists()) - self._done_bytes
            if waiting and left > 0:
                begins(left)
                self._told = told
        for path in list(self._jobs):
            try:
                if self._jobs[path].result() is None:
                    self._jobs[path] = self._pool.submit(self._hash, path)
                    self._jobs[path].result()
            except OSError as problem:
                message = f"`{path.name}` cannot be read: {problem.strerror or problem}"
                raise CannotRun(message, hint="run the same command again: it goes on") from problem

    def of(self, path: Path) -> Hash:
        """Return the length and the SHA-256 of a file that was waited for."""
        hashed = self._jobs[path].result()
        assert hashed is not None  # noqa: S101 - see `wait`
        return hashed

    def _hash(self, path: Path) -> Hash:
        sizes: list[int] = []
        digest = sha256_of(pieces_of(path), lambda size: self._note(path, size, sizes), self._stop)
        self._found(path, digest)
        return sum(sizes), digest

    def _take(self, path: Path, job: "Future[Hash | None]") -> None:
        """Count what somebody else has hashed."""
        if self._stop.is_set() or job.cancelled() or job.exception() is not None:
            return
        hashed = job.result()
        if hashed is not None:
            self._note(path, hashed[0], [])
            self._found(path, hashed[1])

    def _note(self, path: Path, size: int, sizes: list[int]) -> None:
        sizes.append(size)
        with self._lock:
            self._done_bytes += size
            if self._told is not None:
                self._told(path, size)
