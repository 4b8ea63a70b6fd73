"""Calibrated FP8 before anything is calibrated: what can be chosen, what is refused, what a dry run and a card say."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from fp8cli.commands.quantize import CalibrationOptions, QuantizeReport, QuantizeRequest, run
from fp8cli.core.calibrating.footprint import Memory
from fp8cli.core.calibrating.ordering import CalibrationOrder, environment_of, order_calibration
from fp8cli.core.calibrating.outlook import Needs, check_memory
from fp8cli.core.quantizing.choices import choose
from fp8cli.core.serving.command_line import serve_note
from fp8cli.errors import BadInput, CannotRun, Fp8Error, UsageError
from fp8cli.formats.calibration_note import CalibrationNote
from fp8cli.formats.model_card import CardFacts, write_card
from tests.calibrated import MODEL, plan_of
from tests.models import llama_config, save_model
from tests.staged_machine import MEMINFO

STORIES = str(MODEL / "heldout.jsonl")
HOSTILE = "a`b|c\n# no comment: \x1b[31m<img src=x onerror=alert(1)> [x](y) \udcff" + "z" * 10_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("choices") / "tiny-llama", llama_config())


def dry_run(model: Path, scheme: str, kv_cache: str | None, **options: object) -> QuantizeReport:
    calibration = CalibrationOptions(data=STORIES if scheme.upper() == "FP8" or kv_cache else None)
    request = QuantizeRequest(
        model=str(model), scheme=scheme, kv_cache=kv_cache, calibration=calibration, dry_run=True, **options
    )
    return run(request)


@pytest.mark.parametrize(
    ("scheme", "kv_cache", "name"),
    [
        ("FP8_DYNAMIC", None, "tiny-llama-FP8-dynamic"),
        ("fp8", None, "tiny-llama-FP8"),
        ("FP8", "fp8", "tiny-llama-FP8-KV"),
        ("FP8", "FP8_HEAD", "tiny-llama-FP8-KV-head"),
        ("fp8-block", "fp8", "tiny-llama-FP8-block-KV"),
        ("FP8_DYNAMIC", "fp8-head", "tiny-llama-FP8-dynamic-KV-head"),
        ("none", "fp8", "tiny-llama-KV"),
        ("NONE", "fp8-head", "tiny-llama-KV-head"),
    ],
)
def test_each_choice_has_a_folder_of_its_own(tiny: Path, scheme: str, kv_cache: str | None, name: str) -> None:
    report = dry_run(tiny, scheme, kv_cache)
    assert report.out == Path(name)
    scales = 0 if report.calibration is None else report.calibration.scales
    # Fourteen Linears, two attention layers with a scale for keys and one for values.
    assert scales == (14 if scheme.upper() == "FP8" else 0) + (4 if kv_cache else 0)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"scheme": "FP9"}, UsageError, "`FP9` is no scheme"),
        ({"scheme": "none"}, UsageError, "--scheme none leaves the weights as they are"),
        ({"kv_cache": "int8"}, UsageError, "`int8` is no form of KV cache"),
        ({"scheme": "none", "kv_cache": "fp8", "ignore": ("x",)}, UsageError, "no weight is quantized"),
        ({"scheme": "none", "kv_cache": "fp8", "targets": ("x",)}, UsageError, "no weight is quantized"),
        ({"scheme": "none", "kv_cache": "fp8", "default_ignore": False}, UsageError, "no weight is quantized"),
        ({"scheme": "FP8"}, UsageError, "calibration needs data"),
        ({"kv_cache": "fp8"}, UsageError, "calibration needs data"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: Path, tmp_path: Path, request_: dict[str, object], error: type[Fp8Error], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(QuantizeRequest(model=str(tiny), out=tmp_path / "out", **request_))  # type: ignore[arg-type]
    assert message in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "nowhere.jsonl"}, BadInput, "`nowhere.jsonl` does not exist"),
        ({"data": "z" * 10_000}, BadInput, "File name too long"),
        ({"data": "~nobody-at-all/texts.jsonl"}, BadInput, "`~nobody-at-all/texts.jsonl` is no data"),
        ({"data": STORIES, "column": "prose"}, BadInput, "has no column `prose`"),
        ({"data": STORIES, "samples": 3_000}, BadInput, "has 2,500 rows, and 3,000 are to be drawn"),
        ({"data": STORIES, "samples": 0}, UsageError, "--num-calibration-samples is 0"),
        ({"data": STORIES, "max_seq_length": 0}, UsageError, "--max-seq-length 0 leaves nothing of a sample"),
        ({"data": STORIES, "python": Path("/bin/true")}, CannotRun, "`/bin/true`: it does not answer as Python does"),
        ({"data": STORIES, "python": Path("/nowhere/python")}, CannotRun, "it cannot be run: No such file"),
    ],
)
def test_data_and_machines_of_no_use_are_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, options: dict[str, object], error: type[Fp8Error], message: str
) -> None:
    calibration = CalibrationOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        run(QuantizeRequest(model=str(tiny), out=tmp_path / "out", scheme="FP8", calibration=calibration))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": STORIES}, "--calibration-data would have no effect"),
        ({"column": "text", "samples": 1}, "--text-column and --num-calibration-samples would have no effect"),
        ({"max_seq_length": 0}, "--max-seq-length would"),
        ({"seed": 0}, "--calibration-seed would"),
        ({"python": Path("python")}, "--python would"),
    ],
)
def test_options_of_a_calibration_that_is_not_made_are_refused(
    tiny: Path, options: dict[str, object], words: str
) -> None:
    calibration = CalibrationOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`FP8_DYNAMIC` needs no data") as caught:
        run(QuantizeRequest(model=str(tiny), calibration=calibration, dry_run=True))
    assert words in caught.value.message


def test_an_interpreter_without_llm_compressor_is_refused_with_the_way_to_install_it(
    tiny: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    calibration = CalibrationOptions(data=STORIES, python=tmp_path / "bare")
    with pytest.raises(CannotRun) as caught:
        run(QuantizeRequest(model=str(tiny), out=tmp_path / "out", scheme="FP8", calibration=calibration))
    assert caught.value.message.startswith(f"llmcompressor: not installed in `{tmp_path}/bare/bin/python`")
    assert caught.value.hint is not None
    assert f"uv pip install --python {tmp_path}/bare/bin/python 'llmcompressor" in caught.value.hint


def test_a_dry_run_says_what_calibration_will_need_and_loads_no_library_for_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['fp8', *sys.argv[1:]]\n"
        "from fp8cli.cli.app import main\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'datasets', 'llmcompressor', 'transformers'} & set(sys.modules))"
    )
    words = ["quantize", str(MODEL), "-o", str(tmp_path / "out"), "--scheme", "FP8", "--kv-cache", "fp8", "--dry-run"]
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert (
        "27 scales to be calibrated on 512 samples of up to 512 tokens of the bundled stories · up to 1.29 GiB of "
        "memory with the weights in it or 1.29 GiB with them on disk (an estimate; no model was loaded); they stay "
    ) in result.stdout
    assert "✓ calibration memory: " in result.stdout
    assert "✓ llmcompressor: " in result.stdout
    assert result.stdout.endswith("set()\n")
    assert "calibrated on stories that the bundled evaluation asks about too" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_name_of_data_is_harmless_on_the_screen(tmp_path: Path) -> None:
    data = tmp_path / "a\x1b[31m [bold red]b\nerror: forged.jsonl"
    data.write_text('{"text": "a story"}\n')
    program = "import sys; sys.argv[0] = 'fp8'; from fp8cli.cli.app import main; sys.exit(main())"
    words = ["quantize", MODEL, "--dry-run", "--scheme", "FP8", "--num-calibration-samples", "1"]
    command = [sys.executable, "-c", program, *map(str, words), "--calibration-data", str(data)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in result.stdout + result.stderr
    assert "a\\x1b[31m [bold red]b\\nerror: forged.jsonl" in result.stdout


def test_memory_is_estimated_from_headers_and_config(tiny: Path) -> None:
    """By hand: 160,000 weights of 2 bytes and a bit; 512 samples of 128 positions at most."""
    report = dry_run(tiny, "FP8", "fp8")
    config = json.loads((tiny / "config.json").read_text())
    parameters = (tiny / "model.safetensors").stat().st_size // 2
    length = min(2048, config["max_position_embeddings"])
    heads, head_size = config["num_attention_heads"], config["head_dim"]
    handed_on = 512 * (length * (config["hidden_size"] + 2 * head_size) + length**2) * 2
    logits = length * config["vocab_size"] * 4 + heads * length**2 * 10
    assert report.calibration is not None
    assert report.calibration.max_seq_length == length
    assert report.calibration.memory_bytes == pytest.approx(10**9 + 2 * parameters + handed_on + logits, rel=1e-4)


@pytest.mark.parametrize(
    ("least", "most", "status"),
    [(2**30, 2**31, "passed"), (2**30, 60 * 2**30, "warning"), (65 * 2**30, 70 * 2**30, "failed")],
)
def test_too_little_memory_for_the_weights_fails_and_too_little_for_the_samples_warns(
    tmp_path: Path, least: int, most: int, status: str
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)  # 64 GiB, of which 48 are free.
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "proc" / "self" / "cgroup").write_text("")
    (tmp_path / "proc" / "self" / "mountinfo").write_text("")
    memory = Memory(least=least, most=most)
    needs = Needs(loaded=memory, offloaded=memory, offload=True, why="--offload disk", files_bytes=0)
    check = check_memory(needs, tmp_path)
    assert (check.status, check.fix is None) == (status, status == "passed")


def ordered(**options: object) -> CalibrationOrder:
    calibration = CalibrationOptions(data=STORIES, **options)  # type: ignore[arg-type]
    order = order_calibration(calibration, choose("FP8", "fp8"), model=None)
    assert order is not None
    return order


def test_llm_compressor_is_told_names_in_the_place_of_globs(tiny: Path, tmp_path: Path) -> None:
    request = ordered(samples=3, seed=7).request(
        plan_of(tiny, "FP8", "tensor"),
        model=tiny,
        folder=tmp_path,
        targets=("Linear",),
        ignore=("lm_head", "*.1.mlp.*", "re:.*o_proj", "model.layers.0.mlp.up_proj.weight"),
        device="cuda:1",
    )
    assert request.ignore == (
        "lm_head",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "re:.*o_proj",
        "model.layers.0.mlp.up_proj",
    )
    assert (request.targets, request.device, request.samples, request.seed) == (("Linear",), "cuda", 3, 7)
    assert (request.dtype, request.kv_cache, request.max_seq_length) == ("BF16", "tensor", 2048)


def test_a_gpu_is_chosen_by_its_place_among_those_that_are_visible() -> None:
    assert environment_of("auto", {"A": "1"}) == {"A": "1"}
    assert environment_of("cuda", {}) == {}
    assert environment_of("cuda:1", {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert environment_of("cuda:1", {"CUDA_VISIBLE_DEVICES": "4, GPU-abc"}) == {"CUDA_VISIBLE_DEVICES": "GPU-abc"}


def note(source: str) -> CalibrationNote:
    return CalibrationNote(
        source=source,
        samples=512,
        tokens=26_463,
        max_seq_length=2048,
        seed=1234,
        token_ids_sha256="ab" * 32,
        versions={"llmcompressor": "0.14.0.1", "torch": "2.13.0", "transformers": "5.17.0"},
    )


def card(calibration: CalibrationNote | None, *, weights_quantized: bool = True) -> str:
    facts = CardFacts(
        name="out",
        source="tiny",
        source_is_hub_id=False,
        source_version="0",
        scheme="FP8",
        scheme_summary="",
        ignored_modules=("lm_head",),
        bytes_before=2,
        bytes_after=1,
        tools={},
        serve_command="vllm serve out",
        serve_note="",
        weights_quantized=weights_quantized,
        calibration=calibration,
    )
    return write_card(facts, None)


def test_the_card_says_what_data_it_was() -> None:
    shown = card(note("texts.jsonl"))
    assert (
        "| Calibrated on | 512 samples of texts.jsonl: 26,463 tokens, at most 2,048 a sample, seed 1234; "
        f"SHA-256 of the token ids `{'ab' * 32}` |"
    ) in shown
    assert "`tiny` quantized to FP8 (`torch.float8_e4m3fn`), with calibration data." in shown
    assert "`tiny` quantized to FP8 (`torch.float8_e4m3fn`), without calibration data." in card(None)
    alone = card(note("org/texts:train"), weights_quantized=False)
    assert "`tiny` with scales for an FP8 KV cache, with calibration data." in alone
    assert "| Left unquantized | all weights |" in alone
    assert "of org/texts:train: " in alone


def test_a_hostile_name_of_data_is_harmless_in_card_and_recipe() -> None:
    text = f"key: value\n{note(HOSTILE).for_recipe()}"
    assert yaml.safe_load(text) == {"key": "value"}
    row = next(line for line in card(note(HOSTILE)).splitlines() if line.startswith("| Calibrated on"))
    assert row.count("|") == 3
    assert row.count("`") == 2
    assert len(row) < 3_000
    assert not {"<", "\x1b", "[", "\udcff"} & set(row)


def test_the_note_on_serving_says_what_each_half_needs() -> None:
    assert serve_note(None, "tensor").startswith("The weights stay in 16 bits. Keys and values are kept in FP8")
    both = serve_note(choose("FP8", None).scheme, "head")
    assert both.startswith("GPUs of compute capability 8.9 and later compute in FP8")
    assert both.endswith(
        "a scale for each head loads on compute capability 9.x and 10.x alone, one for a layer from 8.0 on."
    )
    assert "Keys" not in serve_note(choose("FP8", None).scheme)


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; sys.argv = ['fp8', 'quantize', '--help']\n"
        "from fp8cli.cli.app import main\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'datasets', 'rich', 'fp8cli.core'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert "--calibration-data" in result.stdout
    assert result.stdout.endswith("set()\n")
