"""A checkpoint as the doctor sees it: whole or not, how large, in which kind of FP8, and what quantizing makes of it.

Read from listing, config and headers. The values of scales are not looked at; `fp8 inspect` does that.
"""

from dataclasses import dataclass
from typing import Final

from fp8cli.core.architectures import find_rules
from fp8cli.core.declaration import FP8_KINDS, Group
from fp8cli.core.dialect import Dialect, recognise_dialect
from fp8cli.core.fit import Served
from fp8cli.core.modes import Kind
from fp8cli.core.plan import build_plan, model_dtype
from fp8cli.core.selection import select
from fp8cli.core.survey import Survey, survey
from fp8cli.errors import CannotRun
from fp8cli.formats.checkpoint import LocalFile, open_checkpoint
from fp8cli.formats.sources import Source, resolve_anything
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES

WIDE_BYTES: Final = 2
"""Of one number where FP8 is unpacked to compute with."""

_MX_GROUP: Final = (1, 32)
"""Rows and columns that share one scale in MXFP8."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint that somebody wants to quantize, evaluate or serve."""

    source: Source
    survey: Survey
    dialect: Dialect

    @property
    def weight_bytes(self) -> int:
        """Of all tensors that vLLM would load."""
        return sum(tensor.info.bytes for tensor in self.survey.tensors.values())

    @property
    def wide_bytes(self) -> int:
        """The same with every FP8 weight unpacked to 16 bits."""
        infos = (self.survey.tensors[weight.name].info for weight in self.dialect.weights)
        return self.weight_bytes + sum(info.elements * WIDE_BYTES - info.bytes for info in infos)

    @property
    def kind(self) -> Kind | None:
        """Of its FP8; None: there is none, it is not known, or there are several."""
        kinds = {_kind(group) for group in self._fp8_groups}
        return kinds.pop() if len(kinds) == 1 and self.dialect.weights else None

    @property
    def served(self) -> Served:
        """What it is to whoever serves it."""
        declared = self.dialect.declaration
        cache = None if declared is None else declared.kv_cache
        return Served(
            path=self.survey.label,
            config=self.survey.config,
            weight_bytes=self.weight_bytes,
            quantized=tuple((each.name, self.survey.tensors[each.name].info.shape) for each in self.dialect.weights),
            kind=self.kind,
            block=self.dialect.block if self.kind == "block" else None,
            merged_checked=declared is None or declared.method != "fp8",
            kv_cache_fp8=cache is not None and cache.kind in FP8_KINDS,
        )

    def output_bytes(self) -> int:
        """Return what `fp8 quantize` with the default scheme would write.

        Raises Fp8Error where the checkpoint cannot be quantized, or where it takes transformers to tell.
        """
        if isinstance(self.source, LocalFile):
            message = f"`{self.survey.label}` is a file by itself, without the config that quantizing needs"
            raise CannotRun(message)
        checkpoint = open_checkpoint(self.source)
        rules = find_rules(checkpoint.config)
        if rules is None:
            message = "its architecture is not in the built-in table; fp8 quantize --dry-run asks transformers"
            raise CannotRun(message)
        tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
        selection = select(checkpoint.config, tensors, rules=rules)
        return build_plan(checkpoint, SCHEMES[DEFAULT_SCHEME], selection, model_dtype(checkpoint)).bytes_written

    @property
    def _fp8_groups(self) -> tuple[Group, ...]:
        groups = () if self.dialect.declaration is None else self.dialect.declaration.groups
        return tuple(group for group in groups if group.weights is not None and group.weights.kind in FP8_KINDS)


def look_at(name: str) -> Candidate:
    """Look at a folder, a file or a model on the Hub. Raises Fp8Error if there is nothing to look at."""
    source = resolve_anything(name)
    seen = survey(source)
    return Candidate(source=source, survey=seen, dialect=recognise_dialect(seen))


def _kind(group: Group) -> Kind | None:
    """Tell what vLLM takes a group for; None where its config leaves that open."""
    weights, activations = group.weights, group.activations
    if weights is None or weights.strategy is None:
        return None
    if weights.strategy == "group":
        return "mx" if weights.block == _MX_GROUP else None
    if activations is None:
        return "weights"
    if weights.strategy == "block":
        return "block"
    match activations.when:
        case "run time":
            return "dynamic"
        case "static":
            return "static"
        case _:
            return None
