"""Budgets with GPTQ, AWQ and SmoothQuant: what is said of the choice is what the written checkpoint does."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

from fp8cli.core.quantizing.choices import choose as choose_scheme
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.sampling.data import read_calibration
from fp8cli.core.simulating.words import modifiers_of, simulated_scheme
from fp8cli.measurer.budget import choose
from fp8cli.measurer.budget_protocol import BudgetGroup, BudgetWork, Goal, GoalKind
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.measurer.reference import Reference
from fp8cli.samples.encoding import Encoded, encode_samples
from fp8cli.simulator.modifying import modify
from fp8cli.simulator.preparing import prepare
from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress
from tests.budgets import FRAGILE, STORIES, plant_fragility
from tests.calibrated import MODEL
from tests.compressed import compress_here
from tests.models import save_model
from tests.starting import Run, fp8
from tests.test_budget import log_probabilities
from tests.test_budget_groups import groups_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]

ROWS = 8
LIMIT = 0.0008
POSITIONS = 200
FEW = Encoded(ids=((1, 5, 9, 30), (1, 8, 70, 11)), max_seq_length=4, conversations=False)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=320, hidden_size=128, intermediate_size=128, **sizes)
    folder = save_model(tmp_path_factory.mktemp("mixtral") / "model", config)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_fragility(tmp_path_factory.mktemp("fragile") / "stories")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "stories.jsonl"
    path.write_text("".join(f"{line}\n" for line in STORIES.read_text("utf-8").splitlines()[:ROWS]), "utf-8")
    return path


@pytest.fixture(scope="module")
def made(fragile: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("made")
    data = ["--calibration-data", texts, "--num-calibration-samples", ROWS]
    budget = ["--gptq", "--keep-bf16", "auto", "--max-kl", LIMIT]
    return folder, fp8(folder, "quantize", fragile, "-o", folder / "out", "--json", *budget, *data)


def test_gptq_keeps_the_fragile_layer_and_its_kl_is_that_of_the_written_checkpoint(
    made: tuple[Path, Run], fragile: Path, texts: Path
) -> None:
    folder, run = made
    assert run.code == 0, run.err
    budget = run.report["budget"]
    assert budget["groups"][0]["name"] == FRAGILE
    assert budget["groups"][0]["kept"]
    assert budget["modifiers"] == ["GPTQ"]
    assert budget["chosen"]["own_run"]
    assert 1 <= budget["runs"] == sum(point["own_run"] for point in budget["curve"]) < budget["measured"]
    assert budget["chosen"]["kl"] <= LIMIT
    base, other = log_probabilities(fragile, texts), log_probabilities(folder / "out", texts)
    each = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in zip(base, other, strict=True)])
    assert budget["positions"] == len(each)
    assert each.mean() == pytest.approx(budget["chosen"]["kl"], rel=0.02)
    assert not {"torch", "transformers"} & set(run.loaded)


def test_what_is_kept_has_its_own_weights_and_papers_say_what_was_used(made: tuple[Path, Run], fragile: Path) -> None:
    folder, run = made
    out, kept = folder / "out", run.report["budget"]["kept_modules"]
    written, source = load_file(out / "model.safetensors"), load_file(fragile / "model.safetensors")
    for name in kept:
        assert torch.equal(written[f"{name}.weight"], source[f"{name}.weight"])
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in written.values()) == 21 - len(kept)
    ignore = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]["ignore"]
    assert set(ignore) == {*kept, "lm_head"}
    assert "tokens of stories.jsonl, which GPTQ had too" in (out / "README.md").read_text("utf-8")
    assert run.report["budget"]["notes"] == [
        "KL was measured on the texts that GPTQ had too; on others it may be higher"
    ]
    assert "parts prepared by llm-compressor" in run.err
    assert sorted(path.name for path in folder.iterdir()) == ["loaded.json", "out"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the measurer found, and what a checkpoint is to be measured on."""

    found: Mapping[str, Any]
    reference: Reference
    modules: tuple[str, ...]
    """That stay in 16 bits."""

    @property
    def kl(self) -> float:
        return next(each["kl"] for each in self.found["sets"] if each["own_run"] and each["kept"] == self.found["kept"])


def choose_here(name: str, kind: GoalKind, value: float, folder: Path) -> Chosen:
    """Choose as the measurer does, in this process."""
    scheme, groups = simulated_scheme(name), groups_of(simulated_scheme(name).base)
    request = read_calibration(None, model=MODEL, samples=ROWS)
    request.hand_over(folder)
    samples = request.request(samples=ROWS, max_seq_length=2048, seed=1234, chat_template=None)
    encoded = encode_samples(samples, folder, AutoTokenizer.from_pretrained(MODEL), 512)
    work = BudgetWork(
        scheme=scheme,
        groups=tuple(
            BudgetGroup(name=each.name, weights=each.tensors, saved_bytes=each.saved_bytes) for each in groups
        ),
        goal=Goal(kind=kind, value=value),
        most=90,
    )
    job = MeasureJob(
        model=str(MODEL),
        dtype="bfloat16",
        device="cpu",
        samples=samples,
        positions=POSITIONS,
        budget_bytes=10**9,
        work=work,
    )
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    found = choose(job, work, model, encoded, folder, Progress(folder, 0))
    kept = found["kept"]
    assert isinstance(kept, list)
    reference = Reference(model, encoded.ids, folder, positions=POSITIONS, budget_bytes=10**9)
    return Chosen(
        found=found, reference=reference, modules=tuple(name for number in kept for name in groups[number].modules)
    )


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("FP8+SMOOTHQUANT_0.8+GPTQ+KV", "kl", 0.0003),
        ("FP8_DYNAMIC+AWQ", "size", 60_000),
        ("FP8_BLOCK+SMOOTHQUANT", "sqnr", 31.0),
    ],
)
def test_the_written_checkpoint_has_the_kl_that_was_measured_to_the_last_bit(
    name: str, kind: GoalKind, value: float, tmp_path: Path
) -> None:
    chosen = choose_here(name, kind, value, tmp_path)
    assert 0 < len(chosen.found["kept"]) < 12
    assert kind != "kl" or chosen.kl <= value
    scheme = simulated_scheme(name)
    choice = choose_scheme(scheme.base, "fp8" if scheme.kv_cache else None, modifiers_of(scheme))
    out = compress_here(MODEL, tmp_path / "work", choice, *chosen.modules, samples=ROWS).out
    written = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert chosen.reference.divergence(written).kl == chosen.kl
    # What was seen on the way, with everything prepared at once, is no such number.
    assert kind != "kl" or chosen.kl not in {each["kl"] for each in chosen.found["sets"] if not each["own_run"]}
    if kind == "sqnr":
        noisiest = [min(signal / noise for signal, noise in each["outputs"]) for each in chosen.found["groups"]]
        assert [10 * np.log10(ratio) < value for ratio in noisiest] == [
            number in chosen.found["kept"] for number in range(12)
        ]


def test_what_everything_in_fp8_meets_takes_no_second_run(tmp_path: Path) -> None:
    chosen = choose_here("FP8_DYNAMIC+GPTQ", "kl", 0.1, tmp_path)
    assert chosen.found["kept"] == []
    assert chosen.found["sets"][0]["own_run"]
    events = (tmp_path / "events-0.jsonl").read_text("utf-8")
    assert events.count('"event": "modifying", "done": 4, "total": 4') == 1


def test_a_prepared_model_is_the_modified_one_where_all_is_rounded_and_its_own_self_where_nothing_is() -> None:
    scheme = simulated_scheme("FP8+SMOOTHQUANT_0.8+GPTQ+KV")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = STORIES.read_text("utf-8").splitlines()[:4]
    encoded = Encoded(
        ids=tuple(tuple(tokenizer(json.loads(line)["text"])["input_ids"]) for line in lines),
        max_seq_length=512,
        conversations=False,
    )
    asked = torch.tensor([encoded.ids[0]])
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = prepare(model, scheme, names, tokenizer=tokenizer, encoded=encoded, seed=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.inference_mode():
        plain = model(asked).logits
        modify(model, scheme, names, tokenizer=tokenizer, encoded=encoded, seed=1)
        modified = model(asked).logits
        # Smoothing alone, rounded to BF16: far nearer to the model as it was than what is rounded to FP8.
        smoothed = prepared.model(asked).logits
        assert (smoothed - plain).abs().mean() < 0.3 * (modified - plain).abs().mean()
        with prepared.rounded(names):
            assert torch.equal(prepared.model(asked).logits, modified)
        with prepared.rounded(names[:3]):
            some = prepared.model(asked).logits
        with prepared.rounded(names[:3], cache=False):
            assert not torch.equal(prepared.model(asked).logits, some)
        assert not torch.equal(some, modified)
        assert torch.equal(prepared.model(asked).logits, smoothed)
    layer = prepared.model.model.layers[0]
    # The scale of channels went from the norm into the weights that read it, also while nothing is rounded.
    factor = before["model.layers.0.input_layernorm.weight"].float() / layer.input_layernorm.weight.float()
    wanted = before["model.layers.0.self_attn.k_proj.weight"].float() * factor
    assert torch.allclose(layer.self_attn.k_proj.weight.float(), wanted, rtol=0.02, atol=1e-6)
    assert (factor - 1).abs().max() > 0.1


def test_a_model_whose_linears_transformers_renames_is_refused_before_anything_is_measured(
    mixtral: Any, tmp_path: Path
) -> None:
    weights = tuple(f"model.layers.0.block_sparse_moe.experts.{number}.w2.weight" for number in range(4))
    work = BudgetWork(
        scheme=simulated_scheme("fp8_dynamic+gptq"),
        groups=(BudgetGroup(name="experts", weights=weights, saved_bytes=1),),
        goal=Goal(kind="kl", value=0.1),
        most=9,
    )
    job = MeasureJob(model="", dtype="", device="cpu", samples=None, positions=9, budget_bytes=10**6, work=work)
    with pytest.raises(Failure, match=r"knows `model\.layers\.0\.block_sparse_moe\.experts\.0\.w2\.weight` as `model"):
        choose(job, work, mixtral, FEW, tmp_path, Progress(tmp_path, 0))
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".f32"]


def test_experts_that_transformers_fuses_are_one_layer_of_outputs(mixtral: Any) -> None:
    model = mixtral
    experts = [
        f"model.layers.0.mlp.experts.{number}.{part}"
        for number in range(4)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    names = [*experts, "model.layers.0.self_attn.o_proj"]
    encoded, tokenizer = FEW, AutoTokenizer.from_pretrained(MODEL)
    prepared = prepare(model, simulated_scheme("fp8_dynamic+gptq"), names, tokenizer=tokenizer, encoded=encoded, seed=1)
    attention, layer = prepared.layers(names[::-1])
    assert attention is prepared.model.get_submodule(names[-1])
    assert layer is prepared.model.model.layers[0].mlp.experts
    # As they came: GPTQ moves nothing.
    fused = model.model.layers[0].mlp.experts
    assert torch.equal(prepared.model.get_submodule(experts[-1]).weight, fused.down_proj[3])
    asked = torch.tensor([encoded.ids[0]])
    with torch.inference_mode():
        plain = prepared.model(asked).logits
        with prepared.rounded(experts):
            assert not torch.equal(prepared.model(asked).logits, plain)
        assert torch.equal(prepared.model(asked).logits, plain)


def test_awq_passes_over_values_whose_reader_stays_in_16_bits(tmp_path: Path) -> None:
    choice = choose_scheme("FP8_DYNAMIC", None, Modifiers(awq=True))
    out = compress_here(MODEL, tmp_path / "work", choice, "re:.*o_proj", samples=2).out
    written, source = load_file(out / "model.safetensors"), load_file(MODEL / "model.safetensors")
    kept = [name for name in source if name.endswith("o_proj.weight")]
    assert len(kept) == 3
    assert all(torch.equal(written[name], source[name]) for name in kept)
    smoothed = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(written[smoothed], source[smoothed])
