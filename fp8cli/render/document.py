"""The JSON every command prints with `--json`: one envelope, the same keys for a result and for an error.

    {"schema_version": 1, "command": "inspect", "fp8_version": "…", "ok": true, "exit_code": 0,
     "result": {…}, "error": null}

`result` is the command's report, field by field: a dataclass becomes an object, bytes stay whole numbers. After
an error `result` is null and `error` is {"message": …, "hint": … or null}. A key is never removed or given
another meaning without a new `schema_version`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Final

from fp8cli import __version__
from fp8cli.errors import ExitCode, Fp8Error

SCHEMA_VERSION: Final = 1


def result_document(command: str, result: object, *, exit_code: ExitCode = ExitCode.DONE) -> dict[str, object]:
    """Return the envelope round a report. `ok` says whether the exit code is 0."""
    return _envelope(command, exit_code, result=to_json(result), error=None)


def error_document(command: str | None, error: Fp8Error) -> dict[str, object]:
    """Return the envelope of a run that ended in an error; `command` is None when none was recognised."""
    return _envelope(command, error.exit_code, result=None, error={"message": error.message, "hint": error.hint})


def to_text(document: Mapping[str, object]) -> str:
    """Write a document as text. Pure ASCII, so that no terminal's encoding can refuse it."""
    # DEL is the one control character of ASCII that JSON lets stand.
    return json.dumps(document, indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def to_json(value: object) -> object:
    """Turn a report into what JSON can say. NaN and infinity, which it cannot, become null."""
    match value:
        case None | bool() | str():
            return value
        case Enum():
            return to_json(value.value)
        case int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case PurePath():
            return str(value)
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    message = f"a report must not hold {type(value).__name__}"
    raise TypeError(message)


def _envelope(command: str | None, exit_code: ExitCode, *, result: object, error: object) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "fp8_version": __version__,
        "ok": exit_code is ExitCode.DONE,
        "exit_code": int(exit_code),
        "result": result,
        "error": error,
    }
