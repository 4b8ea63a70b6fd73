"""What index and shards say of each other: whose copy counts, what is missing, and when all is as it should be."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.verdicts import counted, not_checked, passed
from fp8cli.formats.checkpoint import LocalFile
from fp8cli.formats.complaints import Complain, Complaint
from fp8cli.formats.shard_index import INDEX, SINGLE, Shard, check_total_size
from fp8cli.formats.sources import Source

_NUMBERS: Final = re.compile(r"(\d+)")
_ELSEWHERE: Final = frozenset({"index.total_size", "index.metadata", "weights.beside"})
"""Faults that do not keep tensors from lying where they should."""


@dataclass(frozen=True)
class Consequences:
    """What follows from a complaint, where that depends on the checkpoint; for the others None."""

    shards: Sequence[Shard]
    weight_map: Mapping[str, str] | None

    def __call__(self, complaint: Complaint) -> str | None:
        """Return the consequence of one complaint."""
        if complaint.check == "index.missing_shard":
            tensors = counted(self._promised[complaint.files[0]], "tensor")
            return f"vLLM and transformers stop while loading: it should hold {tensors}"
        if complaint.check == "index.duplicate" and complaint.tensor is not None:
            return self._kept(self._holders[complaint.tensor])
        if complaint.check == "index.absent" and SINGLE in complaint.files:
            return f"vLLM loads all of them, transformers only `{SINGLE}`"
        if complaint.check == "weights.other" and complaint.files[0].endswith(".safetensors"):
            return "vLLM loads it, transformers finds no weights"
        return None

    @cached_property
    def _promised(self) -> Mapping[str, int]:
        return Counter((self.weight_map or {}).values())

    @cached_property
    def _holders(self) -> Mapping[str, Sequence[str]]:
        holders: dict[str, list[str]] = {}
        for shard in self.shards:
            for tensor in shard.header.tensors:
                holders.setdefault(tensor.name, []).append(shard.name)
        return holders

    def _kept(self, holders: Sequence[str]) -> str:
        """Say whose copy counts: both loaders let the last file win, but they order the files differently."""
        by_vllm, by_transformers = max(holders, key=order_of_vllm), max(holders)
        if self.weight_map is None:
            reads = f"reads only `{SINGLE}`" if SINGLE in holders else "refuses the folder"
            return f"vLLM keeps the copy in `{by_vllm}`, transformers {reads}"
        if by_vllm == by_transformers:
            return f"vLLM and transformers both keep the copy that they read last, that in `{by_vllm}`"
        return f"vLLM keeps the copy in `{by_vllm}`, transformers that in `{by_transformers}`"


def order_of_vllm(file: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key: vLLM 0.32 loads files in the order of their numbers, `model-9` before `model-10`."""
    parts = _NUMBERS.split(file)
    return tuple(zip(parts[::2], (*map(int, parts[1::2]), -1), strict=True))


def check_sizes(
    index: Mapping[str, object], shards: Sequence[Shard], complain: Complain, *, is_whole: bool
) -> tuple[Finding, ...]:
    """Check the index's metadata; what is wrong goes to `complain`, what is not comes back."""
    if not isinstance(index.get("metadata"), dict):
        words = f"`{INDEX}` has no `metadata`"
        hint = f'add "metadata": {{"total_size": {_held(shards)}}} to the index' if is_whole else None
        complain(Complaint(check="index.metadata", words=words, hint=hint, files=(INDEX,)))
        return ()
    if not is_whole:
        return (not_checked("index.total_size", "not all shards could be read"),)
    complaints: list[Complaint] = []
    if not check_total_size(index, shards, complaints.append):
        return (not_checked("index.total_size", f"`{INDEX}` promises no total size"),)
    for complaint in complaints:
        complain(complaint)
    found = f"the shards hold the {_held(shards):,} bytes of tensors that the index promises"
    return () if complaints else (passed("index.total_size", found),)


def about_index(
    source: Source, shards: Sequence[Shard], faults: Iterable[Finding], *, has_index: bool, is_whole: bool
) -> Iterator[Finding]:
    """Say that tensors lie where they should, or why that is not known."""
    if isinstance(source, LocalFile):
        yield not_checked("index", "a file is looked at by itself: whether others belong to it is not known")
        return
    checks = frozenset(finding.check for finding in faults)
    if any(check.startswith(("index.", "weights.")) for check in checks - _ELSEWHERE):
        return
    tensors = counted(sum(len(shard.header.tensors) for shard in shards), "tensor")
    if not is_whole:
        yield not_checked("index", f"not all shards could be read; the others hold {tensors}")
    elif has_index:
        files = counted(len(shards), "shard")
        yield passed("index", f"{tensors} in {files}, each once and where the index puts it", count=len(shards))
    else:
        yield passed("index", f"{tensors} in `{SINGLE}`, which needs no index")


def _held(shards: Sequence[Shard]) -> int:
    return sum(tensor.bytes for shard in shards for tensor in shard.header.tensors)
