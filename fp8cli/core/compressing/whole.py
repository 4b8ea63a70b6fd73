"""A whole checkpoint by llm-compressor: run, read off, and what is to become of its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fp8cli.core.calibrating.ordering import resolve_patterns
from fp8cli.core.compressing.adopting import Saved, adopt, read_saved
from fp8cli.core.compressing.compression import Compressed, CompressionRequest, compress
from fp8cli.core.compressing.compression_events import CompressionEvent
from fp8cli.core.compressing.ordering import CompressionOrder
from fp8cli.core.compressing.result_plan import plan_result, read_declared
from fp8cli.core.model.selection import Selection
from fp8cli.core.quantizing.engine import Progress
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.staging import Staging

RECIPE: Final = "recipe.yaml"
_WEIGHT: Final = ".weight"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What llm-compressor made, and where each tensor of it goes."""

    compressed: Compressed
    plan: Plan
    """That of the order, or with a recipe the one that its result turned out to have."""
    saved: Mapping[str, Saved]
    quantization: Mapping[str, Any]
    """The `quantization_config` that it wrote."""
    recipe: str
    """Its recipe.yaml."""

    @property
    def tensors(self) -> int:
        """Tensors of the output."""
        return sum(len(shard.header.tensors) for shard in self.plan.shards)

    def write(self, sources: Callable[[str], Path], staging: Staging, notify: Callable[[Progress], None]) -> None:
        """Write the shards. Raises BadInput where the result is not what was planned, and OSError."""
        adopt(self.plan, self.saved, sources, staging, notify)


def compress_whole(  # noqa: PLR0913 - one argument for each thing that is settled by now
    order: CompressionOrder,
    plan: Plan,
    selection: Selection,
    *,
    checkpoint: Checkpoint,
    model: Path,
    folder: Path,
    targets: Sequence[str],
    ignore: Sequence[str],
    device: str,
    notify: Callable[[CompressionEvent], None],
) -> Whole:
    """Let llm-compressor quantize a checkpoint, and read off what it made.

    model: the checkpoint's folder; folder: to work in; targets, ignore and device as the command line has them.
    Raises as `compress` does, and BadInput for a result that says nothing of a quantization.
    """
    modules = [tensor.name.removesuffix(_WEIGHT) for tensor in plan.tensors if tensor.name.endswith(_WEIGHT)]
    request = CompressionRequest(
        order=order,
        model=model,
        dtype=plan.dtype,
        folder=folder,
        targets=resolve_patterns(targets, modules),
        ignore=resolve_patterns(ignore, modules),
        device=device,
    )
    compressed = compress(request, notify)
    saved = read_saved(compressed)
    declared = read_declared(compressed.folder)
    if order.recipe is not None:
        plan = plan_result(checkpoint, selection, saved, declared, plan.dtype)
    return Whole(
        compressed=compressed,
        plan=plan,
        saved=saved,
        quantization=declared.quantization,
        recipe=(compressed.folder / RECIPE).read_text(encoding="utf-8"),
    )
