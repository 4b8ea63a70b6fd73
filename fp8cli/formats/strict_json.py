"""JSON as strictly as the safetensors library's parser reads it, where Python's own is laxer.

Python keeps the last of two equal names, and takes NaN, `-0` as an integer, half a surrogate pair, any depth and
any number. A header that one reader takes and another refuses is worth nothing, so all of these are errors here.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

# The library stops at 127 levels; the header's own object and the tensor's are the first two.
_MAX_EXTRA_DEPTH: Final = 125
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parse_strictly(text: bytes, on_repeat: Callable[[str], None]) -> object:
    """Return the value of a JSON text in UTF-8. Raises ValueError with the reason in words.

    on_repeat: told every name that comes twice in one object; if it returns, the last one counts.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            for name, times in Counter(name for name, _ in pairs).most_common():
                if times == 1:
                    break
                on_repeat(name)
        return members

    try:
        decoded = text.decode()
        # The hook slows every number, so it is only set for texts that can have a "-0".
        parse_int = _parse_int if "-0" in decoded else None
        value = json.loads(decoded, object_pairs_hook=unique, parse_constant=_refuse_constant, parse_int=parse_int)
    except UnicodeDecodeError as problem:
        message = f"not UTF-8 at byte {problem.start:,}"
        raise ValueError(message) from None
    except json.JSONDecodeError as problem:
        message = f"{problem.msg} at character {problem.pos:,}" if decoded else "it is empty"
        raise ValueError(message) from None
    except RecursionError:
        message = "nested too deeply"
        raise ValueError(message) from None
    if _SURROGATE_ESCAPE.search(decoded):
        _refuse_lone_surrogates(value)
    return value


def refuse_deep_or_huge(values: Iterable[object]) -> None:
    """Raise ValueError if `values`, ignored fields of a tensor, nest too deeply or hold a number beyond a double."""
    level, depth = list(values), 0
    while level:
        if any(_is_beyond_double(value) for value in level):
            message = "a number is too large"
            raise ValueError(message)
        containers = [value for value in level if isinstance(value, list | dict)]
        depth += 1
        if containers and depth > _MAX_EXTRA_DEPTH:
            message = "nested too deeply"
            raise ValueError(message)
        level = [member for inner in containers for member in (inner.values() if isinstance(inner, dict) else inner)]


def _parse_int(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)


def _refuse_constant(constant: str) -> NoReturn:
    message = f"{constant} is not JSON"
    raise ValueError(message)


def _refuse_lone_surrogates(value: object) -> None:
    # Half a pair is no text: Python would carry it along until something has to write it as UTF-8.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = "an escape is half of a surrogate pair"
        raise ValueError(message) from None


def _is_beyond_double(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isinf(value)
    except OverflowError:
        return True
