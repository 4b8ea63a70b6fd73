"""What the user means by a side of a comparison: a label, a run, results of plain lm-eval, a table, or a checkpoint.

A name that could mean several things is settled in this order, and the reader is told: `sim:SCHEME`, the base as it
would be under a scheme; a label of the runs folder; a run, `LABEL@DATE`; what lies at that path (a record, results, a
table, a checkpoint folder, a folder with results); a model on the Hub, as ORG/NAME.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

from fp8cli.core.evaluating.runs import find_records, labels, simulated_label
from fp8cli.core.simulating.words import PREFIX, simulated_scheme
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.lm_eval_results import Results, read_results
from fp8cli.formats.pasted_table import read_table
from fp8cli.formats.run_record import RunRecord, read_record

SideKind = Literal["label", "run", "results", "table", "checkpoint", "simulation"]

_TABLES: Final = (".md", ".markdown", ".txt")
_RESULTS: Final = "results_*.json"
_RECORDS: Final = "run_*.json"
_DEPTH: Final = 3
"""Folders below the one named that are searched for results; lm-eval makes one for each model."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One evaluation that was made: its results, and the record beside them if this tool made it."""

    results: Results
    record: RunRecord | None

    @property
    def source(self) -> Path:
        """The file it was read from: the record where there is one."""
        return self.results.path if self.record is None else self.results.path.with_name(f"run_{self.record.id}.json")


@dataclass(frozen=True, kw_only=True)
class NamedSide:
    """What a name turned out to mean."""

    name: str
    """As the user typed it."""
    label: str
    """To call it by."""
    kind: SideKind
    evidence: tuple[Evidence, ...]
    """Newest first."""
    checkpoint: str | None
    """What can be evaluated for tasks that are missing; None where nobody knows."""
    note: str | None = None
    """What else the name could have meant."""
    simulate: str | None = None
    """The scheme that is simulated in the checkpoint; None: it is run as it is."""

    @property
    def newest_record(self) -> RunRecord | None:
        """Of its newest evaluation, if this tool made it."""
        return self.evidence[0].record if self.evidence else None

    def tasks(self) -> dict[str, Evidence]:
        """Every task it has, from the newest evaluation of each."""
        found: dict[str, Evidence] = {}
        for each in self.evidence:
            for task in each.results.tasks:
                found.setdefault(task, each)
        return found


@dataclass(frozen=True, kw_only=True)
class ReadySide:
    """A side with everything that is compared of it."""

    label: str
    tasks: Mapping[str, Evidence]
    """Where the results of each task stand."""
    notes: tuple[str, ...] = ()

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Every evaluation that takes part, once."""
        return tuple({each.results.path: each for each in self.tasks.values()}.values())

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Of the evaluations that this tool made."""
        return tuple(each.record for each in self.evidence if each.record is not None)


def name_side(name: str, runs: Path, *, complain: Callable[[str], None] = lambda _: None) -> NamedSide:
    """Find out what `name` means. Raises UsageError where it means nothing, BadInput where it is broken.

    complain: told of records that cannot be read and are left out.
    """
    if name.startswith(PREFIX):
        scheme = simulated_scheme(name.removeprefix(PREFIX)).name
        label = simulated_label(scheme)
        return NamedSide(name=name, label=label, kind="simulation", evidence=(), checkpoint=None, simulate=scheme)
    path = Path(name).expanduser()
    if _is_label(name) and (found := find_records(runs, name, complain=complain)):
        note = f"`{name}` is a label in `{runs}` and a path here: the label is meant, ./{name} is the other"
        return _of_records(name, name, "label", found, note=note if path.exists() else None)
    label, at, date = name.partition("@")
    if at and _is_label(label) and (runs / label / f"run_{date}.json").is_file():
        record = runs / label / f"run_{date}.json"
        return _of_records(name, name, "run", ((record.parent, read_record(record)),))
    if path.is_file():
        return _of_file(name, path)
    if path.is_dir():
        return _of_folder(name, path, runs, complain)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return NamedSide(name=name, label=name, kind="checkpoint", evidence=(), checkpoint=name)
    raise UsageError(f"`{name}` is no label in `{runs}`, no file or folder, and no model on the Hub", hint=_known(runs))


def pick_tasks(side: NamedSide, asked: Iterable[str]) -> tuple[dict[str, Evidence], tuple[str, ...]]:
    """Return the tasks that `asked` names (tasks, groups, patterns), and the names that the side has nothing for."""
    have, picked, missing = side.tasks(), dict[str, Evidence](), list[str]()
    for name in asked:
        found = _meant(name, side, have)
        picked.update(found)
        if not found:
            missing.append(name)
    return picked, tuple(missing)


def _meant(name: str, side: NamedSide, have: Mapping[str, Evidence]) -> dict[str, Evidence]:
    if name in have:
        return {name: have[name]}
    for each in side.evidence:
        leaves = _leaves(name, each.results.groups)
        if leaves and all(leaf in have for leaf in leaves):
            return {leaf: have[leaf] for leaf in leaves}
        # A tag or a file of the user's own: who asked for it alone got all of its tasks.
        if each.record is not None and each.record.asked_tasks == (name,):
            return dict.fromkeys(each.results.tasks, each)
    return {task: each for task, each in have.items() if fnmatchcase(task, name)}


def _leaves(name: str, groups: Mapping[str, tuple[str, ...]], depth: int = 0) -> tuple[str, ...]:
    """Tasks of a group, those of the groups in it too; none for a name that is no group."""
    if name not in groups or depth > len(groups):
        return ()
    return tuple(leaf for inner in groups[name] for leaf in (_leaves(inner, groups, depth + 1) or (inner,)))


def _is_label(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def _known(runs: Path) -> str:
    known = labels(runs)
    if known:
        return f"labels there: {', '.join(known)}; or give a checkpoint folder, or results of lm-eval"
    return "there are no runs yet; give checkpoint folders with --tasks, or make runs: fp8 eval MODEL --tasks NAMES"


def _of_file(name: str, path: Path) -> NamedSide:
    if path.suffix in _TABLES:
        evidence = Evidence(results=read_table(path), record=None)
        return NamedSide(name=name, label=path.stem, kind="table", evidence=(evidence,), checkpoint=None)
    if path.name.startswith("run_") and path.suffix == ".json":
        record = read_record(path)
        return _of_records(name, f"{record.label}@{record.id}", "run", ((path.parent, record),))
    if path.suffix == ".json":
        return _of_results(name, None, (path,))
    message = f"`{name}` is neither a record, nor results, nor a table"
    raise UsageError(message, hint="give results_*.json, run_*.json, a table in .md or .txt, or a checkpoint folder")


def _of_folder(name: str, path: Path, runs: Path, complain: Callable[[str], None]) -> NamedSide:
    label = path.resolve().name
    results = _results_below(path)
    if (path / CONFIG).is_file() and any(path.glob("*.safetensors")):
        note = f"`{name}` is a checkpoint, and holds results too: the checkpoint is meant" if results else None
        return NamedSide(name=name, label=label, kind="checkpoint", evidence=(), checkpoint=str(path), note=note)
    if any(path.glob(_RECORDS)):
        found = find_records(path.parent, path.name, complain=complain)
        if found:
            # Only what lies in the runs folder can be evaluated again under its label.
            inside = path.resolve().parent == runs.resolve()
            return _of_records(name, label, "label" if inside else "run", found)
    if not results:
        message = f"`{name}` is neither a checkpoint, nor does it hold results of lm-eval"
        raise UsageError(message, hint="give the folder with config.json and the weights, or the one of --output_path")
    folders = sorted({file.parent for file in results})
    if len(folders) > 1:
        message = f"`{name}` holds results of {len(folders)} models: {', '.join(f'`{each}`' for each in folders)}"
        raise UsageError(message, hint=f"name one of them, such as {folders[0]}")
    return _of_results(name, label, results)


def _results_below(path: Path) -> tuple[Path, ...]:
    patterns = ("*/" * depth + _RESULTS for depth in range(_DEPTH))
    return tuple(file for pattern in patterns for file in path.glob(pattern))


def _of_results(name: str, label: str | None, files: Iterable[Path]) -> NamedSide:
    """Read results of plain lm-eval; without a label they go by the model's name, or their own."""
    read = sorted(map(read_results, files), key=lambda each: each.date or "", reverse=True)
    evidence = tuple(Evidence(results=each, record=None) for each in read)
    newest = read[0]
    label = label or (Path(newest.model).name if newest.model else "") or newest.path.stem
    return NamedSide(name=name, label=label, kind="results", evidence=evidence, checkpoint=None)


def _of_records(
    name: str, label: str, kind: SideKind, found: Iterable[tuple[Path, RunRecord]], *, note: str | None = None
) -> NamedSide:
    evidence = tuple(recorded(folder, record) for folder, record in found)
    newest = evidence[0].record
    return NamedSide(
        name=name,
        label=label,
        kind=kind,
        evidence=evidence,
        checkpoint=None if newest is None else newest.model.path,
        note=note,
        simulate=None if newest is None or newest.simulated is None else newest.simulated.scheme,
    )


def recorded(folder: Path, record: RunRecord) -> Evidence:
    """Read what a record stands beside. Raises BadInput where its results are not there any more."""
    path = folder / record.results
    if path.parent != folder or not path.is_file():
        message = f"the results `{record.results}` of `{folder / f'run_{record.id}.json'}` are not there"
        raise BadInput(message, hint="evaluate it again with --rerun")
    return Evidence(results=read_results(path), record=record)
