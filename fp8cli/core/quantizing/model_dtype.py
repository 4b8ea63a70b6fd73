"""The dtype of a model: what its weights have before they are quantized, and what scales and the rest are stored in."""

from collections.abc import Mapping
from typing import Final

from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES

_NAMED_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16", "float": "F32"}
"""Model dtypes the arithmetic is defined for, by the names used in config.json and on the command line."""

DTYPE_CHOICES: Final = ("auto", "bfloat16", "float16", "float32")


def model_dtype(checkpoint: Checkpoint, wanted: str = "auto") -> str:
    """Return the safetensors tag of the model dtype: `wanted`, or what transformers' dtype="auto" picks.

    That is `dtype` (formerly `torch_dtype`) of config.json, else the dtype of the first floating-point tensor of
    the first shard. Raises UsageError for an unknown `wanted`, BadInput for a config that names another.
    """
    if wanted != "auto":
        if wanted not in DTYPE_CHOICES:
            message = f"`{wanted}` is no dtype a checkpoint can be quantized from"
            raise UsageError(message, hint=f"--dtype takes one of {', '.join(DTYPE_CHOICES)}")
        return _NAMED_DTYPES[wanted]
    named = _config_dtype(checkpoint.config)
    if named is None:
        floating = [info.dtype for info in checkpoint.shards[0].header.tensors if DTYPES[info.dtype].floating]
        named = DTYPES[floating[0]].torch_name if floating else "float32"
    tag = _NAMED_DTYPES.get(named.removeprefix("torch."))
    if tag is None:
        message = f"config.json names the dtype `{named}`, from which FP8 is not defined"
        raise BadInput(message, hint="choose one with --dtype bfloat16, float16 or float32")
    return tag


def named_dtype(config: Mapping[str, object]) -> str | None:
    """Return the tag of the dtype that config.json names; None: it names none, or one that FP8 is not defined from.

    Raises BadInput for a value that is no name.
    """
    return _NAMED_DTYPES.get((_config_dtype(config) or "").removeprefix("torch."))


def _config_dtype(config: Mapping[str, object]) -> str | None:
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            message = f"config.json has a `{key}` that is not a name: {value!r}"
            raise BadInput(message, hint="choose one with --dtype bfloat16, float16 or float32")
        return value
    return None
