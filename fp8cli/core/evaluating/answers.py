"""Records that answer for what is asked again: of any label, because a label decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.evaluating.keys import Keys, answered_by
from fp8cli.formats.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A record, and which of its tasks answer."""

    names: tuple[str, ...]
    """As asked for."""
    folder: Path
    record: RunRecord
    tasks: tuple[str, ...]


def find_answers(
    records: Sequence[tuple[Path, RunRecord]], keys: Keys, names: Sequence[str], fidelity: str | None
) -> tuple[Answer, ...]:
    """Return the newest record for each name that one answers, those of one record together.

    records: newest first. fidelity: a key that a record's log-probabilities must have; None: any will do, or none.
    """
    found: dict[Path, Answer] = {}
    answered: set[str] = set()
    usable = [pair for pair in records if fidelity is None or _has_fidelity(pair[1], fidelity)]

    def look_for(asked: tuple[str, ...]) -> None:
        for folder, record in usable:
            tasks = answered_by(record, keys, ",".join(asked))
            if tasks and all((folder / record.tasks[task].samples).is_file() for task in tasks):
                place = folder / record.results
                before = found.get(place, Answer(names=(), folder=folder, record=record, tasks=()))
                found[place] = Answer(
                    names=(*before.names, *asked), folder=folder, record=record, tasks=(*before.tasks, *tasks)
                )
                answered.update(asked)
                return

    for name in names:
        look_for((name,))
    # Tags and files of groups cannot be told apart afterwards, so they answer together.
    rest = tuple(name for name in names if name not in answered)
    if len(rest) > 1:
        look_for(rest)
    return tuple(sorted(found.values(), key=lambda answer: answer.record.created, reverse=True))


def _has_fidelity(record: RunRecord, key: str) -> bool:
    return record.fidelity is not None and record.fidelity.key == key
