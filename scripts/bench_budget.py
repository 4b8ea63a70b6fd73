"""Mixed FP8 and BF16: what `--keep-bf16 auto --target-size` chooses, beside what ModelOpt's AutoQuantize does.

    .venv/bin/python scripts/bench_budget.py --modelopt-python PATH [--method gradient] [--texts 512] [--bits 11,13]

PATH: an interpreter that has nvidia-modelopt. At each number of effective bits ModelOpt chooses among {FP8, BF16} for
the bundled model; ours then gets the size of ModelOpt's choice, and keeps no byte more. Both see the same texts. Both
choices are measured alike, by this tool's simulation of static FP8, on other texts than either chose with.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fp8cli.core.budgeting.budgets import Budget
from fp8cli.core.budgeting.decision import BudgetRequest, decide
from fp8cli.core.budgeting.groups import find_groups
from fp8cli.core.budgeting.ordering import BudgetOrder
from fp8cli.core.model.roster import Roster
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import Plan, build_plan
from fp8cli.core.quantizing.resources import plan_resources
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES, read_calibration
from fp8cli.errors import CannotRun
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from fp8cli.measurer.reference import Divergence, Reference
from fp8cli.schemes import FP8
from fp8cli.simulator.applying import simulated
from fp8cli.simulator.observing import Observed, observe
from fp8cli.simulator.scheme import SIMULATED

OTHER_TEXTS = 600
"""To measure on; the last of the bundled stories."""


def read_stories() -> tuple[list[str], list[str]]:
    """Return the stories to choose from, and others to measure on."""
    stories = [json.loads(line)["text"] for line in BUNDLED_STORIES.read_text("utf-8").splitlines()]
    return stories[:-OTHER_TEXTS], stories[-OTHER_TEXTS:]


class Judge:
    """Measures which Linears in 16 bits come to what, on texts that nobody chose with."""

    def __init__(self, chosen_with: Sequence[Sequence[int]], others: Sequence[Sequence[int]], folder: Path) -> None:
        """Load the model, find the static scales on the texts that both choose with, and keep the reference."""
        self._model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.bfloat16).eval()
        self._linears = [
            name
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        ]
        self._observed: Observed = observe(self._model, self._linears, None, chosen_with)
        self._reference = Reference(self._model, others, folder, positions=10**6, budget_bytes=2**32)

    def measure(self, kept: Collection[str]) -> Divergence:
        """Return how far the model is with all Linears in static FP8 but these."""
        rounded = [name for name in self._linears if name not in kept]
        with simulated(self._model, SIMULATED["FP8"], rounded, self._observed):
            return self._reference.divergence(self._model)


def plan_all(checkpoint: Checkpoint) -> tuple[Plan, Roster]:
    """Plan static FP8 for everything."""
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    rules = rules_for(checkpoint.config, tensors)
    plan = build_plan(checkpoint, FP8, select(checkpoint.config, tensors, rules=rules), model_dtype(checkpoint))
    return plan, Roster(config=checkpoint.config, tensors=tensors, rules=rules)


def choose_ours(checkpoint: Checkpoint, plan: Plan, target_bytes: int, texts: Path, count: int, out: Path) -> list[str]:
    """Return what `--keep-bf16 auto --target-size` keeps."""
    order = BudgetOrder(
        budget=Budget(kind="size", value=target_bytes, said=f"--target-size {target_bytes}"),
        data=read_calibration(str(texts), samples=count),
        samples=count,
        max_seq_length=2048,
        seed=1234,
        python=None,
    )
    request = BudgetRequest(
        order=order,
        checkpoint=checkpoint,
        folder=LocalFolder(BUNDLED_MODEL),
        plan=plan,
        state={},
        resources=plan_resources(plan, device="cpu", workers=1, max_memory="1GiB", cpus=1),
        out=out,
        restart=False,
        dry_run=True,
    )
    return list(decide(request, lambda _: None).kept_modules)


def choose_theirs(
    python: str, texts: Sequence[Sequence[int]], method: str, bits: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Return what ModelOpt keeps, by the effective bits."""
    file = folder / "ids.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    script = Path(__file__).with_name("bench_budget_modelopt.py")
    done = subprocess.run(
        [python, str(script), str(BUNDLED_MODEL), str(file), method, *bits],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print a row for each number of effective bits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modelopt-python", required=True, help="an interpreter with nvidia-modelopt")
    parser.add_argument("--method", default="gradient", help="how ModelOpt scores: gradient, its default, or kl_div")
    parser.add_argument("--texts", type=int, default=512, help="stories that both choose with")
    parser.add_argument("--bits", default="10.5,11,12,13,14,15,15.5", help="effective bits, by commas")
    options = parser.parse_args()
    bits = options.bits.split(",")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    choosing, others = read_stories()
    choosing = choosing[: options.texts]
    ids = [tokenizer(text)["input_ids"] for text in choosing]
    checkpoint = open_checkpoint(LocalFolder(BUNDLED_MODEL))
    plan, roster = plan_all(checkpoint)
    sizes = {module: group for group in find_groups(plan, checkpoint, roster) for module in group.modules}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.monotonic()
        theirs = choose_theirs(options.modelopt_python, ids, options.method, bits, folder)
        print(f"ModelOpt: {time.monotonic() - begun:.0f} s for {len(bits)} sizes")
        texts = folder / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in choosing), encoding="utf-8")
        judge = Judge(ids, [tokenizer(text)["input_ids"] for text in others], folder)
        print("bits  kept (bytes): theirs    ours   KL (nats): theirs      ours   ratio   paired difference ± se")
        for each in bits:
            kept = theirs[each]
            cost = sum(group.saved_bytes for group in {sizes[module].name: sizes[module] for module in kept}.values())
            # What the plan of everything takes, the room that is reserved for headers, and what theirs keeps.
            room = plan.bytes_written + sum(2 * len(shard.header.tensors) + 8 for shard in plan.shards) + cost
            try:
                mine = choose_ours(checkpoint, plan, room, texts, len(choosing), folder / "out")
            except CannotRun as refusal:
                print(f"{each:>4}  {refusal.message}")
                continue
            spent = sum(group.saved_bytes for group in {sizes[module].name: sizes[module] for module in mine}.values())
            one, other = judge.measure(kept), judge.measure(mine)
            differences = torch.tensor(other.per_sample) - torch.tensor(one.per_sample)
            error = float(differences.std() / len(differences) ** 0.5)
            print(
                f"{each:>4}  {cost:>20,} {spent:>7,}   {one.kl:>17.3e} {other.kl:>9.3e}   {other.kl / one.kl:>5.3f}"
                f"   {float(differences.mean()):+.2e} ± {error:.1e}",
                flush=True,
            )


main()
