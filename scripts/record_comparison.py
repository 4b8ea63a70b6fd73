"""Record a comparison of the bundled model with its FP8 version, for the screen in README.md.

    python scripts/record_comparison.py

It runs `fp8 quantize` and `fp8 compare` for real, some minutes on a CPU, and writes `recorded_comparison.json` beside
this file: what `fp8 compare --json` printed, with the date and the machine. `scripts/readme.py` draws the screen from
it, with the renderer of the day, so that the screen is checked without an evaluation.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench_machine import hardware, version_of

ROOT: Final = Path(__file__).parent.parent
RECORDED: Final = Path(__file__).with_name("recorded_comparison.json")
MODEL: Final = ROOT / "fp8cli" / "bundled" / "stories-llama"
DISTRIBUTIONS: Final = ("fp8cli", "lm_eval", "transformers", "compressed-tensors", "torch")
WORDS: Final = ("stories-llama", "stories-llama-FP8-dynamic", "--tasks", "fp8_stories", "--noise-floor")


def record() -> dict[str, object]:
    """Quantize the bundled model, compare, and return what was found."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL.name).symlink_to(MODEL)
        _run("quantize", MODEL.name, "--quiet", cwd=folder)
        document = json.loads(_run("compare", *WORDS, "--json", cwd=folder))
    result = document["result"]
    # A page of flips says nothing in a screen that lists none.
    for contest in (*result["comparison"]["contests"], result["comparison"]["noise"]):
        contest["changed"] = []
    found = {name: version_of(name) for name in DISTRIBUTIONS}
    return {"date": datetime.now(UTC).date().isoformat(), "machine": hardware(), "versions": found, "report": result}


def _run(*words: str, cwd: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fp8cli", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=cwd).stdout


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
