"""What an examination of a checkpoint says: one finding per fault, and one per check that found none.

A check that could not be made is a finding too, with the reason: nothing passes because nobody looked. The words
are those of core.doctor too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "warning", "failed", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One verdict on a file, on some tensors, or on the checkpoint as a whole."""

    check: str
    """Stable name of the check, such as `index.total_size`."""
    status: Status
    subject: str | None
    """The file or tensors it is about, many tensors as one pattern of core.folding; None for the whole checkpoint."""
    found: str
    """One sentence: what and why, with both numbers; for "not checked", why it is not."""
    consequence: str | None = None
    """What comes of it, such as "vLLM loads this without a word and returns NaN"."""
    remedy: str | None = None
    """What to do about it, naming a command where there is one."""
    count: int = 1
    """How many tensors or files it stands for."""


def any_failed(findings: Iterable[Finding]) -> bool:
    """Whether the verdict is negative; warnings and what was not checked do not make it so."""
    return any(finding.status == "failed" for finding in findings)
