"""llm-compressor's engine from its ends: interrupted, gone on with, without the package, over an older output."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fp8cli.calibrator import compressing_protocol as protocol
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.compressing.compression import CompressionRequest, compress
from fp8cli.core.compressing.compression_events import CompressionEvent, ResultSaving
from fp8cli.core.compressing.ordering import order_compression
from fp8cli.core.making.production import COMPRESSION
from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.errors import BadInput
from fp8cli.formats.staging import partial_folder
from tests.calibrated import MODEL
from tests.models import llama_config, save_model
from tests.starting import fp8, words_of
from tests.test_supervising import is_alive, wait_until

pytestmark = pytest.mark.slow


def asked(model: Path, folder: Path, choice: Choice) -> CompressionRequest:
    return CompressionRequest(
        order=order_compression(CalibrationOptions(), choice, recipe=None, model=model),
        model=model,
        dtype="BF16",
        folder=folder,
        targets=("Linear",),
        ignore=("lm_head",),
        device="cpu",
    )


def test_a_run_that_is_interrupted_leaves_nothing_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    events = partial_folder(out) / COMPRESSION / protocol.EVENTS
    words = words_of(tmp_path, "quantize", MODEL, "-o", out, "--gptq", "--num-calibration-samples", "8")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: events.exists() and '"texts"' in events.read_text())
        worker = json.loads(events.read_text().splitlines()[0])["pid"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted while llm-compressor was at work" in said
    assert not is_alive(worker)
    assert list(out.parent.iterdir()) == []


def test_what_is_done_is_not_done_again_and_another_request_is_another_one(tmp_path: Path) -> None:
    model, folder = save_model(tmp_path / "source", llama_config()), tmp_path / "work"
    told: list[CompressionEvent] = []
    first = compress(asked(model, folder, choose("FP8_DYNAMIC", None)), told.append)
    assert ResultSaving() in told
    told.clear()
    again = compress(asked(model, folder, choose("FP8_DYNAMIC", None)), told.append)
    assert (first.known, again.known, told) == (False, True, [])
    assert first.facts == again.facts
    assert first.facts.modifiers == ("QuantizationModifier",)
    assert first.facts.peak_memory_bytes > 10**8
    # A checkpoint with another weight is another one, and this one no model can have.
    path = model / "model.safetensors"
    content = load_file(path)
    content["model.norm.weight"] = content["model.norm.weight"][:5].clone()
    save_file(content, path, metadata={"format": "pt"})
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadInput) as refused:
        compress(asked(model, folder, choose("FP8_DYNAMIC", None)), told.append)
    assert "compression.log" in str(refused.value.hint)
    assert not (folder / protocol.FACTS).exists()


def test_an_interpreter_without_the_package_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.base_prefix}/bin/python3 -S "$@"\n')
    bare.chmod(0o755)
    out = tmp_path / "out"
    run = fp8(tmp_path, "quantize", MODEL, "-o", out, "--engine", "llmcompressor", "--python", bare)
    assert run.code == 3
    assert "llmcompressor: not installed in" in run.err
    assert not out.exists()
    assert not partial_folder(out).exists()
