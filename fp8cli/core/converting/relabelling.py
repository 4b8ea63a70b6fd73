"""The plan of a conversion: weights copied bit for bit, scales under the names and shapes of another dialect.

    codes        copied from file to file
    scales       copied, reshaped, or stored in a wider dtype; in a narrower one only where no value changes
    all else     copied

Where the other dialect has no words for what shares a scale, that is refused; with `requantize` the weights are decoded
in float32 and rounded again by the arithmetic of `fp8 quantize`, and their scales are float32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fp8cli.core.converting.coded import Coded, CodedWeight
from fp8cli.core.converting.exactness import all_exact
from fp8cli.core.converting.planning import draft_tensor, finish_plan, unplaced
from fp8cli.core.converting.targets import Target
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.quantizing.plan import Action, Plan, PlannedTensor
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import TensorInfo
from fp8cli.schemes import KvCache, Scheme


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is to become of a checkpoint; nothing speaks against it any more (see core.converting.refusals)."""

    target: Target
    scheme: Scheme
    """What its weights are in the end."""
    requantizes: bool

    def cache_of(self, coded: Coded) -> KvCache | None:
        """How keys and values are quantized."""
        if not coded.cache:
            return None
        return "head" if coded.cache_per_head else "tensor"


def plan_conversion(
    checkpoint: Checkpoint, coded: Coded, survey: Survey, conversion: Conversion, model_dtype: str
) -> Plan:
    """Decide every tensor of the output. model_dtype: tag of the dtype of what is not quantized."""
    maker = _Maker(
        coded=coded,
        conversion=conversion,
        dtypes=_scale_dtypes(coded, survey, conversion.target, model_dtype),
    )
    return finish_plan(
        checkpoint,
        tuple(maker.drafts(checkpoint)),
        dtype=model_dtype,
        scheme=conversion.scheme,
        kv_cache=conversion.cache_of(coded),
        kept=coded.kept,
    )


def _scale_dtypes(coded: Coded, survey: Survey, target: Target, model_dtype: str) -> Mapping[str, str]:
    """Dtype of each kind of scale: one for all of a kind, so that a checkpoint looks as if made at once."""
    kinds: dict[str, list[StoredTensor]] = {
        "weight": [weight.scale for weight in coded.weights],
        "input": [weight.input_scale for weight in coded.weights if weight.input_scale is not None],
        "cache": [scale.tensor for scale in coded.cache],
    }
    if not target.in_model_dtype:
        return dict.fromkeys(kinds, "F32")
    return {kind: model_dtype if all_exact(survey, scales, model_dtype) else "F32" for kind, scales in kinds.items()}


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Drafts the output, tensor by tensor."""

    coded: Coded
    conversion: Conversion
    dtypes: Mapping[str, str]
    _renamed: dict[str, list[tuple[TensorInfo, str]]] = field(default_factory=dict)
    """Scale of the source → what it becomes (a scale for keys and values at once becomes two), and why."""
    _dropped: dict[str, str] = field(default_factory=dict)

    def drafts(self, checkpoint: Checkpoint) -> Iterator[PlannedTensor]:
        """Yield what happens to every tensor."""
        weights = {weight.codes.name: weight for weight in self.coded.weights}
        for weight in self.coded.weights:
            self._scales_of(weight)
        self._cache()
        self._activation_remains()
        for shard in checkpoint.shards:
            for info in shard.header.tensors:
                yield from self._draft(info, shard.name, weights.get(info.name))

    def _draft(self, info: TensorInfo, shard: str, weight: CodedWeight | None) -> Iterator[PlannedTensor]:
        if info.name in self._renamed:
            for becomes, reason in self._renamed[info.name]:
                action: Action = "copy" if becomes.dtype == info.dtype else "cast"
                yield draft_tensor(info, shard, action, "scale", reason, becomes=becomes)
        elif info.name in self._dropped:
            yield draft_tensor(info, shard, "drop", "scale", self._dropped[info.name], becomes=None)
        elif weight is not None and self.conversion.requantizes:
            yield self._requantize(info, shard, weight)
        else:
            reason = "codes, bit for bit" if weight is not None else "never was quantized"
            role = "linear" if weight is not None else self.coded.roles.get(info.name, "other")
            becomes = unplaced(info.name, info.dtype, info.shape)
            yield draft_tensor(info, shard, "copy", role, reason, becomes=becomes)

    def _requantize(self, info: TensorInfo, shard: str, weight: CodedWeight) -> PlannedTensor:
        scheme = self.conversion.scheme
        rows, columns = info.shape
        shape = self.conversion.target.scale_shape(scheme, rows, columns)
        scale = unplaced(f"{weight.module}.{self.conversion.target.ending}", "F32", shape)
        reason = f"scales per {weight.granularity} become scales per {scheme.weights}: every value is rounded again"
        becomes = unplaced(info.name, info.dtype, info.shape)
        return draft_tensor(
            info, shard, "requantize", "linear", reason, becomes=becomes, scale=scale, decoding=weight.decoding
        )

    def _scales_of(self, weight: CodedWeight) -> None:
        target, scheme = self.conversion.target, self.conversion.scheme
        if self.conversion.requantizes:
            self._dropped[weight.scale.name] = "replaced: its weight gets another scale"
        else:
            shape = target.scale_shape(scheme, *weight.codes.info.shape)
            self._rename(weight.scale, f"{weight.module}.{target.ending}", shape, self.dtypes["weight"])
        if weight.input_scale is None:
            return
        if scheme.dynamic_activations:
            self._dropped[weight.input_scale.name] = "the activations are scaled at run time"
        else:
            self._rename(weight.input_scale, f"{weight.module}.input_scale", target.scalar, self.dtypes["input"])

    def _cache(self) -> None:
        target = self.conversion.target
        if target.cache is None:
            return
        for scale in self.coded.cache:
            name = target.cache.format(attention=scale.attention, kind=scale.kind)
            shape = scale.tensor.info.shape if self.coded.cache_per_head else target.scalar
            self._rename(scale.tensor, name, shape, self.dtypes["cache"])

    def _activation_remains(self) -> None:
        for tensor in self.coded.bounds:
            self._dropped[tensor.name] = "an upper bound of activations, for which only FBGEMM has a place"
        for tensor in self.coded.unused:
            self._dropped[tensor.name] = "the scale of an activation, which config.json does not mention"

    def _rename(self, tensor: StoredTensor, name: str, shape: tuple[int, ...], dtype: str) -> None:
        old = tensor.info
        # The last parts alone, so that rows of other layers read the same and fold into one.
        before, after = (_last_part(each) for each in (old.name, name))
        changes = [f"was `{before}`"] if before != after else []
        changes += [f"was {list(old.shape)}"] if old.shape != shape else []
        changes += [f"was {old.dtype}"] if old.dtype != dtype else []
        reason = f"a scale, its values unchanged{''.join(f'; {change}' for change in changes)}"
        self._renamed.setdefault(old.name, []).append((unplaced(name, dtype, shape), reason))


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
