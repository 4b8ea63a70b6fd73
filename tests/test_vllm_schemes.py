"""What vLLM makes of a config: its own resolution is asked, layer by layer, for every scheme that is written.

Its CPU build has no kernels for most of them; which one a GPU would run is decided before a kernel is asked for.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.calibrated import MODEL, made_up, plan_of, write
from tests.starting import fp8

pytestmark = pytest.mark.slow

RESOLVE = """
import json, sys
import torch
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors
from vllm.model_executor.models.llama import LlamaForCausalLM

def layer(name):
    return type(name, (torch.nn.Module,), {})()

LAYERS = {
    "self_attn.qkv_proj": layer("QKVParallelLinear"),
    "self_attn.o_proj": layer("RowParallelLinear"),
    "mlp.gate_up_proj": layer("MergedColumnParallelLinear"),
    "mlp.down_proj": layer("RowParallelLinear"),
}
NAMES = {f"model.layers.{number}.{name}": module for number in range(3) for name, module in LAYERS.items()}
NAMES["lm_head"] = layer("ParallelLMHead")
found = {}
for folder in sys.argv[1:]:
    config = json.load(open(folder + "/config.json"))["quantization_config"]
    chosen = compressed_tensors.CompressedTensorsConfig.from_config(config)
    chosen.packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
    cache = chosen.kv_cache_scheme
    compressed_tensors.CompressedTensorsKVCacheMethod.validate_kv_cache_scheme(cache)
    schemes = {}
    with set_current_vllm_config(VllmConfig(model_config=ModelConfig(model=folder))):
        for name, module in NAMES.items():
            try:
                scheme = chosen.get_scheme(module, name)
            except ValueError as refusal:
                schemes[name] = "refused"
                continue
            words = scheme and [type(scheme).__name__, scheme.strategy, bool(scheme.is_static_input_scheme)]
            schemes[name] = words
    found[folder.rsplit("/", 1)[-1]] = {"layers": schemes, "cache": cache and cache["strategy"]}
print(json.dumps(found))
"""

W8A8 = "CompressedTensorsW8A8Fp8"
CHOICES = {
    "dynamic": (),
    "block": ("--scheme", "FP8_BLOCK"),
    "heads": ("--no-default-ignore",),
    "partly": tuple(f"--ignore=model.layers.1.self_attn.{part}_proj" for part in "qkv"),
    "split": ("--ignore=model.layers.1.self_attn.k_proj",),
}
CALIBRATED = {"static": ("FP8", "tensor"), "static-heads": ("FP8", "head"), "cache": (None, "tensor")}


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what vLLM chooses for each layer of each choice."""
    folder = tmp_path_factory.mktemp("schemes")
    for name, words in CHOICES.items():
        assert fp8(folder, "quantize", str(MODEL), "-o", str(folder / name), *words).code == 0
    for name, (scheme, cache) in CALIBRATED.items():
        plan = plan_of(MODEL, scheme, cache)  # type: ignore[arg-type]
        write(MODEL, folder / name, plan, made_up(plan))
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (folder / name / file).write_bytes((MODEL / file).read_bytes())
    command = [sys.executable, "-c", RESOLVE, *(str(folder / name) for name in (*CHOICES, *CALIBRATED))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("name", "strategy", "is_static", "cache"),
    [
        ("dynamic", "channel", False, None),
        ("block", "block", False, None),
        ("static", "tensor", True, "tensor"),
        ("static-heads", "tensor", True, "attn_head"),
    ],
)
def test_vllm_chooses_for_every_linear_what_the_scheme_means_and_keeps_the_head(
    resolved: dict[str, Any],
    name: str,
    strategy: str,
    is_static: bool,
    cache: str | None,
) -> None:
    layers = dict(resolved[name]["layers"])
    assert layers.pop("lm_head") is None
    assert set(map(tuple, layers.values())) == {(W8A8, strategy, is_static)}
    assert resolved[name]["cache"] == cache


def test_vllm_has_no_place_for_a_quantized_head_as_the_report_warns(resolved: dict[str, Any]) -> None:
    assert resolved["heads"]["layers"]["lm_head"] is None


def test_vllm_keeps_a_fused_layer_whose_parts_are_all_ignored_and_refuses_one_that_is_split(
    resolved: dict[str, Any],
) -> None:
    place = "model.layers.1.self_attn.qkv_proj"
    assert resolved["partly"]["layers"][place] is None
    assert resolved["partly"]["layers"]["model.layers.0.self_attn.qkv_proj"] == [W8A8, "channel", False]
    assert resolved["split"]["layers"][place] == "refused"


def test_vllm_keeps_all_weights_where_the_cache_alone_is_fp8(resolved: dict[str, Any]) -> None:
    assert set(resolved["cache"]["layers"].values()) == {None}
    assert resolved["cache"]["cache"] == "tensor"
