"""Calibration: llm-compressor's real `oneshot` in a process of its own, and what stands beside it as an oracle."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

# Read when compressed-tensors is imported, which the reference below does.
os.environ["CT_ENFORCE_EAGER"] = "1"

from transformers import (
    DeepseekV3Config,
    MiniMaxConfig,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from fp8cli.calibrator.names import rename
from fp8cli.calibrator.protocol import FACTS, LOG, CalibrationJob, read_job
from fp8cli.core.calibrating.calibration import (
    Calibrated,
    CalibrationBegins,
    CalibrationEvent,
    CalibrationRequest,
    LayerDone,
    Scale,
    calibrate,
)
from fp8cli.core.calibrating.calibration_events import ModelLoading, TextsRead
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.plan import build_plan
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.errors import BadInput, CannotRun, Fp8Error, UsageError
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.samples.encoding import Encoded
from fp8cli.samples.request import SampleRequest
from fp8cli.schemes import FP8, FP8_DYNAMIC
from fp8cli.worker.failures import Failure
from tests.loopback_datasets import LAMBADA, bundled_stories, lambada_repo
from tests.loopback_hub import LoopbackHub
from tests.models import ALIGNED, llama_config, save_model
from tests.test_supervising import is_alive, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")

ROOT = Path(__file__).parent.parent
ROWS = 40
SAMPLES = 12
SEED = 5
LAYERS = 3
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def stories(count: int = ROWS) -> list[str]:
    lines = BUNDLED_STORIES.read_text("utf-8").splitlines()[:count]
    return [json.loads(line)["text"] for line in lines]


def drawn_ids(length: int = 512) -> list[list[int]]:
    """Token ids of the stories that the seed draws, without this tool."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    texts = stories()
    drawn = sorted(random.Random(SEED).sample(range(ROWS), SAMPLES))
    return [tokenizer(texts[at], truncation=True, max_length=length)["input_ids"] for at in drawn]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "stories.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in stories()), encoding="utf-8")
    return str(path)


def request(folder: Path, data: str | None, **changes: object) -> CalibrationRequest:
    fields: dict[str, object] = {
        "model": BUNDLED_MODEL,
        "dtype": "BF16",
        "scheme": FP8,
        "kv_cache": "tensor",
        "folder": folder,
        "data": data,
        "samples": SAMPLES,
        "seed": SEED,
        "device": "cpu",
    }
    return CalibrationRequest(**{**fields, **changes})  # type: ignore[arg-type]


def fail(asked: CalibrationRequest, kind: type[Fp8Error], **options: object) -> tuple[Fp8Error, list[CalibrationEvent]]:
    events: list[CalibrationEvent] = []
    with pytest.raises(kind) as failure:
        calibrate(asked, events.append, **options)  # type: ignore[arg-type]
    assert not (asked.folder / FACTS).exists()
    return failure.value, events


@pytest.fixture(scope="module")
def told() -> list[CalibrationEvent]:
    return []


@pytest.fixture(scope="module")
def calibrated(data: str, told: list[CalibrationEvent], tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return calibrate(request(tmp_path_factory.mktemp("work"), data), told.append)


@pytest.fixture(scope="module")
def per_head(data: str, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """The KV cache alone, a scale for each head."""
    return calibrate(request(tmp_path_factory.mktemp("heads"), data, scheme=None, kv_cache="head"), print)


def value(scale: Scale) -> torch.Tensor:
    return torch.frombuffer(bytearray(scale.data), dtype=DTYPES[scale.dtype]).reshape(scale.shape)


def plain_oneshot(out: Path, scheme: str | None, strategy: str) -> Mapping[str, torch.Tensor]:
    """What llm-compressor writes by itself: no subclass, no other process, the whole model saved."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache = {
        "num_bits": 8,
        "type": "float",
        "strategy": strategy,
        "dynamic": False,
        "symmetric": True,
        "observer": "static_minmax",
    }
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype="auto")
    ids = drawn_ids()
    options = {} if scheme is None else {"scheme": scheme}
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(BUNDLED_MODEL),
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]}),
        recipe=QuantizationModifier(targets=["Linear"], ignore=["lm_head"], kv_cache_scheme=cache, **options),
        shuffle_calibration_samples=False,
        num_calibration_samples=SAMPLES,
        max_seq_length=512,
    )
    model.save_pretrained(out, save_compressed=True)
    saved = load_file(out / "model.safetensors")
    return {name: scale for name, scale in saved.items() if name.endswith(("input_scale", "k_scale", "v_scale"))}


def same(found: Mapping[str, Scale], expected: Mapping[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert DTYPES[found[name].dtype] is tensor.dtype, name
        assert found[name].shape == tuple(tensor.shape), name
        assert torch.equal(value(found[name]), tensor), name


# What it finds.


@pytest.mark.slow
def test_scales_are_those_of_a_plain_oneshot_on_the_same_rows_bit_for_bit(
    calibrated: Calibrated, tmp_path: Path
) -> None:
    same(calibrated.scales, plain_oneshot(tmp_path, "FP8", "tensor"))
    assert len(calibrated.scales) == LAYERS * (7 + 2)
    assert calibrated.values == {name: scale.data for name, scale in calibrated.scales.items()}


@pytest.mark.slow
def test_scales_per_head_of_the_kv_cache_alone_are_those_of_a_plain_oneshot(
    per_head: Calibrated, tmp_path: Path
) -> None:
    same(per_head.scales, plain_oneshot(tmp_path, None, "attn_head"))
    assert {scale.shape for scale in per_head.scales.values()} == {(4, 1, 1)}


@pytest.mark.slow
def test_scales_are_the_true_maxima_of_a_plain_transformers_model(calibrated: Calibrated, per_head: Calibrated) -> None:
    from transformers import AutoModelForCausalLM

    # `oneshot` hooks into attention that is computed step by step; the fused kernel rounds differently.
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.bfloat16, attn_implementation="eager")
    largest: dict[str, torch.Tensor] = {}

    def see(name: str, tensor: torch.Tensor) -> None:
        # [heads, ...]: one number for each head, or one in all for what has no heads.
        seen = tensor.abs().flatten(1).amax(1)
        largest[name] = torch.maximum(largest.get(name, seen), seen)

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, inputs: see(name, inputs[0][None].flatten(0, -1)[None])

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(watch(f"{name}.input_scale"))
    with torch.inference_mode():
        for ids in drawn_ids():
            cache = model(torch.tensor([ids]), use_cache=True).past_key_values
            for number, layer in enumerate(cache.layers):
                see(f"model.layers.{number}.self_attn.k_scale", layer.keys[0])
                see(f"model.layers.{number}.self_attn.v_scale", layer.values[0])
    assert sorted(largest) == sorted(calibrated.scales)
    for name, scale in calibrated.scales.items():
        assert torch.equal(value(scale), largest[name].amax()[None] / 448), name
    for name, scale in per_head.scales.items():
        assert torch.equal(value(scale).flatten(), largest[name] / 448), name


@pytest.mark.slow
def test_facts_say_what_the_model_was_shown(calibrated: Calibrated, data: str) -> None:
    facts, ids = calibrated.facts, drawn_ids()
    compact = json.dumps(ids).replace(" ", "")
    assert facts.token_ids_sha256 == hashlib.sha256(compact.encode()).hexdigest()
    assert (facts.samples, facts.tokens, facts.seed) == (SAMPLES, sum(map(len, ids)), SEED)
    assert (facts.source, facts.column, facts.conversations) == (data, "text", False)
    assert facts.max_seq_length == 512, "2,048 were asked for, and the model has 512 positions"
    assert set(facts.versions) == {"llmcompressor", "compressed-tensors", "transformers", "torch", "datasets"}
    assert facts.versions["torch"] == torch.__version__
    assert facts.peak_memory_bytes > 2**20
    assert facts.peak_gpu_memory_bytes is None


@pytest.mark.slow
def test_it_says_how_far_it_is(calibrated: Calibrated, told: list[CalibrationEvent]) -> None:
    assert told == [
        TextsRead(samples=SAMPLES, tokens=calibrated.facts.tokens),
        ModelLoading(),
        CalibrationBegins(samples=SAMPLES, layers=LAYERS + 1),
        *(LayerDone(number=number, of=LAYERS + 1) for number in range(1, LAYERS + 2)),
    ]


@pytest.mark.slow
def test_the_same_request_finds_the_same_and_in_the_same_folder_it_is_not_run_again(
    calibrated: Calibrated, data: str, tmp_path: Path
) -> None:
    again = calibrate(request(tmp_path, data), print)
    assert not again.known
    assert again.scales == calibrated.scales
    assert again.facts.token_ids_sha256 == calibrated.facts.token_ids_sha256
    nowhere = Path("/nonexistent/python")
    known = calibrate(request(tmp_path, data, python=nowhere), print)
    assert known.known
    assert (known.scales, known.facts) == (again.scales, again.facts)
    other, _ = fail(request(tmp_path, data, python=nowhere, seed=SEED + 1), CannotRun)
    assert other.message == "`/nonexistent/python` cannot be run: No such file or directory"


@pytest.mark.slow
def test_every_expert_has_scales_beside_its_weights_though_the_router_never_chooses_it(
    data: str, tmp_path: Path
) -> None:
    from tests.story_mixture import write_mixture

    model = write_mixture(tmp_path / "mixture")
    ignore = ("lm_head", "re:.*gate$")
    found = calibrate(request(tmp_path / "work", data, model=model, kv_cache=None, ignore=ignore), print).scales
    linear = [name for name in load_file(model / "model.safetensors") if "_proj.weight" in name or ".experts." in name]
    assert sorted(found) == sorted(name.removesuffix("weight") + "input_scale" for name in linear)
    assert "model.layers.1.block_sparse_moe.experts.1.w2.input_scale" in found


def test_experts_keep_the_names_that_the_checkpoint_has() -> None:
    mixtral = {"a.experts.0.w2.weight", "a.self_attn.k_proj.weight"}
    assert rename("a.experts.0.down_proj.input_scale", mixtral) == "a.experts.0.w2.input_scale"
    assert rename("a.self_attn.k_proj.input_scale", mixtral) == "a.self_attn.k_proj.input_scale"
    assert rename("a.self_attn.k_scale", mixtral) == "a.self_attn.k_scale"
    qwen = {"a.experts.0.down_proj.weight"}
    assert rename("a.experts.0.down_proj.input_scale", qwen) == "a.experts.0.down_proj.input_scale"


# What becomes of models of other kinds, in this process.

SIZES = {"vocab_size": 1280, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES,
        **ALIGNED,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **SIZES,
        **ALIGNED,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=32,
        n_group=1,
        topk_group=1,
    ),
    "phimoe": lambda: PhimoeConfig(**SIZES, **ALIGNED, num_key_value_heads=2, num_local_experts=4),
    "phi3": lambda: Phi3Config(**SIZES, **ALIGNED, num_key_value_heads=2, pad_token_id=0),
}


OPT_SIZES = {
    "vocab_size": 1280,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "ffn_dim": 64,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 64,
}
MINIMAX_SIZES = {
    **SIZES,
    **ALIGNED,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "layer_types": ["linear_attention", "full_attention"],
}


def job_of(model: Path, **changes: object) -> CalibrationJob:
    fields: dict[str, object] = {
        "model": str(model),
        "dtype": "bfloat16",
        "scheme": "FP8",
        "targets": ("Linear",),
        "ignore": ("lm_head",),
        "kv_cache": "tensor",
        "samples": SampleRequest(
            kind="rows",
            source="",
            place=None,
            configuration=None,
            split="",
            column=None,
            samples=1,
            max_seq_length=64,
            seed=0,
            chat_template=None,
        ),
        "device": "cpu",
    }
    return CalibrationJob(**{**fields, **changes})  # type: ignore[arg-type]


def find_here(job: CalibrationJob, change: Callable[[Any], None] | None = None) -> Mapping[str, torch.Tensor]:
    from transformers import AutoTokenizer

    from fp8cli.calibrator.finding import find_scales, save_scales
    from fp8cli.calibrator.loading import load_model

    model = load_model(job.model, job.dtype, offload=None)
    if change is not None:
        change(model)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    encoded = Encoded(ids=(tuple(drawn_ids()[0]),), max_seq_length=64, conversations=False)
    seen = find_scales(job, model, tokenizer, encoded, lambda *_, **__: None)
    target = Path(job.model).with_name("scales.safetensors")
    assert save_scales(job, model, target, seen).count == len(load_file(target))
    return load_file(target)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_scale_that_a_plan_needs_is_found_under_the_same_name_and_no_other(tmp_path: Path, kind: str) -> None:
    model = save_model(tmp_path / "model", CONFIGS[kind]())
    checkpoint = open_checkpoint(LocalFolder(model))
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    selection = select(checkpoint.config, tensors, rules=rules_for(checkpoint.config, tensors))
    plan = build_plan(checkpoint, FP8, selection, "BF16", kv_cache="tensor")
    wanted = tuple(scale.name for scale in plan.calibrated)
    found = find_here(job_of(model, wanted=wanted))
    assert {name: tuple(scale.shape) for name, scale in found.items()} == {
        scale.name: scale.info.shape for scale in plan.calibrated
    }
    assert {scale.dtype for scale in found.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_layer_that_no_sample_reaches_is_named() -> None:
    def add_a_layer(model: Any) -> None:
        model.model.layers[1].aside = torch.nn.Linear(8, 8, dtype=torch.bfloat16)

    with pytest.raises(Failure) as failure:
        find_here(job_of(BUNDLED_MODEL), add_a_layer)
    assert failure.value.message == "no sample reached `model.layers.1.aside`, so there is no scale for it"


@pytest.mark.slow
def test_a_scale_that_llm_compressor_does_not_know_is_named(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", llama_config(vocab_size=1280))
    with pytest.raises(Failure) as failure:
        find_here(job_of(model, wanted=("model.layers.0.self_attn.q_proj.input_scale", "model.aside.input_scale")))
    assert failure.value.message == "llm-compressor has no scale for `model.aside.input_scale`"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (OPTConfig(**OPT_SIZES), "the KV cache of `opt` models (ValueError: Cannot determine num_key_value_heads"),
        (MiniMaxConfig(**MINIMAX_SIZES), "the KV cache of `minimax` models (AttributeError: 'QuantizedKVCache'"),
    ],
)
def test_a_model_whose_cache_llm_compressor_cannot_calibrate_is_refused_with_its_reason(
    tmp_path: Path, config: PretrainedConfig, reason: str
) -> None:
    model = save_model(tmp_path / "model", config)
    with pytest.raises(Failure) as failure:
        find_here(job_of(model))
    assert failure.value.message.startswith(f"llm-compressor cannot calibrate {reason}")
    assert failure.value.message.endswith((" from config)", " 'get_linear_cache')"))
    assert failure.value.hint == "leave out --kv-cache"


# What it refuses.


def test_what_needs_no_data_is_not_calibrated(data: str, tmp_path: Path) -> None:
    for scheme in (FP8_DYNAMIC, None):
        refusal, _ = fail(request(tmp_path, data, scheme=scheme, kv_cache=None), UsageError)
        assert "nothing here needs calibration" in refusal.message


def test_data_of_no_use_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    nowhere = Path("/nonexistent/python")
    refusal, events = fail(request(tmp_path / "work", str(tmp_path / "a.jsonl"), python=nowhere), BadInput)
    assert refusal.message.endswith("does not exist")
    fail(request(tmp_path / "work", None, model=tmp_path, python=nowhere), UsageError)
    fail(request(tmp_path / "work", None, max_seq_length=0, python=nowhere), UsageError)
    assert not events
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_what_only_the_calibrator_can_see_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Who came?"}]
    path = tmp_path / "talk.jsonl"
    path.write_text(f"{json.dumps({'messages': talk})}\n" * SAMPLES)
    refusal, events = fail(request(tmp_path / "work", str(path)), BadInput)
    assert refusal.message == f"the rows of `{path}` are conversations, and the model's tokenizer has no chat template"
    assert f"the whole log: {tmp_path / 'work' / LOG}" in str(refusal.hint)
    assert not events


@pytest.mark.slow
def test_a_model_that_computes_no_numbers_is_refused_by_the_name_of_the_scale(data: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in BUNDLED_MODEL.iterdir():
        if path.suffix in {".json", ".safetensors"}:
            (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refusal, _ = fail(request(tmp_path / "work", data, model=model, kv_cache=None), BadInput)
    assert refusal.message == (
        "calibration found no positive number for `model.layers.1.mlp.down_proj.input_scale`, but nan"
    )


@pytest.mark.slow
def test_an_interpreter_without_llm_compressor_is_named(data: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / "bin/python"
    refusal, events = fail(request(tmp_path / "work", data, python=python), CannotRun)
    assert refusal.message == f"`{python}` has no `llmcompressor`"
    assert "pip install" in str(refusal.hint)
    assert not events


def test_a_folder_is_no_interpreter(data: str, tmp_path: Path) -> None:
    refusal, _ = fail(request(tmp_path / "work", data, python=tmp_path), CannotRun)
    assert "cannot be run: Permission denied" in refusal.message


# What becomes of its process.

PRELUDE = """\
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[5])
def tell(**event):
    with open(folder / "events-0.jsonl", "a") as stream:
        stream.write(json.dumps(event) + "\\n")
"""


def stand_in(folder: Path, program: str) -> Path:
    """An interpreter that, whatever it is told to run, runs this program with the calibrator's own arguments."""
    python = folder / "python"
    python.write_text(f"#!{sys.executable}\n{PRELUDE}{program}\n")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("program", "message", "hint"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "the system killed the worker, most often for memory (SIGKILL)",
            "take shorter texts",
        ),
        ("sys.exit(3)", "the worker ended with exit code 3 before its work was done, and said nothing", ""),
        ("raise ValueError('nobody knows hf_abcdefghijklmnopqrst.')", "ValueError: nobody knows ***", ""),
        ("tell(event='failed', kind='memory', message='memory ran out')", "memory ran out", "--max-seq-length 1024"),
        ("tell(event='finished')", "the calibrator's result cannot be read", ""),
        ("print('still loading', flush=True); time.sleep(600)", "nothing was heard of the calibration for 1 s", ""),
    ],
)
def test_however_it_fails_there_is_one_sentence_and_the_log(
    data: str, tmp_path: Path, program: str, message: str, hint: str
) -> None:
    work = tmp_path / "work"
    asked = request(work, data, python=stand_in(tmp_path, program))
    refusal, _ = fail(asked, CannotRun, stall_seconds=1)
    assert refusal.message.startswith(message)
    assert hint in str(refusal.hint)
    assert f"the whole log: {work / LOG}" in str(refusal.hint)
    assert (work / LOG).read_text().startswith("----- calibration, 20")


def test_what_is_no_event_says_nothing(data: str, tmp_path: Path) -> None:
    program = """\
tell(event="texts", samples="many"); tell(event="unheard of"); tell(event="layer", number=1)
with open(folder / "events-0.jsonl", "ab") as stream:
    stream.write(b"no json\\n[1, 2\\n\\xff\\n" + b"[" * 100_000 + b"\\n")
tell(event="layer", number=1, of=2)
tell(event="failed", kind="unheard of", message="that is all.", hint=7)
"""
    refusal, events = fail(request(tmp_path / "work", data, python=stand_in(tmp_path, program)), CannotRun)
    assert events == [LayerDone(number=1, of=2)]
    assert refusal.message == "that is all"


def test_the_calibrator_sees_the_rows_and_no_gpu_and_no_secret_stays_in_its_log(data: str, tmp_path: Path) -> None:
    program = "print(os.environ['HF_TOKEN'], repr(os.environ['CUDA_VISIBLE_DEVICES']), os.environ['CT_ENFORCE_EAGER'])"
    asked = request(tmp_path / "work", data, python=stand_in(tmp_path, program))
    fail(asked, CannotRun, environ={**os.environ, "HF_TOKEN": "secret-and-long", "CUDA_VISIBLE_DEVICES": "0"})
    assert "*** '' 1\n" in (tmp_path / "work" / LOG).read_text()
    job = read_job(tmp_path / "work")
    assert (job.model, job.dtype, job.scheme) == (str(BUNDLED_MODEL), "bfloat16", "FP8")
    rows = [json.loads(line) for line in (tmp_path / "work/rows.jsonl").read_text().splitlines()]
    texts = stories()
    assert [texts[row["row"] - 1] for row in rows] == [row["content"] for row in rows]
    assert len(rows) == SAMPLES


@pytest.mark.slow
def test_a_data_set_comes_from_the_hub_and_a_split_or_a_name_it_does_not_have_is_said(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.repos[f"datasets/{LAMBADA}"] = lambada_repo(bundled_stories(ROWS))
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        environ = {**os.environ, **online}
        asked = request(tmp_path / "work", f"{LAMBADA}:test", scheme=None)
        facts = calibrate(asked, print, environ=environ).facts
        compact = json.dumps(drawn_ids()).replace(" ", "")
        assert facts.token_ids_sha256 == hashlib.sha256(compact.encode()).hexdigest()
        refusal, events = fail(request(tmp_path / "split", f"{LAMBADA}:train"), BadInput, environ=environ)
        assert refusal.message.startswith(f"`{LAMBADA}:train`: ")
        assert "train" in refusal.message.removeprefix(f"`{LAMBADA}:train`")
        assert not events
        refusal, _ = fail(request(tmp_path / "name", "nobody/nothing"), BadInput, environ=environ)
        assert refusal.message == "there is no data set `nobody/nothing` on the Hub, or it is not shown to you"


PARENT = """\
import sys
from pathlib import Path
from fp8cli.core.calibrating.calibration import calibrate
from fp8cli.errors import Interrupted
from tests.test_calibration import request
try:
    calibrate(request(Path(sys.argv[1]), sys.argv[2]), lambda event: print(type(event).__name__, flush=True))
except Interrupted:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_it_ends_with_its_parent_and_leaves_its_log_and_no_result(
    data: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    work = tmp_path / "work"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(work), data], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line == "TextsRead\n":
                break
        started = json.loads((work / "events-0.jsonl").read_text().splitlines()[0])
        assert is_alive(started["pid"])
        parent.send_signal(number)
        assert parent.wait(30) == code
    wait_until(lambda: not is_alive(started["pid"]), 10)
    assert not (work / FACTS).exists()
    assert (work / LOG).read_text().startswith("----- calibration, 20")
