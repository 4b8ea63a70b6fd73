"""What a file really is that only has the name of safetensors.

The safetensors library says "header too large" to a pickle, an LFS pointer and an error page alike. This is asked
only once a file has turned out not to be safetensors, so a rare header length that looks like a magic does no harm.
"""

from typing import Final

from fp8cli.formats.complaints import Fault

SNIFF_BYTES: Final = 32
"""As many first bytes as `refuse_impostor` wants to see."""

_ANOTHER_FORMAT: Final = "start from the safetensors files of that model"
_ERROR_PAGE: Final = "the download saved an error page; fetch that file again"
_IMPOSTORS: Final = (
    (b"PK\x03\x04", "a zip archive, as PyTorch writes its pickles", _ANOTHER_FORMAT),
    (b"\x80\x02", "a Python pickle", _ANOTHER_FORMAT),
    (b"\x80\x03", "a Python pickle", _ANOTHER_FORMAT),
    (b"\x80\x04", "a Python pickle", _ANOTHER_FORMAT),
    (b"\x80\x05", "a Python pickle", _ANOTHER_FORMAT),
    (b"GGUF", "a GGUF file", _ANOTHER_FORMAT),
    (b"\x89HDF", "an HDF5 file", _ANOTHER_FORMAT),
    (b"\x1f\x8b", "a gzip archive", "unpack it with `gunzip`"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it points to",
        "fetch the real file with `git lfs pull`, or download with `hf download`",
    ),
    (b"<!", "an HTML page", _ERROR_PAGE),
    (b"<html", "an HTML page", _ERROR_PAGE),
    (b"<?xml", "an XML page", _ERROR_PAGE),
)


def refuse_impostor(first: bytes, *, name: str, expected: str = "safetensors") -> None:
    """Raise a Fault if the `first` bytes of the file `name` tell what it is instead; else return."""
    for magic, what, hint in _IMPOSTORS:
        if first.startswith(magic):
            message = f"`{name}` is {what}, not {expected}"
            raise Fault("file.impostor", message, hint=hint)
