"""Whether a regular expression from a stranger's config is safe to try: told by its shape, without trying it.

Python's `re` goes back over every way to match. A repeated group with a choice or a repetition in it, such as
`(a|b)*` or `(a+)+`, can have exponentially many ways; each further repetition makes the worst case longer by a factor
of the length of the name. No published config has either.
"""

import re
from typing import Final

LONGEST: Final = 1_000
MOST_REPEATS: Final = 6

# What matters, in order; escaped characters and classes in brackets are passed over as one.
_TOKEN: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|*+]|\{\d*,\d*\}", re.DOTALL)


def is_too_costly(pattern: str) -> bool:
    """Whether matching could take longer than anyone waits."""
    if len(pattern) > LONGEST:
        return True
    has_ways = [
        False
    ]  # of the pattern, and of each group that is open: whether there is a choice or a repetition in it
    closed_at = -1  # where a group with several ways ended
    repeats = 0
    for token in _TOKEN.finditer(pattern):
        match token.group():
            case "(":
                has_ways.append(False)
            case ")" if len(has_ways) > 1:
                if has_ways.pop():
                    has_ways[-1] = True
                    closed_at = token.end()
            case "|":
                has_ways[-1] = True
            case text if text in {"*", "+"} or text.startswith("{"):
                if token.start() == closed_at:
                    return True
                has_ways[-1] = True
                repeats += 1
    return repeats > MOST_REPEATS
