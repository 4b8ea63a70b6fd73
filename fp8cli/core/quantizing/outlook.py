"""What a plan means for whoever serves its result, said before a byte is written.

The planned headers and config.json are looked at as `fp8 inspect` looks at those on a disk, so that both say the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.inspection.dialect import recognise_dialect
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.serving.command_line import serve_note
from fp8cli.core.serving.preflight import Preflight, examine
from fp8cli.core.serving.served import served_checkpoint
from fp8cli.errors import CannotRun
from fp8cli.formats.quant_config import patch_config
from fp8cli.formats.ranges import Range
from fp8cli.formats.safetensors import DTYPES

_MIXED: Final = (
    "Modules are quantized in more than one way, as config.json has it: `fp8 inspect` says what each GPU makes of it."
)
_NO_SIDE_CONFIGS: Final[Mapping[str, Mapping[str, object]]] = {}


def plan_note(plan: Plan) -> str:
    """Say which GPUs run what a plan makes, and how; and who cannot load it."""
    if plan.scheme is None and "quantize" in plan.counts:
        return _MIXED
    return " ".join((serve_note(plan.scheme, plan.kv_cache), *plan.notes))


def foresee_serving(
    plan: Plan,
    config: Mapping[str, object],
    quantization: Mapping[str, object] | None,
    *,
    path: str,
    required: int | None = None,
    side_configs: Mapping[str, Mapping[str, object]] = _NO_SIDE_CONFIGS,
) -> Preflight:
    """Judge what a plan makes, from its headers alone.

    config: the source's config.json, without its quantization. quantization: the quantization_config of the output;
    None where it has none. path: where it will lie. required: a number of GPUs that it must run on. side_configs:
    JSON files of the output beside config.json that say how it is quantized.
    """
    headers = {shard.name: shard.header for shard in plan.shards}
    planned = Survey(
        label=path,
        files={name: header.file_bytes for name, header in headers.items()},
        config=patch_config(
            config,
            quantization,
            dtype=DTYPES[plan.dtype].torch_name if plan.dtype_is_new else None,
            tie_word_embeddings=plan.new_tie_word_embeddings,
        ),
        side_configs=side_configs,
        headers=headers,
        tensors={
            info.name: StoredTensor(name=info.name, file=name, info=info)
            for name in sorted(headers)
            for info in headers[name].tensors
        },
        findings=(),
        reader=_Unwritten(path=path),
    )
    return examine(served_checkpoint(planned, recognise_dialect(planned), path=path), required=required)


@dataclass(frozen=True, kw_only=True)
class _Unwritten:
    """Files that are planned: their headers are known, and nothing else can be read of them."""

    path: str

    def read_many(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Raise CannotRun."""
        message = f"`{self.path}` is not written yet, so that {len(ranges)} pieces of it cannot be read"
        raise CannotRun(message, hint="fp8 inspect looks at what is written")


def serving_warnings(preflight: Preflight) -> tuple[str, ...]:
    """Warn of a result that vLLM loads on no number of GPUs, or of which it is not known, and what helps."""
    alone = preflight.parallel[0]
    if alone.verdict == "works":
        return ()
    others = ", ".join(str(each.size) for each in preflight.parallel if each.verdict == "works")
    known = "vLLM cannot load it on one GPU" if alone.verdict == "refused" else "whether vLLM runs it is not known"
    more = f" (and {len(alone.reasons) - 1} more)" if len(alone.reasons) > 1 else ""
    cure = f"on {others} GPUs it works" if others else "FP8_DYNAMIC has no such limit"
    return (f"{known}: {alone.reasons[0]}{more}; {cure}",)
