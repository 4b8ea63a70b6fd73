"""Values of a config as JSON has them, which may be anything: what is wanted, or nothing in its place."""

from collections.abc import Iterable, Mapping


def as_mapping(value: object) -> Mapping[str, object]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def names_under(block: Mapping[str, object], keys: Iterable[str]) -> tuple[str, ...]:
    """The texts in the lists under some keys, one after the other."""
    return tuple(name for key in keys for name in as_texts(block.get(key)))


def as_texts(value: object) -> tuple[str, ...]:
    """The texts in a list; none if it is no list."""
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def as_text(value: object) -> str | None:
    """A text, or None in place of anything else."""
    return value if isinstance(value, str) else None


def as_size(value: object) -> int | None:
    """A positive number of rows, columns or bits, or None in place of anything else."""
    return value if type(value) is int and 0 < value < 2**31 else None


def as_pair(value: object) -> tuple[int, int] | None:
    """Two of them."""
    match value:
        case [rows, columns] if (first := as_size(rows)) and (second := as_size(columns)):
            return first, second
        case _:
            return None
