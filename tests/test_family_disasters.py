"""The disasters that models of some families have met with elsewhere, each as a test that the wrong output fails.

What vLLM would make of them is asked in `test_families.py`: a router or a vision tower in FP8, halves exchanged,
layers for multi-token prediction. Here the bytes and names of the output are looked at.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_matrix import family
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fp8cli.commands import inspect
from fp8cli.commands.quantize import CalibrationOptions, QuantizeRequest, run
from fp8cli.core.model.modeling import read_rules
from fp8cli.core.model.selection import is_router
from fp8cli.errors import BadInput, CannotRun, UsageError
from tests.families import FILE, add_prediction_layer, change, save_family

pytestmark = pytest.mark.filterwarnings("ignore")
FP8 = torch.float8_e4m3fn
LOGITS = 0.2
"""Most that the logits of a few random layers may differ, relative to their norm; see `test_families.py`."""
SOUND_DB = 30
"""What E4M3 with a scale per row gives for normal weights is 31.5 dB."""

Source = Callable[[str], Path]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return lambda name: save_family(family(name), tmp_path / "source")


def quantize(source: Path, **options: Any) -> dict[str, torch.Tensor]:
    return load_file(run(QuantizeRequest(model=str(source), out=source.with_name("out"), **options)).out / FILE)


def test_falcon_s_own_kind_of_linear_is_quantized(source: Source) -> None:
    output = quantize(source("Falcon"))
    matrices = {name for name, tensor in output.items() if tensor.dim() == 2 and ".h." in name and "scale" not in name}
    assert len(matrices) == 2 * 4
    assert all(output[name].dtype == FP8 and f"{name}_scale" in output for name in matrices)
    assert not any("zero_point" in name for name in output)


def test_mixtral_s_experts_keep_the_names_that_are_published(source: Source) -> None:
    folder = source("Mixtral")
    published = load_file(folder / FILE).keys()
    output = quantize(folder)
    assert {name for name in output if not name.endswith("_scale")} == published
    assert output["model.layers.1.block_sparse_moe.experts.3.w2.weight"].dtype == FP8


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE", "DeepSeek-V3", "Qwen3-Next", "Jamba", "Llama 4"])
def test_every_router_keeps_its_values_and_is_ignored(source: Source, name: str) -> None:
    folder = source(name)
    before, after = load_file(folder / FILE), quantize(folder)
    ignore = json.loads((folder.with_name("out") / "config.json").read_text())["quantization_config"]["ignore"]
    ends = (".gate.weight", ".router.weight", ".shared_expert_gate.weight")
    routers = [tensor for tensor in before if tensor.endswith(ends)]
    assert routers
    for router in routers:
        assert torch.equal(before[router], after[router])
        assert router.removesuffix(".weight") in ignore


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Qwen3-VL", "Llava 1.5", "Pixtral", "Gemma 3 (vision)", "Llama 4"])
def test_every_value_of_a_vision_tower_is_the_source_s(source: Source, name: str) -> None:
    folder = source(name)
    before, after = load_file(folder / FILE), quantize(folder)
    tower = [tensor for tensor in before if "vis" in tensor.partition(".layers.")[0] or "projector" in tensor]
    assert tower
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in tower)
    assert not any(f"{tensor}_scale" in after for tensor in tower)


def test_a_tied_head_is_stored_once_and_stays_tied(source: Source) -> None:
    folder = source("Qwen2")
    tensors = load_file(folder / FILE)
    change(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    output = quantize(folder)
    assert "lm_head.weight" not in output
    assert json.loads((folder.with_name("out") / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_tied_head_of_a_multimodal_model_is_stored_once_and_inspect_says_why(source: Source) -> None:
    folder, head = source("Gemma 3 (vision)"), "language_model.lm_head.weight"
    tensors = load_file(folder / FILE)
    change(
        folder, tensors | {head: tensors["language_model.model.embed_tokens.weight"].clone()}, tie_word_embeddings=True
    )
    output = quantize(folder)
    assert head not in output
    report = inspect.run(inspect.InspectRequest(source=folder.with_name("out"), against=str(folder)))
    assert report.against is not None
    assert report.against.tensors["left out"] == 1
    assert "lost" not in report.against.tensors


def test_layers_for_multi_token_prediction_are_neither_lost_nor_quantized(source: Source) -> None:
    folder = source("DeepSeek-V3")
    extra = add_prediction_layer(folder)
    output = quantize(folder)
    assert all(torch.equal(output[name], tensor) for name, tensor in extra.items())
    ignore = json.loads((folder.with_name("out") / "config.json").read_text())["quantization_config"]["ignore"]
    assert r"re:^model\.layers\.2\." in ignore


def test_a_consolidated_file_beside_the_shards_is_left_behind(source: Source, tmp_path: Path) -> None:
    folder = source("Mistral")
    alone = quantize(folder)
    shutil.copy(folder / FILE, folder / "consolidated.safetensors")
    report = run(QuantizeRequest(model=str(folder), out=tmp_path / "beside"))
    assert not (report.out / "consolidated.safetensors").exists()
    beside = load_file(report.out / FILE)
    assert all(torch.equal(alone[name].view(torch.uint8), beside[name].view(torch.uint8)) for name in alone)


def test_gpt_oss_as_it_is_published_is_refused_because_it_is_quantized_already(source: Source) -> None:
    folder = source("gpt-oss")
    tensors = load_file(folder / FILE)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, rows, columns = tensors.pop(name).transpose(1, 2).shape
        tensors[f"{name}_blocks"] = torch.zeros(experts, rows, columns // 32, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(experts, rows, columns // 32, dtype=torch.uint8)
    change(folder, tensors, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    with pytest.raises(BadInput, match="is quantized already: "):
        quantize(folder)
    assert not folder.with_name("out").exists()


def test_experts_fused_in_a_way_nobody_knows_are_refused_and_not_taken_for_something_else(source: Source) -> None:
    folder = source("Llama 2 and 3")
    tensors = load_file(folder / FILE) | {"model.layers.0.mlp.experts.gate_up_proj": torch.ones(4, 128, 64).bfloat16()}
    change(folder, tensors)
    with pytest.raises(CannotRun, match="and how they lie in it is not known"):
        quantize(folder)
    assert not folder.with_name("out").exists()


@pytest.mark.parametrize("shape", [(128,), (4, 128, 383), (4, 3, 128, 8)])
def test_fused_experts_of_a_shape_that_cannot_be_are_refused_by_name(source: Source, shape: tuple[int, ...]) -> None:
    folder, name = source("Llama 4"), "language_model.model.layers.1.feed_forward.experts.gate_up_proj"
    change(folder, load_file(folder / FILE) | {name: torch.ones(shape).bfloat16()})
    with pytest.raises(CannotRun, match=f"`{name}` holds all experts in one tensor"):
        quantize(folder)
    inspect.run(inspect.InspectRequest(source=folder))


@pytest.mark.parametrize("shape", [(3, 128, 384), (4, 126, 384)])
def test_fused_experts_that_are_not_those_of_the_config_are_refused_with_both_numbers(
    source: Source, shape: tuple[int, ...]
) -> None:
    folder, name = source("Llama 4"), "language_model.model.layers.1.feed_forward.experts.gate_up_proj"
    change(folder, load_file(folder / FILE) | {name: torch.ones(shape).bfloat16()})
    with pytest.raises(BadInput, match=r"but config.json promises 4 experts and a hidden size of 128"):
        quantize(folder)


def test_a_model_with_code_of_its_own_is_quantized_by_names_and_shapes_like_the_one_it_resembles(
    source: Source,
) -> None:
    folder = source("Llama 2 and 3")
    known = quantize(folder)
    auto_map = {"AutoModelForCausalLM": "modeling_homemade.HomemadeForCausalLM"}
    change(
        folder,
        load_file(folder / FILE),
        model_type="homemade",
        architectures=["HomemadeForCausalLM"],
        auto_map=auto_map,
    )
    (folder / "modeling_homemade.py").write_text("raise RuntimeError('never to be run')\n")
    unknown = quantize(folder, overwrite=True)
    assert unknown.keys() == known.keys()
    assert all(torch.equal(unknown[name].view(torch.uint8), known[name].view(torch.uint8)) for name in known)
    assert (folder.with_name("out") / "modeling_homemade.py").is_file()


OWN_CODE = {
    "configuration_homemade.py": """
from transformers import PretrainedConfig


class HomemadeConfig(PretrainedConfig):
    model_type = "homemade"
""",
    "modeling_homemade.py": """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_homemade import HomemadeConfig


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.shift = nn.Conv1d(width, width, 3, groups=width, padding=2)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        mixed = self.shift(self.norm(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return x + self.narrow(torch.tanh(self.widen(mixed)))


class HomemadeForCausalLM(PreTrainedModel):
    config_class = HomemadeConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.stack = nn.ModuleList(Mixer(config.width) for _ in range(config.depth))
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, **_):
        x = self.embed(input_ids)
        for mixer in self.stack:
            x = mixer(x)
        return CausalLMOutput(logits=self.lm_head(x))
""",
}


def test_a_model_that_only_its_own_code_can_run_computes_in_fp8_what_it_did_before(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, text in OWN_CODE.items():
        (folder / name).write_text(text)
    kinds = {"AutoConfig": "configuration_homemade.HomemadeConfig"}
    kinds["AutoModelForCausalLM"] = "modeling_homemade.HomemadeForCausalLM"
    config = {
        "model_type": "homemade",
        "architectures": ["HomemadeForCausalLM"],
        "auto_map": kinds,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 320, "width": 128, "depth": 2}))
    torch.manual_seed(5)
    sizes: dict[str, tuple[int, ...]] = {"embed.weight": (320, 128), "lm_head.weight": (320, 128)}
    for layer in ("stack.0", "stack.1"):
        sizes |= {f"{layer}.norm.{leaf}": (128,) for leaf in ("weight", "bias")}
        sizes |= {f"{layer}.shift.weight": (128, 1, 3), f"{layer}.shift.bias": (128,)}
        sizes |= {f"{layer}.widen.weight": (256, 128), f"{layer}.widen.bias": (256,)}
        sizes[f"{layer}.narrow.weight"] = (128, 256)
    tensors = {name: torch.randn(size).mul(0.2).bfloat16() for name, size in sizes.items()}
    save_file(tensors, folder / FILE, {"format": "pt"})

    output = quantize(folder)
    codes = {name.removesuffix(".weight") for name, tensor in output.items() if tensor.dtype == torch.float8_e4m3fn}
    assert codes == {f"stack.{layer}.{leaf}" for layer in (0, 1) for leaf in ("widen", "narrow")}
    tokens = torch.arange(3, 300, 7).reshape(1, -1)
    found = []
    for place in (folder, folder.with_name("out")):
        model, report = AutoModelForCausalLM.from_pretrained(
            place, trust_remote_code=True, dtype="auto", output_loading_info=True
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            found.append(model(tokens).logits.float())
    expected, quantized = found
    assert 0 < float((quantized - expected).norm() / expected.norm()) < LOGITS


def test_a_router_within_a_class_of_routers_is_one_although_transformers_names_it_layer() -> None:
    each = family("DBRX")
    rules = read_rules({"architectures": [each.architecture], "model_type": each.model_type, **each.config})
    assert rules is not None
    assert rules.origin == "transformers"
    assert is_router("transformer.blocks.1.ffn.router.layer", rules)
    assert not is_router("transformer.blocks.1.norm_attn_norm.attn.out_proj", rules)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.w1", "model.layers.0.mlp.experts.mlp.v1"])
def test_experts_in_one_matrix_that_is_no_layer_s_weight_are_refused_in_a_model_nobody_knows(
    source: Source, name: str
) -> None:
    folder = source("Llama 2 and 3")
    tensors = load_file(folder / FILE) | {name: torch.ones(4 * 128, 64).bfloat16()}
    change(folder, tensors, model_type="homemade", architectures=["HomemadeForCausalLM"])
    with pytest.raises(CannotRun, match="and how they lie in it is not known"):
        quantize(folder)
    biases = load_file(folder / FILE)
    biases["model.layers.0.mlp.experts.gate_up_proj_bias"] = biases.pop(name)
    change(folder, biases)
    assert "model.layers.0.mlp.experts.gate_up_proj_bias" in quantize(folder)


def test_part_of_the_experts_of_a_fused_tensor_cannot_be_ignored(source: Source) -> None:
    with pytest.raises(UsageError, match="cannot be quantized without the others"):
        quantize(source("Llama 4"), ignore=("*.layers.0.feed_forward.experts.2.*",))


def test_the_experts_of_one_layer_cannot_stay_fused_while_others_are_taken_apart(source: Source) -> None:
    with pytest.raises(UsageError, match="would stay in one tensor, but experts of other layers are taken out"):
        quantize(source("Llama 4"), ignore=("*.layers.0.feed_forward.experts.*",))


def test_the_experts_of_all_layers_can_be_ignored_and_stay_as_they_are(source: Source) -> None:
    folder = source("Llama 4")
    before = load_file(folder / FILE)
    after = quantize(folder, ignore=("*.feed_forward.experts.*",))
    fused = [name for name in before if ".feed_forward.experts." in name]
    assert len(fused) == 2 * 2
    assert all(torch.equal(before[name], after[name]) for name in fused)
    ignore = json.loads((folder.with_name("out") / "config.json").read_text())["quantization_config"]["ignore"]
    assert "language_model.model.layers.0.feed_forward.experts.3.down_proj" in ignore


def test_static_scales_are_refused_where_text_alone_does_not_go_through_the_model(source: Source) -> None:
    folder = source("Whisper")
    data = folder.with_name("texts.jsonl")
    data.write_text('{"text": "Once upon a time."}\n')
    shutil.copy(Path("fp8cli/bundled/stories-llama/tokenizer.json"), folder)
    with pytest.raises(
        CannotRun, match="wants more than text, and only what text alone goes through can be calibrated"
    ):
        quantize(folder, scheme="FP8", calibration=CalibrationOptions(data=str(data), samples=1))


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
@pytest.mark.parametrize("workers", [1, 2])
def test_transposed_experts_have_the_bytes_of_their_transposes_in_pieces_of_any_size(
    source: Source, scheme: str, workers: int
) -> None:
    folder = source("Llama 4")
    fused = load_file(folder / FILE)["language_model.model.layers.1.feed_forward.experts.gate_up_proj"]
    output = quantize(folder, scheme=scheme, workers=workers, piece_bytes=5000)
    layers = {
        f"model.layers.{n}.mlp.{leaf}": part for n, half in enumerate(fused.unbind()) for leaf, part in halves(half)
    }
    plain = save_plain(folder.with_name("plain"), layers)
    expected = quantize(plain, scheme=scheme, overwrite=True)
    for name in layers:
        expert, leaf = name.split(".")[2], name.rpartition(".")[2]
        ours = f"language_model.model.layers.1.feed_forward.experts.{expert}.{leaf}.weight"
        for end in ("", "_scale"):
            one, other = output[ours + end], expected[f"{name}.weight{end}"]
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


@pytest.mark.parametrize("name", ["Llama 4", "Granite-MoE", "Qwen3-VL-MoE"])
def test_inspect_compares_every_expert_with_its_part_of_the_source(source: Source, name: str) -> None:
    folder = source(name)
    out = folder.with_name("out")
    quantize(folder)
    report = inspect.run(inspect.InspectRequest(source=out, against=str(folder)))
    assert report.against is not None
    assert set(report.against.tensors) == {"copied", "quantized"}
    assert not [finding for finding in report.findings if finding.status in {"failed", "warning"}]
    assert all(row.sqnr_db > SOUND_DB for row in report.against.weights)


def halves(matrix: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    gate, up = matrix.t().chunk(2)
    return [("gate_proj", gate), ("up_proj", up)]


def save_plain(folder: Path, layers: dict[str, torch.Tensor]) -> Path:
    """A model nobody knows that holds these matrices as they are: the other way to the same bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["PlainForCausalLM"], "dtype": "bfloat16"}))
    tensors = {f"{name}.weight": tensor.contiguous() for name, tensor in layers.items()}
    save_file(tensors | {"lm_head.weight": torch.ones(4, 128).bfloat16()}, folder / FILE, {"format": "pt"})
    return folder


def test_a_multimodal_model_without_its_tower_is_refused_with_both_names(source: Source) -> None:
    folder = source("Qwen3-VL")
    tensors = {name: tensor for name, tensor in load_file(folder / FILE).items() if not name.startswith("model.visual")}
    change(folder, tensors)
    with pytest.raises(BadInput, match=r"not all here: expected names like `model.language_model.layers.0` and"):
        quantize(folder)
    assert not folder.with_name("out").exists()


def test_the_tied_head_of_a_multimodal_model_is_not_untied(source: Source) -> None:
    with pytest.raises(CannotRun, match=r"is tied to `language_model.model.embed_tokens.weight`, so it cannot be"):
        quantize(source("Gemma 3 (vision)"), default_ignore=False)


def test_what_a_user_keeps_is_ignored_under_the_names_of_disk_and_memory(source: Source) -> None:
    folder = source("Llava 1.5")
    kept = "language_model.model.layers.0.mlp.down_proj"
    output = quantize(folder, ignore=(kept,))
    ignore = json.loads((folder.with_name("out") / "config.json").read_text())["quantization_config"]["ignore"]
    assert {kept, "model.language_model.layers.0.mlp.down_proj", "language_model.lm_head", "lm_head"} <= set(ignore)
    assert output[f"{kept}.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("Llama 4", "language_model.model.layers.1.feed_forward.experts.3.up_proj.weight"),
        ("Granite-MoE", "model.layers.0.block_sparse_moe.experts.0.down_proj.weight"),
        ("Granite 4 (hybrid)", "model.layers.1.block_sparse_moe.experts.1.gate_proj.weight"),
        ("Gemma 4 (vision, experts)", "model.language_model.layers.1.experts.2.down_proj.weight"),
        ("Qwen3-VL", "model.language_model.layers.1.self_attn.q_norm.weight"),
    ],
)
def test_inspect_misses_an_expert_or_a_tensor_of_the_language_model(source: Source, name: str, gone: str) -> None:
    folder = source(name)
    output = quantize(folder)
    out = folder.with_name("out")
    change(out, {name: tensor for name, tensor in output.items() if name not in {gone, f"{gone}_scale"}})
    report = inspect.run(inspect.InspectRequest(source=out))
    missing = [finding for finding in report.findings if finding.check == "tensor.missing"]
    assert [finding.status for finding in missing] == ["failed"]
