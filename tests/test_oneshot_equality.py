"""Tensor for tensor, the checkpoint is what llm-compressor's `oneshot` writes: the real one, run here."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, PretrainedConfig

from fp8cli.commands.quantize import QuantizeRequest, run
from tests.models import ALIGNED, ODD, llama_config, qwen2_config, save_model

# The reference's own talk while it saves; it says nothing about the bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def reference(source: Path, out: Path, scheme: str, ignore: list[str]) -> Path:
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=ignore))
    model.save_pretrained(out, save_compressed=True)
    return out


def tensors(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                assert name not in found
                found[name] = (tensor.dtype, tuple(tensor.shape), raw)
    return found


def assert_same(ours: Path, theirs: Path) -> None:
    mine, reference_tensors = tensors(ours), tensors(theirs)
    assert sorted(mine) == sorted(reference_tensors)
    for name, (dtype, shape, raw) in reference_tensors.items():
        assert mine[name][:2] == (dtype, shape), name
        assert mine[name][2] == raw, name


def both(tmp_path: Path, source: Path, scheme: str, **options: object) -> tuple[Path, Path]:
    ignore = [] if options.get("default_ignore") is False else ["lm_head", *options.get("ignore", ())]
    theirs = reference(source, tmp_path / "theirs", scheme, ignore)
    ours = run(QuantizeRequest(model=str(source), out=tmp_path / "ours", scheme=scheme, **options)).out
    return ours, theirs


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
@pytest.mark.parametrize("sizes", [ALIGNED, ODD], ids=["aligned", "odd"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_byte_of_a_llama_is_the_reference_s(tmp_path: Path, dtype: str, sizes: dict, scheme: str) -> None:
    source = save_model(tmp_path / "source", llama_config(**sizes), DTYPES[dtype])
    ours, theirs = both(tmp_path, source, scheme)
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert (ours / "recipe.yaml").read_bytes() == (theirs / "recipe.yaml").read_bytes()


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_biases_and_tied_embeddings_are_the_reference_s(tmp_path: Path, scheme: str) -> None:
    source = save_model(tmp_path / "source", qwen2_config(**ODD))
    ours, theirs = both(tmp_path, source, scheme)
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert "lm_head.weight" not in tensors(ours)


@pytest.mark.parametrize("config", [llama_config, qwen2_config], ids=["untied", "tied"])
def test_a_quantized_output_head_is_the_reference_s(tmp_path: Path, config: type[PretrainedConfig]) -> None:
    source = save_model(tmp_path / "source", config())
    ours, theirs = both(tmp_path, source, "FP8_DYNAMIC", default_ignore=False)
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert tensors(ours)["lm_head.weight"][0] == torch.float8_e4m3fn


@pytest.mark.parametrize(("stored", "named"), [("fp32", "bfloat16"), ("fp32", "float16"), ("bf16", "float32")])
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_the_config_s_dtype_wins_over_the_file_s(tmp_path: Path, stored: str, named: str, scheme: str) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), DTYPES[stored])
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": named}))
    ours, theirs = both(tmp_path, source, scheme)
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()


def test_without_a_dtype_in_the_config_the_first_tensor_s_counts(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(), torch.float16)
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    ours, theirs = both(tmp_path, source, "FP8_DYNAMIC")
    assert_same(ours, theirs)


def test_shards_hold_what_one_file_would(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="200KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    ours, theirs = both(tmp_path, source, "FP8_DYNAMIC", ignore=("re:.*down_proj",))
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert [path.name for path in sorted(ours.glob("*.safetensors"))] == [
        path.name for path in sorted(source.glob("*.safetensors"))
    ]
