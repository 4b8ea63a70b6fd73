"""A surveyed checkpoint as serving it sees it: made by `fp8 quantize`, then declared in the words of every dialect."""

import copy
import json
import re
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.inspection.dialect import recognise_dialect
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.core.serving.command_line import DEPRECATED
from fp8cli.core.serving.gpu_models import default_gpus
from fp8cli.core.serving.served import served_checkpoint, serving_of
from fp8cli.core.serving.serving_report import Served
from fp8cli.formats.checkpoint import LocalFolder

MODEL = Path(str(files("fp8cli"))) / "bundled" / "stories-llama"

E4M3: dict[str, Any] = {"type": "float", "num_bits": 8, "strategy": "channel", "dynamic": False}
TOKEN = E4M3 | {"strategy": "token", "dynamic": True}
TENSOR = E4M3 | {"strategy": "tensor"}
BLOCK = E4M3 | {"strategy": "block", "block_structure": [128, 128]}
GROUP_128 = TOKEN | {"strategy": "group", "group_size": 128}
MX = E4M3 | {"strategy": "group", "group_size": 32}
INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("served")
    return {
        scheme: run(QuantizeRequest(model=str(MODEL), out=folder / scheme, scheme=scheme)).out
        for scheme in ("FP8_DYNAMIC", "FP8_BLOCK")
    }


def surveyed(folder: Path, quantization: dict[str, Any] | None = None) -> Survey:
    """Survey a checkpoint; with `quantization`, as if its config.json had that block."""
    found = survey(LocalFolder(folder))
    if quantization is None:
        return found
    config = dict(copy.deepcopy(json.loads((folder / "config.json").read_text())))
    return replace(found, config=config | {"quantization_config": quantization})


def served(folder: Path, quantization: dict[str, Any] | None = None) -> Served:
    found = surveyed(folder, quantization)
    return served_checkpoint(found, recognise_dialect(found), path="x")


def compressed(weights: dict[str, Any], activations: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        **more,
    }


def test_what_quantize_made_is_gathered_whole(made: dict[str, Path]) -> None:
    for scheme, kind, block in (("FP8_DYNAMIC", "dynamic", None), ("FP8_BLOCK", "block", (128, 128))):
        folder = made[scheme]
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        codes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if "float8" in str(tensor.dtype)}
        assert len(codes) == 21
        gathered = served(folder)
        assert dict(gathered.quantized) == codes
        assert gathered == Served(
            path="x",
            config=json.loads((folder / "config.json").read_text()),
            weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            quantized=gathered.quantized,
            method="compressed-tensors",
            kind=kind,  # type: ignore[arg-type]
            block=block,
        )


@pytest.mark.parametrize(
    ("quantization", "kind"),
    [
        (compressed(E4M3, TOKEN), "dynamic"),
        (compressed(TENSOR, TENSOR), "static"),
        (compressed(E4M3, None), "weights"),
        (compressed(BLOCK, GROUP_128), "block"),
        (compressed(BLOCK, None), "weights"),
        (compressed(MX, MX | {"dynamic": True}), "mx"),
        (compressed(MX, None), "mx"),
        (compressed(E4M3, TOKEN | {"type": "int"}), None),
        (compressed(E4M3, TOKEN | {"dynamic": "local"}), None),
        (compressed(INT4, None), None),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "static"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "dynamic"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "block"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e5m2"}, None),
        ({"quant_method": "fbgemm_fp8"}, "dynamic"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "static"),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, "block"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None),
        ({"quant_method": "mxfp8"}, "mx"),
        ({"quant_method": "newer than this tool"}, None),
    ],
)
def test_the_kind_of_fp8_is_the_one_that_the_config_declares(
    made: dict[str, Path], quantization: dict[str, Any], kind: str | None
) -> None:
    assert served(made["FP8_DYNAMIC"], quantization).kind == kind


def test_several_kinds_in_one_checkpoint_are_no_kind(made: dict[str, Path]) -> None:
    both = compressed(E4M3, TOKEN)
    both["config_groups"]["group_1"] = {"targets": ["re:.*mlp.*"], "weights": BLOCK, "input_activations": GROUP_128}
    assert served(made["FP8_DYNAMIC"], both).kind is None
    same = compressed(E4M3, TOKEN)
    same["config_groups"]["group_1"] = {"targets": ["re:.*mlp.*"], "weights": TENSOR, "input_activations": TOKEN}
    assert served(made["FP8_DYNAMIC"], same).kind == "dynamic"


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (compressed(E4M3, TOKEN, kv_cache_scheme=TENSOR), True),
        (compressed(E4M3, TOKEN, kv_cache_scheme=None), False),
        (compressed(E4M3, TOKEN, kv_cache_scheme=TENSOR | {"type": "int"}), False),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, True),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": None}, False),
    ],
)
def test_an_fp8_kv_cache_is_counted_where_vllm_would_use_one(
    made: dict[str, Path], quantization: dict[str, Any], expected: bool
) -> None:
    assert served(made["FP8_DYNAMIC"], quantization).kv_cache_fp8 is expected


def test_a_cache_scale_for_each_head_is_told_from_one_for_a_layer(made: dict[str, Path]) -> None:
    by_head = compressed(E4M3, TOKEN, kv_cache_scheme=TENSOR | {"strategy": "attn_head"})
    assert served(made["FP8_DYNAMIC"], by_head).head_scales is True
    assert served(made["FP8_DYNAMIC"], compressed(E4M3, TOKEN, kv_cache_scheme=TENSOR)).head_scales is False


def test_weights_beside_a_quantized_cache_alone_are_split_as_any_others() -> None:
    alone = compressed(E4M3, TOKEN, kv_cache_scheme=TENSOR) | {"config_groups": {}, "format": "dense"}
    judged = served(MODEL, alone)
    assert (judged.kind, judged.kv_cache_fp8, judged.split_unknown) == (None, True, None)


def test_deepseeks_own_format_is_the_one_that_vllm_merges_without_asking(made: dict[str, Path]) -> None:
    native = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert served(made["FP8_BLOCK"], native).merged_checked is False
    assert served(made["FP8_BLOCK"]).merged_checked is True


def test_other_formats_and_plain_models_have_no_fp8_to_judge() -> None:
    plain = served(MODEL)
    assert (plain.kind, plain.quantized, plain.split_unknown) == (None, (), None)
    empty = served(MODEL, compressed(E4M3, TOKEN))
    assert (empty.kind, empty.quantized) == (None, ())
    gptq = served(MODEL, {"quant_method": "gptq", "bits": 4, "group_size": 128})
    assert gptq.split_unknown is not None
    assert gptq.split_unknown.startswith("how vLLM splits the weights of GPTQ")


def test_the_bundled_model_runs_everywhere_and_only_heads_limit_its_gpus(made: dict[str, Path]) -> None:
    found = surveyed(made["FP8_DYNAMIC"])
    report = serving_of(found, recognise_dialect(found), path="x", contexts=[], gpus=default_gpus())
    assert [(split.size, split.verdict) for split in report.parallel] == [
        (1, "works"),
        (2, "works"),
        (4, "works"),
        (8, "refused"),
        (16, "refused"),
    ]
    # 3 layers of 4 heads of 32, keys and values, 2 bytes.
    assert report.cache.per_token() == 3 * 4 * 32 * 2 * 2
    assert report.longest == 512
    commands = {judged.gpu.name: judged.best and judged.best.command for judged in report.gpus}
    assert commands.pop("T4") == "vllm serve x --dtype half"
    assert set(commands.values()) == {"vllm serve x"}


def test_a_checkpoint_without_anything_readable_is_judged_without_raising(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"\x00")
    found = survey(LocalFolder(tmp_path))
    report = serving_of(found, recognise_dialect(found), path="x", contexts=[4096], gpus=default_gpus())
    assert {fit.verdict for judged in report.gpus for fit in judged.fits} == {"unknown"}


def test_the_line_that_serves_asks_vllm_to_load_what_it_calls_deprecated_and_nothing_else(
    made: dict[str, Path],
) -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent / "model_executor" / "layers" / "quantization" / "__init__.py"
    listed = package.read_text("utf-8").partition("DEPRECATED_QUANTIZATION_METHODS = [")[2].partition("]")[0]
    assert set(re.findall(r'"(\w+)"', listed)) == DEPRECATED

    def lines(quantization: dict[str, Any]) -> dict[str, str | None]:
        found = surveyed(made["FP8_DYNAMIC"], quantization)
        report = serving_of(found, recognise_dialect(found), path="x", contexts=[256], gpus=default_gpus())
        return {judged.gpu.name: judged.best and judged.best.command for judged in report.gpus}

    fbgemm = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    asked = "vllm serve x --allow-deprecated-quantization --max-model-len 256"
    assert lines(fbgemm)["H100"] == asked
    assert lines(compressed(E4M3, TOKEN))["H100"] == "vllm serve x --max-model-len 256"
