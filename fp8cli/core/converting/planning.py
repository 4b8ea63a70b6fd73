"""What conversions and dequantizations have in common as plans: rows for tensors, and a layout for what they become."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from fp8cli.core.quantizing.decoding import Decoding
from fp8cli.core.quantizing.model_dtype import named_dtype
from fp8cli.core.quantizing.plan import Action, Plan, PlannedTensor, index_of, lay_out_shards, place
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import TensorInfo, data_bytes
from fp8cli.schemes import KvCache, Scheme


def draft_tensor(
    stored: TensorInfo,
    shard: str,
    action: Action,
    role: str,
    reason: str,
    *,
    becomes: TensorInfo | None,
    scale: TensorInfo | None = None,
    decoding: Decoding | None = None,
) -> PlannedTensor:
    """Say what happens to one tensor. `becomes`, `scale`: what the output holds of it, placed nowhere yet."""
    return PlannedTensor(
        name=stored.name if becomes is None else becomes.name,
        action=action,
        role=role,
        reason=reason,
        source=stored,
        source_shard=shard,
        shard=shard,
        compute_dtype="F32" if decoding is not None else stored.dtype if becomes is None else becomes.dtype,
        weight=becomes,
        scale=scale,
        decoding=decoding,
    )


def unplaced(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    """Describe a tensor that has no place yet."""
    return TensorInfo(name, dtype, shape, 0, data_bytes(dtype, shape))


def finish_plan(
    checkpoint: Checkpoint,
    drafts: Sequence[PlannedTensor],
    *,
    dtype: str,
    scheme: Scheme | None,
    kv_cache: KvCache | None = None,
    kept: Iterable[str] = (),
) -> Plan:
    """Give every tensor its place. dtype: tag of the model dtype that config.json shall name.

    scheme: what the weights are in the end; None where they are no codes any more. kept: modules that are not
    quantized. Raises BadInput for a name that would be there twice.
    """
    shards = lay_out_shards(checkpoint, drafts)
    placed: Mapping[str, TensorInfo] = {info.name: info for shard in shards for info in shard.header.tensors}
    return Plan(
        scheme=scheme,
        kv_cache=kv_cache,
        dtype=dtype,
        tensors=tuple(map(partial(place, placed=placed), drafts)),
        calibrated=(),
        shards=shards,
        ignored_modules=tuple(kept),
        dtype_is_new=named_dtype(checkpoint.config) != dtype,
        new_tie_word_embeddings=None,
        duplicates=(),
        index=index_of(shards) if checkpoint.has_index else None,
    )
