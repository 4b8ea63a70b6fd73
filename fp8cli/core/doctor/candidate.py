"""A checkpoint as the doctor sees it: whole or not, how large, in which kind of FP8, and what quantizing makes of it.

Read from listing, config and headers. The values of scales are not looked at; `fp8 inspect` does that.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fp8cli.core.inspection.dialect import Dialect, recognise_dialect
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.core.model.architectures import find_rules
from fp8cli.core.model.selection import select
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import build_plan
from fp8cli.core.serving.served import served_checkpoint
from fp8cli.core.serving.serving_report import Served
from fp8cli.errors import CannotRun
from fp8cli.formats.checkpoint import LocalFile, open_checkpoint
from fp8cli.formats.sources import Source, resolve_anything
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES

WIDE_BYTES: Final = 2
"""Of one number where FP8 is unpacked to compute with."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint that somebody wants to quantize, evaluate or serve."""

    source: Source
    survey: Survey
    dialect: Dialect

    @property
    def wide_bytes(self) -> int:
        """Of all tensors, every FP8 weight unpacked to 16 bits."""
        infos = (self.survey.tensors[weight.name].info for weight in self.dialect.weights)
        return self.served.weight_bytes + sum(info.elements * WIDE_BYTES - info.bytes for info in infos)

    @cached_property
    def served(self) -> Served:
        """What it is to whoever serves it, its kind of FP8 included."""
        return served_checkpoint(self.survey, self.dialect, path=self.survey.label)

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


def look_at(name: str) -> Candidate:
    """Look at a folder, a file or a model on the Hub. Raises Fp8Error if there is nothing to look at."""
    source = resolve_anything(name)
    seen = survey(source)
    return Candidate(source=source, survey=seen, dialect=recognise_dialect(seen))
