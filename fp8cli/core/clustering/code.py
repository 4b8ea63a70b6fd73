"""Which code makes weights and scales: a digest that two machines can compare."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fp8cli import __version__
from fp8cli.core import kernel

_PACKAGE: Final = Path(__file__).parents[2]
_MAKES_WEIGHTS: Final = ("core/quantizing", "core/clustering", "formats", "calibrator", "samples")


@cache
def code_digest() -> str:
    """Digest of the code that makes weights and scales, with the version and the interface of the kernel."""
    digest = hashlib.sha256(f"{__version__} {kernel.INTERFACE}".encode())
    for folder in _MAKES_WEIGHTS:
        for file in sorted((_PACKAGE / folder).glob("*.py")):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
