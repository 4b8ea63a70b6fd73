"""SmoothQuant, AWQ and GPTQ on top of FP8: what they promise holds, and the checkpoint says that they were used."""

import copy
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, MixtralConfig

from fp8cli.calibrator.compressing import compress_model
from fp8cli.calibrator.compressing_protocol import read_job as read_compression
from fp8cli.commands.quantize import choose_modifiers
from fp8cli.core.quantizing.choices import choose
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.simulating.modules import ModuleOptions
from fp8cli.core.simulating.planning import plan_simulation
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.errors import UsageError
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.measurer.exploring import explore
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.samples.encoding import Encoded, encode_samples
from fp8cli.simulator.job import SimulationJob
from fp8cli.simulator.modifying import changes, modify
from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress
from fp8cli.worker.simulation import Simulated, read_samples, simulate_job
from tests.calibrated import MODEL
from tests.compressed import Made, compress_here
from tests.models import ODD, llama_config, save_model
from tests.starting import fp8
from tests.test_engine_llmcompressor import texts
from tests.test_oneshot_equality import tensors
from tests.test_simulate import a_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]

SCHEMES = ("FP8_DYNAMIC", "FP8_BLOCK", "FP8")
WAYS = {
    "gptq": Modifiers(gptq=True),
    "smoothquant": Modifiers(smoothing=0.5),
    "awq": Modifiers(awq=True),
}
TOGETHER = {
    "smoothquant and gptq": Modifiers(smoothing=0.8, gptq=True),
    "awq and gptq": Modifiers(awq=True, gptq=True),
}
MADE = [(scheme, way) for scheme in SCHEMES for way in WAYS] + [("FP8", way) for way in TOGETHER]
SAMPLES = 16


def held_out() -> list[torch.Tensor]:
    """Token ids of stories that no calibration here draws: the last of the file, in the order of the file."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[-24:]
    return [tokenizer(json.loads(line)["text"], return_tensors="pt")["input_ids"] for line in lines]


def layer_outputs(model: Any, ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What every attention, every MLP and the head give, for all texts, float32."""
    found: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            found.setdefault(name, []).append(value.float().flatten(0, -2))

        return hook

    wanted = [(name, part) for name, part in model.named_modules() if name.endswith(("self_attn", "mlp", "lm_head"))]
    hooks = [part.register_forward_hook(keep(name)) for name, part in wanted]
    with torch.no_grad():
        for each in ids:
            model(each)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(values) for name, values in found.items()}


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint stands for, in float32: codes times scales, by hand."""
    stored = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    weights = {}
    for name, value in stored.items():
        if value.dtype == torch.float8_e4m3fn:
            scale = stored[f"{name}_scale"].float()
            if scale.dim() == 2 and scale.shape != (value.shape[0], 1):
                scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: value.shape[0], : value.shape[1]]
            weights[name] = value.float() * scale
        elif not name.endswith("_scale"):
            weights[name] = value.float()
    return weights


@pytest.fixture(scope="module")
def reference() -> tuple[list[torch.Tensor], Mapping[str, torch.Tensor]]:
    ids = held_out()
    return ids, layer_outputs(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), ids)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Made]:
    """Every way on every scheme, two of them together on one, and rounding to nearest."""
    found = {}
    for scheme, way in [*MADE, *((scheme, "nearest") for scheme in SCHEMES)]:
        modifiers = {"nearest": Modifiers(), **WAYS, **TOGETHER}[way]
        work = tmp_path_factory.mktemp("made") / "work"
        samples = 4 if modifiers.awq else SAMPLES
        found[scheme, way] = compress_here(MODEL, work, choose(scheme, None, modifiers), samples=samples)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gptq_leaves_less_error_in_most_layers_than_rounding_to_nearest(
    made: Mapping[tuple[str, str], Made],
    reference: tuple[list[torch.Tensor], Mapping[str, torch.Tensor]],
    scheme: str,
) -> None:
    ids, wanted = reference

    def errors(folder: Path) -> dict[str, float]:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        model.load_state_dict(decoded(folder), strict=True)
        found = layer_outputs(model, ids)
        return {name: float((found[name] - wanted[name]).square().mean()) for name in wanted}

    nearest, rounded = errors(made[scheme, "nearest"].out), errors(made[scheme, "gptq"].out)
    assert len(nearest) == 7
    better = [name for name in nearest if rounded[name] < nearest[name]]
    assert len(better) >= 6, (nearest, rounded)
    assert sum(rounded.values()) < 0.8 * sum(nearest.values())


@pytest.mark.parametrize(("scheme", "way"), MADE)
def test_every_way_goes_with_every_scheme_and_leaves_a_checkpoint_of_the_same_form(
    made: Mapping[tuple[str, str], Made], scheme: str, way: str
) -> None:
    plain, other = tensors(made[scheme, "nearest"].out), tensors(made[scheme, way].out)
    assert {name: entry[:2] for name, entry in plain.items()} == {name: entry[:2] for name, entry in other.items()}
    changed = [name for name in plain if name.endswith("proj.weight") and plain[name][2] != other[name][2]]
    assert len(changed) > 10
    recipe = (made[scheme, way].out / "recipe.yaml").read_text()
    assert "python/" not in recipe, "no safe reader of YAML would take it"
    for modifier in made[scheme, way].facts["modifiers"]:
        assert f"    {modifier}:\n" in recipe
    assert made[scheme, way].declared.scheme is not None
    assert made[scheme, way].declared.scheme.name == scheme


def test_smoothing_alone_leaves_the_function_of_the_model_as_it_was() -> None:
    from llmcompressor.modifiers.transform import SmoothQuantModifier

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = held_out()
    encoded = Encoded(ids=tuple(tuple(each[0].tolist()) for each in ids[:4]), max_seq_length=512, conversations=False)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    norm = model.model.layers[0].input_layernorm.weight.clone()
    with torch.no_grad():
        before = [model(each).logits for each in ids]
    compress_model([SmoothQuantModifier(smoothing_strength=0.5)], model, tokenizer, encoded, lambda *_, **__: None)
    with torch.no_grad():
        after = [model(each).logits for each in ids]
    assert not torch.allclose(norm, model.model.layers[0].input_layernorm.weight, rtol=0.1)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=2e-4, rtol=1e-4)


def test_a_model_that_smoothing_would_change_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 1280, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma3TextConfig(**sizes, hidden_size=128, intermediate_size=256, head_dim=32, sliding_window=16)
    source = save_model(tmp_path / "source", config)
    choice, data = choose("FP8_DYNAMIC", None, Modifiers(smoothing=0.5)), texts(source)
    with pytest.raises(Failure, match="takes `post_attention_layernorm` for what feeds the MLP") as refused:
        compress_here(source, tmp_path / "work", choice, data=data, samples=4)
    assert refused.value.kind == "model"
    assert not (tmp_path / "work" / "result").exists()


def test_a_linear_that_no_sample_reaches_is_an_error_that_names_it() -> None:
    from llmcompressor.modifiers.gptq import GPTQModifier

    tokenizer, ids = AutoTokenizer.from_pretrained(MODEL), held_out()
    encoded = Encoded(ids=(tuple(ids[0][0].tolist()),), max_seq_length=512, conversations=False)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto")
    model.model.layers[1].mlp.spare = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    modifier = GPTQModifier(targets=["Linear"], ignore=["lm_head"], scheme="FP8_DYNAMIC")
    with pytest.raises(Failure, match=r"no sample reached `model\.layers\.1\.mlp\.spare`, so there is no scale"):
        compress_model([modifier], model, tokenizer, encoded, lambda *_, **__: None)


def test_sizes_that_no_block_divides_can_be_rounded_too(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD, vocab_size=1280), torch.float32)
    found = compress_here(
        source, tmp_path / "work", choose("FP8_BLOCK", None, Modifiers(gptq=True)), data=texts(source), samples=4
    )
    assert tensors(found.out)["model.layers.0.mlp.down_proj.weight_scale"][1] == (2, 3)


def test_the_command_says_in_recipe_card_and_report_what_was_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (
        "--gptq",
        "--smoothquant",
        "--smoothing-strength",
        "0.6",
        "--num-calibration-samples",
        "6",
        "--kv-cache",
        "fp8",
    )
    run = fp8(tmp_path, "quantize", MODEL, "-o", out, "--json", *words)
    assert run.code == 0, run.err
    assert run.report["name"] == "FP8_DYNAMIC + SmoothQuant 0.6 + GPTQ + FP8 KV cache"
    assert run.report["compression"]["modifiers"] == ["SmoothQuantModifier", "GPTQModifier"]
    assert run.report["compression"]["facts"]["data"]["samples"] == 6
    recipe, card = (out / "recipe.yaml").read_text(), (out / "README.md").read_text()
    assert "smoothing_strength: 0.6" in recipe
    assert "# Calibrated on 6 samples of the bundled stories" in recipe
    assert "weights by SmoothQuant 0.6 and GPTQ" in card
    assert "llmcompressor 0.14" in card
    assert "6 samples of the bundled stories" in card


def test_without_data_there_is_nothing_to_smooth_or_to_round_by(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config())
    for word in ("--gptq", "--awq", "--smoothquant"):
        run = fp8(tmp_path, "quantize", source, "-o", tmp_path / "out", word)
        assert run.code == 2
        assert "calibration needs data" in run.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"strength": 0.3}, "--smoothing-strength 0.3 would have no effect without --smoothquant"),
        ({"smoothquant": True, "strength": 1.5}, "--smoothing-strength 1.5 is not between 0 and 1"),
        ({"smoothquant": True, "strength": float("nan")}, "--smoothing-strength nan is not between 0 and 1"),
        ({"smoothquant": True, "awq": True}, "--smoothquant and --awq both move"),
    ],
)
def test_modifiers_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    asked = {"smoothquant": False, "strength": None, "awq": False, "gptq": False, **options}
    with pytest.raises(UsageError, match=complaint):
        choose_modifiers(**asked)


def test_modifiers_of_weights_that_stay_as_they_are_are_refused() -> None:
    with pytest.raises(UsageError, match="--awq and --gptq would have no effect: no weight is quantized"):
        choose("none", "fp8", Modifiers(awq=True, gptq=True))


# Simulated: the same modifiers on a model in memory, beside the checkpoint that was written.

SIMULATED = {
    "FP8_DYNAMIC+GPTQ": ("FP8_DYNAMIC", "gptq"),
    "FP8_BLOCK+AWQ": ("FP8_BLOCK", "awq"),
    "FP8+SMOOTHQUANT": ("FP8", "smoothquant"),
}
KEPT = "*.down_proj"
EVERYTHING = "FP8+SMOOTHQUANT_0.8+GPTQ+KV"


def simulate_here(name: str, work: Path, folder: Path, *ignore: str) -> tuple[Any, Simulated]:
    """Simulate as a worker does, with the texts that the compression in `work` was shown."""
    scheme = simulated_scheme(name)
    modules = ModuleOptions(ignore=ignore)
    plan = plan_simulation(open_checkpoint(LocalFolder(MODEL)), scheme, modules)
    samples = read_compression(work).samples
    simulation = SimulationJob(scheme=scheme.name, weights=plan.weights, dtype=plan.dtype, samples=samples)
    job = a_job(simulation)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    done = simulate_job(job, model, read_samples(job, work), Progress(folder, 0))
    assert done is not None
    return model, done


def logits(model: Any, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(each).logits for each in ids]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulation_with_modifiers_is_the_written_checkpoint_to_the_last_bit(
    name: str, made: Mapping[tuple[str, str], Made], tmp_path: Path
) -> None:
    out = made[SIMULATED[name]].out
    model, done = simulate_here(name, out.parent, tmp_path)
    texts = held_out()[:4]
    written = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert same(logits(model, texts), logits(written, texts))
    nearest = AutoModelForCausalLM.from_pretrained(made[SIMULATED[name][0], "nearest"].out, dtype="auto").eval()
    assert not same(logits(model, texts), logits(nearest, texts))
    weights = dict(written.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in model.named_parameters() if key.endswith("j.weight"))
    assert done.executed.way == "simulated"
    assert done.executed.by == f"{name} in 21 Linears, by llm-compressor {version('llmcompressor')}"
    assert '"event": "modifying", "done": 4, "total": 4' in (tmp_path / "events-0.jsonl").read_text("utf-8")


def test_a_module_that_is_ignored_is_not_rounded_whatever_the_others_are(tmp_path: Path) -> None:
    choice = choose("FP8", "fp8", Modifiers(smoothing=0.8, gptq=True))
    written = compress_here(MODEL, tmp_path / "work", choice, "re:.*down_proj")
    model, done = simulate_here(EVERYTHING, tmp_path / "work", tmp_path, KEPT)
    texts = held_out()[:4]
    real = AutoModelForCausalLM.from_pretrained(written.out, dtype="auto").eval()
    assert same(logits(model, texts), logits(real, texts))
    assert done.executed.by is not None
    assert done.executed.by.startswith(f"{EVERYTHING} in 18 Linears and the KV caches of 3 layers")
    source = load_file(MODEL / "model.safetensors")
    kept = [name for name, _ in model.named_modules() if name.endswith("down_proj")]
    assert len(kept) == 3
    for name in kept:
        assert torch.equal(model.get_submodule(name).weight, source[f"{name}.weight"])
        assert not hasattr(model.get_submodule(name), "quantization_scheme")
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, source["model.layers.0.mlp.up_proj.weight"])


def test_experts_that_transformers_fuses_are_rounded_one_by_one(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=320, hidden_size=128, intermediate_size=128, **sizes)
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "mixtral", config), dtype="auto").eval()
    modified = copy.deepcopy(model)
    parts = ("gate_proj", "up_proj", "down_proj")
    names = [f"model.layers.0.mlp.experts.{number}.{part}" for number in (0, 1) for part in parts]
    encoded = Encoded(ids=((1, 5, 9, 30), (1, 8, 70, 11)), max_seq_length=4, conversations=False)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    modify(modified, simulated_scheme("fp8_dynamic+gptq"), names, tokenizer=tokenizer, encoded=encoded, seed=1)
    for name in names:
        module = modified.get_submodule(name)
        weight, scale = module.weight.float(), module.weight_scale.float()
        codes = (weight / scale).to(torch.float8_e4m3fn).float()
        assert torch.equal((codes * scale).to(torch.bfloat16), module.weight)
    assert not hasattr(modified.model.layers[0].self_attn.q_proj, "quantization_scheme")
    found = changes(model, modified, names)
    assert set(found) == set(names)
    first = model.model.layers[0].mlp.experts.down_proj[1].detach().double()
    error = (first - modified.get_submodule(names[-1]).weight.detach().double()).square().sum()
    assert found[names[-1]] == pytest.approx((float(first.square().sum()), float(error)))


def test_a_module_that_is_not_there_is_refused_before_llm_compressor_begins() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto")
    encoded = Encoded(ids=((1, 5),), max_seq_length=4, conversations=False)
    with pytest.raises(Failure, match=r"the model has no module `model\.layers\.9\.mlp`"):
        modify(model, simulated_scheme("fp8+gptq"), ["model.layers.9.mlp"], tokenizer=None, encoded=encoded, seed=1)


def test_an_exploration_makes_forms_with_modifiers_of_a_copy_and_leaves_the_model_as_it_was(
    made: Mapping[tuple[str, str], Made], tmp_path: Path
) -> None:
    names = ("fp8_dynamic", "fp8_dynamic+gptq", "fp8+smoothquant+kv", "mxfp8")
    work = made["FP8_DYNAMIC", "gptq"].out.parent
    samples = read_compression(work).samples
    assert samples is not None
    encoded = encode_samples(samples, work, AutoTokenizer.from_pretrained(MODEL), 512)
    weights = plan_simulation(open_checkpoint(LocalFolder(MODEL)), simulated_scheme("fp8")).weights
    asked = ExploreWork(schemes=tuple(map(simulated_scheme, names)), weights=weights)
    job = MeasureJob(
        model=str(MODEL), dtype="", device="cpu", samples=samples, positions=400, budget_bytes=10**9, work=asked
    )
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = explore(job, asked, model, encoded, None, tmp_path, Progress(tmp_path, 0))["forms"]
    assert isinstance(found, list)
    assert [form["failure"] for form in found] == [None] * 4
    plain, rounded, smooth, _ = found
    assert set(plain["noise"]) == set(rounded["noise"])
    # GPTQ rounds against the nearest code, for the sake of the output.
    assert sum(each[1] for each in rounded["noise"].values()) > sum(each[1] for each in plain["noise"].values())
    assert smooth["noise"] == {}
    assert len({form["kl"] for form in found}) == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(hasattr(module, "quantization_scheme") for module in model.modules())
