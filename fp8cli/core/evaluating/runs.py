"""The runs folder: RUNS/LABEL/run_DATE.json and what lies beside it. Found, named, and read newest first.

Nothing is guessed from a record that cannot be read: it is told to `complain`, and left out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.run_record import RunRecord, read_record

RUNS_DEFAULT: Final = Path("fp8-runs")

WORK: Final = ".work"
"""Of the runs folder: what grows until it is whole, see `work_folder`."""

_LONGEST_LABEL: Final = 100
_RECORDS: Final = "run_*.json"


def simulated_label(scheme: str, mark: str = "") -> str:
    """Return what the simulation of a scheme is called unless the user says otherwise.

    mark: what tells other modules than the default from those and from each other, so that no label has both.
    """
    return f"sim-{scheme}~{mark}" if mark else f"sim-{scheme}"


def check_label(label: str) -> None:
    """Refuse a label that is no plain file name. Raises UsageError."""
    message = None
    if not label or len(label.encode(errors="surrogateescape")) > _LONGEST_LABEL:
        message = f"a label has 1 to {_LONGEST_LABEL} bytes, this one has {len(label)} characters"
    elif label.startswith((".", "-")):
        message = f"the label `{label}` begins with `{label[0]}`"
    elif not label.isprintable() or any(sign in label for sign in "/\\\0@"):
        message = f"the label `{label}` has a sign that a label must not have: `/`, `\\`, `@` or one without a form"
    if message is not None:
        raise UsageError(message, hint="a label is the name of a folder, such as --label fp8-block")


def find_records(
    runs: Path, label: str | None = None, *, complain: Callable[[str], None] = lambda _: None
) -> tuple[tuple[Path, RunRecord], ...]:
    """Return every record below `runs`, or those of one label, each with its folder, newest first.

    complain: told of each file that should be a record and is none.
    """
    found: list[tuple[Path, RunRecord]] = []
    for folder in _folders(runs, label):
        for path in sorted(folder.glob(_RECORDS)):
            try:
                found.append((folder, read_record(path)))
            except BadInput as problem:
                complain(f"left out: {problem.message}")
    return tuple(sorted(found, key=lambda pair: pair[1].created, reverse=True))


def labels(runs: Path) -> tuple[str, ...]:
    """Return the labels that have a record, sorted."""
    return tuple(sorted(folder.name for folder in _folders(runs, None) if any(folder.glob(_RECORDS))))


def _folders(runs: Path, label: str | None) -> Iterator[Path]:
    """Yield the folders of labels. Hidden ones are works in progress."""
    if label is not None:
        yield from (folder for folder in (runs / label,) if folder.is_dir())
        return
    try:
        entries = sorted(runs.iterdir())
    except OSError:  # None yet, or none that can be seen.
        return
    yield from (entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))
