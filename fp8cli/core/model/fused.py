"""Experts that lie in one 3-D tensor: which part of it is which expert's weight, and what that is called by itself.

vLLM gives FP8 experts their scales one by one, under the names an nn.Linear would have (`experts.7.gate_proj.weight`
and `…weight_scale`), and llm-compressor writes them so. A fused tensor holds, expert by expert, either what an
nn.Linear would, [out, in], or its transpose, [in, out]; the gate comes first and the up projection after it, as
halves of `out`. Both are read in vLLM 0.32's model code and in transformers' `forward`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.formats.safetensors import TensorInfo, data_bytes

_GATE_UP: Final = ("gate_proj", "up_proj")
_DOWN: Final = ("down_proj",)


@dataclass(frozen=True, kw_only=True)
class FusedExperts:
    """One kind of fused tensor of one architecture."""

    pattern: str
    """Full name of the tensor, with `*` for the layer."""
    experts: str
    """Full name of the module the experts are numbered in, with `*` for the layer."""
    projections: tuple[str, ...]
    """What lies one after the other along `out`."""
    transposed: bool | None
    """Whether it is [experts, in, out]; None: published so, but saved as [experts, out, in] by transformers 5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A matrix within a tensor: the weight of one nn.Linear, [out, in]."""

    offset: int
    """Elements of the tensor before its first."""
    shape: tuple[int, int]
    stride: int | None = None
    """None: its rows lie one after the other. A number: it is stored as its transpose, and from one of *its* columns
    to the next it is that many elements."""

    def within(self, whole: TensorInfo) -> TensorInfo:
        """Return what a header would say of this part of a tensor: its shape, size, and where its first element is."""
        begin = whole.begin + data_bytes(whole.dtype, (self.offset,))
        return TensorInfo(whole.name, whole.dtype, self.shape, begin, begin + data_bytes(whole.dtype, self.shape))


def _in_place(parent: str, *, transposed: bool | None) -> tuple[FusedExperts, ...]:
    """Fused parameters of the module that the experts are numbered in, as transformers writes them."""
    return tuple(
        FusedExperts(pattern=f"{parent}.{leaf}", experts=parent, projections=projections, transposed=transposed)
        for leaf, projections in (("gate_up_proj", _GATE_UP), ("down_proj", _DOWN))
    )


_GRANITE: Final = tuple(
    FusedExperts(
        pattern=f"model.layers.*.block_sparse_moe.{leaf}.weight",
        experts="model.layers.*.block_sparse_moe.experts",
        projections=projections,
        transposed=False,
    )
    for leaf, projections in (("input_linear", _GATE_UP), ("output_linear", _DOWN))
)

FUSED: Final[Mapping[str, tuple[FusedExperts, ...]]] = {
    "GraniteMoeForCausalLM": _GRANITE,
    "GraniteMoeSharedForCausalLM": _GRANITE,
    "GraniteMoeHybridForCausalLM": _GRANITE,
    "GraniteMoeSWAForCausalLM": _in_place("model.layers.*.block_sparse_moe.experts", transposed=False),
    "Gemma4ForCausalLM": _in_place("model.layers.*.experts", transposed=False),
    "Llama4ForCausalLM": _in_place("model.layers.*.feed_forward.experts", transposed=True),
    "Qwen3VLMoeForConditionalGeneration": _in_place("model.layers.*.mlp.experts", transposed=None),
}
"""Architecture → its fused tensors in the names of its text model, where vLLM has a place for each expert by itself."""

FUSED_IN_TRANSFORMERS: Final = frozenset(FUSED) - {"Llama4ForCausalLM"}
"""Architectures whose experts transformers 5.17 knows in one tensor alone: of what is taken apart it reads nothing, and
starts them at random. Llama 4's it puts together by itself."""

WITHOUT_A_PLACE: Final[Mapping[str, tuple[str, str]]] = {
    "GptOssForCausalLM": (
        "and vLLM 0.32 has no FP8 experts with biases",
        "vLLM serves the published MXFP4 checkpoint as it is, and that is smaller than FP8",
    ),
    # `load_weights` of its dbrx.py looks for `experts.w13_weight`, which is `experts.routed_experts.w13_weight` by now.
    "DbrxForCausalLM": (
        "and vLLM 0.32 finds the experts of DBRX in no form, quantized or not",
        "an older vLLM serves the published checkpoint as it is",
    ),
}
"""Architecture → why its fused experts cannot be FP8, and what to do instead."""


def notes_on_experts(architecture: str) -> tuple[str, ...]:
    """Say what whoever loads experts that were taken apart must know, a sentence each."""
    if architecture not in FUSED_IN_TRANSFORMERS:
        return ()
    known = f"it knows the experts of {architecture} in one tensor alone"
    return (f"vLLM loads it; transformers 5.17 does not, nor what llm-compressor writes: {known}.",)


def is_transposed(fused: FusedExperts, shape: tuple[int, ...], hidden_size: int) -> bool | None:
    """Whether a tensor is [experts, in, out]; None: its shape fits both, or neither."""
    if fused.transposed is not None:
        return fused.transposed
    if len(shape) != len("EIO") or (shape[1] == hidden_size) == (shape[2] == hidden_size):
        return None
    return (shape[1] == hidden_size) == (fused.projections == _GATE_UP)


def parts(fused: FusedExperts, shape: tuple[int, ...], *, transposed: bool) -> Iterator[tuple[str, Part]]:
    """Every weight in a fused tensor, in the order of experts: its name below `experts`, and where it lies."""
    experts, *matrix = shape
    inner, outer = matrix if transposed else reversed(matrix)
    rows = outer // len(fused.projections)
    for expert in range(experts):
        for number, projection in enumerate(fused.projections):
            within = number * rows * (1 if transposed else inner)
            place = Part(
                offset=expert * outer * inner + within, shape=(rows, inner), stride=outer if transposed else None
            )
            yield f"{expert}.{projection}", place
