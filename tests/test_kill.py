"""SIGKILL at random moments: nothing half-made is ever visible, and going on ends in the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fp8cli.commands.quantize import QuantizeRequest, run
from tests.models import llama_config, save_model


@pytest.mark.parametrize(
    ("command", "seed", "kills", "extra"),
    [
        ("quantize", 11, 40, []),
        ("quantize", 12, 30, ["overwrite"]),
        ("convert", 13, 18, []),
        ("requantize", 14, 15, []),
        ("dequantize", 15, 15, ["overwrite"]),
    ],
)
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    tmp_path: Path, command: str, seed: int, kills: int, extra: list[str]
) -> None:
    source = save_model(tmp_path / "source", llama_config(), max_shard_size="200KB")
    if command != "quantize":
        source = run(QuantizeRequest(model=str(source), out=tmp_path / "fp8")).out
    words = [command, str(source), str(tmp_path / "out"), str(seed), str(kills), *extra]
    root = Path(__file__).parent.parent
    driver = [sys.executable, "-m", "tests.kill_driver", *words]
    result = subprocess.run(driver, capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert outcome["killed"] >= kills
    assert outcome["resumed_runs"] > 0, "no run ever went on from another: the test has not tested it"
