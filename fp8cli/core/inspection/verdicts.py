"""What each complaint about files means for whoever loads the checkpoint, and complaints turned into findings.

The consequences are those of transformers 5.17 and vLLM 0.32, read in their sources and tried. A complaint that
many tensors share becomes one finding with a pattern; of many complaints of the same kind about one file the first
speaks for all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from fp8cli.core.findings import Finding, Status
from fp8cli.core.folding import fold
from fp8cli.core.inspection.tensor_faults import TENSOR_FAULTS
from fp8cli.errors import showable
from fp8cli.formats.complaints import Complaint

_REFUSED: Final = "the safetensors library refuses the file, and with it vLLM and transformers"
_STOPS: Final = "vLLM and transformers stop while loading"

VERDICTS: Final[Mapping[str, tuple[Status, str | None]]] = {
    "config.json": ("failed", _STOPS),
    "config.missing": ("failed", "neither vLLM nor transformers can tell which model this is"),
    "file.empty": ("failed", "whoever needs it stops, or goes on without what it should say"),
    "file.header": ("failed", "readers refuse the whole file"),
    "file.impostor": ("failed", "no reader finds in it what its name promises"),
    "file.json": ("failed", "transformers stops where it needs this file"),
    "file.layout": ("failed", _REFUSED),
    "file.cut_short": ("failed", _REFUSED),
    "file.surplus": ("failed", _REFUSED),
    "file.link": ("failed", "whoever loads the checkpoint elsewhere does not find the file, or reads another one"),
    "file.mode": ("warning", "a server that runs as another user, as in a container, cannot open it"),
    "file.pickle": ("failed", "loading this file with `torch.load(weights_only=False)` runs that code"),
    "file.pickle_code": ("warning", "torch.load refuses it unless told to run code; nothing here needs it"),
    "file.readable": ("failed", "whoever loads the checkpoint as this user stops at it"),
    "folder.readable": ("not checked", "what lies in it was not looked at"),
    "folder.unfinished": ("failed", "files may be missing or half written"),
    "folder.unfinished_download": ("warning", "files may be missing, or older than the rest"),
    "folder.unfinished_run": ("warning", "what lies here is what was there before that run"),
    "header.duplicate": (
        "failed",
        "the safetensors library keeps the last of two tensors without a word; others may keep the first",
    ),
    "index.absent": ("failed", "vLLM loads all of them, transformers refuses the folder"),
    "index.duplicate": ("failed", "readers keep one of the copies, and not all the same"),
    "index.extra_shard": ("failed", "no loader reads it: its tensors, if the model needs them, are missing"),
    "index.ghost": (
        "failed",
        "vLLM does not notice it in a quantized model; transformers fills it with random numbers and only warns",
    ),
    "index.json": ("failed", _STOPS),
    "index.metadata": ("failed", "transformers stops with KeyError: 'metadata'; vLLM does not look at it"),
    "index.missing_shard": ("failed", _STOPS),
    "index.path": ("failed", "transformers opens whatever lies there; vLLM stops and says that it is missing"),
    "index.single_beside": (
        "failed",
        "transformers reads the single file and vLLM the shards: evaluation and serving may see different weights",
    ),
    "index.total_size": ("warning", "vLLM and transformers do not look at it; other tools plan memory by it"),
    "index.unlisted": ("failed", "vLLM and transformers load it; tools that look tensors up in the index do not"),
    "index.weight_map": (
        "failed",
        "vLLM stops while loading; transformers does, or fills the model with random numbers",
    ),
    "index.wrong_shard": (
        "failed",
        "vLLM and transformers load it from where it lies; tools that look tensors up in the index do not find it",
    ),
    "weights.beside": ("warning", None),
    "weights.none": ("failed", "there is nothing to load"),
    "weights.other": ("failed", "it has no safetensors header that tells what is in it"),
}
"""Check → what a complaint of it is, and what comes of it."""

_ONE_BY_ONE: Final = 8
"""Up to so many complaints of a kind are findings of their own."""


def judge(
    complaints: Iterable[Complaint], consequence_of: Callable[[Complaint], str | None] = lambda _: None
) -> tuple[Finding, ...]:
    """Turn complaints into findings. `consequence_of` knows better than the table, where it does not say None."""
    alike: dict[tuple[object, ...], list[Complaint]] = {}
    for complaint in complaints:
        if complaint.tensor is not None:
            key: tuple[object, ...] = (complaint.check, complaint.words, consequence_of(complaint))
        elif complaint.check in {"header.duplicate", "file.layout"}:
            key = (complaint.check, complaint.files)
        else:
            key = (complaint.check,)
        alike.setdefault(key, []).append(complaint)
    return tuple(finding for group in alike.values() for finding in _findings(group, consequence_of))


def conclude(complaints: Iterable[Complaint], check: str, all_well: str, *, count: int = 1) -> tuple[Finding, ...]:
    """Turn complaints into findings; without any, one finding that `check` passed."""
    return judge(complaints) or (passed(check, all_well, count=count),)


def passed(check: str, found: str, *, count: int = 1) -> Finding:
    """A check that found nothing wrong."""
    return Finding(check=check, status="passed", subject=None, found=showable(found), count=count)


def not_checked(check: str, reason: str, *, subject: str | None = None, remedy: str | None = None) -> Finding:
    """A check that was not made, and why."""
    return Finding(check=check, status="not checked", subject=subject, found=showable(reason), remedy=remedy)


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 tensor`, `2,000 tensors`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _findings(group: Sequence[Complaint], consequence_of: Callable[[Complaint], str | None]) -> Iterable[Finding]:
    first = group[0]
    if first.tensor is not None:
        for folded in fold(complaint.tensor or "" for complaint in group):
            found = f"`{folded.pattern}` {first.words}"
            yield _finding(first, folded.pattern, found, len(folded.names), consequence_of)
    elif first.check in {"header.duplicate", "file.layout"}:
        more = f", and {len(group) - 1:,} more such places" if len(group) > 1 else ""
        yield _finding(first, ", ".join(first.files), first.words + more, len(group), consequence_of)
    elif len(group) <= _ONE_BY_ONE:
        for complaint in group:
            yield _finding(complaint, ", ".join(complaint.files), complaint.words, 1, consequence_of)
    else:
        files = ", ".join(file for complaint in group for file in complaint.files)
        found = f"{first.words}, and so it is with {len(group) - 1:,} more"
        yield _finding(first, files, found, len(group), consequence_of)


def _finding(
    complaint: Complaint, subject: str, found: str, count: int, consequence_of: Callable[[Complaint], str | None]
) -> Finding:
    status, consequence = VERDICTS.get(complaint.check) or TENSOR_FAULTS[complaint.check]
    return Finding(
        check=complaint.check,
        status=status,
        subject=subject or None,
        found=showable(found),
        consequence=consequence_of(complaint) or consequence,
        remedy=None if complaint.hint is None else showable(complaint.hint),
        count=count,
    )
