"""Secrets stay out of what is kept: access tokens reach the worker, which may need them, but no log and no message."""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from fp8cli.core.machine.interpreters import SECRET_NAME

MASKED: Final = "***"

_SHORTEST: Final = 8
"""Shorter values of such variables are switches and numbers, not secrets: `1`, `false`."""

_SHAPES: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}"
    r"|(?<=://)[^/\s@]+:[^/\s@]+(?=@)"
    r"|(?<=Bearer )[^\s'\"]+"
    r"|(?i:(?<=[?&]token=)|(?<=[?&]signature=)|(?<=[?&]x-amz-signature=)|(?<=[?&]x-amz-security-token=))[^&\s'\"]+"
)
"""What tokens look like, wherever they come from: of the Hub, of servers, users in addresses, signed addresses."""


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of variables whose names say that they are secret, longest first."""
    values = {value for name, value in environ.items() if SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    return tuple(sorted(values, key=len, reverse=True))


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text with every secret, and all that looks like one, made unreadable."""
    for secret in secrets:
        text = text.replace(secret, MASKED)
    return _SHAPES.sub(MASKED, text)


def mask_file(path: Path, secrets: Iterable[str]) -> None:
    """Mask a file that nobody writes to any more. It is left alone if there is nothing to mask."""
    secrets = tuple(secrets)
    masked = path.with_name(f".{path.name}.masked")
    changed = False
    try:
        with (
            path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines,
            masked.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
        ):
            for line in lines:
                clean = mask(line, secrets)
                changed = changed or clean != line
                stream.write(clean)
        if changed:
            shutil.copymode(path, masked)
            masked.replace(path)
    finally:
        masked.unlink(missing_ok=True)
