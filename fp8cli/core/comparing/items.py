"""Items of two evaluations, paired one by one: the same document, asked in the same words, with the same target.

lm-eval numbers documents by their place in the data set, which another version of it may have moved. So each pair is
checked by its hashes too, where both sides have them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fp8cli.errors import BadInput
from fp8cli.formats.lm_eval_samples import Sample, read_samples

Part = Literal["documents", "prompts", "targets"]
PARTS: Final[Mapping[Part, str]] = {"documents": "doc_hash", "prompts": "prompt_hash", "targets": "target_hash"}
"""What is compared of every pair, and the field of lm-eval that tells."""

Pair = tuple[Sample, Sample]
"""The same document on the base and on the other side."""


@dataclass(frozen=True, slots=True)
class Differing:
    """One document that is not the same on both sides, by its two hashes."""

    doc_id: int
    base: str
    other: str


@dataclass(frozen=True, kw_only=True)
class PairedItems:
    """The items of one task on both sides."""

    by_filter: Mapping[str, tuple[Pair, ...]]
    """Of every filter that both sides have, in the order of the base's file; pairs by the number of the document,
    without those whose documents differ."""
    base: Mapping[str, tuple[Sample, ...]]
    """All of the base, by filter."""
    other: Mapping[str, tuple[Sample, ...]]
    only_base: tuple[int, ...]
    """Documents that the other side was not asked."""
    only_other: tuple[int, ...]
    differing: Mapping[Part, tuple[Differing, ...]]
    """Documents whose hashes differ, by what differs."""
    unhashed: bool
    """Whether hashes are missing on a side, so that numbers alone made the pairs."""


def pair_items(base: Path, other: Path) -> PairedItems:
    """Pair two files of samples. Raises BadInput where a file is broken, or answers one document in two ways."""
    ours, theirs = read_items(base), read_items(other)
    filters = [name for name in ours if name in theirs]
    pairs = {
        name: tuple((ours[name][number], theirs[name][number]) for number in sorted(ours[name].keys() & theirs[name]))
        for name in filters
    }
    first = pairs[filters[0]] if filters else ()
    differing = {part: found for part, field in PARTS.items() if (found := tuple(_differing(first, field)))}
    # What has a number in common and nothing else is no pair, whatever is allowed.
    moved = {each.doc_id for each in differing.get("documents", ())}
    our_numbers, their_numbers = _numbers(ours), _numbers(theirs)
    return PairedItems(
        by_filter={name: tuple(pair for pair in found if pair[0].doc_id not in moved) for name, found in pairs.items()},
        base={name: tuple(items.values()) for name, items in ours.items()},
        other={name: tuple(items.values()) for name, items in theirs.items()},
        only_base=tuple(sorted(our_numbers - their_numbers)),
        only_other=tuple(sorted(their_numbers - our_numbers)),
        differing=differing,
        unhashed=any(getattr(sample, field) is None for pair in first for sample in pair for field in PARTS.values()),
    )


def read_items(path: Path) -> dict[str, dict[int, Sample]]:
    """Read the samples of a task, by filter and number of the document.

    A line that stands there twice counts once: lm-eval appends to a file that is there. Raises BadInput where the
    two are not equal, for then the file holds two evaluations.
    """
    items: dict[str, dict[int, Sample]] = {}
    for sample in read_samples(path):
        known = items.setdefault(sample.filter, {}).setdefault(sample.doc_id, sample)
        if known is not sample and known != sample:
            message = f"`{path}` answers document {sample.doc_id} in two ways (filter `{sample.filter}`)"
            raise BadInput(message, hint="it holds two evaluations; evaluate again into an empty folder")
    if not items:
        raise BadInput(f"`{path}` holds no samples", hint="evaluate it again")
    return items


def _numbers(items: Mapping[str, Mapping[int, Sample]]) -> set[int]:
    return set().union(*items.values())


def _differing(pairs: tuple[Pair, ...], field: str) -> Iterator[Differing]:
    for ours, theirs in pairs:
        here, there = getattr(ours, field), getattr(theirs, field)
        if here is not None and there is not None and here != there:
            yield Differing(ours.doc_id, here, there)
