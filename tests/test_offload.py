"""Calibration in bounded memory: weights that stay in their shards, several processes, and a Hub for model and data."""

import hashlib
import html
import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from transformers import AutoTokenizer, PretrainedConfig

from fp8cli.calibrator.loading import load_model
from fp8cli.calibrator.protocol import OFFLOAD
from fp8cli.calibrator.ranks import RENDEZVOUS, reason_of
from fp8cli.commands.quantize import QuantizeReport, QuantizeRequest, run
from fp8cli.core.calibrating.calibration import CalibrationEvent, CalibrationFacts, calibrate
from fp8cli.core.calibrating.calibration_events import ModelLoading
from fp8cli.core.calibrating.footprint import PROGRAM_BYTES, Memory, read_footprint
from fp8cli.core.calibrating.ordering import CalibrationOptions, CalibrationOrder, order_calibration
from fp8cli.core.calibrating.outlook import Needs, check_memory, estimate_memory, foresee, settle
from fp8cli.core.quantizing.choices import choose
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.errors import CannotRun, UsageError
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.render import quantization
from fp8cli.render.console import Channel, Output
from fp8cli.samples.encoding import Encoded
from fp8cli.worker.failures import Failure
from tests.calibrated import plan_of
from tests.loopback_datasets import LAMBADA, bundled_stories, lambada_repo
from tests.loopback_hub import LoopbackHub, Repo
from tests.models import llama_config, qwen2_config, save_model
from tests.starting import fp8
from tests.test_calibration import CONFIGS, ROWS, drawn_ids, job_of, request, stories
from tests.test_supervising import is_alive, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")

GIB = 2**30
QUIET = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "stories.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in stories()), encoding="utf-8")
    return str(path)


# The same scales, wherever the weights are.


def scales_of(model: Path, dtype: str, offload: Path | None) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """Find scales in this process; return them, and the names of those of values that never moved."""
    from fp8cli.calibrator.finding import find_scales, save_scales
    from fp8cli.calibrator.loading import load_model

    job = job_of(model, dtype=dtype)
    loaded = load_model(job.model, dtype, offload=offload)
    encoded = Encoded(ids=tuple(map(tuple, drawn_ids()[:2])), max_seq_length=64, conversations=False)
    seen = find_scales(job, loaded, AutoTokenizer.from_pretrained(BUNDLED_MODEL), encoded, lambda *_, **__: None)
    target = model.with_name(f"scales-{offload is None}-{dtype}.safetensors")
    saved = save_scales(job, loaded, target, seen)
    return load_file(target), saved.dead


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: llama_config(vocab_size=1280), id="llama"),
        pytest.param(lambda: qwen2_config(vocab_size=1280), id="tied"),
        pytest.param(CONFIGS["qwen3_moe"], id="experts"),
    ],
)
def test_scales_with_weights_on_disk_are_those_with_weights_in_memory(
    tmp_path: Path, config: Callable[[], PretrainedConfig], dtype: str
) -> None:
    model = save_model(tmp_path / "model", config(), max_shard_size="300KB")
    if dtype == "float16":
        shrink(model)
    found, _ = scales_of(model, dtype, None)
    folder = tmp_path / "links"
    from_disk, _ = scales_of(model, dtype, folder)
    assert sorted(from_disk) == sorted(found)
    for name, scale in found.items():
        assert (from_disk[name].dtype, scale.dtype) == (getattr(torch, dtype),) * 2, name
        assert torch.equal(from_disk[name], scale), name
    # Fused experts are new files, to which there are links as well.
    shards = {path.resolve() for path in folder.iterdir() if path.is_symlink() and path.resolve().parent == model}
    assert len(shards) > 1, "the model has several shards"


def shrink(model: Path) -> None:
    """Make weights so small that nothing overflows in 16 bits with 5 of exponent."""
    for path in model.glob("*.safetensors"):
        small = {name: value.clamp(-0.1, 0.1) for name, value in load_file(path).items()}
        save_file(small, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_a_layer_whose_input_never_moves_is_named_and_its_scale_is_what_llm_compressor_has(tmp_path: Path) -> None:
    model = dead_stories(tmp_path / "model")
    scales, dead = scales_of(model, "bfloat16", None)
    assert dead == (DEAD,)
    assert scales[DEAD].item() == torch.finfo(torch.bfloat16).eps


DEAD = "model.layers.1.mlp.down_proj.input_scale"


def dead_stories(folder: Path) -> Path:
    """Write the bundled model with one MLP that says nothing: what goes into its last Linear is 0."""
    folder.mkdir()
    for path in BUNDLED_MODEL.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(BUNDLED_MODEL / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# What stays in memory.

WIDE = {"vocab_size": 1280, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 4}
LAYER_BYTES = (512 * 512 * 3 + 512 * 2048 * 3) * 2
"""Of one layer below in BF16: two heads of four are of keys and values."""
LAYERS = 24


def wide_model(folder: Path) -> Path:
    """Write a model in 32 bits, so that all of it has to be cast, in several shards."""
    config = llama_config(**WIDE, num_key_value_heads=2, num_hidden_layers=LAYERS)
    save_model(folder, config, torch.float32, max_shard_size="60MB")
    for path in BUNDLED_MODEL.glob("token*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.slow
def test_of_the_weights_on_disk_no_more_than_a_few_layers_are_in_memory(data: str, tmp_path: Path) -> None:
    model = wide_model(tmp_path / "model")

    def peak(*, offload: bool) -> int:
        work = tmp_path / f"work-{offload}"
        asked = request(work, data, model=model, offload=offload, samples=2, kv_cache=None, max_seq_length=16)
        found = calibrate(asked, print, environ={**os.environ, **QUIET})
        assert not (work / OFFLOAD).exists()
        return found.facts.peak_memory_bytes

    assert peak(offload=False) - peak(offload=True) > (LAYERS - 3) * LAYER_BYTES


# Several processes.


@pytest.mark.slow
def test_two_processes_find_what_one_does_each_with_its_share_of_the_samples(data: str, tmp_path: Path) -> None:
    environ = {**os.environ, **QUIET}
    one = calibrate(request(tmp_path / "one", data), print, environ=environ)
    two = calibrate(request(tmp_path / "two", data, offload=True, processes=2), print, environ=environ)
    assert two.scales == one.scales
    assert two.facts.token_ids_sha256 == one.facts.token_ids_sha256
    assert two.facts.peak_memory_bytes > 1.5 * one.facts.peak_memory_bytes, "of both together"
    assert not (tmp_path / "two" / OFFLOAD).exists()
    assert not (tmp_path / "two" / RENDEZVOUS).exists()
    # Where the weights are and who looked changes nothing, so that either is an answer to the other.
    known = calibrate(request(tmp_path / "two", data, python=Path("/nonexistent/python")), print)
    assert (known.known, known.scales) == (True, one.scales)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_one_sentence(data: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    pids: list[int] = []

    def kill_second(event: CalibrationEvent) -> None:
        if isinstance(event, ModelLoading):
            told = work / "events-1.jsonl"
            wait_until(lambda: told.exists() and told.read_text().count("\n") > 0, 60)
            events = (work / "events-0.jsonl", told)
            pids.extend(json.loads(path.read_text().splitlines()[0])["pid"] for path in events)
            os.kill(pids[1], signal.SIGKILL)

    with pytest.raises(CannotRun) as failure:
        calibrate(request(work, data, offload=True, processes=2), kill_second, environ={**os.environ, **QUIET})
    assert failure.value.message == ("the system killed process 2 of the calibration, most often for memory (SIGKILL)")
    assert not any(map(is_alive, pids))
    assert not (work / OFFLOAD).exists()


@pytest.mark.parametrize(
    ("events", "code", "kind", "message"),
    [
        (
            '{"event": "failed", "kind": "data", "message": "row 3 is empty", "hint": null}\n',
            1,
            "data",
            "row 3 is empty",
        ),
        (
            '{"event": "started", "pid": 7}\n',
            -9,
            "memory",
            "the system killed process 2 of the calibration, most often",
        ),
        ("", 3, "other", "process 2 of the calibration ended with exit code 3, and said nothing"),
        ("[1\n", -11, "other", "process 2 of the calibration ended with signal 11, and said nothing"),
        ("[1]\n", 1, "other", "process 2 of the calibration ended with exit code 1, and said nothing"),
        (None, 1, "other", "process 2 of the calibration ended with exit code 1, and said nothing"),
    ],
)
def test_the_reason_is_what_a_process_said_and_else_how_it_ended(
    tmp_path: Path, events: str | None, code: int, kind: str, message: str
) -> None:
    if events is not None:
        (tmp_path / "events-1.jsonl").write_text(events)
    reason = reason_of(tmp_path, 1, code)
    assert reason.kind == kind
    assert reason.message.startswith(message)


def test_a_folder_that_takes_no_links_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "offload"
    folder.mkdir()
    options = "nosymfollow,size=1M"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("needs a user who may mount a tmpfs")
    try:
        with pytest.raises(Failure) as reason:
            load_model(str(BUNDLED_MODEL), "bfloat16", offload=folder)
        assert reason.value.kind == "other"
        assert reason.value.message.startswith(f"`{folder}` takes no links to the checkpoint's shards: ")
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# Where the weights go, and why.


def machine(folder: Path, *, total: int, available: int) -> Path:
    """Write what a machine says of its memory."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\n")
    (folder / "proc" / "self" / "cgroup").write_text("")
    (folder / "proc" / "self" / "mountinfo").write_text("")
    return folder


def order(**options: Any) -> CalibrationOrder:
    found = order_calibration(
        CalibrationOptions(data=str(BUNDLED_STORIES), **options), choose("FP8", None), model=BUNDLED_MODEL
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("available", "word", "offload", "why"),
    [
        (8 * GIB, None, False, "about 1.29 GiB in all, 1.29 GiB with them on disk"),
        (GIB, None, True, "about 1.29 GiB in all, 1.29 GiB with them in memory"),
        (8 * GIB, "DISK", True, "--offload disk"),
        (GIB, "none", False, "--offload none"),
    ],
)
def test_weights_stay_on_disk_where_memory_does_not_do_or_where_the_user_says_so(
    tmp_path: Path, available: int, word: str | None, offload: bool, why: str
) -> None:
    plan, checkpoint = plan_of(BUNDLED_MODEL, "FP8"), open_checkpoint(LocalFolder(BUNDLED_MODEL))
    root = machine(tmp_path, total=16 * GIB, available=available)
    needs = estimate_memory(order(offload=word), plan, checkpoint, root=root)
    assert (needs.offload, needs.why) == (offload, why)
    assert needs.memory == (needs.offloaded if offload else needs.loaded)
    settled = settle(order(offload=word), plan, checkpoint, root=root)
    # What is decided stays so, whatever the memory that is free later.
    report = foresee(settled, plan, checkpoint)
    assert (report.offload, report.offload_why) == (offload, why)
    asked = settled.request(
        plan, model=BUNDLED_MODEL, folder=tmp_path / "work", targets=("Linear",), ignore=(), device="cpu"
    )
    assert asked.offload is offload


def test_without_word_of_memory_the_weights_are_loaded(tmp_path: Path) -> None:
    plan, checkpoint = plan_of(BUNDLED_MODEL, "FP8"), open_checkpoint(LocalFolder(BUNDLED_MODEL))
    needs = estimate_memory(order(), plan, checkpoint, root=tmp_path)
    assert (needs.offload, needs.why) == (False, "how much memory is available is not known")


def test_several_processes_share_the_shards(tmp_path: Path) -> None:
    plan, checkpoint = plan_of(BUNDLED_MODEL, "FP8"), open_checkpoint(LocalFolder(BUNDLED_MODEL))
    needs = estimate_memory(order(processes=3), plan, checkpoint, root=tmp_path)
    assert (needs.offload, needs.why) == (True, "3 processes share them")
    assert needs.offloaded.least > 3 * PROGRAM_BYTES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "tape"}, "`tape` is no place for weights"),
        ({"processes": 0}, "--calibration-processes 0 cannot share 512 samples"),
        ({"processes": 9, "samples": 8}, "--calibration-processes 9 cannot share 8 samples"),
        ({"processes": 2, "offload": "none"}, "2 processes would each load the model, which --offload none asks for"),
    ],
)
def test_words_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        order(**options)
    assert refusal.value.message == message


def test_places_and_processes_have_no_effect_where_nothing_is_calibrated() -> None:
    for word, value in (("offload", "disk"), ("processes", 2)):
        with pytest.raises(UsageError, match="would have no effect: `FP8_DYNAMIC` needs no data"):
            order_calibration(CalibrationOptions(**{word: value}), choose("FP8_DYNAMIC", None), model=BUNDLED_MODEL)


def test_the_parts_of_the_estimate_are_those_of_a_model_counted_by_hand(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", llama_config(num_hidden_layers=5))
    footprint = read_footprint(plan_of(model, "FP8"), open_checkpoint(LocalFolder(model)), samples=3, length=10)
    tables, norms = 320 * 128 * 2, 128 * 2
    layer = 128 * (128 + 64 + 64 + 128) * 2 + 3 * 128 * 256 * 2 + 2 * norms
    assert footprint.weights == 2 * tables + norms + 5 * layer
    assert footprint.part == layer
    assert footprint.kept == 3 * (10 * (128 + 2 * 32) + 10 * 10) * 2
    assert footprint.passing == 4 * 10 * 10 * 10 + 10 * 320 * 4
    assert footprint.files == 0
    assert footprint.offloaded(2).most == 2 * (PROGRAM_BYTES + layer + footprint.passing) + footprint.kept


def test_experts_are_counted_with_the_copies_that_are_made_of_them(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CONFIGS["qwen3_moe"]())
    footprint = read_footprint(plan_of(model, "FP8"), open_checkpoint(LocalFolder(model)), samples=1, length=1)
    experts = 4 * 3 * 128 * 64 * 2
    assert footprint.files == 2 * 2 * experts
    assert footprint.part > 3 * experts
    for offload, files in (("disk", footprint.files), ("none", 0)):
        calibration = CalibrationOptions(data=str(BUNDLED_STORIES), offload=offload)
        request = QuantizeRequest(
            model=str(model), out=tmp_path / "out", scheme="FP8", calibration=calibration, dry_run=True
        )
        foreseen = run(request).calibration
        assert foreseen is not None
        assert foreseen.offload_files_bytes == files


@pytest.mark.parametrize(
    ("offload", "fix"), [(False, "leave the weights on disk: --offload disk"), (True, "calibrate where there is more")]
)
def test_a_machine_too_small_for_the_place_is_told_what_helps(tmp_path: Path, offload: bool, fix: str) -> None:
    root = machine(tmp_path, total=2 * GIB, available=GIB)
    needs = Needs(
        loaded=Memory(least=3 * GIB, most=4 * GIB),
        offloaded=Memory(least=3 * GIB, most=3 * GIB),
        offload=offload,
        why="so",
        files_bytes=0,
    )
    check = check_memory(needs, root)
    assert check.status == "failed"
    assert str(check.fix).startswith(fix)
    place = "on disk" if offload else "in memory"
    assert check.found == f"1.00 GiB available of the 2.00 GiB of this machine; weights {place}: so"


# End to end.


@pytest.mark.slow
def test_a_model_and_data_of_the_hub_become_a_checkpoint_by_one_command(tmp_path: Path) -> None:
    local = dead_stories(tmp_path / "local")
    out = tmp_path / "out"
    with LoopbackHub() as hub:
        hub.repos["acme/stories"] = Repo()
        commit = hub.repos["acme/stories"].push({path.name: path.read_bytes() for path in local.iterdir()})
        hub.repos[f"datasets/{LAMBADA}"] = lambada_repo(bundled_stories(ROWS))
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_ENDPOINT": hub.url}
        made = fp8(
            tmp_path,
            *("quantize", "acme/stories", "-o", out, "--scheme", "FP8", "--kv-cache", "fp8"),
            *("--calibration-data", f"{LAMBADA}:test", "--num-calibration-samples", "12"),
            *("--calibration-seed", "5", "--offload", "disk", "--json"),
            HF_HOME=str(tmp_path / "home"),
            **online,
            **QUIET,
        )
    assert made.code == 0, made.err
    calibration = made.report["calibration"]
    assert made.report["revision"] == commit
    assert (calibration["source"], calibration["offload"]) == (f"{LAMBADA}:test", True)
    assert calibration["offload_why"] == "--offload disk"
    assert calibration["facts"]["dead"] == [DEAD]
    assert calibration["facts"]["samples"] == 12
    compact = json.dumps(drawn_ids()).replace(" ", "")
    assert calibration["facts"]["token_ids_sha256"] == hashlib.sha256(compact.encode()).hexdigest()
    written = load_file(out / "model.safetensors")
    assert sum(name.endswith(("input_scale", "k_scale", "v_scale")) for name in written) == 27
    assert not [path for path in tmp_path.rglob("*") if path.name == OFFLOAD]
    card = (out / "README.md").read_text()
    assert "acme/stories" in card
    assert LAMBADA in html.unescape(card)


def screen(report: QuantizeReport) -> str:
    """What a terminal of 80 columns shows of a report, as one line of words."""
    stream = io.StringIO()
    channel = Channel(stream=stream, terminal=True, width=80, color=False, unicode=True)
    quantization.show(report, Output(out=channel, err=channel))
    return " ".join(stream.getvalue().split())


def test_the_screen_says_what_both_places_take_and_names_scales_that_say_nothing(tmp_path: Path) -> None:
    calibration = CalibrationOptions(offload="disk", processes=2)
    request = QuantizeRequest(
        model=str(BUNDLED_MODEL), out=tmp_path / "out", scheme="FP8", calibration=calibration, dry_run=True
    )
    report = run(request)
    shown = screen(report)
    assert "up to 1.29 GiB of memory with the weights in it or 2.23 GiB with them on disk for 2 processes" in shown
    assert "they stay on disk" in shown
    assert report.calibration is not None
    facts = CalibrationFacts(
        source="stories",
        data_fingerprint="",
        column=None,
        samples=1,
        tokens=1,
        max_seq_length=1,
        conversations=False,
        seed=0,
        token_ids_sha256="",
        versions={},
        seconds=1.0,
        peak_memory_bytes=GIB,
        peak_gpu_memory_bytes=None,
        notes=(),
        dead=(DEAD, "a\x1b[31m[bold]b.input_scale", "c.k_scale", "d.k_scale"),
    )
    done = replace(report, dry_run=False, calibration=replace(report.calibration, facts=facts))
    shown = screen(done)
    assert "with 1.00 GiB of memory, weights on disk" in shown
    assert f"`{DEAD}`, `a\\x1b[31m[bold]b.input_scale`, `c.k_scale` and 1 more: the values were 0" in shown
    assert "\x1b" not in shown
