"""A surveyed checkpoint as serving it sees it: bytes, FP8 weights and their kind, KV cache. Glue, and no arithmetic."""

from collections.abc import Sequence
from typing import Final

from fp8cli.core.inspection.declaration import FP8_KINDS, Group
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.serving.fit import judge_serving
from fp8cli.core.serving.gpu_models import GpuModel
from fp8cli.core.serving.modes import Kind
from fp8cli.core.serving.serving_report import Served, ServingReport

_MX_GROUP: Final = (1, 32)

_CACHING: Final = ("compressed-tensors", "modelopt", "modelopt_fp4", "modelopt_mixed")
"""Methods whose word on the KV cache vLLM 0.32 heeds (vllm/utils/torch_utils.py, attention.py)."""


def serving_of(
    survey: Survey,
    dialect: Dialect,
    *,
    path: str,
    contexts: Sequence[int],
    gpus: Sequence[GpuModel],
    required: int | None = None,
) -> ServingReport:
    """Judge a surveyed checkpoint on each of `gpus`, as `judge_serving`. path: what to write behind `vllm serve`."""
    served = served_checkpoint(survey, dialect, path=path)
    return judge_serving(served, contexts=contexts, gpus=gpus, required=required)


def served_checkpoint(survey: Survey, dialect: Dialect, *, path: str) -> Served:
    """Gather what serving a checkpoint needs to know."""
    declaration = dialect.declaration
    cache = None if declaration is None else declaration.kv_cache
    return Served(
        path=path,
        config=survey.config,
        weight_bytes=sum(tensor.info.bytes for tensor in survey.tensors.values()),
        quantized=tuple((weight.name, survey.tensors[weight.name].info.shape) for weight in dialect.weights),
        method=None if declaration is None else declaration.method,
        kind=kind_of_dialect(dialect),
        block=dialect.block,
        merged_checked=declaration is None or declaration.method != "fp8",
        kv_cache_fp8=(
            declaration is not None and declaration.method in _CACHING and cache is not None and cache.kind in FP8_KINDS
        ),
        head_scales=cache is not None and cache.strategy == "attn_head",
        split_unknown=_unknown_split(dialect),
    )


def kind_of_dialect(dialect: Dialect) -> Kind | None:
    """Return the one kind of FP8 that a checkpoint declares; None: none, several, or one that is not known."""
    groups = dialect.declaration.groups if dialect.declaration is not None and dialect.weights else ()
    kinds = {_kind_of_group(group) for group in groups if group.weights is not None}
    return kinds.pop() if len(kinds) == 1 else None


def _kind_of_group(group: Group) -> Kind | None:
    weights, activations = group.weights, group.activations
    if weights is None or weights.kind != "E4M3":
        return None
    if weights.strategy == "group":
        return "mx" if weights.block == _MX_GROUP else None
    if activations is None:
        return "weights"
    if activations.kind != "E4M3" or activations.when is None:
        return None
    if weights.strategy == "block":
        return "block"
    return "dynamic" if activations.when == "run time" else "static"


def _unknown_split(dialect: Dialect) -> str | None:
    """Say why it is not known how its weights are split over GPUs; None: it is."""
    if dialect.declaration is not None and dialect.declaration.is_cache_alone:
        return None
    if dialect.is_quantized and not dialect.weights:
        return f"how vLLM splits the weights of {dialect.name} is not known here"
    return None
