"""From what the user said to the order for a compression: data looked at, interpreter named, recipe read.

Whatever can be refused without llm-compressor is refused here.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from fp8cli.core.calibrating.ordering import (
    OFFLOADS,
    CalibrationOptions,
    CalibrationOrder,
    Offload,
    interpreter_at,
    order_calibration,
)
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.sampling.data import BUNDLED_MODEL
from fp8cli.errors import UsageError
from fp8cli.formats.recipe_file import RecipeFile


@dataclass(frozen=True, kw_only=True)
class CompressionOrder:
    """A compression that nothing speaks against, as far as it can be seen without the library."""

    choice: Choice
    recipe: RecipeFile | None
    data: CalibrationOrder | None
    """None where nothing needs data, or where there is none."""
    data_is_named: bool
    """Whether the user named it: then it is an error that a recipe needs none."""
    python: Path | None
    """An interpreter with llm-compressor; None: this one."""
    offload: Offload = "auto"
    """Where the weights lie; `auto` is settled by `outlook.settle_place`."""
    offload_why: str = ""
    """The reason, as the end of a sentence; empty until it is settled."""


def order_compression(
    options: CalibrationOptions, choice: Choice, *, recipe: RecipeFile | None, model: Path | None
) -> CompressionOrder:
    """Look at what a compression will need. model: the folder of the checkpoint, if it is one, for its own data.

    Raises UsageError and BadInput as `order_calibration` does. Whether a recipe needs data only llm-compressor knows.
    """
    if options.processes is not None and options.processes != 1:
        message = f"--calibration-processes {options.processes:,} is for calibration: llm-compressor's engine is one"
        raise UsageError(message, hint="leave it out, or use what --engine streaming can do")
    offload = _place_of(options)
    python = None if options.python is None else interpreter_at(options.python)
    if choice.needs_calibration:
        data = order_calibration(options, choice, model=model)
    elif recipe is not None:
        data = _data_of_recipe(options, model)
    else:
        # Words about data are refused there; here the interpreter is of use all the same.
        data = order_calibration(replace(options, python=None, offload=None, processes=None), choice, model=model)
    return CompressionOrder(
        choice=choice, recipe=recipe, data=data, data_is_named=options.data is not None, python=python, offload=offload
    )


def _place_of(options: CalibrationOptions) -> Offload:
    word = "auto" if options.offload is None else options.offload.lower()
    found = next((place for place in OFFLOADS if place == word), None)
    if found is None:
        raise UsageError(f"`{options.offload}` is no place for weights", hint=f"--offload takes {', '.join(OFFLOADS)}")
    return found


def _data_of_recipe(options: CalibrationOptions, model: Path | None) -> CalibrationOrder | None:
    has_own = model is not None and model.resolve() == BUNDLED_MODEL.resolve()
    of_data = replace(options, python=None, offload=None, processes=None)
    named = any(getattr(of_data, field.name) is not None for field in fields(of_data))
    return order_calibration(options, _NEEDS_DATA, model=model) if named or has_own else None


_NEEDS_DATA = Choice(scheme=None, kv_cache="tensor")
"""What stands for a recipe that needs data, when data are looked at."""
