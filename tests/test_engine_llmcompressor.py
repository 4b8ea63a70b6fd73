"""llm-compressor's engine beside the streaming one: what both can do, they do to the same bytes."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from transformers import FalconConfig, MixtralConfig

from fp8cli.commands.verify import VerifyRequest
from fp8cli.commands.verify import run as verify
from fp8cli.core.calibrating.footprint import Memory
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.compressing.adopting import adopt, read_saved
from fp8cli.core.compressing.engines import choose_engine
from fp8cli.core.compressing.ordering import order_compression
from fp8cli.core.compressing.outlook import check_whole, copies_of, estimate_compression, settle_place
from fp8cli.core.inspection.gate import pass_gate
from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.staging import partial_folder, stage
from tests.calibrated import MODEL, plan_of, write
from tests.compressed import Made, compress_here, plan_for, result_of
from tests.models import ODD, llama_config, qwen2_config, save_model
from tests.starting import fp8
from tests.test_environment import machine
from tests.test_oneshot_equality import tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]

KINDS = (".input_scale", ".k_scale", ".v_scale")
MOE = {"vocab_size": 320, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}


def texts(folder: Path, rows: int = 8) -> Path:
    """A few stories in a file, for models that have no data of their own; their tokenizer is the bundled one."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((MODEL / name).read_bytes())
    path = folder.parent / f"{folder.name}.jsonl"
    lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def assert_both_write_the_same(made: Made, source: Path, scheme: str | None, cache: str | None, tmp_path: Path) -> None:
    """Take the scales of data from llm-compressor's result; everything else is the streaming engine's own."""
    scales = {name: raw for name, (_, _, raw) in tensors(made.result).items() if name.endswith(KINDS)}
    plan = plan_of(source, scheme, choose(scheme or "none", cache).kv_cache)
    ours = tmp_path / "streaming"
    write(source, ours, plan, scales)
    assert {path.name for path in ours.iterdir()} <= {path.name for path in made.out.iterdir()} | {
        "model.safetensors.index.json"
    }
    for path in ours.iterdir():
        assert (made.out / path.name).read_bytes() == path.read_bytes(), path.name


BOTH = [
    (scheme, cache)
    for scheme in ("FP8_DYNAMIC", "FP8_BLOCK", "FP8", None)
    for cache in (None, "fp8", "fp8-head")
    if scheme is not None or cache is not None
]


@pytest.mark.parametrize(("scheme", "cache"), BOTH)
def test_both_engines_write_every_file_of_a_scheme_alike(tmp_path: Path, scheme: str | None, cache: str | None) -> None:
    made = compress_here(MODEL, tmp_path / "work", choose(scheme or "none", cache))
    assert_both_write_the_same(made, MODEL, scheme, cache, tmp_path)
    assert (made.facts["samples"] == 0) == (cache is None and scheme != "FP8")


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_shards_stay_those_of_the_source_where_llmcompressor_would_write_one(tmp_path: Path, scheme: str) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="200KB")
    made = compress_here(source, tmp_path / "work", choose(scheme, None))
    assert len(list(made.result.glob("*.safetensors"))) == 1
    assert len(list(made.out.glob("*.safetensors"))) > 2
    assert_both_write_the_same(made, source, scheme, None, tmp_path)


def test_a_recipe_that_lies_beside_the_source_is_no_part_of_the_new_one(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config())
    (source / "recipe.yaml").write_text("a_stage:\n  b_modifiers:\n    A: {x: !!python/tuple [1]}\n")
    made = compress_here(source, tmp_path / "work", choose("FP8_DYNAMIC", None))
    assert_both_write_the_same(made, source, "FP8_DYNAMIC", None, tmp_path)


def test_tied_embeddings_stay_one_tensor(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", qwen2_config())
    made = compress_here(source, tmp_path / "work", choose("FP8_DYNAMIC", None))
    assert_both_write_the_same(made, source, "FP8_DYNAMIC", None, tmp_path)


def test_linears_that_llmcompressor_passes_over_without_a_word_are_an_error_that_names_them(tmp_path: Path) -> None:
    # FalconLinear is a subclass of Linear, and `targets: Linear` goes by the name of the class.
    config = FalconConfig(vocab_size=320, hidden_size=128, num_hidden_layers=2, num_attention_heads=4)
    source = save_model(tmp_path / "source", config)
    with pytest.raises(BadInput, match=r"did not quantize `transformer\.h\.0\.mlp\.dense_4h.*and 5 more") as refused:
        compress_here(source, tmp_path / "work", choose("FP8_DYNAMIC", None))
    assert "--engine streaming" in str(refused.value.hint)
    assert not (tmp_path / "work" / "out").exists()


SCALE = "model.layers.0.block_sparse_moe.experts.1.w2.weight_scale"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        (SCALE, None, f"lacks `{SCALE}`"),
        (
            SCALE,
            torch.ones(5, 1, dtype=torch.bfloat16),
            r"made `.*w2\.weight_scale` BF16 \[5, 1\], not BF16 \[208, 1\]",
        ),
        (
            "model.norm.weight",
            torch.zeros(208).to(torch.float8_e4m3fn),
            r"quantized `model\.norm\.weight`, which should",
        ),
        ("model.new.weight", torch.zeros(4), r"has `model\.new\.weight`, for which the source has no place"),
    ],
    ids=["missing", "another shape", "quantized against the plan", "new"],
)
def test_a_result_that_is_not_what_was_planned_is_refused(
    tmp_path: Path, experts: tuple[Path, Made], name: str, value: torch.Tensor | None, complaint: str
) -> None:
    source, made = experts
    copied = tmp_path / "work"
    shutil.copytree(made.result.parent, copied)
    path = copied / "result" / "model.safetensors"
    content = load_file(path)
    # llm-compressor saves experts under names of its own.
    content.pop(name.replace("w2", "down_proj"), None)
    save_file(content if value is None else {**content, name: value}, path)
    plan = plan_for(source, choose("FP8_DYNAMIC", None))
    with stage(tmp_path / "new", {}, restart=False) as staging:
        with pytest.raises(BadInput, match=complaint):
            adopt(plan, read_saved(result_of(copied)), LocalFolder(source).resolve, staging, print)
        assert not list(staging.checkpoint.iterdir())


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """Return a Mixtral and what llm-compressor made of it."""
    folder = tmp_path_factory.mktemp("experts")
    config = MixtralConfig(**MOE, **ODD, num_local_experts=4, max_position_embeddings=64)
    source = save_model(folder / "source", config)
    return source, compress_here(source, folder / "work", choose("FP8_DYNAMIC", None))


def test_experts_keep_the_names_that_the_checkpoint_has_for_them(tmp_path: Path, experts: tuple[Path, Made]) -> None:
    source, made = experts
    names = set(tensors(made.out))
    kept = {name for name in tensors(source) if name.endswith(".weight")}
    assert kept <= names
    assert {f"{name}_scale" for name in kept if ".experts." in name} <= names
    assert_both_write_the_same(made, source, "FP8_DYNAMIC", None, tmp_path)


def test_a_scale_that_is_not_a_number_does_not_pass_the_gate(tmp_path: Path, experts: tuple[Path, Made]) -> None:
    _, made = experts
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    content = load_file(out / "model.safetensors")
    content[SCALE][2] = float("nan")
    save_file(content, out / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((MODEL / name).read_bytes())
    with pytest.raises(BadInput, match="not sound and is not published: 1 of 208 values is NaN"):
        pass_gate(LocalFolder(out))


def test_the_command_gives_what_the_streaming_engine_gives(tmp_path: Path) -> None:
    words = ("--scheme", "FP8", "--kv-cache", "fp8", "--num-calibration-samples", "8")
    for engine in ("streaming", "llmcompressor"):
        run = fp8(tmp_path, "quantize", MODEL, "-o", tmp_path / engine, "--engine", engine, "--json", *words)
        assert run.code == 0, run.err
        assert run.report["engine"] == engine
        assert not partial_folder(tmp_path / engine).exists()
    assert run.report["compression"]["facts"]["data"]["samples"] == 8
    assert "torch" not in run.loaded
    for path in (tmp_path / "streaming").iterdir():
        if path.name not in {"README.md", "fp8.json"}:
            assert (tmp_path / "llmcompressor" / path.name).read_bytes() == path.read_bytes(), path.name
    told = [json.loads((tmp_path / engine / "fp8.json").read_text()) for engine in ("streaming", "llmcompressor")]
    assert [each["plan"]["engine"] for each in told] == ["streaming", "llmcompressor"]
    assert told[0]["source"] == told[1]["source"]
    assert verify(VerifyRequest(checkpoint=str(tmp_path / "llmcompressor"))).verdict == "matches"
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "streaming").iterdir()}
    assert modes == {path.name: path.stat().st_mode for path in (tmp_path / "llmcompressor").iterdir()}


def test_a_dry_run_names_the_engine_and_its_memory_and_starts_nothing(tmp_path: Path) -> None:
    run = fp8(tmp_path, "quantize", MODEL, "-o", tmp_path / "out", "--engine", "llmcompressor", "--dry-run", "--json")
    assert run.code == 0
    assert run.report["engine"] == "llmcompressor"
    assert run.report["compression"]["facts"] is None
    assert "llm-compressor memory" in {check["name"] for check in run.report["checks"]}
    assert not partial_folder(tmp_path / "out").exists()
    assert run.loaded == []


def test_memory_counts_the_model_what_is_packed_of_it_and_the_hessians_of_a_layer() -> None:
    checkpoint = open_checkpoint(LocalFolder(MODEL))
    least = 10**9 + sum(info.bytes for info in checkpoint.tensors.values())
    plain, rounded = (
        estimate_compression(
            order_compression(CalibrationOptions(samples=8 if gptq else None), choice, recipe=None, model=MODEL),
            plan_for(MODEL, choice),
            checkpoint,
        )
        for gptq in (False, True)
        for choice in [choose("FP8_DYNAMIC", None, Modifiers(gptq=gptq))]
    )
    assert plain.least == rounded.least == least
    assert plain.most >= least + plan_for(MODEL, choose("FP8_DYNAMIC", None)).bytes_written
    # Six Linears with 128 inputs and one with 256 in each layer.
    assert rounded.most - plain.most > 4 * (6 * 128**2 + 256**2)


def test_too_little_memory_for_the_model_fails_before_it_is_loaded(tmp_path: Path) -> None:
    here = machine(tmp_path)  # 64 GiB, of which 48 are available.
    loaded = order_compression(CalibrationOptions(offload="none"), choose("FP8_DYNAMIC", None), recipe=None, model=None)
    check = check_whole(loaded, Memory(least=65 * 2**30, most=70 * 2**30), here)
    assert check.status == "failed"
    assert "--offload disk" in (check.fix or "")
    on_disk = replace(loaded, offload="disk")
    assert "--engine streaming" in (check_whole(on_disk, Memory(least=65 * 2**30, most=70 * 2**30), here).fix or "")
    assert check_whole(loaded, Memory(least=2**30, most=60 * 2**30), here).status == "warning"
    assert check_whole(loaded, Memory(least=2**30, most=2**31), here).status == "passed"


def test_weights_go_where_memory_does(tmp_path: Path) -> None:
    checkpoint, choice = open_checkpoint(LocalFolder(MODEL)), choose("FP8_DYNAMIC", None)
    order = order_compression(CalibrationOptions(), choice, recipe=None, model=MODEL)
    plan = plan_for(MODEL, choice)
    roomy, cramped = machine(tmp_path / "roomy"), machine(tmp_path / "cramped")
    (cramped / "proc" / "meminfo").write_text("MemTotal: 900000 kB\nMemFree: 900000 kB\nMemAvailable: 900000 kB\n")
    loaded, on_disk = (settle_place(order, plan, checkpoint, root=root) for root in (roomy, cramped))
    assert (loaded.offload, on_disk.offload) == ("none", "disk")
    assert (copies_of(loaded), copies_of(on_disk)) == (2, 3)
    assert estimate_compression(on_disk, plan, checkpoint).most < estimate_compression(loaded, plan, checkpoint).most


@pytest.mark.parametrize("modifiers", [Modifiers(), Modifiers(smoothing=0.5, gptq=True)], ids=["nearest", "gptq"])
def test_weights_that_stay_on_disk_come_to_the_same_bytes_and_the_source_is_as_it_was(
    tmp_path: Path, modifiers: Modifiers
) -> None:
    source = tmp_path / "source"
    shutil.copytree(MODEL, source)
    before = (source / "model.safetensors").read_bytes()
    choice, data = choose("FP8_BLOCK", None, modifiers), MODEL / "heldout.jsonl"
    data_or_none = data if choice.needs_calibration else None
    loaded, on_disk = (
        compress_here(source, tmp_path / place, choice, data=data_or_none, offload=place) for place in ("none", "disk")
    )
    assert (source / "model.safetensors").read_bytes() == before
    assert not (on_disk.result.parent / "weights").exists()
    for path in loaded.out.iterdir():
        assert (on_disk.out / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("word", "choice", "engine"),
    [
        ("auto", choose("FP8", "fp8"), "streaming"),
        ("auto", choose("FP8", None, Modifiers(gptq=True)), "llmcompressor"),
        ("auto", Choice(scheme=None, kv_cache=None, recipe="r.yaml"), "llmcompressor"),
        ("LLM-Compressor", choose("FP8_BLOCK", None), "llmcompressor"),
        ("streaming", choose("FP8_BLOCK", None), "streaming"),
    ],
)
def test_the_engine_is_the_streaming_one_wherever_it_can(word: str, choice: Choice, engine: str) -> None:
    assert choose_engine(word, choice) == engine


@pytest.mark.parametrize(
    ("word", "choice", "complaint"),
    [
        ("streaming", choose("FP8", None, Modifiers(smoothing=0.5, gptq=True)), "cannot do --smoothquant and --gptq"),
        ("streaming", Choice(scheme=None, kv_cache=None, recipe="r.yaml"), "cannot do --recipe"),
        ("triton", choose("FP8", None), "`triton` is no engine"),
    ],
)
def test_an_engine_that_cannot_do_it_or_is_none_is_refused(word: str, choice: Choice, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        choose_engine(word, choice)


@pytest.mark.parametrize("words", [("--workers", "2"), ("--max-memory", "2GiB")])
def test_options_of_the_streaming_engine_alone_are_refused(tmp_path: Path, words: tuple[str, str]) -> None:
    out = tmp_path / "out"
    run = fp8(tmp_path, "quantize", MODEL, "-o", out, "--gptq", "--num-calibration-samples", "4", *words)
    assert run.code == 2
    assert f"{words[0]}" in run.err
    assert "llm-compressor's engine holds the whole model" in run.err.replace("\n", " ")
    assert not out.exists()
