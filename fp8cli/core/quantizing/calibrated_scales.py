"""The scales that only data can tell: which of them a plan needs, and whether those it is given will do.

A Linear with static activations takes `X.input_scale`, one number that multiplies its FP8 inputs. An attention
layer with an FP8 cache takes `….self_attn.k_scale` and `v_scale`, one number each or one for each head of keys and
values. All are stored in the model dtype, as llm-compressor's `oneshot` stores them. Names are enough to plan them;
their values come from calibration, and are looked at before they are written: a scale that is missing, zero or
NaN makes nonsense of a whole layer, and vLLM loads it without a word.
"""

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.errors import BadInput
from fp8cli.formats.safetensors import TensorInfo, data_bytes
from fp8cli.schemes import KvCache, Scheme

CalibratedKind = Literal["input", "k", "v"]

_CACHED: Final = re.compile(r"((?:.+\.)?(?:self_attn|attention))\.(k_proj|v_proj|qkv_proj|kv_b_proj)\.weight")
"""Weights of the attention modules whose cache compressed-tensors 0.19 quantizes and llm-compressor calibrates.

The first asks for a class with attention in its name and one of these projections (`is_cached_attention_module`),
the second for one of the two module names (`KV_CACHE_TARGETS`). Where only the first agrees, as for `attn`, the
scales would stay uncalibrated memory.
"""

_AGAIN: Final = "calibrate again with --restart; text that is more like what the model will read may help"
_OVERFLOWED: Final = "the activations there may be beyond the largest number of FP16: use --dtype bfloat16"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedScale:
    """One scale that calibration must supply, and where it goes. It multiplies to decode."""

    name: str
    info: TensorInfo
    """Its dtype, shape and place in the output shard."""
    shard: str
    kind: CalibratedKind
    module: str
    """The Linear whose input it scales, or the attention module whose keys or values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearWeight:
    """The weight of an nn.Linear in the output, as much of it as says which scales belong beside it."""

    name: str
    shard: str
    quantized: bool


def draft_scales(
    weights: Sequence[LinearWeight],
    scheme: Scheme | None,
    dtype: str,
    *,
    kv_cache: KvCache | None,
    kv_heads: int | None,
) -> list[PlannedScale]:
    """Return every scale that calibration must supply, its offsets relative to nothing yet.

    weights: all Linears of the model. dtype: tag of the model dtype. kv_heads: needed for one scale per head.
    The scales of a cache lie in the shard of that layer's `k_proj`, or of the weight that holds its keys.
    """
    drafts = []
    if scheme is not None and not scheme.dynamic_activations:
        for weight in weights:
            if weight.quantized:
                module = weight.name.removesuffix(".weight")
                drafts.append(_draft("input", module, weight.shard, dtype, (1,)))
    if kv_cache is not None:
        shape = (1,) if kv_cache == "tensor" else (kv_heads or 0, 1, 1)
        for module, shard in cached_attentions((weight.name, weight.shard) for weight in weights).items():
            drafts += [_draft(kind, module, shard, dtype, shape) for kind in ("k", "v")]
    return drafts


def cached_attentions(weights: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the attention modules with a cache that can be calibrated, each with the shard of its keys' weight.

    weights: (name, shard) of the weights of all Linears.
    """
    places: dict[str, str] = {}
    for name, shard in weights:
        found = _CACHED.fullmatch(name)
        if found is None:
            continue
        module, projection = found.groups()
        if projection == "v_proj":
            places.setdefault(module, shard)
        else:
            places[module] = shard
    return places


def _draft(kind: CalibratedKind, module: str, shard: str, dtype: str, shape: tuple[int, ...]) -> PlannedScale:
    name = f"{module}.{kind}_scale"
    size = data_bytes(dtype, shape)
    return PlannedScale(name=name, info=TensorInfo(name, dtype, shape, 0, size), shard=shard, kind=kind, module=module)


def check_scales(planned: Sequence[PlannedScale], scales: Mapping[str, bytes]) -> None:
    """Refuse scales that are not exactly those planned, or that cannot scale anything.

    scales: by name, the little-endian bytes of each. Raises BadInput for one that is missing, surplus, of another
    size, NaN, infinite, zero or negative.
    """
    wanted = {scale.name: scale for scale in planned}
    missing = [name for name in wanted if name not in scales]
    if missing:
        message = f"calibration left out {len(missing)} of {len(wanted)} scales (first: `{missing[0]}`)"
        raise BadInput(message, hint=_hint_for_missing(wanted[missing[0]]))
    surplus = [name for name in scales if name not in wanted]
    if surplus:
        many = f"{len(surplus)} of {len(scales)} scales"
        message = f"calibration gave {many} for which the output has no place (first: `{surplus[0]}`)"
        raise BadInput(message, hint="fp8 quantize MODEL --dry-run --details shows which layers are quantized")
    for name, scale in wanted.items():
        _check_values(scale, scales[name])


def _check_values(scale: PlannedScale, raw: bytes) -> None:
    if len(raw) != scale.info.bytes:
        message = f"calibration gave `{scale.name}` {len(raw):,} bytes, where {scale.info.bytes:,} belong"
        raise BadInput(message, hint=_AGAIN)
    for number, value in enumerate(decode(scale.info.dtype, raw)):
        if not (math.isfinite(value) and value > 0):
            which = "" if scale.info.elements == 1 else f" for head {number}"
            message = f"calibration found {value} as `{scale.name}`{which}, which scales nothing"
            overflowed = scale.info.dtype == "F16" and not math.isfinite(value)
            raise BadInput(message, hint=_OVERFLOWED if overflowed else _AGAIN)


def _hint_for_missing(scale: PlannedScale) -> str:
    if scale.kind == "input":
        return f"keep that layer as it is with --ignore {scale.module}"
    return "leave the cache in 16 bits: drop --kv-cache"


def decode(dtype: str, raw: bytes) -> tuple[float, ...]:
    """Return the numbers of a small tensor, without numpy. dtype: `BF16`, `F16` or `F32`; raw: little-endian."""
    if dtype == "BF16":  # The upper half of a float32.
        raw = b"".join(b"\0\0" + raw[begin : begin + 2] for begin in range(0, len(raw), 2))
    letter = "e" if dtype == "F16" else "f"
    return struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)
