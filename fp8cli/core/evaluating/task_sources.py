"""Where the tasks that were asked for come from: this tool, the user's own YAML files, or lm-eval.

lm-eval takes seconds to index its own tasks, and is spared that where every name is found elsewhere. What the user's
files say decides a result, so their content has a hash; what a data set on the Hub holds is not looked at here, and
lm-eval's own hash of documents and prompts, kept in every record, is what tells two versions of it apart.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.errors import CannotRun

STORIES: Final = "fp8_stories"
"""The bundled task: the last word of each of 2,500 stories that the bundled model has not seen (as in LAMBADA)."""

_DATA: Final = Path(__file__).parents[2] / "bundled" / "stories-llama" / "heldout.jsonl"
_YAML: Final = """\
task: fp8_stories
dataset_path: json
dataset_kwargs:
  data_files:
    test: DATA
test_split: test
output_type: loglikelihood
doc_to_text: "{{text.rsplit(' ', 1)[0]}}"
doc_to_target: "{{' ' + text.rsplit(' ', 1)[1]}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
metadata:
  version: 1.0
"""

_TASK_LINE: Final = re.compile(r"^task:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)
_FILE_IN_YAML: Final = re.compile(r"[^\s\"',\[\]{}]*/[^\s\"',\[\]{}]+")
_SOURCES: Final = (".yaml", ".yml", ".py", ".json", ".jsonl", ".csv", ".txt")
_YAML_NAMES: Final = (".yaml", ".yml")
_HASHED_BYTES: Final = 50_000_000
"""Of larger files size and time of change count, not the content."""


@dataclass(frozen=True, kw_only=True)
class TaskSources:
    """The tasks of one evaluation."""

    names: tuple[str, ...]
    """As asked for."""
    folders: tuple[Path, ...]
    """Of the user."""
    bundled: bool
    """Whether the bundled task is among them."""
    include_defaults: bool
    """Whether one may be lm-eval's own."""
    own_names: tuple[str, ...]
    """Tasks that the user's folders and files define."""

    @staticmethod
    def is_file(name: str) -> bool:
        """Whether a name is the path of a YAML file."""
        return name.endswith(_YAML_NAMES)


@dataclass(frozen=True, kw_only=True)
class ContentHashes:
    """SHA-256 over definitions and data that lie on this machine; empty where nothing does."""

    bundled: str
    own: str
    """Of the user's files, all of them: a task may be made of others."""

    def of(self, name: str) -> str:
        """Return what decides about the task or tasks of that name."""
        return self.bundled if name == STORIES and self.bundled else self.own


def find_sources(names: Sequence[str], folders: Sequence[Path]) -> TaskSources:
    """Look for every name in what is bundled and in the user's folders. Raises CannotRun for files out of reach."""
    try:
        texts = [path.read_text("utf-8", errors="replace") for path in _yaml_files(names, folders)]
    except OSError as problem:
        raise CannotRun(f"`{problem.filename}` cannot be read: {problem.strerror or problem}") from problem
    own = tuple(dict.fromkeys(name for text in texts for name in _TASK_LINE.findall(text)))
    known = {*own, STORIES}
    return TaskSources(
        names=tuple(names),
        folders=tuple(folder.absolute() for folder in folders),
        bundled=STORIES in names and STORIES not in own,
        include_defaults=not all(name in known or TaskSources.is_file(name) for name in names),
        own_names=own,
    )


def write_bundled(folder: Path) -> None:
    """Write the YAML file of the bundled task into `folder`, with the place of its data on this machine."""
    folder.mkdir(exist_ok=True)
    place = str(_DATA).replace("\\", "\\\\").replace('"', '\\"')
    (folder / f"{STORIES}.yaml").write_text(_YAML.replace("DATA", f'"{place}"'), encoding="utf-8")


def hash_contents(sources: TaskSources) -> ContentHashes:
    """Hash all that this machine holds of the tasks. Raises CannotRun for files out of reach."""
    bundled = hashlib.sha256(_YAML.encode() + _DATA.read_bytes()).hexdigest() if sources.bundled else ""
    total = hashlib.sha256()
    try:
        paths = tuple(dict.fromkeys(_files(sources)))
        for path in paths:
            total.update(f"{path.name} {_hash_of(path)} ".encode(errors="surrogateescape"))
    except OSError as problem:
        raise CannotRun(f"`{problem.filename}` cannot be read: {problem.strerror or problem}") from problem
    return ContentHashes(bundled=bundled, own=total.hexdigest() if paths else "")


def name_in_file(name: str) -> str | None:
    """Return the task that a YAML file among the names defines; None for a name that is no file, or a group's file."""
    if not TaskSources.is_file(name):
        return None
    found = _TASK_LINE.search(Path(name).read_text("utf-8", errors="replace"))
    return None if found is None else found[1]


def _yaml_files(names: Sequence[str], folders: Sequence[Path]) -> Iterator[Path]:
    yield from (Path(name) for name in names if TaskSources.is_file(name))
    for folder in folders:
        yield from (path for path in sorted(folder.rglob("*")) if path.suffix in _YAML_NAMES and path.is_file())


def _files(sources: TaskSources) -> Iterator[Path]:
    """Yield the user's files of tasks, and the data files that a YAML file among them names by a path."""
    own = [Path(name) for name in sources.names if TaskSources.is_file(name)]
    for folder in (*sources.folders, *(path.parent for path in own)):
        found = folder.rglob("*") if folder in sources.folders else folder.glob("*")
        own += (path for path in sorted(found) if path.suffix in _SOURCES and path.is_file())
    for path in own:
        yield path
        if path.suffix in _YAML_NAMES:
            named = map(Path, _FILE_IN_YAML.findall(path.read_text("utf-8", errors="replace")))
            yield from (data for data in named if data.is_file())


def _hash_of(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > _HASHED_BYTES:
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
