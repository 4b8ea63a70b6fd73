"""The engine: the same bytes whatever the machine, nothing half-made whatever goes wrong."""

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.commands.quantize import QuantizeReport, QuantizeRequest, run
from fp8cli.core.quantizing.engine import Progress
from fp8cli.errors import BadInput, CannotRun, Fp8Error, UsageError
from fp8cli.formats.safetensors import lay_out
from fp8cli.formats.staging import partial_folder
from fp8cli.formats.weight_files import copy_range
from tests.models import ODD, llama_config, qwen2_config, save_model

TINY_PIECES = 4096


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sharded checkpoint with awkward sizes; never written to."""
    return save_model(tmp_path_factory.mktemp("engine") / "source", llama_config(**ODD), max_shard_size="300KB")


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def quantize(source: Path, out: Path, **options: object) -> QuantizeReport:
    return run(QuantizeRequest(model=str(source), out=out, **options))


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_workers_memory_and_piece_size_change_no_byte(source: Path, tmp_path: Path, scheme: str) -> None:
    wanted = digest(quantize(source, tmp_path / "a" / "out", scheme=scheme, workers=1).out)
    for number, options in enumerate(
        (
            {"workers": 5, "piece_bytes": 1},
            {"workers": 2, "piece_bytes": TINY_PIECES, "max_memory": "1100kB"},
            {"workers": 1, "piece_bytes": 2**40, "max_memory": "4GiB"},
        )
    ):
        out = tmp_path / str(number) / "out"
        assert digest(quantize(source, out, scheme=scheme, **options).out) == wanted, options


def test_a_shard_is_byte_for_byte_what_the_safetensors_library_writes(source: Path, tmp_path: Path) -> None:
    out = quantize(source, tmp_path / "out").out
    for shard in sorted(out.glob("*.safetensors")):
        save_file(load_file(shard), tmp_path / "theirs", metadata={"format": "pt"})
        assert shard.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_index_names_every_tensor_and_their_total_size(source: Path, tmp_path: Path) -> None:
    out = quantize(source, tmp_path / "out").out
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {}
    for shard in sorted(out.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            found[name] = (shard.name, tensor.nbytes)
    assert index["weight_map"] == {name: shard for name, (shard, _) in found.items()}
    assert index["metadata"]["total_size"] == sum(size for _, size in found.values())


def test_modes_follow_the_source_and_the_umask_but_not_an_accidental_0600(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    shards = sorted(copy.glob("*.safetensors"))
    shards[0].chmod(0o640)
    shards[1].chmod(0o600)
    shards[2].chmod(0o666)
    before = os.umask(0o022)
    try:
        out = quantize(copy, tmp_path / "out").out
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((out / shard.name).stat().st_mode) for shard in shards[:3]]
    assert [oct(mode) for mode in modes] == [oct(0o640), oct(0o644), oct(0o644)]


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")])
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_nan_or_inf_in_a_weight_is_refused_with_tensor_and_position(
    source: Path, tmp_path: Path, value: float, name: str, scheme: str
) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    tensor = "model.layers.1.mlp.down_proj.weight"
    shard = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][tensor]
    tensors = load_file(copy / shard)
    tensors[tensor][150, 333] = value
    save_file(tensors, copy / shard, metadata={"format": "pt"})
    with pytest.raises(BadInput) as refused:
        quantize(copy, tmp_path / "out", scheme=scheme, piece_bytes=TINY_PIECES)
    assert refused.value.message == f"`{tensor}` holds {name} at row 150, column 333"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    # Kept as it is, it does no harm to the others.
    out = quantize(copy, tmp_path / "out", scheme=scheme, ignore=(tensor,)).out
    assert (
        tensor.removesuffix(".weight") in json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    )


def test_fp16_rows_that_their_scale_loses_are_reported_and_a_resumed_run_reports_them_too(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(), torch.float16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][7:9] = 1e-6
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = quantize(source, tmp_path / "whole", piece_bytes=TINY_PIECES)
    rows = {harmed.tensor: (harmed.count, harmed.first) for harmed in report.harmed}
    assert rows["model.layers.0.mlp.up_proj.weight"][0] >= 2
    stop_after(source, tmp_path / "out", pieces=60, piece_bytes=TINY_PIECES)
    again = quantize(source, tmp_path / "out", piece_bytes=TINY_PIECES)
    assert again.bytes_resumed > 0
    assert again.harmed == report.harmed


def stop_after(source: Path, out: Path, *, pieces: int, piece_bytes: int) -> Fp8Error:
    """Interrupt a run, as Ctrl-C would, once so many pieces are done."""
    seen = 0

    def notify(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, Progress)
        if seen == pieces:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Fp8Error) as stopped:
        run(QuantizeRequest(model=str(source), out=out, piece_bytes=piece_bytes, workers=1), notify)
    assert not out.exists()
    return stopped.value


def test_an_interrupted_run_goes_on_where_it_was_and_ends_in_the_same_bytes(source: Path, tmp_path: Path) -> None:
    wanted = digest(quantize(source, tmp_path / "whole" / "out").out)
    stopped = stop_after(source, tmp_path / "out", pieces=100, piece_bytes=TINY_PIECES)
    assert stopped.exit_code == 130
    assert stopped.hint == "go on with"
    report = quantize(source, tmp_path / "out", piece_bytes=TINY_PIECES)
    assert report.bytes_resumed > 0
    assert digest(tmp_path / "out") == wanted
    assert not partial_folder(tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["source", "scheme", "ignore", "dtype"])
def test_an_interrupted_run_is_not_continued_with_something_else(source: Path, tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    stop_after(copy, tmp_path / "out", pieces=100, piece_bytes=TINY_PIECES)
    options: dict[str, object] = {}
    match change:
        case "source":
            shard = next(iter(sorted(copy.glob("*.safetensors"))))
            os.utime(shard, ns=(1, 1))
        case "scheme":
            options = {"scheme": "FP8_BLOCK"}
        case "ignore":
            options = {"ignore": ("re:.*k_proj",)}
        case "dtype":
            options = {"dtype": "float16"}
    with pytest.raises(CannotRun, match="was begun with something else") as refused:
        quantize(copy, tmp_path / "out", **options)
    assert "--restart" in str(refused.value.hint)
    out = quantize(copy, tmp_path / "out", restart=True, **options).out
    assert digest(out) == digest(quantize(copy, tmp_path / "b" / "out", **options).out)


def test_a_second_run_to_one_output_is_refused_while_the_first_goes_on(source: Path, tmp_path: Path) -> None:
    refusals: list[str] = []

    def notify(event: object) -> None:
        if isinstance(event, Progress) and not refusals:
            with pytest.raises(CannotRun) as refused:
                quantize(source, tmp_path / "out")
            refusals.append(refused.value.message)

    run(QuantizeRequest(model=str(source), out=tmp_path / "out"), notify)
    assert refusals == [f"another run is writing `{tmp_path / 'out'}`"]
    assert digest(tmp_path / "out") == digest(quantize(source, tmp_path / "b" / "out").out)


def test_a_source_that_changes_while_it_is_read_is_noticed(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")

    def notify(event: object) -> None:
        if isinstance(event, Progress):
            os.utime(copy / "config.json", ns=(5, 5))

    with pytest.raises(BadInput, match="was changed while it was being read"):
        run(QuantizeRequest(model=str(copy), out=tmp_path / "out"), notify)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_shard_that_shrinks_while_it_is_read_is_one_sentence(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")

    def notify(event: object) -> None:
        if isinstance(event, Progress):
            for shard in copy.glob("*.safetensors"):
                os.truncate(shard, 20_000)

    with pytest.raises(BadInput, match="shorter while it was being read"):
        run(QuantizeRequest(model=str(copy), out=tmp_path / "out", piece_bytes=256, workers=1), notify)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))
from fp8cli.cli.app import main
main()
"""


def test_a_file_that_may_not_grow_is_one_sentence_and_the_run_can_go_on(tmp_path: Path) -> None:
    model = save_model(tmp_path / "source", llama_config())
    command = [sys.executable, "-c", LIMITED, "quantize", str(model), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 3, result.stderr
    assert "error: the file-size limit is reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    out = quantize(model, tmp_path / "out").out
    assert digest(out) == digest(quantize(model, tmp_path / "b" / "out").out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a tmpfs of 4 MB. CI runs as root; elsewhere it takes a user who may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("needs a user who may mount a tmpfs; the file-size limit above covers the same path")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_on_the_way_is_one_sentence_and_the_run_goes_on(small_disk: Path, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(hidden_size=256, intermediate_size=512))
    filler = small_disk / "someone-else"

    def fill(event: object) -> None:
        if isinstance(event, Progress) and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError as problem:
                    assert problem.errno == errno.ENOSPC  # noqa: PT017 - the loop ends by it

    with pytest.raises(CannotRun) as refused:
        run(QuantizeRequest(model=str(source), out=small_disk / "out", piece_bytes=TINY_PIECES, workers=1), fill)
    assert refused.value.message == f"the disk is full: `{small_disk / 'out'}` could not be written"
    assert "run the same command again" in str(refused.value.hint)
    assert not (small_disk / "out").exists()
    filler.unlink()
    out = quantize(source, small_disk / "out", piece_bytes=TINY_PIECES).out
    assert digest(out) == digest(quantize(source, tmp_path / "b" / "out").out)


def test_too_small_a_disk_is_refused_before_anything_is_written(small_disk: Path, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(vocab_size=8192, hidden_size=256))
    with pytest.raises(CannotRun, match="disk space"):
        quantize(source, small_disk / "out")
    assert list(small_disk.iterdir()) == []


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of 1.3 GB that takes no disk: long enough to be interrupted from outside."""
    folder = tmp_path_factory.mktemp("slow") / "source"
    folder.mkdir()
    config = llama_config(vocab_size=1024, hidden_size=4096, intermediate_size=14336, num_hidden_layers=3)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}))
    tensors = []
    for layer in range(3):
        for name, shape in {
            "self_attn.q_proj": (4096, 4096),
            "self_attn.k_proj": (2048, 4096),
            "self_attn.v_proj": (2048, 4096),
            "self_attn.o_proj": (4096, 4096),
            "mlp.gate_proj": (14336, 4096),
            "mlp.up_proj": (14336, 4096),
            "mlp.down_proj": (4096, 14336),
            "input_layernorm": (4096,),
            "post_attention_layernorm": (4096,),
        }.items():
            tensors.append((f"model.layers.{layer}.{name}.weight", "BF16", shape))
    tensors += [("model.embed_tokens.weight", "BF16", (1024, 4096)), ("lm_head.weight", "BF16", (1024, 4096))]
    head, header = lay_out([*tensors, ("model.norm.weight", "BF16", (4096,))], {"format": "pt"})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(header.file_bytes)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_cleanly_with_the_way_to_go_on(
    slow_source: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fp8cli", "quantize", str(slow_source), "-o", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shard = partial_folder(out) / "checkpoint" / "model.safetensors"
    wait_until(lambda: shard.exists() and shard.stat().st_blocks * 512 > 2**20)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "error: interrupted" in errors
    assert f"hint: go on with: fp8 quantize {slow_source} -o {out} --workers 1\n" in errors
    assert "Traceback" not in errors
    assert not out.exists()
    assert partial_folder(out).is_dir()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("arithmetic", ["kernel", "torch"])
def test_peak_memory_does_not_grow_with_the_tensor(slow_source: Path, tmp_path: Path, arithmetic: str) -> None:
    """A 1.3-GB checkpoint through 64 MiB of tiles: what the interpreter takes, and not much more."""
    program = (
        "import resource, sys; from fp8cli.commands.quantize import QuantizeRequest, run;"
        "sys.argv[3] == 'torch' and __import__('fp8cli.core.quantizing.tiles');"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "run(QuantizeRequest(model=sys.argv[1], out=__import__('pathlib').Path(sys.argv[2]), max_memory='64MiB'));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", program, str(slow_source), str(tmp_path / "out"), arithmetic]
    environment = os.environ | {"FP8_KERNEL": "off" if arithmetic == "torch" else ""}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    shutil.rmtree(tmp_path / "out")
    assert int(result.stdout) < 128 * 1024, "kilobytes over the interpreter"


def test_too_little_memory_for_one_row_says_how_much_it_takes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is too little"):
        quantize(source, tmp_path / "out", scheme="FP8_BLOCK", max_memory="10kB")
    assert list(tmp_path.iterdir()) == []


def test_copying_falls_back_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    (tmp_path / "a").write_bytes(bytes(range(256)) * 40)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("wb+") as b:
        copy_range(a.fileno(), b.fileno(), 100, 7, 9000)
        b.seek(7)
        assert b.read() == (tmp_path / "a").read_bytes()[100:9100]


def test_a_tied_head_stored_with_other_values_is_refused(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", qwen2_config())
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    out = quantize(source, tmp_path / "out").out
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    tensors["lm_head.weight"][5, 5] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="holds different values for the two"):
        quantize(source, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
