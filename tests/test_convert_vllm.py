"""What vLLM makes of a converted checkpoint: its own config classes read it, and its own names find its KV scales.

No kernel is asked for, because its CPU build has hardly any: that the numbers are right is for tests/test_convert.py.
"""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from fp8cli.commands.convert import ConvertRequest, Options, run
from tests.dialects import KV, make
from tests.test_convert import PAIRS, cache

pytestmark = pytest.mark.slow

READ = """
import json, sys
import torch
from safetensors.torch import load_file
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.models.llama import LlamaForCausalLM

found = {}
for folder in sys.argv[1:]:
    block = json.load(open(folder + "/config.json"))["quantization_config"]
    chosen = get_quantization_config(block["quant_method"]).from_config(block)
    chosen.packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
    mapped = {}
    tensors = load_file(folder + "/model.safetensors")
    for name, tensor in chosen.get_cache_scale_mapper().apply(iter(tensors.items())):
        mapped[name] = list(tensor.shape)
    found[folder.rsplit("/", 1)[-1]] = {
        "class": type(chosen).__name__,
        "algorithm": getattr(chosen, "quant_method", None),
        "blocks": getattr(chosen, "weight_block_size", None),
        "static": getattr(chosen, "activation_scheme", None),
        "left": getattr(chosen, "ignored_layers", None)
        or getattr(chosen, "exclude_modules", None)
        or getattr(chosen, "ignore_list", None)
        or getattr(chosen, "ignore", None),
        "cache": sorted(name for name in mapped if ".attn." in name),
    }
print(json.dumps(found))
"""
CLASSES = {
    "compressed-tensors": "CompressedTensorsConfig",
    "fp8": "Fp8Config",
    "deepseek": "Fp8Config",
    "modelopt": "ModelOptFp8Config",
    "fbgemm": "FBGEMMFp8Config",
}
CACHED = ("compressed-tensors, static", "fp8, static", "modelopt, static")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what vLLM says of every conversion."""
    folder = tmp_path_factory.mktemp("vllm")
    outputs = []
    for number, (name, target) in enumerate(PAIRS):
        keys, extra = {}, {}
        if name in CACHED:
            place = "{kind}_proj.{kind}_scale" if "modelopt" in name else "{kind}_scale"
            extra = cache(place, [1] if "compressed" in name else [], torch.float32)
            modelopt = {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}}
            keys = KV if "compressed" in name else modelopt if "modelopt" in name else {}
        source = make(folder / f"source-{number}", name, extra, **keys)
        out = folder / f"{name} → {target}"
        run(ConvertRequest(options=Options(model=str(source), out=out), to=target))
        outputs.append(str(out))
    result = subprocess.run([sys.executable, "-c", READ, *outputs], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_vllms_own_classes_read_the_config(read: dict[str, Any], name: str, target: str) -> None:
    said = read[f"{name} → {target}"]
    assert said["class"] == CLASSES[target]
    assert said["left"] == ["lm_head"]
    match target:
        case "deepseek":
            assert said["blocks"] == [128, 128]
        case "fp8":
            assert said["static"] == ("static" if "static" in name else "dynamic")
        case "modelopt":
            tensor, block = "static" in name, "blocks" in name or "deepseek" in name
            assert said["algorithm"] == ("FP8" if tensor else "FP8_PB_WO" if block else "FP8_PER_CHANNEL_PER_TOKEN")


@pytest.mark.parametrize(("name", "target"), [pair for pair in PAIRS if pair[0] in CACHED])
def test_vllm_finds_the_scales_of_the_kv_cache(read: dict[str, Any], name: str, target: str) -> None:
    wanted = [f"model.layers.{layer}.self_attn.attn.{kind}_scale" for layer in range(2) for kind in "kv"]
    assert read[f"{name} → {target}"]["cache"] == wanted
