"""Names and texts from strangers' files, short enough for where they stand and without a character that does harm."""

from fp8cli.errors import printable


def shorten(text: str, longest: int) -> str:
    """Return a text on one line, without control characters, its middle left out if it is long."""
    # Cut first: escaping ten thousand characters to drop them again would be in vain.
    return _cut(printable(_cut(text, longest)), longest)


def tail(text: str, longest: int) -> str:
    """Return the end of a text on one line, without control characters, what is left out marked by `…`."""
    if len(text) > longest:
        text = f"…{text[-longest + 1 :]}"
    safe = printable(text)
    return safe if len(safe) <= longest else f"…{safe[-longest + 1 :]}"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
