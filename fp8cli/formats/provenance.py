"""`fp8.json`, which lies beside the weights: what a checkpoint was made from, by what, and the SHA-256 of every file.

    {"schema_version": 1, "tools": {"fp8cli": "…"}, "plan": {"command": "quantize", …},
     "source": {"name": "org/name", "commit": "…", "files": {"config.json": {"bytes": …, "sha256": "…"}}},
     "files": {"config.json": {"bytes": …, "sha256": "…"}, …}}

`files` names every file of the checkpoint but this one. The same inputs give the same text, byte for byte: no date, no
host, no path; keys are sorted. Whoever signs this one file has signed all of them.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal, NoReturn

from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.budget_note import BudgetNote
from fp8cli.formats.calibration_note import CalibrationNote
from fp8cli.formats.checkpoint import Folder
from fp8cli.formats.typed_json import from_json

PROVENANCE: Final = "fp8.json"
SCHEMA_VERSION: Final = 1

MAX_BYTES: Final = 50_000_000
"""No fp8.json is as large: 10,000 files and their source take two megabytes."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_NAME: Final = 4_096
_FETCH_AGAIN: Final = "fetch that file again, or make the checkpoint anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """One file."""

    bytes: int
    sha256: str | None
    """None: nobody has computed it."""


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What a checkpoint was made from."""

    name: str
    """Hub id, or the name of a folder without where it lay."""
    commit: str | None
    """Of the Hub's repository."""
    files: Mapping[str, FileFacts]
    """Every file that was read."""
    hub_says: tuple[str, ...]
    """Files whose SHA-256 is the one by which the Hub's cache calls them; of all others every byte was hashed."""


@dataclass(frozen=True, kw_only=True)
class PlanNote:
    """What was done, in short."""

    command: Literal["quantize", "convert", "dequantize"]
    made: str
    """`FP8_DYNAMIC`, a dialect, a dtype."""
    words: str
    """The same in a sentence."""
    scheme: str | None
    kv_cache: str | None
    dtype: str
    """Of what is not quantized."""
    engine: Literal["streaming", "llmcompressor"]
    targets: tuple[str, ...]
    ignore: tuple[str, ...]
    modifiers: tuple[str, ...]
    counts: Mapping[str, int]
    """Tensors by what was done to them."""
    fingerprint: str
    """Of the layout and of every decision; see core.quantizing.plan."""
    calibration: CalibrationNote | None = None
    budget: BudgetNote | None = None


@dataclass(frozen=True, kw_only=True)
class ProvenanceFile:
    """The whole document."""

    tools: Mapping[str, str]
    """Versions of what made the weights."""
    plan: PlanNote
    source: SourceFacts
    files: Mapping[str, FileFacts]
    """Every file of the checkpoint but this one."""
    schema_version: int = SCHEMA_VERSION


def provenance_text(provenance: ProvenanceFile) -> str:
    """Return the document as its file holds it: pure ASCII, keys sorted, a newline at the end."""
    return json.dumps(dataclasses.asdict(provenance), indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_provenance(folder: Folder) -> ProvenanceFile:
    """Read the document of a checkpoint.

    Raises CannotRun where there is none or one of a later version, BadInput for one that is not what it must be: names
    that lead out of the folder, numbers that are none, a text that is cut short.
    """
    size = folder.files().get(PROVENANCE)
    if size is None:
        message = f"`{folder.label}` has no `{PROVENANCE}`, which says what its files must be"
        hint = "fp8 quantize, convert and dequantize write one; fp8 inspect CKPT --verify knows other stored hashes"
        raise CannotRun(message, hint=hint)
    if size > MAX_BYTES:
        message = f"`{PROVENANCE}` of `{folder.label}` is {size:,} bytes long, and none has more than {MAX_BYTES:,}"
        raise BadInput(message, hint=_FETCH_AGAIN)
    return parse_provenance(folder.read(PROVENANCE), label=folder.label)


def parse_provenance(text: bytes, *, label: str) -> ProvenanceFile:
    """Return the document that `text` is; `label` is what messages call its folder. Raises as `read_provenance`."""
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        if type(version) is int and version > SCHEMA_VERSION:
            message = f"`{PROVENANCE}` of `{label}` has schema version {version}; this fp8 reads {SCHEMA_VERSION}"
            raise CannotRun(message, hint="install the fp8 that wrote it, or a later one")
        found = from_json(ProvenanceFile, fields)
        _refuse_impossible(found)
    except (ValueError, RecursionError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        message = f"`{PROVENANCE}` of `{label}` is not what it must be: {reason}"
        raise BadInput(message, hint=_FETCH_AGAIN) from None
    return found


def _refuse_impossible(found: ProvenanceFile) -> None:
    if found.schema_version < 1:
        raise ValueError(f"`schema_version` is {found.schema_version}")
    for where, files in (("files", found.files), ("source.files", found.source.files)):
        for name, facts in files.items():
            if not _is_plain(name):
                raise ValueError(f"`{where}` names `{name[:200]}`, which is no file in its folder")
            if facts.bytes < 0:
                raise ValueError(f"`{where}` says that `{name}` has {facts.bytes} bytes")
            if facts.sha256 is not None and not _SHA256.fullmatch(facts.sha256):
                raise ValueError(f"the SHA-256 of `{name}` is no 64 hexadecimal digits")
    if PROVENANCE in found.files:
        raise ValueError("it has a hash of itself")


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in its folder or below, written in the one way there is."""
    return (
        0 < len(name) <= _MAX_NAME
        and "\0" not in name
        and not name.startswith("/")
        and ".." not in name.split("/")
        and str(PurePosixPath(name)) == name
        and name != "."
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name stands in it twice")
    return members


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
