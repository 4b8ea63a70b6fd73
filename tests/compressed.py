"""llm-compressor's engine without its process: its job done here, and its result made an output as the command does."""

import json
from dataclasses import dataclass
from pathlib import Path

from fp8cli.calibrator import compressing_protocol as protocol
from fp8cli.calibrator.compressing import compress_job
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.compressing.adopting import adopt, read_saved
from fp8cli.core.compressing.compression import Compressed, CompressionFacts, CompressionRequest, make_job
from fp8cli.core.compressing.ordering import order_compression
from fp8cli.core.compressing.result_plan import Declared, plan_result, read_declared
from fp8cli.core.making.planning import Wish, plan_checkpoint
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.quant_config import config_text
from fp8cli.formats.recipe_file import RecipeFile
from fp8cli.formats.staging import stage
from fp8cli.worker.progress import Progress

SAMPLES = 8
NO_FACTS = CompressionFacts(
    modifiers=(), versions={}, seconds=0.0, peak_memory_bytes=0, peak_gpu_memory_bytes=None, data=None
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a job."""

    out: Path
    """The output: shards, config.json, recipe.yaml."""
    result: Path
    """llm-compressor's own folder."""
    plan: Plan
    declared: Declared
    facts: dict[str, object]


def plan_for(source: Path, choice: Choice, *ignore: str) -> Plan:
    """Plan what the command would."""
    return plan_checkpoint(open_checkpoint(LocalFolder(source)), _wish(source, choice, ignore))[0]


def result_of(folder: Path) -> Compressed:
    """Return what a job left in its folder."""
    told = json.loads((folder / protocol.FACTS).read_bytes())
    return Compressed(
        folder=folder / protocol.RESULT, renamed=told["renamed"], facts=NO_FACTS, log=folder / "log", known=False
    )


def compress_here(
    source: Path,
    work: Path,
    choice: Choice,
    *ignore: str,
    data: Path | None = None,
    samples: int = SAMPLES,
    recipe: RecipeFile | None = None,
    offload: str = "none",
) -> Made:
    """Do the whole job in this process. work: a folder that is not there yet."""
    checkpoint = open_checkpoint(LocalFolder(source))
    plan, selection = plan_checkpoint(checkpoint, _wish(source, choice, ignore))
    needs = choice.needs_calibration or (recipe is not None and data is not None)
    options = CalibrationOptions(
        data=None if data is None else str(data), samples=samples if needs else None, offload=offload
    )
    order = order_compression(options, choice, recipe=recipe, model=source)
    work.mkdir(parents=True)
    request = CompressionRequest(
        order=order,
        model=source,
        dtype=plan.dtype,
        folder=work,
        targets=("Linear",),
        ignore=("lm_head", *ignore),
        device="auto",
    )
    protocol.write_job(make_job(request), work)
    if order.data is not None:
        order.data.seen.hand_over(work)
    if recipe is not None:
        (work / protocol.RECIPE).write_text(recipe.text)
    compress_job(work, Progress(work, 0))
    compressed = result_of(work)
    declared, saved = read_declared(compressed.folder), read_saved(compressed)
    if recipe is not None:
        plan = plan_result(checkpoint, selection, saved, declared, plan.dtype)
    out = work / "out"
    with stage(out, {"the plan": plan.fingerprint()}, restart=False) as staging:
        adopt(plan, saved, LocalFolder(source).resolve, staging, lambda _: None)
        staging.write_file("config.json", config_text(checkpoint.config, declared.quantization).encode())
        staging.write_file("recipe.yaml", (compressed.folder / "recipe.yaml").read_bytes())
        staging.publish(overwrite=False)
    facts = json.loads((work / protocol.FACTS).read_bytes())
    return Made(out=out, result=compressed.folder, plan=plan, declared=declared, facts=facts)


def _wish(source: Path, choice: Choice, ignore: tuple[str, ...]) -> Wish:
    return Wish(model=str(source), choice=choice, dtype="auto", targets=("Linear",), ignore=ignore, default_ignore=True)
