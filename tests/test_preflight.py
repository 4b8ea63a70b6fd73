"""What a plan says of serving its result: `fp8 inspect` of the result must say the same, and so must vLLM itself."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_matrix import family

from fp8cli.commands.inspect import InspectReport, InspectRequest
from fp8cli.commands.inspect import run as inspect
from fp8cli.commands.quantize import QuantizeReport, QuantizeRequest, run
from tests.families import save_family

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = (1, 2, 4, 8, 16)
WIDE = {"hidden_size": 1024, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4}
"""Wide enough for blocks to be split over some numbers of GPUs, and not over others."""

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Llama 2 and 3": {"hidden_size": 512, "head_dim": 128},
    "Phi-3 and 4": {},
    "OPT": {"ffn_dim": 768, "word_embed_proj_dim": 1024},
    "Mixtral": {"hidden_size": 512, "head_dim": 128, "intermediate_size": 512},
    "Qwen3-MoE": {"hidden_size": 512, "head_dim": 128, "moe_intermediate_size": 256},
    "DeepSeek-V2": {
        "hidden_size": 512,
        "num_key_value_heads": 8,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 96,
        "qk_rope_head_dim": 32,
        "v_head_dim": 128,
        "moe_intermediate_size": 256,
    },
    "Qwen3-Next": {"hidden_size": 512, "head_dim": 128},
}
"""Families that vLLM splits each in its own way, and what is changed of their tiny configs."""

SCHEMES = ("FP8_DYNAMIC", "FP8_BLOCK")
CASES = [(name, scheme) for name in FAMILIES for scheme in SCHEMES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[QuantizeReport, QuantizeReport]]:
    """Plan and make each family in each scheme."""
    folder = tmp_path_factory.mktemp("preflight")
    reports = {}
    for name, changed in FAMILIES.items():
        each = family(name)
        source = save_family(replace(each, config={**each.config, **WIDE, **changed}), folder / "source" / name)
        for scheme in SCHEMES:
            request = QuantizeRequest(model=str(source), out=folder / scheme / name, scheme=scheme)
            reports[name, scheme] = run(replace(request, dry_run=True)), run(request)
    return reports


def what_inspect_says(folder: Path) -> InspectReport:
    return inspect(InspectRequest(source=folder, gpus=("H100",)))


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_plan_report_and_inspect_say_the_same(
    made: dict[tuple[str, str], tuple[QuantizeReport, QuantizeReport]], name: str, scheme: str
) -> None:
    planned, done = made[name, scheme]
    inspected = what_inspect_says(done.out).serving
    assert planned.serving is not None
    assert planned.serving == done.serving
    assert planned.serving.parallel == inspected.parallel
    assert planned.serving.not_judged == inspected.not_judged
    assert planned.serving.vllm == inspected.vllm
    assert planned.serving.generations == inspected.generations
    # Something was said, too.
    verdicts = [split.verdict for split in planned.serving.parallel]
    assert verdicts[0] == "works"
    assert "refused" in verdicts[1:4] if scheme == "FP8_BLOCK" else verdicts[:3] == ["works"] * 3


def test_a_plan_on_paper_says_nothing_of_values_and_still_names_each_generation(
    made: dict[tuple[str, str], tuple[QuantizeReport, QuantizeReport]],
) -> None:
    planned, _ = made["Qwen3-MoE", "FP8_BLOCK"]
    assert planned.serving is not None
    found = [(each.generation.name, each.needs.mode, each.needs.experts) for each in planned.serving.generations]
    assert found[0] == ("Volta", "unsupported", "unsupported")
    assert found[2] == ("Ampere", "weight-only", "weight-only")
    assert found[4] == ("Ada", "weight-only", "native"), "Triton's kernels for experts take blocks before CUTLASS does"
    assert found[5] == ("Hopper", "native", "native")
    assert planned.serving.vllm.least == "0.11.0"


@pytest.fixture(scope="module")
def vllm(
    made: dict[tuple[str, str], tuple[QuantizeReport, QuantizeReport]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str | None]]:
    """Let vLLM build every result as the first of so many ranks would."""
    folder = tmp_path_factory.mktemp("splits")
    jobs = [[f"{name} {scheme}", str(done.out), SIZES] for (name, scheme), (_, done) in made.items()]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.vllm_splits", str(folder / "found.json"), str(folder / "jobs.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, dict[str, str | None]] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_vllms_own_model_classes_refuse_the_same_numbers_of_gpus(
    made: dict[tuple[str, str], tuple[QuantizeReport, QuantizeReport]],
    vllm: dict[str, dict[str, str | None]],
    name: str,
    scheme: str,
) -> None:
    planned, _ = made[name, scheme]
    assert planned.serving is not None
    raised = vllm[f"{name} {scheme}"]
    assert None in raised.values(), "on one GPU at least it is built"
    for split in planned.serving.parallel:
        error = raised[str(split.size)]
        if split.verdict == "works" and not planned.serving.not_judged:
            assert error is None, split
        elif split.verdict == "refused":
            assert error is not None, split
            assert "divisible" in error or "assert" in error.lower(), error
