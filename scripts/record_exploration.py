"""Record an exploration of the bundled model, for the screen in README.md.

    python scripts/record_exploration.py

It runs `fp8 explore` for real, a minute on a CPU, and writes `recorded_exploration.json` beside this file: what it
printed as JSON, with the date and the machine. `scripts/readme.py` draws the screen from it.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from recording import MODEL, keep, run_command

RECORDED: Final = Path(__file__).with_name("recorded_exploration.json")
DISTRIBUTIONS: Final = ("fp8cli", "transformers", "torch")


def measure() -> dict[str, Any]:
    """Explore the bundled model, and return the report."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL.name).symlink_to(MODEL)
        document = json.loads(run_command("explore", MODEL.name, "--json", cwd=folder))
    result: dict[str, Any] = document["result"]
    return result


if __name__ == "__main__":
    keep(RECORDED, DISTRIBUTIONS, report=measure())
