"""Simulations of models of several parts and of experts that are stored in one tensor, beside written checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_matrix import family
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fp8cli.calibrator.loading import load_model
from fp8cli.core.exploring.forms import form_of
from fp8cli.core.exploring.sizes import plan_form
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.calibrated_scales import PlannedScale
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.simulator.applying import simulated
from fp8cli.simulator.finding import find_attentions, find_layers, model_names, refuse_unfit
from fp8cli.simulator.observing import Observed, observe
from fp8cli.simulator.scheme import SIMULATED, with_kv_cache
from fp8cli.worker.failures import Failure
from fp8cli.worker.model_class import outline, read_as_text
from fp8cli.worker.models import load_model as load_lm
from tests.calibrated import MODEL, plan_of, scale_bytes, write
from tests.families import FILE, save_reader
from tests.test_calibration_families import LAYER, ROWS, calibrate_here
from tests.test_simulator import by_tokens
from tests.working import hf_args, job

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FUSED = ("Llama 4", "Qwen3-VL-MoE", "Granite 4 (hybrid)")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join((MODEL / "heldout.jsonl").read_text("utf-8").splitlines(keepends=True)[:ROWS]))
    return path


@pytest.fixture(scope="module")
def ids(texts: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return [tokenizer(json.loads(line)["text"])["input_ids"] for line in texts.read_text("utf-8").splitlines()]


def load(folder: Path) -> Any:
    return load_model(str(folder), "bfloat16", offload=None).eval()


def logits(model: Any, ids: list[list[int]]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([each]), use_cache=False).logits for each in ids]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def quantized(source: Path, scheme: str) -> list[str]:
    return [each.name for each in plan_of(source, scheme).tensors if each.action == "quantize"]


def decoded(folder: Path, name: str) -> Tensor:
    """Return what the codes of a weight mean, as compressed-tensors has it."""
    tensors = load_file(folder / FILE)
    scale = tensors[f"{name}_scale"]
    return tensors[name].to(scale.dtype) * scale


@pytest.mark.parametrize(
    "name", ["Qwen2-VL, newer names", "Qwen2.5-VL", "Llava 1.5", "Gemma 3 (vision)", "PaliGemma 2", "Mistral Small 3"]
)
def test_a_simulation_of_its_language_model_is_the_written_checkpoint_to_the_last_bit(
    name: str, texts: Path, ids: list[list[int]], tmp_path: Path
) -> None:
    source = save_reader(name, tmp_path / "source")
    base = load(source)
    plain = logits(base, ids)
    weights = quantized(source, "FP8")
    modules = model_names(base, weights)
    assert not any("vision" in each or "visual" in each for each in modules)
    observed = observe(base, modules, "tensor", ids)
    plan = plan_of(source, "FP8", "tensor")
    scales = {each.name: stored(each, observed, dict(zip(weights, modules, strict=True))) for each in plan.calibrated}
    if "Gemma" not in name:
        # There llm-compressor rounds the norms to BF16 for a while, in another form; else both find the same.
        assert calibrate_here(source, texts, "FP8")[1] == scales
    write(source, tmp_path / "out", plan, scales)
    real = read_as_text(AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto").eval())
    with simulated(base, with_kv_cache(SIMULATED["FP8"], "tensor"), modules, observed):
        ours = logits(base, ids)
    assert not same(ours, plain)
    assert same(ours, logits(real, ids))
    assert same(logits(base, ids), plain)


def stored(planned: PlannedScale, observed: Observed, modules: dict[str, str]) -> bytes:
    """Return the bytes of a scale. modules: by the weights' names on disk, those in memory."""
    if planned.kind == "input":
        seen = observed.inputs[modules[f"{planned.module}.weight"]]
    else:
        place = LAYER.search(planned.module)
        caches = observed.keys if planned.kind == "k" else observed.values
        assert place is not None
        seen = next(each for name, each in caches.items() if name.endswith(place[0]))
    return scale_bytes("BF16", [(seen.amax() / 448).item()])


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8"])
def test_experts_hold_what_the_written_checkpoint_decodes_to(
    name: str, scheme: str, texts: Path, tmp_path: Path
) -> None:
    source = save_reader(name, tmp_path / "source")
    plan, scales = calibrate_here(source, texts, scheme)
    write(source, tmp_path / "out", plan, scales)
    base = load(source)
    modules = model_names(base, quantized(source, scheme))
    layers = find_layers(base, modules)
    assert len(layers.experts) == 2
    observed = observe(base, modules, None, [[5, 6, 7]]) if scheme == "FP8" else None
    with simulated(base, SIMULATED[scheme], modules, observed):
        for experts in layers.experts:
            match = LAYER.search(experts.name)
            assert match is not None
            stem = next(key for key in quantized(source, scheme) if f"layers.{match[1]}.{match[2]}." in key)
            stem = stem.partition(".experts.")[0]
            for number, parts in experts.parts.items():
                assert parts == {"gate_proj", "up_proj", "down_proj"}
                for part in parts:
                    wanted = decoded(tmp_path / "out", f"{stem}.experts.{number}.{part}.weight")
                    assert torch.equal(experts.weight(number, part), wanted), part


def test_the_inputs_of_llama_4_s_experts_are_rounded_token_by_token(ids: list[list[int]], tmp_path: Path) -> None:
    base = load(save_reader("Llama 4", tmp_path / "source"))
    weights = [each for each in quantized(tmp_path / "source", "FP8_DYNAMIC") if ".experts." in each]
    modules = model_names(base, weights)
    with simulated(base, SIMULATED["FP8_DYNAMIC"], modules):
        ours = logits(base, ids)
        for layer in base.language_model.model.layers:
            experts = layer.feed_forward.experts
            del experts.forward

            def by_hand(hidden: Tensor, experts: Any = experts) -> Tensor:
                shares = by_tokens(hidden).view(experts.num_experts, -1, experts.hidden_size)
                found = []
                for share, first, last in zip(shares, experts.gate_up_proj, experts.down_proj, strict=True):
                    gate, up = (share @ first).chunk(2, dim=-1)
                    found.append(by_tokens(up * silu(gate)) @ last)
                return torch.cat(found)

            experts.forward = by_hand
        theirs = logits(base, ids)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=0.02 * float(other.abs().max()))


def test_no_attention_of_a_tower_counts_as_one_with_a_cache(tmp_path: Path) -> None:
    names = find_attentions(outline(str(save_reader("Llama 4", tmp_path / "source"))))
    assert sorted(names) == [f"language_model.model.layers.{layer}.self_attn" for layer in range(2)]


def test_experts_of_an_unknown_kind_are_refused_before_there_is_a_number_in_the_model(tmp_path: Path) -> None:
    unread = outline(str(save_reader("gpt-oss", tmp_path / "source")))
    with pytest.raises(Failure, match=r"^the experts in `model\.layers\.0\.mlp\.experts` are a GptOssExperts, which"):
        refuse_unfit(unread, ["model.layers.0.mlp.experts.1.up_proj.weight"], cache=False)


def test_nothing_writes_what_llm_compressor_alone_would_make_of_a_model_with_a_tower(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(LocalFolder(save_reader("Llava 1.5", tmp_path / "source")))
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    selection = select(checkpoint.config, tensors, rules=rules_for(checkpoint.config, tensors))
    plain, modified = (
        plan_form(form_of(simulated_scheme(word)), checkpoint, selection, "BF16") for word in ("fp8", "fp8+gptq")
    )
    assert plain.form.choice is not None
    assert modified.form.choice is None


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "PaliGemma 2"])
def test_lm_eval_s_class_for_texts_holds_the_whole_model_and_reads_from_left_to_right(
    name: str, ids: list[list[int]], tmp_path: Path
) -> None:
    source = save_reader(name, tmp_path / "source")
    lm = load_lm(job(tmp_path, model_args=hf_args(source)))
    whole = torch.tensor([ids[0]])
    with torch.inference_mode():
        assert type(lm.model).__name__ == family(name).architecture
        first = lm._model_call(whole[:, :20])
        assert torch.equal(first[0, :10].argmax(-1), lm._model_call(whole[:, :10])[0].argmax(-1))
        assert torch.allclose(first[0, :10].float(), lm._model_call(whole)[0, :10].float(), atol=0.05)
