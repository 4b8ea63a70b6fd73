"""Calibrated schemes without the command: a plan, scales from wherever the test has them, and the folder written."""

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.engine import Progress, Written, execute
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import Plan, build_plan
from fp8cli.core.quantizing.resources import PIECE_BYTES, plan_resources
from fp8cli.core.quantizing.supply import LocalSupply
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.quant_config import TARGETS, config_text, quantization_config, recipe_text
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.staging import stage
from fp8cli.schemes import SCHEMES, KvCache

MODEL = Path(str(files("fp8cli"))) / "bundled" / "stories-llama"


def plan_of(
    source: Path,
    scheme: str | None,
    kv_cache: KvCache | None = None,
    *,
    ignore: Sequence[str] = (),
    default_ignore: bool = True,
) -> Plan:
    """Plan what the command would."""
    checkpoint = open_checkpoint(LocalFolder(source))
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    rules = rules_for(checkpoint.config, tensors)
    selection = select(checkpoint.config, tensors, rules=rules, ignore=ignore, default_ignore=default_ignore)
    chosen = None if scheme is None else SCHEMES[scheme]
    return build_plan(checkpoint, chosen, selection, model_dtype(checkpoint), kv_cache=kv_cache)


def scale_bytes(dtype: str, values: Sequence[float]) -> bytes:
    """Return numbers as a tensor of that dtype has them; BF16 cut, not rounded."""
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)


def made_up(plan: Plan) -> dict[str, bytes]:
    """Return some scale for each that calibration would have to find."""
    return {
        scale.name: scale_bytes(scale.info.dtype, [0.25 + number / 4 for number in range(scale.info.elements)])
        for scale in plan.calibrated
    }


def write(
    source: Path,
    out: Path,
    plan: Plan,
    scales: Mapping[str, bytes],
    *,
    workers: int = 2,
    max_memory: str = "1GiB",
    piece_bytes: int = PIECE_BYTES,
    notify: Callable[[Progress], None] = lambda _: None,
    ignore: Sequence[str] = ("lm_head",),
) -> Written:
    """Write the shards, config.json and recipe.yaml of a plan, and publish them."""
    folder = LocalFolder(source)
    resources = plan_resources(
        plan, device="cpu", workers=workers, max_memory=max_memory, cpus=os.cpu_count() or 1, piece_bytes=piece_bytes
    )
    with stage(out, {"the plan": plan.fingerprint()}, restart=False) as staging:
        written = execute(plan, LocalSupply(folder.resolve), staging, resources, notify, scales=scales)
        config = config_text(
            open_checkpoint(folder).config,
            quantization_config(plan.scheme, plan.ignored_modules, kv_cache=plan.kv_cache),
            dtype=DTYPES[plan.dtype].torch_name if plan.dtype_is_new else None,
            tie_word_embeddings=plan.new_tie_word_embeddings,
        )
        staging.write_file("config.json", config.encode())
        recipe = recipe_text(plan.scheme, TARGETS, ignore, kv_cache=plan.kv_cache)
        staging.write_file("recipe.yaml", recipe.encode())
        staging.publish(overwrite=False)
    return written
