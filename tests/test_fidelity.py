"""`--against BASE`: every way a quantized checkpoint can differ from its source, and that the numbers are torch's."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core import kernel
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.fidelity import Fidelity, measure_fidelity
from fp8cli.core.inspection.fidelity_verdict import judge_fidelity
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.inspection.survey import survey
from fp8cli.formats.checkpoint import LocalFolder
from tests.models import ODD, llama_config, qwen2_config, save_model
from tests.planting import LAYER, STORIES, Tensors, change, change_config, look, quantize_stories

WEIGHT = f"{LAYER}.weight"


@pytest.fixture(scope="module", params=["FP8_DYNAMIC", "FP8_BLOCK"])
def healthy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_stories(tmp_path_factory.mktemp("fidelity") / "model", request.param)


def compare(folder: Path, base: Path = STORIES, heard: list[ReadingBegins | BytesRead] | None = None) -> Fidelity:
    loaded = kernel.load()
    assert loaded is not None
    surveyed, dialect = look(folder)
    events = [] if heard is None else heard
    return measure_fidelity(surveyed, dialect, survey(LocalFolder(base)), loaded, workers=2, notify=events.append)


def faults(fidelity: Fidelity) -> list[Finding]:
    return [finding for finding in judge_fidelity(fidelity) if finding.status != "passed"]


def test_a_sound_checkpoint_passes_and_every_byte_is_counted(healthy: Path) -> None:
    heard: list[ReadingBegins | BytesRead] = []
    fidelity = compare(healthy, heard=heard)
    assert faults(fidelity) == []
    assert {finding.check for finding in judge_fidelity(fidelity)} == {
        "against.accounted",
        "against.copies",
        "against.sqnr",
    }
    assert dict(fidelity.fates) == {"copied": 9, "quantized": 21}
    assert isinstance(heard[0], ReadingBegins)
    assert sum(event.bytes for event in heard[1:]) == heard[0].bytes == fidelity.bytes_read
    assert fidelity.sqnr_db is not None
    assert 31.0 < fidelity.sqnr_db < 32.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_signal_to_noise_and_the_largest_error_are_what_torch_finds(
    tmp_path: Path, scheme: str, dtype: torch.dtype
) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), dtype)
    out = run(QuantizeRequest(model=str(source), out=tmp_path / "out", scheme=scheme)).out
    base, here = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    fidelity = compare(out, source)
    assert len(fidelity.weights) == 14
    for weight in fidelity.weights:
        scale = here[f"{weight.name}_scale"].float()
        codes = here[weight.name].float()
        if scheme == "FP8_BLOCK":
            rows, columns = codes.shape
            scale = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        original = base[weight.name].double()
        error = original - (codes * scale).double()
        wanted = 10 * torch.log10((original**2).sum() / (error**2).sum()).item()
        assert weight.sqnr_db == pytest.approx(wanted, abs=1e-3)
        assert weight.largest_error == pytest.approx(error.abs().max().item(), rel=1e-5)
        assert error[weight.at].abs().item() == pytest.approx(weight.largest_error, rel=1e-5)
    assert [weight.sqnr_db for weight in fidelity.weights] == sorted(weight.sqnr_db for weight in fidelity.weights)


def test_a_wrong_scale_is_found(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        tensors[f"{WEIGHT}_scale"] *= 2

    (fault,) = faults(compare(change(healthy, tmp_path / "copy", plant)))
    assert (fault.check, fault.status, fault.subject) == ("against.sqnr", "failed", WEIGHT)
    assert fault.found.startswith("0.0 dB from the source, where E4M3 gives about 31.5 dB; the largest error is ")


def test_a_row_with_a_scale_that_is_a_little_off_is_a_warning(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        tensors[f"{WEIGHT}_scale"] *= 1.05

    (fault,) = faults(compare(change(healthy, tmp_path / "copy", plant)))
    assert (fault.check, fault.status, fault.subject) == ("against.sqnr", "warning", WEIGHT)


def test_swapped_weights_are_found(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        names = [f"model.layers.{layer}.mlp.up_proj.{part}" for layer in (0, 1) for part in ("weight", "weight_scale")]
        swapped = [tensors[name] for name in (*names[2:], *names[:2])]
        tensors.update(zip(names, swapped, strict=True))

    (fault,) = faults(compare(change(healthy, tmp_path / "copy", plant)))
    assert (fault.status, fault.subject, fault.count) == ("failed", "model.layers.{0,1}.mlp.up_proj.weight", 2)


def test_one_changed_bit_of_a_copied_tensor_is_found(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        bits = tensors["model.embed_tokens.weight"].view(torch.int16).clone()
        bits[-1, -1] ^= 1
        tensors["model.embed_tokens.weight"] = bits.view(torch.bfloat16)

    (fault,) = faults(compare(change(healthy, tmp_path / "copy", plant)))
    assert (fault.check, fault.status, fault.subject) == ("against.copies", "failed", "model.embed_tokens.weight")


def test_a_missing_a_foreign_and_a_reshaped_tensor_are_found(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        del tensors["model.layers.0.input_layernorm.weight"]
        tensors["model.extra.weight"] = torch.zeros(3)
        tensors["model.norm.weight"] = torch.zeros(7, dtype=torch.bfloat16)

    found = {
        fault.subject: (fault.status, fault.found) for fault in faults(compare(change(healthy, tmp_path / "c", plant)))
    }
    assert found == {
        "model.layers.0.input_layernorm.weight": ("failed", "the source has it, this checkpoint lacks it"),
        "model.extra.weight": ("failed", "the source has no such tensor"),
        "model.norm.weight": ("failed", "it is not the same tensor: its shape is [7], in the source [128]"),
    }


def test_a_weight_without_its_scale_is_not_compared_and_says_so(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        del tensors[f"{WEIGHT}_scale"]

    (fault,) = faults(compare(change(healthy, tmp_path / "copy", plant)))
    assert (fault.check, fault.status, fault.subject) == ("against.compared", "not checked", WEIGHT)
    assert fault.found == "not compared with the source: it has no scale"


def test_a_checkpoint_stored_in_another_dtype_is_compared_after_the_cast(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(), torch.float32)
    out = run(QuantizeRequest(model=str(source), out=tmp_path / "out", dtype="bfloat16")).out
    fidelity = compare(out, source)
    assert faults(fidelity) == []
    assert fidelity.fates["cast"] > 0
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (fault,) = faults(compare(out, source))
    assert (fault.check, fault.subject) == ("against.copies", "model.norm.weight")


@pytest.mark.parametrize("quantized_head", [False, True])
def test_a_tied_head_is_accounted_for(tmp_path: Path, quantized_head: bool) -> None:
    source = save_model(tmp_path / "source", qwen2_config())
    out = run(QuantizeRequest(model=str(source), out=tmp_path / "out", default_ignore=not quantized_head)).out
    assert faults(compare(out, source)) == []


def test_a_head_that_is_missing_is_only_excused_where_the_config_ties_it(healthy: Path, tmp_path: Path) -> None:
    folder = change(healthy, tmp_path / "copy", lambda tensors: tensors.__delitem__("lm_head.weight"))
    assert [(fault.status, fault.subject) for fault in faults(compare(folder))] == [("failed", "lm_head.weight")]
    change_config(folder, lambda config: config.__setitem__("tie_word_embeddings", True))
    assert faults(compare(folder)) == []


def test_a_source_that_is_no_source_is_not_compared(healthy: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(healthy, tmp_path / "copy")
    fidelity = compare(healthy, copy)
    assert fidelity.weights == ()
    assert fidelity.fates["copied"] == 30 + 21


def test_the_two_the_wrong_way_round_are_a_verdict_and_no_fault_of_ours(healthy: Path) -> None:
    fidelity = compare(STORIES, healthy)
    assert dict(fidelity.fates) == {"copied": 9, "changed": 21, "lost": 21}
    found = {fault.found for fault in faults(fidelity) if fault.subject is not None and "scale" not in fault.subject}
    assert found == {"it is not the same tensor: its dtype is BF16, in the source F8_E4M3"}
