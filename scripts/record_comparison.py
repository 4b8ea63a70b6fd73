"""Record a comparison of the bundled model with its FP8 version, for the screen in README.md.

    python scripts/record_comparison.py

It runs `fp8 quantize` and `fp8 compare` for real, some minutes on a CPU, and writes `recorded_comparison.json` beside
this file: what `fp8 compare --json` printed, with the date and the machine. `scripts/readme.py` draws the screen from
it, with the renderer of the day, so that the screen is checked without an evaluation.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from recording import MODEL, keep, run_command

RECORDED: Final = Path(__file__).with_name("recorded_comparison.json")
DISTRIBUTIONS: Final = ("fp8cli", "lm_eval", "transformers", "compressed-tensors", "torch")
WORDS: Final = ("stories-llama", "stories-llama-FP8-dynamic", "--tasks", "fp8_stories", "--noise-floor")


def measure() -> dict[str, Any]:
    """Quantize the bundled model, compare, and return the report."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL.name).symlink_to(MODEL)
        run_command("quantize", MODEL.name, "--quiet", cwd=folder)
        document = json.loads(run_command("compare", *WORDS, "--json", cwd=folder))
    result: dict[str, Any] = document["result"]
    # A page of flips says nothing in a screen that lists none.
    for contest in (*result["comparison"]["contests"], result["comparison"]["noise"]):
        contest["changed"] = []
    return result


if __name__ == "__main__":
    keep(RECORDED, DISTRIBUTIONS, report=measure())
