"""`fp8.json` of an output in the making: its files are hashed while others are still written, and so is the source.

A shard of the source is hashed as soon as a worker begins to read it, one of the output once it is whole, so that
either is in memory and comes from the disk no second time. What the Hub's cache names by its SHA-256 is not computed
again: every blob there is called by the hash that the Hub publishes, and fp8.json says that it is the Hub's word.
What was hashed is in the journal, so that a run that goes on reads no file twice. The nodes of a cluster hash the
weights where there is one.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from fp8cli.core.fetching.window_supply import WindowSupply
from fp8cli.core.hashing import Hash, Hashes
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.inspection.stored_hashes import blob_hash
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.side_files import Provenance
from fp8cli.core.quantizing.supply import Supply
from fp8cli.errors import Interrupted
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.provenance import PROVENANCE, FileFacts, PlanNote, ProvenanceFile, SourceFacts, provenance_text
from fp8cli.formats.remote_folder import RemoteFolder
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Staging, output_key, source_key

Notify = Callable[[ReadingBegins | BytesRead], None]

_MOST_THREADS: Final = 8
"""A disk gives no more than so many readers want."""


class HashesElsewhere(Protocol):
    """Who reads files that others see too."""

    def hash_file(self, folder: Path, name: str) -> "Future[Hash | None]":
        """Have a file hashed; None where nobody could."""


@dataclass
class Attestation:
    """What is known of the files of one run. The watch of its engine, too: any thread may call `begins`, `finished`."""

    checkpoint: Checkpoint
    folder: LocalFolder | Elsewhere
    """Of what is elsewhere only the small files are hashed here: who streams the shards hashes them."""
    staging: Staging
    hashes: Hashes | None
    """None: the files are not hashed, and their sizes alone are written down."""
    sent: bool = False
    """Whether the output's shards are sent elsewhere: who sends them hashes them, and they do not stay here."""
    nodes: HashesElsewhere | None = None
    """Who hashes the weights; None: this machine."""
    lasting: bool = True
    """Whether what an earlier run has made of a shard is what this one would make of it, to the last byte."""
    _known: dict[str, str] = field(init=False)
    """SHA-256 of source files, where the Hub or its cache tells it."""
    _sources: tuple[str, ...] = field(init=False)
    _shards: frozenset[str] = field(init=False)
    """Those of the sources that are large."""
    _streamed: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the source's shards, from who streamed them."""
    _learnt: dict[Path, str] = field(default_factory=dict)
    """SHA-256 of the output's shards, from who sent them."""

    def __post_init__(self) -> None:
        """Look up what is known without reading."""
        checkpoint = self.checkpoint
        self._shards = frozenset(shard.name for shard in checkpoint.shards)
        self._sources = (*checkpoint.small_files, *(shard.name for shard in checkpoint.shards))
        found = {name: self._told(name) for name in self._sources}
        self._known = {name: digest for name, digest in found.items() if digest is not None}

    def begins(self, shard: str) -> None:
        """Hash the source's shard of that name, where there is one, while it is read."""
        if shard in self._sources:
            self._hash_source(shard)

    def finished(self, shard: str) -> None:
        """Hash a shard of the output."""
        if not self.sent:
            before = self.staging.hashes.get(output_key(shard)) if self.lasting else None
            self._hash_weights(self.staging.checkpoint, shard, before)

    def abandon(self) -> None:
        """Nobody waits."""

    def learn(self, hashes: Mapping[str, str]) -> None:
        """Take the SHA-256 of the output's shards from who sent them."""
        self._learnt.update((self.staging.checkpoint / name, digest) for name, digest in hashes.items())

    def learn_source(self, supply: Supply) -> None:
        """Take the SHA-256 of shards that were streamed from who has read them; waits for it.

        Raises BadInput for a shard that is not what the Hub says, Interrupted on Ctrl-C.
        """
        if isinstance(supply, WindowSupply):
            with self._interruptible():
                self._streamed.update(supply.hashes())

    def complete(self, notify: Notify) -> None:
        """Hash what is left of the source and of the output's shards, and wait for it.

        Raises CannotRun for a file that cannot be read, Interrupted on Ctrl-C.
        """
        if self.hashes is None:
            return
        for name in self._sources:
            self._hash_source(name)
        for path in sorted(self.staging.checkpoint.glob("*.safetensors")):
            self.finished(path.name)
        with self._interruptible():
            self.hashes.wait(
                lambda size: notify(ReadingBegins(what="hashing", bytes=size)),
                lambda path, size: notify(BytesRead(name=path.name, bytes=size)),
            )

    def write(self, plan: PlanNote, *, name: str, commit: str | None, tools: Mapping[str, str]) -> None:
        """Write fp8.json, after everything else. `name` is the source's, without where it lay. Raises OSError."""
        root = self.staging.checkpoint
        paths = sorted(path for path in root.rglob("*") if path.is_file() and path != root / PROVENANCE)
        for path in paths:
            if path not in self._learnt:
                self._hash(path)
        if self.hashes is not None:
            self.hashes.wait(lambda _: None, lambda _path, _size: None)
        document = ProvenanceFile(
            tools=tools,
            plan=plan,
            source=SourceFacts(
                name=name,
                commit=commit,
                files={each: self._source_facts(each) for each in self._sources},
                hub_says=tuple(sorted(name for name in self._known if not self._saw(name))),
            ),
            files={path.relative_to(root).as_posix(): self._facts(path) for path in paths},
        )
        self.staging.write_file(PROVENANCE, provenance_text(document).encode())

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            message = f"interrupted; what is done is kept beside `{self.staging.out}`"
            raise Interrupted(message, hint="go on with") from None

    def _told(self, name: str) -> str | None:
        """Return the SHA-256 of a source file, where the Hub tells it."""
        match self.folder:
            case LocalFolder():
                return blob_hash(self.folder.resolve(name))
            case HubRepo():
                return self.folder.sha256(name)
            case RemoteFolder():
                return None

    def _hash_source(self, name: str) -> None:
        if name in self._known or not isinstance(self.folder, LocalFolder):
            return
        if name in self._shards:
            self._hash_weights(self.folder.path, name, self.staging.hashes.get(source_key(name)))
        else:
            self._hash(self.folder.resolve(name))

    def _saw(self, name: str) -> bool:
        """Whether somebody has hashed a file of the source, in this run or in the one that it goes on from."""
        return name in self._streamed or source_key(name) in self.staging.hashes

    def _hash_weights(self, folder: Path, name: str, before: str | None) -> None:
        """Have a shard hashed, or take what an earlier run has found."""
        if self.hashes is None:
            return
        path = LocalFolder(folder).resolve(name)
        if before is not None:
            self.hashes.know(path, before)
        else:
            self.hashes.add(path, None if self.nodes is None else partial(self.nodes.hash_file, folder, name))

    def _hash(self, path: Path) -> None:
        if self.hashes is not None:
            self.hashes.add(path)

    def _source_facts(self, name: str) -> FileFacts:
        known = self._streamed.get(name, self.staging.hashes.get(source_key(name), self._known.get(name)))
        if known is None and isinstance(self.folder, LocalFolder):
            return self._facts(self.folder.resolve(name))
        if known is None and name not in self._shards and self.hashes is not None:
            known = hashlib.sha256(self.folder.read(name)).hexdigest()
        return FileFacts(bytes=self.checkpoint.files[name], sha256=known)

    def _facts(self, path: Path) -> FileFacts:
        if self.hashes is None:
            return FileFacts(bytes=path.stat().st_size, sha256=None)
        if path in self._learnt:
            return FileFacts(bytes=path.stat().st_size, sha256=self._learnt[path])
        size, digest = self.hashes.of(path)
        return FileFacts(bytes=size, sha256=digest)


@contextmanager
def attest(
    checkpoint: Checkpoint,
    folder: LocalFolder | Elsewhere,
    staging: Staging,
    *,
    threads: int,
    hashed: bool,
    sent: bool = False,
    nodes: HashesElsewhere | None = None,
    lasting: bool = True,
) -> Iterator[Attestation]:
    """Keep the books of one run. threads: those of the engine; hashed: whether to compute SHA-256 at all.

    sent: whether the shards are sent elsewhere. nodes, lasting: see `Attestation`.
    """
    if not hashed:
        yield Attestation(checkpoint, folder, staging, None, sent=sent)
        return
    shards = [shard.name for shard in checkpoint.shards]
    names = {staging.checkpoint / name: output_key(name) for name in shards}
    if isinstance(folder, LocalFolder):
        names |= {folder.resolve(name): source_key(name) for name in shards}

    def found(path: Path, digest: str) -> None:
        # What cannot be written down is found out by who writes down more than this.
        if path in names:
            with suppress(OSError, ValueError):
                staging.record_hash(names[path], digest)

    with Hashes(min(threads, _MOST_THREADS), found) as hashes:
        yield Attestation(checkpoint, folder, staging, hashes, sent=sent, nodes=nodes, lasting=lasting)


def note_of_quantization(provenance: Provenance, plan: Plan, modifiers: Sequence[str] | None) -> PlanNote:
    """Say what a quantization did. modifiers: llm-compressor's classes; None where the streaming engine was used."""
    choice = provenance.choice
    return PlanNote(
        command="quantize",
        made=choice.name,
        words=choice.summary,
        scheme=None if plan.scheme is None else plan.scheme.name,
        kv_cache=plan.kv_cache,
        dtype=DTYPES[plan.dtype].torch_name,
        engine="streaming" if modifiers is None else "llmcompressor",
        targets=tuple(provenance.targets),
        ignore=tuple(provenance.ignore),
        modifiers=tuple(modifiers or ()),
        counts=plan.counts,
        fingerprint=plan.fingerprint(),
        calibration=provenance.calibration,
        budget=provenance.budget,
    )
