"""Calibration data: where it comes from, and everything about it that can be refused before a model is loaded.

A JSON Lines, JSON or text file is read here, and the rows that are drawn are checked. A Parquet file and a data set of
the Hub need libraries that the calibrator's interpreter has: their rows are read and checked there, still before the
model. Rows are drawn with a seed, and the same file, number and seed always give the same ones.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput, UsageError
from fp8cli.samples.request import ROWS, DataKind, SampleRequest
from fp8cli.samples.rows import Row, UnfitData, choose_rows, find_column, read_content

SAMPLES_DEFAULT: Final = 512
SEED_DEFAULT: Final = 1234
DEFAULT_SPLIT: Final = "train"

BUNDLED_MODEL: Final = Path(__file__).parents[2] / "bundled" / "stories-llama"
BUNDLED_STORIES: Final = BUNDLED_MODEL / "heldout.jsonl"
BUNDLED_NOTE: Final = (
    "calibrated on stories that the bundled evaluation asks about too, since none of its training texts is bundled"
)

_LINES: Final = frozenset({".jsonl", ".ndjson"})
_SUFFIXES: Final = (*sorted(_LINES), ".json", ".txt", ".parquet")
_HUB: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<configuration>[\w.-]+))?(?::(?P<split>[\w.\[\]%:+-]+))?")
_FORMS: Final = "a file (.jsonl, .json, .txt, .parquet) or a data set of the Hub, `org/name[/configuration][:split]`"
_PARQUET_MAGIC: Final = b"PAR1"

_Drawn = tuple[tuple[Row, ...], str | None]
"""Rows that were drawn, and the column they stand in."""


@dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """Data that nothing speaks against, as far as it can be seen without the libraries that read it."""

    source: str
    """What messages and records call it."""
    kind: DataKind
    rows: tuple[Row, ...]
    """Those that were drawn; none where the calibrator draws them."""
    place: str | None
    """The file, or the name on the Hub, that the calibrator reads."""
    configuration: str | None
    split: str
    column: str | None
    """Where texts or conversations stand; None: not known yet, or a text file."""
    fingerprint: str
    """SHA-256 of the rows or of the Parquet file. Of a data set on the Hub, whose content is not looked at here, the
    name. What the model was shown in the end has a digest of its own, see `CalibrationFacts`."""
    notes: tuple[str, ...]
    """What a report should say of it."""

    def request(self, *, samples: int, max_seq_length: int, seed: int, chat_template: str | None) -> SampleRequest:
        """Return what the process is told that reads the samples."""
        return SampleRequest(
            kind=self.kind,
            source=self.source,
            place=self.place,
            configuration=self.configuration,
            split=self.split,
            column=self.column,
            samples=samples,
            max_seq_length=max_seq_length,
            seed=seed,
            chat_template=chat_template,
        )

    def hand_over(self, folder: Path) -> None:
        """Write the rows that were read here to where the process looks for them."""
        with (folder / ROWS).open("w", encoding="utf-8") as stream:
            for row in self.rows:
                stream.write(json.dumps({"row": row.number, "content": row.content}) + "\n")


def read_calibration(
    source: str | None,
    *,
    model: Path | None = None,
    column: str | None = None,
    samples: int = SAMPLES_DEFAULT,
    seed: int = SEED_DEFAULT,
) -> CalibrationData:
    """Return the data to calibrate with.

    source: a file, or `org/name[/configuration][:split]` on the Hub; None: the bundled stories, if `model` is the
    bundled one. column: where the texts or conversations stand; None: `messages`, `conversations` or `text`.

    Raises UsageError where nothing is named that could be data, BadInput where what is named cannot be used.
    """
    if samples < 1:
        raise UsageError(f"--num-calibration-samples is {samples:,}, and calibration takes 1 or more")
    try:
        if source is None:
            return _bundled(model, column, samples, seed)
        path = Path(source).expanduser()
        if path.exists() or path.suffix.lower() in _SUFFIXES or source.startswith(("/", ".", "~")):
            return _from_file(path, source, column, samples, seed)
        return _on_hub(source, column)
    except UnfitData as unfit:
        raise BadInput(unfit.message, hint=unfit.hint) from unfit


def _bundled(model: Path | None, column: str | None, samples: int, seed: int) -> CalibrationData:
    if model is None or model.resolve() != BUNDLED_MODEL.resolve():
        raise UsageError("calibration needs data", hint=f"name {_FORMS} with --calibration-data")
    rows, name = _draw_lines(BUNDLED_STORIES, "the bundled stories", column, samples, seed)
    return _of_rows(rows, "the bundled stories", name, notes=(BUNDLED_NOTE,))


def _from_file(path: Path, source: str, column: str | None, samples: int, seed: int) -> CalibrationData:
    try:
        if not path.is_file():
            reason = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
            raise BadInput(f"`{source}` {reason}", hint=f"calibration data is {_FORMS}")
        match path.suffix.lower():
            case suffix if suffix in _LINES:
                rows, name = _draw_lines(path, source, column, samples, seed)
            case ".json":
                rows, name = _draw_json(path, source, column, samples, seed)
            case ".txt":
                _refuse_column(column, source)
                rows, name = _draw_texts(path, source, samples, seed)
            case ".parquet":
                return _parquet(path, source, column)
            case suffix:
                message = f"`{source}` ends in `{suffix}`, which is not read as calibration data"
                raise UsageError(message, hint=f"calibration data is {_FORMS}")
    except OSError as problem:
        raise BadInput(f"`{source}` cannot be read: {problem.strerror or problem}") from problem
    return _of_rows(rows, source, name)


def _of_rows(rows: tuple[Row, ...], source: str, column: str | None, notes: tuple[str, ...] = ()) -> CalibrationData:
    return CalibrationData(
        source=source,
        kind="rows",
        rows=rows,
        place=None,
        configuration=None,
        split=DEFAULT_SPLIT,
        column=column,
        fingerprint=hashlib.sha256(json.dumps([row.content for row in rows]).encode()).hexdigest(),
        notes=notes,
    )


def _parquet(path: Path, source: str, column: str | None) -> CalibrationData:
    with path.open("rb") as file:
        first = file.read(len(_PARQUET_MAGIC))
        file.seek(-min(len(_PARQUET_MAGIC), path.stat().st_size), 2)
        last = file.read()
        if first != _PARQUET_MAGIC or last != _PARQUET_MAGIC:
            reason = "is cut short: its end is missing" if first == _PARQUET_MAGIC else "is no Parquet file"
            raise UnfitData(f"`{source}` {reason}")
        file.seek(0)
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return CalibrationData(
        source=source,
        kind="parquet",
        rows=(),
        place=str(path.absolute()),
        configuration=None,
        split=DEFAULT_SPLIT,
        column=column,
        fingerprint=fingerprint,
        notes=(),
    )


def _on_hub(source: str, column: str | None) -> CalibrationData:
    found = _HUB.fullmatch(source)
    if found is None:
        message = f"`{source}` is neither a file nor the name of a data set on the Hub"
        raise UsageError(message, hint=f"calibration data is {_FORMS}")
    return CalibrationData(
        source=source,
        kind="hub",
        rows=(),
        place=found["name"],
        configuration=found["configuration"],
        split=found["split"] or DEFAULT_SPLIT,
        column=column,
        fingerprint=source,
        notes=(),
    )


def _draw_lines(path: Path, source: str, column: str | None, samples: int, seed: int) -> _Drawn:
    """Draw rows of a JSON Lines file. Lines that are not drawn are only counted."""
    with path.open("rb") as lines:
        filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    wanted = {filled[place] for place in choose_rows(len(filled), samples, seed, source)}
    parsed: dict[int, Mapping[str, object]] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number in wanted:
                parsed[number] = _object(_parse(line, f"row {number:,} of `{source}`"), number, source)
    return _take_column(parsed, column, source)


def _draw_json(path: Path, source: str, column: str | None, samples: int, seed: int) -> _Drawn:
    """Draw rows of a JSON file that holds a list, of objects or of texts."""
    value = _parse(path.read_bytes(), f"`{source}`")
    if not isinstance(value, list):
        raise UnfitData(f"`{source}` holds no list of rows", "one row a line goes into a .jsonl file")
    places = choose_rows(len(value), samples, seed, source)
    if all(isinstance(value[place], str) for place in places):
        _refuse_column(column, source)
        return tuple(Row(number=at + 1, content=read_content(value[at], at + 1, source)) for at in places), None
    return _take_column({place + 1: _object(value[place], place + 1, source) for place in places}, column, source)


def _draw_texts(path: Path, source: str, samples: int, seed: int) -> _Drawn:
    """Draw lines of a text file. A blank line is a gap between texts, not a text."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as problem:
        raise UnfitData(f"`{source}` is not UTF-8 at byte {problem.start:,}") from None
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    places = choose_rows(len(filled), samples, seed, source)
    return tuple(Row(number=filled[place], content=lines[filled[place] - 1].strip()) for place in places), None


def _take_column(rows: Mapping[int, Mapping[str, object]], column: str | None, source: str) -> _Drawn:
    name = find_column(tuple(next(iter(rows.values()))), column, source)
    for number, row in rows.items():
        if name not in row:
            raise UnfitData(f"row {number:,} of `{source}` has no `{name}`, as other rows have", "leave it out")
    return tuple(Row(number=at, content=read_content(row[name], at, source)) for at, row in rows.items()), name


def _object(value: object, number: int, source: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UnfitData(f"row {number:,} of `{source}` is no JSON object", 'a row is an object such as {"text": "…"}')
    return value


def _parse(text: bytes, where: str) -> object:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise UnfitData(f"{where} is not UTF-8 at byte {problem.start:,}") from None
    except json.JSONDecodeError as problem:
        raise UnfitData(f"{where} is not JSON: {problem.msg} at character {problem.pos:,}") from None
    except RecursionError:
        raise UnfitData(f"{where} is nested too deeply") from None


def _refuse_column(column: str | None, source: str) -> None:
    if column is not None:
        raise UsageError(f"`{source}` holds texts without columns, so --text-column `{column}` names nothing")
