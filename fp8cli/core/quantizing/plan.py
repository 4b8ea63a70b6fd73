"""The plan: every byte of the output, decided from headers before the first one is written.

checkpoint + scheme + selection → for each tensor what happens and why, and for each output shard its complete
header. The shard layout follows the source: a tensor stays in the shard it came from, its scale lies beside it.
Nothing here reads a weight or needs torch, so a plan for a terabyte is ready in the time it takes to read its
headers, and a dry run is the same plan as the real one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

from fp8cli.core.model.attention import read_attention
from fp8cli.core.model.fused import notes_on_experts
from fp8cli.core.model.modeling import refuse_unknown
from fp8cli.core.model.multimodal import refuse_unless_text_reaches
from fp8cli.core.model.selection import Decision, Selection
from fp8cli.core.quantizing.calibrated_scales import LinearWeight, PlannedScale, draft_scales
from fp8cli.core.quantizing.decoding import Decoding
from fp8cli.core.quantizing.model_dtype import named_dtype
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES, Header, TensorInfo, lay_out
from fp8cli.schemes import BLOCK, KvCache, Scheme

Action = Literal["quantize", "requantize", "dequantize", "copy", "cast", "drop"]
FROM_ROWS: Final = frozenset({"quantize", "requantize", "dequantize"})
"""What is done to a matrix row by row, because rows have scales."""

METADATA: Final = {"format": "pt"}
"""What transformers and llm-compressor write into every shard."""

FP8_TAG: Final = "F8_E4M3"
"""Safetensors tag of the codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTensor:
    """What happens to one tensor.

    `source` is read from `source_shard`. `weight` is written to `shard`; `scale` too, if it is quantized. A
    dropped tensor has neither. `compute_dtype` is the dtype the values have before they are quantized or stored.
    """

    name: str
    action: Action
    role: str
    reason: str
    source: TensorInfo
    source_shard: str
    shard: str
    compute_dtype: str
    stride: int | None = None
    """None: the rows of `source` lie one after the other. Else it is stored as its transpose, a block of columns in
    rows of so many elements; see core.model.fused."""
    weight: TensorInfo | None = None
    scale: TensorInfo | None = None
    decoding: Decoding | None = None
    """How the codes that the source holds become numbers; None where it holds numbers."""

    @property
    def holds_codes(self) -> bool:
        """Whether the output holds FP8 codes of it."""
        return self.weight is not None and self.weight.dtype == FP8_TAG

    @property
    def bytes_out(self) -> int:
        """Bytes this tensor takes in the output, its scale included."""
        return sum(part.bytes for part in (self.weight, self.scale) if part is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """One file of the output: the bytes before its data, and where every tensor goes."""

    name: str
    head: bytes
    header: Header


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything the engine needs, and everything a dry run shows."""

    scheme: Scheme | None
    """None: the weights stay as they are, and the KV cache alone is quantized."""
    kv_cache: KvCache | None
    dtype: str
    """Safetensors tag of the model dtype: what unquantized tensors and scales are stored in."""
    tensors: tuple[PlannedTensor, ...]
    calibrated: tuple[PlannedScale, ...]
    """Scales that cannot be computed from weights: calibration must supply them."""
    shards: tuple[PlannedShard, ...]
    ignored_modules: tuple[str, ...]
    dtype_is_new: bool
    """Whether config.json names another dtype, or none."""
    new_tie_word_embeddings: bool | None
    """What config.json must say from now on, if that differs from what it says or implies."""
    duplicates: tuple[tuple[str, str], ...]
    """(dropped tensor, tensor it must repeat byte for byte)."""
    index: Mapping[str, object] | None
    notes: tuple[str, ...] = ()
    """What else whoever loads the output must know, a sentence each."""

    @cached_property
    def bytes_before(self) -> Mapping[str, int]:
        """Bytes of the source's tensors by dtype tag."""
        return _bytes_by_dtype(tensor.source for tensor in self.tensors)

    @cached_property
    def bytes_after(self) -> Mapping[str, int]:
        """Bytes of the output's tensors by dtype tag."""
        return _bytes_by_dtype(info for shard in self.shards for info in shard.header.tensors)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Number of tensors by action."""
        return dict(sorted(Counter(tensor.action for tensor in self.tensors).items()))

    @property
    def bytes_read(self) -> int:
        """Bytes of source data the engine will read."""
        return sum(tensor.source.bytes for tensor in self.tensors if tensor.action != "drop")

    @property
    def bytes_written(self) -> int:
        """Bytes of all output shards, headers included."""
        return sum(shard.header.file_bytes for shard in self.shards)

    @property
    def widest_tile_elements(self) -> int:
        """Elements of the smallest tile that the widest quantized tensor allows: a row, or a band of blocks."""
        rows = BLOCK if self.scheme is not None and self.scheme.weights == "block" else 1
        widths = [tensor.source.shape[-1] for tensor in self.tensors if tensor.action in FROM_ROWS]
        return rows * max(widths, default=1)

    def fingerprint(self) -> str:
        """Digest of the output's layout and of every decision: two runs with the same one write the same bytes."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(json.dumps(shard.name).encode())
            digest.update(shard.head)
        for tensor in self.tensors:
            source = tensor.source
            words = [tensor.name, tensor.action, tensor.source_shard, source.name, source.begin, tensor.compute_dtype]
            if tensor.decoding is not None:
                words += [tensor.decoding.shard, tensor.decoding.scale.name, *tensor.decoding.block]
            words += [] if tensor.stride is None else [tensor.stride]
            digest.update(json.dumps([*words, self.scheme and self.scheme.name]).encode())
        return digest.hexdigest()


def build_plan(
    checkpoint: Checkpoint, scheme: Scheme | None, selection: Selection, dtype: str, *, kv_cache: KvCache | None = None
) -> Plan:
    """Decide every output tensor. `dtype` is the safetensors tag of the model dtype (see `model_dtype`).

    scheme None: only the KV cache is quantized, every Linear is kept whatever `selection` says of it. Raises
    BadInput for a tensor that cannot be converted, CannotRun when nothing would be quantized.
    """
    home = {info.name: shard.name for shard in checkpoint.shards for info in shard.header.tensors}
    if kv_cache is not None or (scheme is not None and scheme.needs_calibration):
        refuse_unless_text_reaches(selection.rules, "calibrated")
        refuse_unknown(selection.rules, "calibrated")
    if scheme is None:
        selection = _keep_all(selection, home)
    drafts = [_draft(decision, checkpoint, home, scheme, dtype) for decision in selection.decisions]
    cache_alone = scheme is None and kv_cache is not None
    if not cache_alone and not any(draft.action == "quantize" for draft in drafts):
        message = "nothing would be quantized: every Linear is ignored"
        raise CannotRun(message, hint="fp8 quantize MODEL --dry-run --details shows the reason for each tensor")
    scales = _draft_scales(checkpoint, drafts, scheme, dtype, kv_cache)
    tied = checkpoint.config.get("tie_word_embeddings", selection.rules.tie_word_embeddings)
    shards = lay_out_shards(checkpoint, drafts, scales)
    placed = {info.name: info for shard in shards for info in shard.header.tensors}
    return Plan(
        scheme=scheme,
        kv_cache=kv_cache,
        dtype=dtype,
        tensors=tuple(place(draft, placed) for draft in drafts),
        calibrated=tuple(replace(scale, info=placed[scale.name]) for scale in scales),
        shards=shards,
        ignored_modules=selection.ignored_modules,
        dtype_is_new=named_dtype(checkpoint.config) != dtype,
        new_tie_word_embeddings=None if selection.tie_word_embeddings == tied else selection.tie_word_embeddings,
        duplicates=selection.duplicates,
        index=index_of(shards) if checkpoint.has_index else None,
        notes=notes_on_experts(selection.rules.name) if any(each.part for each in selection.decisions) else (),
    )


def _draft(
    decision: Decision, checkpoint: Checkpoint, home: Mapping[str, str], scheme: Scheme | None, dtype: str
) -> PlannedTensor:
    """Decide one tensor, all but its place in the output file (its offsets are relative to nothing yet)."""
    whole = checkpoint.tensors[decision.source]
    source = decision.part.within(whole) if decision.part else whole
    target = "F32" if dtype in decision.float32_under else dtype
    casts = DTYPES[source.dtype].floating and source.dtype != target and decision.action != "drop"
    if casts and source.dtype not in {"BF16", "F16", "F32", "F64"}:
        message = f"`{source.name}` is {source.dtype}, which is no dtype of an unquantized checkpoint"
        raise BadInput(message, hint="quantize from the original BF16, FP16 or FP32 checkpoint")
    weight = scale = None
    action: Action
    match decision.action:
        case "quantize":
            assert scheme is not None  # noqa: S101 - see `_keep_all`
            action = "quantize"
            rows, columns = source.shape
            weight = TensorInfo(decision.name, FP8_TAG, source.shape, 0, 0)
            scale_shape = scheme.scale_shape(rows, columns)
            scale = TensorInfo(f"{decision.name}_scale", dtype, scale_shape, 0, 0)
        case "keep":
            action = "cast" if casts else "copy"
            weight = TensorInfo(decision.name, target if casts else source.dtype, source.shape, 0, 0)
        case "drop":
            action = "drop"
    return PlannedTensor(
        name=decision.name,
        action=action,
        role=decision.role,
        reason=decision.reason,
        source=source,
        source_shard=home[source.name],
        shard=home[source.name] if decision.name not in home else home[decision.name],
        compute_dtype=dtype if action == "quantize" else target,
        stride=decision.part.stride if decision.part else None,
        weight=weight,
        scale=scale,
    )


def _keep_all(selection: Selection, home: Mapping[str, str]) -> Selection:
    """Return a selection that quantizes nothing: what stays of one when only the KV cache is quantized."""
    reason = "kept: only the KV cache is quantized"
    kept: dict[str, Decision] = {}
    untied = False
    for each in selection.decisions:
        if each.part is not None:
            # Experts that would be taken out of a tensor stay in it.
            kept[each.source] = replace(
                each, name=each.source, action="keep", role="fused experts", reason=reason, part=None
            )
        elif each.name in home:
            kept[each.name] = replace(each, action="keep", reason=reason) if each.action == "quantize" else each
        else:
            # A head that would be untied to be quantized by itself is no tensor of the checkpoint.
            untied = True
    tied = selection.tie_word_embeddings or untied
    return replace(selection, decisions=tuple(kept.values()), ignored_modules=(), tie_word_embeddings=tied)


def _draft_scales(
    checkpoint: Checkpoint, drafts: Sequence[PlannedTensor], scheme: Scheme | None, dtype: str, kv_cache: KvCache | None
) -> list[PlannedScale]:
    """Decide which scales calibration must supply. Raises CannotRun for a KV cache that cannot be calibrated."""
    linears = [
        LinearWeight(name=draft.name, shard=draft.shard, quantized=draft.action == "quantize")
        for draft in drafts
        if (draft.role == "linear" and draft.weight is not None) or draft.action == "quantize"
    ]
    heads = read_attention(checkpoint.config).kv_heads
    if kv_cache == "head" and heads is None:
        message = "config.json does not say how many KV heads there are, or the model keeps one vector for all of them"
        raise CannotRun(message, hint="use one scale per layer: --kv-cache fp8")
    scales = draft_scales(linears, scheme, dtype, kv_cache=kv_cache, kv_heads=heads)
    if kv_cache is not None and not any(scale.kind == "k" for scale in scales):
        message = "no attention layer of this model has a KV cache that llm-compressor can calibrate"
        hint = "leave out --kv-cache: vLLM's own --kv-cache-dtype fp8 works without scales, at some loss"
        raise CannotRun(message, hint=hint)
    return scales


def lay_out_shards(
    checkpoint: Checkpoint, drafts: Sequence[PlannedTensor], scales: Sequence[PlannedScale] = ()
) -> tuple[PlannedShard, ...]:
    """Return the output's shards: those of the source, with what becomes of their tensors and with further scales.

    Raises BadInput for a name that would be there twice.
    """
    contents: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {shard.name: [] for shard in checkpoint.shards}
    seen: set[str] = set()
    parts = [(draft.name, draft.shard, part) for draft in drafts for part in (draft.weight, draft.scale)]
    for owner, shard, part in [*parts, *((scale.module, scale.shard, scale.info) for scale in scales)]:
        if part is None:
            continue
        if part.name in seen:
            message = f"`{part.name}` exists in the checkpoint already, so `{owner}` cannot be given a scale"
            raise BadInput(message, hint="the checkpoint looks quantized already: fp8 inspect shows what it is")
        seen.add(part.name)
        contents[shard].append((part.name, part.dtype, part.shape))
    shards = []
    for name, content in contents.items():
        if content:  # A shard whose only tensor was dropped has nothing left to hold.
            head, header = lay_out(content, METADATA)
            shards.append(PlannedShard(name=name, head=head, header=header))
    return tuple(shards)


def place(draft: PlannedTensor, placed: Mapping[str, TensorInfo]) -> PlannedTensor:
    """Return a tensor with its place in the output: that of its weight and its scale among the `placed`, by name."""
    # Not `replace`, which looks at every field by name: this runs once for each of 100,000 tensors.
    return PlannedTensor(
        name=draft.name,
        action=draft.action,
        role=draft.role,
        reason=draft.reason,
        source=draft.source,
        source_shard=draft.source_shard,
        shard=draft.shard,
        compute_dtype=draft.compute_dtype,
        stride=draft.stride,
        weight=placed[draft.weight.name] if draft.weight else None,
        scale=placed[draft.scale.name] if draft.scale else None,
        decoding=draft.decoding,
    )


def index_of(shards: Sequence[PlannedShard]) -> Mapping[str, object]:
    """Return the index of shards, as model.safetensors.index.json has it."""
    weight_map = {info.name: shard.name for shard in shards for info in shard.header.tensors}
    total = sum(info.bytes for shard in shards for info in shard.header.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _bytes_by_dtype(infos: Iterator[TensorInfo]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for info in infos:
        total[info.dtype] += info.bytes
    return dict(sorted(total.items()))
