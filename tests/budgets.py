"""Budgets without the command: a decision on a model, and a copy of the bundled one with one layer made fragile."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fp8cli.core.budgeting.budgets import BudgetOptions, read_budget
from fp8cli.core.budgeting.decision import BudgetEvent, BudgetRequest, decide
from fp8cli.core.budgeting.ordering import order_budget
from fp8cli.core.budgeting.report import BudgetReport
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.quantizing.choices import choose
from fp8cli.core.quantizing.modifiers import NO_MODIFIERS, Modifiers
from fp8cli.core.quantizing.resources import plan_resources
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from tests.calibrated import MODEL, plan_of

STORIES = MODEL / "heldout.jsonl"
FRAGILE = "model.layers.1.mlp.{gate,up}_proj"
"""What `plant_fragility` makes fragile."""


def plant_fragility(folder: Path) -> Path:
    """Copy the bundled model and make one layer hurt under FP8, while the function stays what it was.

    The norm before the MLP of layer 1 gets 2⁻¹⁸ in half of its channels, and gate_proj and up_proj 2¹⁸ in the columns
    that these meet: exact in BF16. The one scale of a row is then made for the large columns, that of a token for the
    large channels, and what they meet, which matters as much, falls to the smallest numbers of E4M3.
    """
    shutil.copytree(MODEL, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    factors = torch.ones(128, dtype=torch.bfloat16)
    factors[::2] = 2.0**18
    tensors["model.layers.1.post_attention_layernorm.weight"] /= factors
    for part in ("gate", "up"):
        tensors[f"model.layers.1.mlp.{part}_proj.weight"] *= factors
    save_file(tensors, path, {"format": "pt"})
    return folder


def decide_on(
    model: Path, out: Path, *, notify: Callable[[BudgetEvent], None] = lambda _: None, **options: Any
) -> BudgetReport:
    """Decide what the command would; options: as `request_for` takes them."""
    return decide(request_for(model, out, **options), notify)


def request_for(
    model: Path,
    out: Path,
    *,
    scheme: str = "FP8_DYNAMIC",
    kv_cache: str | None = None,
    modifiers: Modifiers = NO_MODIFIERS,
    data: Path | None = None,
    samples: int | None = None,
    dry_run: bool = False,
    **options: float | str,
) -> BudgetRequest:
    """Return what the command would ask for."""
    choice = choose(scheme, kv_cache, modifiers)
    budget = read_budget(BudgetOptions(keep="auto", **options), choice)  # type: ignore[arg-type]
    assert budget is not None
    calibration = CalibrationOptions(data=None if data is None else str(data), samples=samples)
    plan = plan_of(model, None if choice.scheme is None else choice.scheme.name, choice.kv_cache)
    return BudgetRequest(
        order=order_budget(budget, calibration, choice, model=model),
        checkpoint=open_checkpoint(LocalFolder(model)),
        folder=LocalFolder(model),
        plan=plan,
        state={"the model": model.name},
        resources=plan_resources(plan, device="cpu", workers=2, max_memory="1GiB", cpus=2),
        out=out,
        restart=False,
        dry_run=dry_run,
    )
