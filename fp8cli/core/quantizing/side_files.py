"""Everything of the output but shards and fp8.json: carried-over files, index, recipe, card, and config.json last.

Nothing written here depends on the machine, the date or the number of workers, so that two runs of the same
thing give the same bytes. What is carried over comes before the shards, because a file that cannot be read shall
stop the run early; config.json comes last, because it is what makes a folder a checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli import __version__
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.outlook import plan_note
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.serving.command_line import serve_command
from fp8cli.formats.budget_note import BudgetNote
from fp8cli.formats.calibration_note import CalibrationNote
from fp8cli.formats.checkpoint import CONFIG, Checkpoint, Folder
from fp8cli.formats.model_card import CardFacts, write_card
from fp8cli.formats.provenance import PROVENANCE
from fp8cli.formats.quant_config import config_text, quantization_config, recipe_text
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.shard_index import INDEX
from fp8cli.formats.staging import Staging

_CARD: Final = "README.md"
_RECIPE: Final = "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a checkpoint comes from, for its card, and what the user asked for, for its recipe."""

    model: str
    """Hub id, or the name of the local folder."""
    commit: str | None
    """Commit of the Hub repository; None for a local folder."""
    tools: Mapping[str, str]
    """Versions of the packages that made the weights."""
    choice: Choice
    targets: Sequence[str]
    ignore: Sequence[str]
    calibration: CalibrationNote | None = None
    """Where the scales come from that only data can tell."""
    budget: BudgetNote | None = None
    """Why some modules of `ignore` stay in 16 bits."""
    fallback: str | None = None
    """Why another scheme was taken than the one that was asked for, in a sentence."""
    quantization: Mapping[str, object] | None = None
    """The `quantization_config` that llm-compressor wrote; None: that of the plan."""
    recipe: str | None = None
    """The recipe.yaml that llm-compressor wrote; None: that of the plan."""

    @property
    def all_tools(self) -> Mapping[str, str]:
        """Versions of this tool, and of what made the weights and found the scales."""
        found = {} if self.calibration is None else self.calibration.tools
        return {"fp8cli": __version__, **self.tools, **found}


def carry_over(checkpoint: Checkpoint, folder: Folder, staging: Staging, *, without: Sequence[str] = ()) -> None:
    """Copy tokenizer, templates, licences and code. Raises BadInput for one that cannot be read, or OSError.

    without: files that say of the source what the output is not.
    """
    for name in checkpoint.side_files:
        if name not in {_CARD, _RECIPE, PROVENANCE, *without}:
            staging.write_file(name, folder.read(name))


def describe(checkpoint: Checkpoint, folder: Folder, plan: Plan, staging: Staging, provenance: Provenance) -> None:
    """Write the files that say what the shards are. Raises OSError when the disk does not take them."""
    if plan.index is not None:
        staging.write_file(INDEX, (json.dumps(plan.index, indent=2, ensure_ascii=False) + "\n").encode())
    recipe = provenance.recipe
    if recipe is None:
        recipe = recipe_text(plan.scheme, provenance.targets, provenance.ignore, kv_cache=plan.kv_cache)
    note = provenance.calibration.for_recipe() if provenance.calibration else ""
    kept = provenance.budget.for_recipe() if provenance.budget else ""
    instead = f"# {provenance.fallback}\n" if provenance.fallback else ""
    staging.write_file(_RECIPE, (recipe + note + kept + instead).encode())
    staging.write_file(_CARD, _card(checkpoint, folder, plan, staging.out.name, provenance).encode())
    quantization = provenance.quantization
    if quantization is None:
        quantization = quantization_config(plan.scheme, plan.ignored_modules, kv_cache=plan.kv_cache)
    config = config_text(
        checkpoint.config,
        quantization,
        dtype=DTYPES[plan.dtype].torch_name if plan.dtype_is_new else None,
        tie_word_embeddings=plan.new_tie_word_embeddings,
    )
    staging.write_file(CONFIG, config.encode())


def header_fingerprint(checkpoint: Checkpoint) -> str:
    """Digest of every tensor's name, dtype, shape and place: tells checkpoints apart without reading weights."""
    digest = hashlib.sha256()
    for shard in checkpoint.shards:
        for info in shard.header.tensors:
            digest.update(json.dumps([shard.name, info.name, info.dtype, info.shape, info.begin]).encode())
    return digest.hexdigest()[:16]


def _card(checkpoint: Checkpoint, folder: Folder, plan: Plan, name: str, provenance: Provenance) -> str:
    choice = provenance.choice
    facts = CardFacts(
        name=name,
        source=provenance.model,
        source_is_hub_id=provenance.commit is not None,
        source_version=provenance.commit or header_fingerprint(checkpoint),
        scheme=choice.name,
        scheme_summary=choice.summary,
        ignored_modules=plan.ignored_modules,
        bytes_before=sum(plan.bytes_before.values()),
        bytes_after=sum(plan.bytes_after.values()),
        tools=provenance.all_tools,
        serve_command=serve_command(name),
        serve_note=plan_note(plan),
        weights_quantized="quantize" in plan.counts,
        calibration=provenance.calibration,
        budget=provenance.budget,
        fallback=provenance.fallback,
    )
    source_card = folder.read(_CARD).decode(errors="replace") if _CARD in checkpoint.side_files else None
    return write_card(facts, source_card)
