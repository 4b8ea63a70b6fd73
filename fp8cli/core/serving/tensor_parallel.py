"""Over how many GPUs vLLM can split a model, and what stands in the way of the other numbers.

Heads are dealt out whole: their number must be a multiple of the GPUs; so must that of the heads of keys and values,
unless there are fewer of those than GPUs, which are then copied. Weights are cut by columns of the output or of the
input, and the cut must come out even. Blocks of scales must not be cut, so with blocks each GPU's part has to be a
multiple of the block, in weights that vLLM merges (q, k and v; gate and up) each of the parts that are merged. What
kernels do with columns that are no multiple of the block, no check of vLLM's says before they run (`group_size` in
`per_token_group_quant_fp8` refuses them, its counterpart in torch pads them), and here it is not checked either.

Sources, all vLLM 0.32: vllm/config/model.py `verify_with_parallel_config`; vllm/model_executor/layers/linear.py;
vllm/model_executor/layers/quantization/utils/fp8_utils.py `validate_fp8_block_shape` and
`validate_fp8_block_shape_moe`; vllm/model_executor/layers/fused_moe/config.py; for GPUs that are more than experts,
models/qwen3_moe.py and others. The vocabulary is padded by vLLM.
Which way a weight is cut is told by its name; names that are not in the table are named as not checked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.core.folding import fold
from fp8cli.core.model.architectures import pattern_of
from fp8cli.core.model.attention import Attention

SIZES: Final = (1, 2, 4, 8, 16)

Verdict = Literal["works", "refused", "not checked"]
Cut = Literal["output", "input", "qkv", "fused qkv", "gate and up", "fused gate and up", "experts", "whole"]
"""How a weight is split: by rows of [out, in], by its columns, by rows together with those it is merged with, as one
of many experts, or not at all."""

_CUTS: Final[Mapping[str, Cut]] = {
    **dict.fromkeys("o_proj down_proj out_proj dense dense_4h_to_h fc2 w2 wo c_proj".split(), "input"),
    **dict.fromkeys("q_b_proj kv_b_proj dense_h_to_4h fc1 c_fc".split(), "output"),
    **dict.fromkeys("q_proj k_proj v_proj".split(), "qkv"),
    **dict.fromkeys("qkv_proj query_key_value".split(), "fused qkv"),
    **dict.fromkeys("gate_proj up_proj w1 w3".split(), "gate and up"),
    "gate_up_proj": "fused gate and up",
    **dict.fromkeys("q_a_proj kv_a_proj_with_mqa".split(), "whole"),
}
"""Last part of a module's name → how it is cut."""

_MERGED: Final[frozenset[Cut]] = frozenset({"qkv", "fused qkv", "gate and up", "fused gate and up"})
"""What vLLM holds in one layer of several parts, for which it lets blocks of DeepSeek's own format not fit together
(vllm/model_executor/layers/linear.py `_maybe_allow_fp8_block_shape_mismatch`)."""

_GATES: Final = ("gate_proj", "w1")
"""First of the two that are merged; without it `up_proj` stands alone."""

_EXPERTS: Final = ".experts."
_TOWERS: Final = ("visual.", "vision", "audio", "multi_modal_projector")
"""Parts of models that see or hear: vLLM splits them each in its own way."""


@dataclass(frozen=True, kw_only=True)
class TensorParallel:
    """Whether vLLM can split the model over so many GPUs."""

    size: int
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    """What stands in the way, a sentence each, naming the weights as one pattern."""
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """Weights of one pattern and shape."""

    names: tuple[str, ...]
    rows: int
    columns: int
    module: str
    """Last part of the module's name: `down_proj`."""
    cut: Cut
    experts: int = 0
    """How many experts of a layer there are at most; 0 where it belongs to none."""

    def __str__(self) -> str:
        return f"`{fold(self.names)[0].pattern}` [{self.rows}, {self.columns}]"


def judge_sizes(
    attention: Attention,
    quantized: Iterable[tuple[str, tuple[int, ...]]],
    block: tuple[int, int] | None,
    *,
    merged_checked: bool = True,
    sizes: Sequence[int] = SIZES,
) -> tuple[tuple[TensorParallel, ...], tuple[str, ...]]:
    """Judge each size; return the verdicts, and patterns of weights about which nothing is known.

    quantized: name and shape [out, in] of every weight with scales. block: rows and columns that share a scale, or
    None where rows or whole tensors do. merged_checked: False for DeepSeek's own format, where vLLM merges weights
    whose blocks do not fit together without asking.
    """
    weights, unknown = _sort(quantized)
    return tuple(_judge(size, attention, weights, block, merged_checked=merged_checked) for size in sizes), unknown


def _judge(
    size: int,
    attention: Attention,
    weights: Sequence[_Weight],
    block: tuple[int, int] | None,
    *,
    merged_checked: bool,
) -> TensorParallel:
    refusals = list(_heads(size, attention))
    doubts: list[str] = []
    experts_only = not refusals
    for weight in weights:
        problem = _cut_evenly(weight, size) or _blocks(weight, size, attention, block)
        if problem is None:
            doubts += _odd_columns(weight, block)
            continue
        if weight.cut in _MERGED and not merged_checked and "no multiple of its blocks" in problem:
            doubts.append(f"{problem}, and vLLM does not check it in this format")
            continue
        experts_only &= weight.cut == "experts"
        refusals.append(problem)
    experts = max((weight.experts for weight in weights), default=0)
    if 0 < experts < size:
        doubts.append(f"{size} GPUs are more than its {experts} experts, which some of vLLM's models refuse")
    if refusals:
        whole = experts_only and size > 1 and all(_blocks(weight, 1, attention, block) is None for weight in weights)
        remedy = "add --enable-expert-parallel: every GPU then holds whole experts" if whole else None
        return TensorParallel(size=size, verdict="refused", reasons=tuple(refusals), remedy=remedy)
    if doubts:
        return TensorParallel(size=size, verdict="not checked", reasons=tuple(doubts))
    if size > 1 and attention.heads is None:
        reason = "its config.json does not say how many heads there are"
        return TensorParallel(size=size, verdict="not checked", reasons=(reason,))
    return TensorParallel(size=size, verdict="works")


def _heads(size: int, attention: Attention) -> Iterator[str]:
    heads, kv_heads = attention.heads, attention.kv_heads
    if heads is not None and heads % size:
        yield f"{heads} attention heads cannot be dealt out to {size} GPUs"
    elif kv_heads is not None and max(kv_heads, size) % min(kv_heads, size):
        yield f"{kv_heads} heads of keys and values can neither be dealt out nor copied evenly to {size} GPUs"


def _cut_evenly(weight: _Weight, size: int) -> str | None:
    """Say why a weight cannot be cut into equal parts; None: it can."""
    along = weight.columns if weight.cut == "input" else weight.rows
    match weight.cut:
        case "whole" | "qkv" | "fused qkv":
            return None  # Heads decide, and are judged once for all.
        case "experts":
            along = _inner(weight)
        case "fused gate and up":
            along = weight.rows // 2
        case _:
            pass
    return f"{weight} has {along}, which is no multiple of {size} GPUs" if along % size else None


def _blocks(weight: _Weight, size: int, attention: Attention, block: tuple[int, int] | None) -> str | None:
    """Say which part of a weight would cut a block; None: none does."""
    if block is None:
        return None
    rows, columns = block
    match weight.cut:
        case "input":
            parts = [weight.columns // size] if size > 1 else []
            unit = columns
        case "output":
            parts = [weight.rows // size] if size > 1 else []
            unit = rows
        case "experts":
            parts, unit = [_inner(weight) // size], columns if _is_down(weight) else rows
            if size == 1 and _is_down(weight):
                parts = []
        case "whole":
            parts, unit = [], rows
        case _:
            parts, unit = list(_merged(weight, size, attention)), rows
    wrong = next((part for part in parts if part % unit), None)
    if wrong is None:
        return None
    of = f"the part of each of {size} GPUs" if size > 1 else "the part that is merged with others"
    return f"{weight}: {of} is {wrong}, no multiple of its blocks of {unit}"


def _odd_columns(weight: _Weight, block: tuple[int, int] | None) -> Iterator[str]:
    """Yield a doubt about a weight whose last block of columns is not whole, which no check of vLLM's looks at."""
    if block is not None and weight.columns % block[1]:
        yield (
            f"{weight} has {weight.columns} columns, no multiple of {block[1]}, by which vLLM groups activations: "
            "its kernels may refuse them"
        )


def _merged(weight: _Weight, size: int, attention: Attention) -> Iterator[int]:
    """Yield the rows of each part that a GPU holds and that must be whole blocks.

    On one GPU the last of the merged parts need not be: nothing follows it.
    """
    heads, kv_heads = attention.heads, attention.kv_heads
    match weight.cut:
        case "qkv" if size == 1:
            if weight.module != "v_proj":
                yield weight.rows
        case "qkv" if weight.module == "q_proj":
            yield weight.rows // size
        case "qkv" if kv_heads:  # Without their number it is not known which of them are copied.
            yield weight.rows // kv_heads * max(1, kv_heads // size)
        case "fused qkv" if heads and kv_heads:
            head = weight.rows // (heads + 2 * kv_heads)
            yield heads * head // size
            yield head * max(1, kv_heads // size)
        case "gate and up" if size > 1 or weight.module in _GATES:
            yield weight.rows // size
        case "fused gate and up":
            yield weight.rows // 2 // size
        case _:
            pass


def _is_down(weight: _Weight) -> bool:
    return weight.module in {"down_proj", "w2"}


def _inner(weight: _Weight) -> int:
    """Return the size of an expert's middle, which is what its weights are cut along."""
    return weight.columns if _is_down(weight) else weight.rows


def _sort(quantized: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[tuple[_Weight, ...], tuple[str, ...]]:
    """Gather weights of one pattern and shape, and tell how each is cut; return those whose cut is not known too."""
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in quantized:
        alike.setdefault((pattern_of(name), shape), []).append(name)
    patterns = {pattern for pattern, _ in alike}
    weights: list[_Weight] = []
    unknown: list[str] = []
    for (pattern, shape), names in alike.items():
        module = pattern.removesuffix(".weight").rsplit(".", 1)[-1]
        cut = _cut_of(pattern, module, patterns) if len(shape) == 2 else None
        if cut is None:
            unknown.append(fold(names)[0].pattern)
        else:
            weights.append(
                _Weight(
                    names=tuple(names),
                    rows=shape[0],
                    columns=shape[1],
                    module=module,
                    cut=cut,
                    experts=len({_expert_of(name) for name in names}) if cut == "experts" else 0,
                )
            )
    return tuple(weights), tuple(unknown)


def _expert_of(name: str) -> str:
    return name.partition(_EXPERTS)[2].partition(".")[0]


def _cut_of(pattern: str, module: str, patterns: set[str]) -> Cut | None:
    """Tell by its name how vLLM cuts a weight; None: not known."""
    cut = _CUTS.get(module)
    if cut is None or any(tower in pattern for tower in _TOWERS):
        return None
    if _EXPERTS in pattern:
        return "experts" if cut in {"gate and up", "input"} else None
    siblings = {pattern.replace(f".{module}.", f".{name}.") for name in (*_GATES, "k_proj")}
    alone = siblings.isdisjoint(patterns)
    return "output" if alone and (cut == "gate and up" or module == "q_proj") else cut
