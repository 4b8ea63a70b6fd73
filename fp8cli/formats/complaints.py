"""One way to say what is wrong with a file or a folder, for readers who stop at it and for those who go on.

Whoever checks is given a `complain` and tells it what it finds. `refuse` stops at the first complaint, as
quantizing must; `list.append` collects them all, as inspecting does. So each check exists once. What cannot be
read on from, whoever reads it, is raised as a Fault: a complaint as an exception.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from fp8cli.errors import BadInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Complaint:
    """Something that is wrong: which check says so, about what, and in which words."""

    check: str
    """Stable name of the check, such as `index.ghost`."""
    words: str
    """One sentence. If it is about a tensor, what follows after the tensor's name."""
    hint: str | None = None
    tensor: str | None = None
    files: tuple[str, ...] = ()
    """The files it is about."""

    @property
    def message(self) -> str:
        """The whole sentence."""
        return self.words if self.tensor is None else f"`{self.tensor}` {self.words}"


Complain = Callable[[Complaint], None]


class Fault(BadInput):
    """A complaint that ends the reading of a file: there is nothing to go on with."""

    def __init__(self, check: str, message: str, *, hint: str | None = None) -> None:
        """Remember which check says so; the rest is as in every error."""
        super().__init__(message, hint=hint)
        self.check = check


def refuse(complaint: Complaint) -> NoReturn:
    """Stop at `complaint`."""
    raise Fault(complaint.check, complaint.message, hint=complaint.hint)
