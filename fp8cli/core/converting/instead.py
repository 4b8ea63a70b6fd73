"""What to type instead of `fp8 quantize` where a checkpoint is in FP8 already: the command itself, tried on headers.

    the scheme that it has           fp8 convert, which keeps every bit
    another that needs no data       fp8 convert --requantize, which rounds a second time, and only if it is asked to
    what takes data or a choice      fp8 dequantize, and from there as ever

Quantizing does not do it by itself: it would write weights that are rounded twice, or none that are rounded at all.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.converting.coded import Coded, read_coded
from fp8cli.core.converting.refusals import decide, own_scheme
from fp8cli.core.converting.targets import TARGETS
from fp8cli.core.inspection.scale_names import FP8_DTYPES
from fp8cli.core.inspection.survey import survey
from fp8cli.core.quantizing.choices import Choice
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder
from fp8cli.formats.sources import Elsewhere
from fp8cli.schemes import Scheme

_TARGET: Final = TARGETS["compressed-tensors"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `fp8 quantize` was asked for."""

    model: str
    """The source as the user named it."""
    out: Path | None
    revision: str | None
    choice: Choice
    is_plain: bool
    """Whether nothing but a scheme was asked for: conversions choose no modules and read no data."""


def refuse_fp8(place: LocalFolder | Elsewhere, checkpoint: Checkpoint, wanted: Wanted) -> None:
    """Raise BadInput with the command that does what was meant, if the checkpoint is in FP8 that is understood."""
    if not any(info.dtype in FP8_DTYPES for info in checkpoint.tensors.values()):
        return
    try:
        coded = read_coded(survey(place))
    except BadInput:
        return  # Codes that nobody here understands are refused as whatever else is quantized.
    if coded.weights:
        raise _refusal(coded, wanted)


def _refusal(coded: Coded, wanted: Wanted) -> BadInput:
    scheme, own = wanted.choice.scheme, own_scheme(coded, _TARGET)
    what = f"`{wanted.model}` is in FP8 already ({coded.called}: {coded.words})"
    if scheme is None or not wanted.is_plain or scheme.needs_calibration:
        message = f"{what}, and what is asked for starts from 16 bits"
        back = shlex.join(["fp8", "dequantize", wanted.model, *_revision(wanted)])
        return BadInput(
            message, hint=f"{back}, then quantize what that writes; the bits that FP8 took do not come back"
        )
    if scheme != own:
        decide(coded, _TARGET, scheme=scheme.name, requantize=True)
        message = f"{what}, and {scheme.name} would round every weight a second time"
        again = _convert(wanted, "--requantize", "--scheme", scheme.name)
        return BadInput(message, hint=f"{again} does that{_or_exactly(coded, own, wanted)}")
    if coded.name == _TARGET.name:
        message = f"{what}, which is {scheme.name}: there is nothing to quantize"
        return BadInput(message, hint=f"fp8 inspect {shlex.quote(wanted.model)} shows what it holds")
    decide(coded, _TARGET, scheme=None, requantize=False)
    return BadInput(what, hint=f"{_convert(wanted)} makes {scheme.name} of it and keeps every bit")


def _or_exactly(coded: Coded, own: Scheme | None, wanted: Wanted) -> str:
    if own is None or coded.name == _TARGET.name:
        return ""
    return f", and without --requantize and --scheme {wanted.choice.name} it keeps every bit, as {own.name}"


def _revision(wanted: Wanted) -> tuple[str, ...]:
    return () if wanted.revision is None else ("--revision", wanted.revision)


def _convert(wanted: Wanted, *options: str) -> str:
    out = () if wanted.out is None else ("-o", str(wanted.out))
    return shlex.join(["fp8", "convert", wanted.model, "--to", _TARGET.name, *options, *_revision(wanted), *out])
