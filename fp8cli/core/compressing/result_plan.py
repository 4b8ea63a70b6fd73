"""The plan of an output whose form only a recipe knows: read off what llm-compressor made of it.

A recipe may quantize each group of modules in its own way, so no scheme says beforehand what a tensor will be. What is
laid out here follows the source as every plan does: a tensor in the shard it came from, its scale beside it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fp8cli.core.compressing.adopting import Saved
from fp8cli.core.model.selection import Decision, Selection
from fp8cli.core.quantizing.model_dtype import named_dtype
from fp8cli.core.quantizing.plan import METADATA, Action, Plan, PlannedShard, PlannedTensor, index_of
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import CONFIG, Checkpoint
from fp8cli.formats.quant_config import QUANTIZATION_CONFIG, quantization_config
from fp8cli.formats.safetensors import TensorInfo, lay_out
from fp8cli.schemes import SCHEMES, KvCache, Scheme

_FP8: Final = "F8_E4M3"
_CACHES: Final[Mapping[str, KvCache]] = {"tensor": "tensor", "attn_head": "head"}
_OF_HISTORY: Final = ("actorder", "observer", "observer_kwargs")
"""Words of a config that say how scales were found, not what they are."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What llm-compressor wrote into the config of its result."""

    quantization: Mapping[str, Any]
    """The `quantization_config`."""
    scheme: Scheme | None
    """The one that it equals; None for a mixture, or where the KV cache alone is quantized."""
    kv_cache: KvCache | None
    ignored: tuple[str, ...]
    tied: bool | None
    """Whether the output head is the table of the embeddings, where the config says so."""


UNDECLARED: Final = Declared(quantization={}, scheme=None, kv_cache=None, ignored=(), tied=None)
"""Before a recipe has run."""


def read_declared(folder: Path) -> Declared:
    """Read the config of a result. Raises BadInput where it says nothing of a quantization."""
    config = json.loads((folder / CONFIG).read_bytes())
    quantization = config.get(QUANTIZATION_CONFIG)
    if not isinstance(quantization, dict):
        message = "llm-compressor quantized nothing of this model, and says nothing of it"
        raise BadInput(message, hint="look at targets and ignore, in the recipe or on the command line")
    cache = quantization.get("kv_cache_scheme")
    return Declared(
        quantization=quantization,
        scheme=_scheme_of(quantization),
        kv_cache=None if cache is None else _CACHES.get(cache["strategy"]),
        ignored=tuple(quantization.get("ignore") or ()),
        tied=config.get("tie_word_embeddings"),
    )


def plan_result(
    checkpoint: Checkpoint, selection: Selection, saved: Mapping[str, Saved], declared: Declared, dtype: str
) -> Plan:
    """Return the plan of a result. dtype: safetensors tag of the model dtype; selection: for roles and tied tensors."""
    home = {info.name: shard.name for shard in checkpoint.shards for info in shard.header.tensors}
    decisions = [decision for decision in selection.decisions if decision.name in home]
    tensors = [_draft(decision, checkpoint, home, saved) for decision in decisions]
    contents: dict[str, list[TensorInfo]] = {shard.name: [] for shard in checkpoint.shards}
    beside = _scales_by_module(saved, home)
    later: list[tuple[str, TensorInfo]] = []
    for tensor in tensors:
        if tensor.weight is not None:
            contents[tensor.shard].append(tensor.weight)
        for info in beside.pop(tensor.name.removesuffix(".weight"), ()):
            if info.name == f"{tensor.name}_scale":
                contents[tensor.shard].append(info)
            else:
                later.append((tensor.shard, info))
    for module, infos in beside.items():
        later.extend((_shard_of(module, home), info) for info in infos)
    for shard, info in later:
        contents[shard].append(info)
    shards = tuple(_lay_out(contents))
    placed = {info.name: info for shard in shards for info in shard.header.tensors}
    tied = checkpoint.config.get("tie_word_embeddings", selection.rules.tie_word_embeddings)
    return Plan(
        scheme=declared.scheme,
        kv_cache=declared.kv_cache,
        dtype=dtype,
        tensors=tuple(_place(tensor, placed) for tensor in tensors),
        calibrated=(),
        shards=shards,
        ignored_modules=declared.ignored,
        dtype_is_new=named_dtype(checkpoint.config) != dtype,
        new_tie_word_embeddings=None if declared.tied in {None, tied} else declared.tied,
        duplicates=selection.duplicates,
        index=index_of(shards) if checkpoint.has_index else None,
    )


def _draft(
    decision: Decision, checkpoint: Checkpoint, home: Mapping[str, str], saved: Mapping[str, Saved]
) -> PlannedTensor:
    source = checkpoint.tensors[decision.source]
    found = saved.get(decision.name)
    action: Action
    if decision.action == "drop":
        action, reason, weight = "drop", decision.reason, None
    elif found is None:
        action, reason, weight = "copy", "not loaded by llm-compressor", source
    elif found.info.dtype == _FP8:
        action, reason, weight = "quantize", "as the recipe has it", found.info
    else:
        action, reason = ("copy" if found.info.dtype == source.dtype else "cast"), "not quantized by the recipe"
        weight = found.info
    return PlannedTensor(
        name=decision.name,
        action=action,
        role=decision.role,
        reason=reason,
        source=source,
        source_shard=home[source.name],
        shard=home[decision.name],
        compute_dtype=source.dtype if weight is None or action == "quantize" else weight.dtype,
        weight=None if weight is None else TensorInfo(decision.name, weight.dtype, weight.shape, 0, 0),
        scale=None,
    )


def _scales_by_module(saved: Mapping[str, Saved], home: Mapping[str, str]) -> dict[str, list[TensorInfo]]:
    """Return what the source has not, by the module it belongs to, in the order of names."""
    found: dict[str, list[TensorInfo]] = {}
    for name in sorted(saved):
        if name not in home:
            info = saved[name].info
            module = name.rpartition(".")[0]
            found.setdefault(module, []).append(TensorInfo(name, info.dtype, info.shape, 0, 0))
    return found


def _shard_of(module: str, home: Mapping[str, str]) -> str:
    """Return the shard of the first tensor in a module, or in the nearest one that has any."""
    while module:
        for name, shard in home.items():
            if name.startswith(f"{module}."):
                return shard
        module = module.rpartition(".")[0]
    return next(iter(home.values()))


def _lay_out(contents: Mapping[str, list[TensorInfo]]) -> Iterator[PlannedShard]:
    for name, infos in contents.items():
        if infos:
            head, header = lay_out([(info.name, info.dtype, info.shape) for info in infos], METADATA)
            yield PlannedShard(name=name, head=head, header=header)


def _place(tensor: PlannedTensor, placed: Mapping[str, TensorInfo]) -> PlannedTensor:
    return PlannedTensor(
        name=tensor.name,
        action=tensor.action,
        role=tensor.role,
        reason=tensor.reason,
        source=tensor.source,
        source_shard=tensor.source_shard,
        shard=tensor.shard,
        compute_dtype=tensor.compute_dtype,
        weight=None if tensor.weight is None else placed[tensor.name],
        scale=placed.get(f"{tensor.name}_scale"),
    )


def _scheme_of(quantization: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme that a config equals, but for words about how its scales were found."""
    groups = quantization.get("config_groups") or {}
    if len(groups) != 1:
        return None
    group = _without_history(next(iter(groups.values())))
    for scheme in SCHEMES.values():
        wanted: Any = quantization_config(scheme, ())["config_groups"]
        if group == _without_history(wanted["group_0"]):
            return scheme
    return None


def _without_history(group: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in group.items() if key != "targets"}
    for part in ("weights", "input_activations"):
        if isinstance(plain.get(part), dict):
            plain[part] = {key: value for key, value in plain[part].items() if key not in _OF_HISTORY}
    return plain
