"""Mixed FP8 and BF16: what `--keep-bf16 auto --target-size` chooses, beside what ModelOpt's AutoQuantize does.

    .venv/bin/python scripts/bench_budget.py --modelopt-python PATH [--method gradient] [--texts 512] [--bits 11,13]

PATH: an interpreter that has nvidia-modelopt. At each number of effective bits ModelOpt chooses among {FP8, BF16} for
the bundled model; ours then gets the size of ModelOpt's choice, and keeps no byte more. Both see the same texts. Both
choices are measured alike, by this tool's simulation of static FP8, on other texts than either chose with. Ours is the
choice of `--target-size` with all positions of the texts, whose search is the measurer's.
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

from fp8cli.core.budgeting.groups import Group, find_groups
from fp8cli.core.model.roster import Roster
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import build_plan
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.measurer.budget_choosing import Candidate, Kept, Measured, costs, least_kl
from fp8cli.measurer.reference import Divergence, Reference, clustered_error
from fp8cli.schemes import FP8
from fp8cli.simulator.applying import simulated
from fp8cli.simulator.observing import Observed, observe
from fp8cli.simulator.scheme import SIMULATED

OTHER_TEXTS = 600
"""To measure on."""


def read_stories(fold: int) -> tuple[list[str], list[str]]:
    """Return the stories to choose from, and others to measure on: of the bundled ones the last, or those before."""
    stories = [json.loads(line)["text"] for line in BUNDLED_STORIES.read_text("utf-8").splitlines()]
    end = len(stories) - fold * OTHER_TEXTS
    return stories[: end - OTHER_TEXTS], stories[end - OTHER_TEXTS : end]


class Judge:
    """Measures on some texts what leaving some Linears in 16 bits comes to."""

    def __init__(self, model: Any, observed: Observed, texts: Sequence[Sequence[int]], folder: Path) -> None:
        """Keep what the model says of the texts. observed: inputs of all its Linears, for static scales."""
        folder.mkdir()
        self._model, self._observed = model, observed
        self._reference = Reference(model, texts, folder, positions=10**6, budget_bytes=2**32)

    def measure(self, kept: Collection[str]) -> Divergence:
        """Return how far the model is with all Linears in static FP8 but these."""
        rounded = [name for name in self._observed.inputs if name not in kept]
        with simulated(self._model, SIMULATED["FP8"], rounded, self._observed):
            return self._reference.divergence(self._model)

    def error(self, one: Divergence, other: Divergence) -> float:
        """Return the standard error of the difference of two, paired and clustered by text."""
        lengths = self._reference.lengths
        pairs = zip(one.per_sample, other.per_sample, lengths, strict=True)
        return clustered_error([(mine - theirs) * length for mine, theirs, length in pairs], lengths)


class Ours:
    """This tool's choice, as `measurer.budget` makes it; what is measured for one size is known for the next."""

    def __init__(self, groups: Sequence[Group], judge: Judge) -> None:
        """Measure the sensitivities."""
        self._groups = groups
        self._judge = judge
        self._found: dict[Kept, Divergence] = {}
        self._measured = Measured(measure=self._measure, most=10**6, error=self._error)
        costs_found = costs(len(groups), self._measured)
        self._candidates = [
            Candidate(saved_bytes=group.saved_bytes, cost=cost) for group, cost in zip(groups, costs_found, strict=True)
        ]

    def _measure(self, kept: Kept) -> float:
        self._found[kept] = self._judge.measure(self.modules(kept))
        return self._found[kept].kl

    def _error(self, one: Kept, other: Kept) -> float:
        return self._judge.error(self._found[one], self._found[other])

    def modules(self, kept: Collection[int]) -> list[str]:
        """Return the Linears of some groups."""
        return [module for number in sorted(kept) for module in self._groups[number].modules]

    def choose(self, room_bytes: int) -> list[str]:
        """Return the Linears that stay in 16 bits where that may cost so many bytes."""
        return self.modules(least_kl(self._candidates, room_bytes, self._measured).kept)

    @property
    def sets(self) -> int:
        """How many sets were measured."""
        return len(self._measured.known)


def all_groups() -> tuple[Group, ...]:
    """Return the decisions that static FP8 of the bundled model leaves."""
    checkpoint = open_checkpoint(LocalFolder(BUNDLED_MODEL))
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    rules = rules_for(checkpoint.config, tensors)
    plan = build_plan(checkpoint, FP8, select(checkpoint.config, tensors, rules=rules), model_dtype(checkpoint))
    return find_groups(plan, checkpoint, Roster(config=checkpoint.config, tensors=tensors, rules=rules))


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
    parser.add_argument("--bits", default="10.5,11,12,13,14,15", help="effective bits, by commas")
    parser.add_argument("--fold", type=int, default=0, help="which stories to measure on: 0 the last, 1 those before")
    options = parser.parse_args()
    bits = options.bits.split(",")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    choosing, others = read_stories(options.fold)
    ids = [tokenizer(text)["input_ids"] for text in choosing[: options.texts]]
    groups = all_groups()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.monotonic()
        theirs = choose_theirs(options.modelopt_python, ids, options.method, bits, folder)
        print(f"ModelOpt: {time.monotonic() - begun:.0f} s for {len(bits)} sizes", flush=True)
        begun = time.monotonic()
        model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.bfloat16).eval()
        observed = observe(model, [module for group in groups for module in group.modules], None, ids)
        ours = Ours(groups, Judge(model, observed, ids, folder / "choosing"))
        chosen = {each: ours.choose(cost_of(theirs[each], groups)) for each in bits}
        print(f"ours: {time.monotonic() - begun:.0f} s for {len(bits)} sizes, {ours.sets} sets measured", flush=True)
        judge = Judge(model, observed, [tokenizer(text)["input_ids"] for text in others], folder / "others")
        print("bits  kept (bytes): theirs    ours   KL (nats): theirs      ours   ratio   paired difference ± se")
        for each in bits:
            one, other = judge.measure(theirs[each]), judge.measure(chosen[each])
            print(
                f"{each:>4}  {cost_of(theirs[each], groups):>20,} {cost_of(chosen[each], groups):>7,}"
                f"   {one.kl:>17.3e} {other.kl:>9.3e}   {other.kl / one.kl:>5.3f}"
                f"   {other.kl - one.kl:+.2e} ± {judge.error(other, one):.1e}",
                flush=True,
            )


def cost_of(kept: Collection[str], groups: Sequence[Group]) -> int:
    """Return the bytes that keeping some Linears costs; a group is kept whole."""
    return sum(group.saved_bytes for group in groups if group.modules[0] in kept)


if __name__ == "__main__":
    main()
