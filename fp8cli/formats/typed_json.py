"""Frozen dataclasses as JSON and back: every field is there and of its type, or the reading says which is not.

Known are what records are made of: texts, numbers, truth values, None, Literal, unions, tuples of one type, mappings
with texts as keys, other dataclasses, and `object` for whatever JSON holds. Keys that a class does not have are left
out, so that a record with fields of a later time can still be read.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def from_json(kind: type[Record], value: object, where: str = "") -> Record:
    """Return `value`, as JSON holds it, as the dataclass `kind`. Raises ValueError that names the field at fault."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{_called(where)} is not a JSON object")  # noqa: TRY004 - a wrong text, not a wrong call
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a class of records
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            fields[field.name] = _convert(hints[field.name], value[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"`{name}` is missing")
    return kind(**fields)


def _convert(hint: Any, value: object, where: str) -> object:
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where)
    if origin in {Union, types.UnionType}:
        return _convert_union(inner, value, where)
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(inner[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {str(key): _convert(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is object or _is_plainly(hint, value):
        return float(value) if hint is float and isinstance(value, int) else value
    raise ValueError(f"`{where}` is {_shown(value)}")


def _convert_union(kinds: tuple[Any, ...], value: object, where: str) -> object:
    """Return `value` as the first of the kinds that takes it."""
    problem: ValueError | None = None
    for kind in kinds:
        try:
            return _convert(kind, value, where)
        except ValueError as refusal:
            problem = refusal if problem is None or value is not None else problem
    raise problem or ValueError(f"`{where}` is {_shown(value)}")


def _is_plainly(hint: Any, value: object) -> bool:
    # A bool is an int to Python, and a number that is no number has no place in a record.
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is type(None):
        return value is None
    return isinstance(hint, type) and type(value) is hint


def _called(where: str) -> str:
    return f"`{where}`" if where else "it"


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:57]}…" if len(text) > 60 else text
