"""How near the search of `--keep-bf16 auto` comes to the best of all 4,096 sets on the bundled model, all measured.

    .venv/bin/python scripts/bench_budget_exhaustive.py [--texts 16] [--skip 0]

Static FP8; for every tenth of the bytes between everything in FP8 and everything in 16 bits, the KL of the set that the
search finds and that of the best set of at most that size, both on the same texts; and for KL budgets between the same
two, the bytes.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import torch
from bench_budget import Judge, all_groups, read_stories
from transformers import AutoModelForCausalLM, AutoTokenizer

from fp8cli.core.sampling.data import BUNDLED_MODEL
from fp8cli.measurer.budget_choosing import Candidate, Kept, Measured, costs, fewest_bytes, least_kl, size
from fp8cli.simulator.observing import observe


def main() -> None:
    """Measure every set, then search with what is known, and print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=16, help="stories to measure on")
    parser.add_argument("--skip", type=int, default=0, help="stories before them")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    ids = [tokenizer(text)["input_ids"] for text in read_stories(0)[0][options.skip :][: options.texts]]
    groups = all_groups()
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.bfloat16).eval()
    observed = observe(model, [module for group in groups for module in group.modules], None, ids)
    every = [
        frozenset(kept)
        for length in range(len(groups) + 1)
        for kept in itertools.combinations(range(len(groups)), length)
    ]
    with tempfile.TemporaryDirectory() as name:
        judge = Judge(model, observed, ids, Path(name) / "texts")
        kl = {kept: judge.measure([m for number in kept for m in groups[number].modules]).kl for kept in every}
    print_table([group.saved_bytes for group in groups], kl, sum(group.saved_bytes for group in groups))


def print_table(saved_bytes: list[int], kl: dict[Kept, float], whole: int) -> None:
    """Print a row for each budget."""
    print("budget                found (KL)  best (KL)  ratio  sets measured")
    for tenth in range(1, 10):
        measured = Measured(measure=kl.__getitem__, most=10**6)
        candidates = candidates_of(saved_bytes, measured)
        found = least_kl(candidates, whole * tenth // 10, measured).kept
        best = min(kl[kept] for kept in kl if size(kept, candidates) <= whole * tenth // 10)
        print(
            f"{whole * tenth // 10:>9,} bytes kept  {kl[found]:>10.3e} {best:>10.3e}  {kl[found] / best:>5.3f}"
            f"  {len(measured.known):>13}"
        )
    print("budget                found (bytes)  best (bytes)  ratio  sets measured")
    for tenth in range(1, 10):
        measured = Measured(measure=kl.__getitem__, most=10**6)
        candidates = candidates_of(saved_bytes, measured)
        limit = kl[frozenset()] * tenth / 10
        answer = fewest_bytes(candidates, limit, measured)
        assert answer is not None  # noqa: S101 - everything kept has no KL here
        least = min(size(kept, candidates) for kept in kl if kl[kept] <= limit)
        spent = size(answer.kept, candidates)
        print(f"{limit:>9.2e} nats  {spent:>20,} {least:>13,}  {spent / least:>5.3f}  {len(measured.known):>13}")


def candidates_of(saved_bytes: list[int], measured: Measured) -> list[Candidate]:
    """Return the decisions with their costs."""
    found = costs(len(saved_bytes), measured)
    return [Candidate(saved_bytes=each, cost=cost) for each, cost in zip(saved_bytes, found, strict=True)]


main()
