"""Measure every scheme on the bundled model, for the table in README.md.

    python scripts/record_schemes.py

For each scheme it makes the checkpoint with `fp8 quantize`, measures its weights with `fp8 inspect --against`, and sets
all of them beside the original with one `fp8 compare`, some minutes on a CPU. `recorded_schemes.json` beside this file
keeps what they said, with the date and the machine; `scripts/readme.py` makes the table of it.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from recording import MODEL, keep, run_command

RECORDED: Final = Path(__file__).with_name("recorded_schemes.json")
DISTRIBUTIONS: Final = ("fp8cli", "llmcompressor", "lm_eval", "transformers", "compressed-tensors", "torch")
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "`FP8_DYNAMIC`": (),
    "`FP8_BLOCK`": ("--scheme", "FP8_BLOCK"),
    "`FP8`": ("--scheme", "FP8"),
    "`FP8_DYNAMIC` and FP8 KV cache": ("--kv-cache", "fp8"),
    "`FP8` and FP8 KV cache": ("--scheme", "FP8", "--kv-cache", "fp8"),
    "FP8 KV cache alone": ("--scheme", "none", "--kv-cache", "fp8"),
}
"""What is measured, by what the table calls it: the words of `fp8 quantize`."""

_VERDICTS: Final = (0, 1, 4)
"""Exit codes of `fp8 compare` that are verdicts."""


def measure() -> dict[str, Any]:
    """Make, inspect and compare; return a row for each choice, and the bytes of the original's tensors."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL.name).symlink_to(MODEL)
        names = [f"choice-{number}" for number in range(len(CHOICES))]
        base = json.loads(run_command("inspect", MODEL.name, "--json", cwd=folder))["result"]
        inspected = []
        for name, words in zip(names, CHOICES.values(), strict=True):
            run_command("quantize", MODEL.name, "-o", name, "--quiet", *words, cwd=folder)
            report = run_command("inspect", name, "--against", MODEL.name, "--json", cwd=folder)
            inspected.append(json.loads(report)["result"])
        words = ("compare", MODEL.name, *names, "--tasks", "fp8_stories", "--json")
        compared = json.loads(run_command(*words, cwd=folder, accept=_VERDICTS))["result"]["comparison"]
    found = zip(CHOICES, inspected, compared["contests"], strict=True)
    return {"base_bytes": base["total"]["bytes"], "rows": [_row(*each) for each in found]}


def _row(choice: str, inspection: Mapping[str, Any], contest: Mapping[str, Any]) -> dict[str, Any]:
    (task,) = contest["tasks"]
    accuracy = next(metric for metric in task["metrics"] if metric["metric"] == "acc")
    return {
        "choice": choice,
        "bytes": inspection["total"]["bytes"],
        "sqnr_db": inspection["against"]["sqnr_db"],
        "kl": contest["fidelity"]["kl_mean"],
        "kl_stderr": contest["fidelity"]["kl_stderr"],
        "same_top": contest["fidelity"]["same_top"],
        "items": accuracy["items"],
        "base": accuracy["base"],
        "accuracy": accuracy["other"],
        "difference": accuracy["difference"],
        "interval": [accuracy["interval"]["low"], accuracy["interval"]["high"]],
        "verdict": contest["verdict"],
    }


if __name__ == "__main__":
    keep(RECORDED, DISTRIBUTIONS, **measure())
