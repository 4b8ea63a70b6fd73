"""Forms of a model: which there are, how large each is to the byte, and which one the rule picks."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTJConfig

from fp8cli.core.exploring.forms import default_forms, form_of, named_forms
from fp8cli.core.exploring.measured import MeasuredForm, decibels
from fp8cli.core.exploring.picking import Candidate, is_worse, pick
from fp8cli.core.exploring.sizes import PlannedForm, RefusedForm, plan_form
from fp8cli.core.model.selection import rules_for, select
from fp8cli.errors import UsageError
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.simulator.scheme import SIMULATED
from tests.calibrated import MODEL, made_up, plan_of, write
from tests.models import llama_config, save_model


def planned(model: Path, word: str) -> PlannedForm | RefusedForm:
    checkpoint = open_checkpoint(LocalFolder(model))
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    selection = select(checkpoint.config, tensors, rules=rules_for(checkpoint.config, tensors))
    return plan_form(named_forms([word])[0], checkpoint, selection, "BF16")


def written_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_all_forms_are_those_that_can_be_written_with_and_without_a_cache_and_then_the_others() -> None:
    names = [form.name for form in default_forms()]
    assert names[:7] == ["FP8_DYNAMIC", "FP8_BLOCK", "FP8", "FP8_DYNAMIC+KV", "FP8_BLOCK+KV", "FP8+KV", "NONE+KV"]
    assert sorted(names[7:]) == ["E5M2_DYNAMIC", "FP8_W8A16", "MXFP8"]
    assert [form.name for form in default_forms() if form.choice is None] == names[7:]


def test_words_may_be_joined_by_commas_and_each_form_comes_once() -> None:
    forms = named_forms(["fp8-dynamic, FP8+kv", "fp8_dynamic", "none+kv-head,"])
    assert [form.name for form in forms] == ["FP8_DYNAMIC", "FP8+KV", "NONE+KV_HEAD"]
    assert [form.words for form in forms] == [
        ("--scheme", "FP8_DYNAMIC"),
        ("--scheme", "FP8", "--kv-cache", "fp8"),
        ("--scheme", "none", "--kv-cache", "fp8-head"),
    ]
    assert named_forms(["mxfp8"])[0].words == ()


def test_a_word_for_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="`int4` is nothing that can be simulated"):
        named_forms(["fp8,int4"])
    with pytest.raises(UsageError, match="--scheme names no scheme"):
        named_forms([" , "])


@pytest.mark.parametrize(
    ("word", "capability"),
    [
        ("fp8_dynamic", (8, 9)),
        ("fp8_block", (9, 0)),
        ("fp8_block+kv", (9, 0)),
        ("fp8+kv", (8, 9)),
        ("none+kv", (8, 9)),
        ("mxfp8", (10, 0)),
        ("fp8_w8a16", None),
        ("e5m2_dynamic", None),
        ("e5m2_dynamic+kv", None),
    ],
)
def test_a_form_is_native_from_where_vllm_computes_all_of_it_in_fp8(
    word: str, capability: tuple[int, int] | None
) -> None:
    form = named_forms([word])[0]
    assert form.native_from == capability
    if capability is not None:
        assert form.is_native_on(capability)
        assert not form.is_native_on((8, 0))
    else:
        assert not form.is_native_on((12, 0))


def test_a_scale_for_each_head_is_native_on_hopper_and_not_on_later_desktop_gpus() -> None:
    form = named_forms(["fp8+kv-head"])[0]
    assert form.is_native_on((9, 0))
    assert not form.is_native_on((12, 0))


@pytest.mark.parametrize("word", ["fp8_dynamic", "fp8_block", "fp8", "fp8+kv", "none+kv", "fp8_dynamic+kv_head"])
def test_the_predicted_size_is_that_of_the_checkpoint_that_is_written(word: str, tmp_path: Path) -> None:
    form = planned(MODEL, word)
    assert isinstance(form, PlannedForm)
    choice = form.form.choice
    assert choice is not None
    plan = plan_of(MODEL, None if choice.scheme is None else choice.scheme.name, choice.kv_cache)
    write(MODEL, tmp_path / "out", plan, made_up(plan))
    assert form.file_bytes == written_bytes(tmp_path / "out")


@pytest.mark.parametrize(("word", "codes"), [("mxfp8", torch.float8_e4m3fn), ("e5m2_dynamic", torch.float8_e5m2)])
def test_the_size_of_a_form_that_is_never_written_is_what_safetensors_would_write(
    word: str, codes: torch.dtype, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", llama_config(hidden_size=208, intermediate_size=344))
    form = planned(model, word)
    assert isinstance(form, PlannedForm)
    tensors = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if name in form.weights:
            rows, columns = tensor.shape
            tensors[name] = torch.zeros(rows, columns, dtype=codes)
            shape = (rows, math.ceil(columns / 32)) if word == "mxfp8" else (rows, 1)
            tensors[f"{name}_scale"] = torch.zeros(shape, dtype=torch.uint8 if word == "mxfp8" else torch.bfloat16)
        else:
            tensors[name] = tensor
    save_file(tensors, tmp_path / "form.safetensors", {"format": "pt"})
    assert form.file_bytes == (tmp_path / "form.safetensors").stat().st_size
    parameters = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("_scale"))
    tensor_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert form.bits_per_parameter == 8 * tensor_bytes / parameters


def test_a_cache_that_the_model_cannot_have_is_a_refusal_and_no_error(tmp_path: Path) -> None:
    # Its attention is called `attn`, which llm-compressor does not calibrate.
    config = GPTJConfig(vocab_size=320, n_embd=128, n_layer=2, n_head=4, rotary_dim=16, n_positions=64)
    model = save_model(tmp_path / "model", config)
    assert isinstance(planned(model, "fp8_dynamic"), PlannedForm)
    form = planned(model, "fp8_dynamic+kv")
    assert isinstance(form, RefusedForm)
    assert "KV cache" in form.error.message


LENGTHS = (10, 30, 20, 40)


def candidate(name: str, kl: float, size: int = 1000, **changes: object) -> Candidate:
    """A form whose KL is the same on every text, but for a little spread."""
    spread = (0.0, 1e-5, -1e-5, 0.5e-5)
    fields = {
        "name": name,
        "file_bytes": size,
        "kl": kl,
        "per_sample": tuple(kl + each for each in spread),
        "written": True,
        "has_weights": True,
        "has_cache": False,
        "needs_data": False,
        "native_from": (8, 9),
        "native": None,
        **changes,
    }
    return Candidate(**fields)  # type: ignore[arg-type]  # fields by name


def test_the_lowest_kl_is_taken_where_it_can_be_told_from_the_others() -> None:
    found = pick([candidate("worse", 0.002, size=500), candidate("best", 0.001)], LENGTHS, weights_wanted=True)
    assert found is not None
    assert (found.name, found.best, found.as_good) == ("best", "best", ("best",))


def test_the_smallest_is_taken_of_those_that_are_as_good() -> None:
    noisy = (0.0002, 0.0024, 0.0004, 0.0016)
    small = candidate("small", 0.0013, size=500, per_sample=noisy)
    found = pick([candidate("best", 0.001), small], LENGTHS, weights_wanted=True)
    assert found is not None
    assert (found.name, found.best, found.as_good) == ("small", "best", ("best", "small"))


def test_of_forms_alike_in_size_the_one_for_older_gpus_is_taken_and_then_the_one_without_data() -> None:
    forms = [
        candidate("block", 0.001, size=1000, native_from=(9, 0)),
        candidate("static", 0.001, size=1002, needs_data=True),
        candidate("dynamic", 0.001, size=1009),
        candidate("larger", 0.001, size=1011, native_from=(7, 5)),
    ]
    found = pick(forms, LENGTHS, weights_wanted=True)
    assert found is not None
    assert found.name == "dynamic"


def test_what_cannot_be_written_is_not_taken_and_a_cache_only_where_nothing_else_is_there() -> None:
    simulated = candidate("simulated", 0.0001, written=False)
    cached = candidate("cached", 0.0005, has_cache=True)
    alone = candidate("cache alone", 0.0001, has_cache=True, has_weights=False)
    plain = candidate("plain", 0.001)
    for forms, name in (
        ([simulated, cached, alone, plain], "plain"),
        ([simulated, cached, alone], "cached"),
        ([alone], "cache alone"),
    ):
        found = pick(forms, LENGTHS, weights_wanted=len(forms) > 1)
        assert found is not None
        assert found.name == name
    assert pick([simulated], LENGTHS, weights_wanted=True) is None
    # Where all forms of weights failed, the cache alone is no answer to what was asked.
    assert pick([alone], LENGTHS, weights_wanted=True) is None


def test_what_the_gpu_here_computes_in_fp8_goes_first_if_there_is_any() -> None:
    block, dynamic = candidate("block", 0.0005, native=False), candidate("dynamic", 0.001, native=True)
    found = pick([block, dynamic], LENGTHS, weights_wanted=True)
    assert found is not None
    assert found.name == "dynamic"
    assert "the GPU here computes in FP8" in found.rule
    none_is = pick([block, candidate("dynamic", 0.001, native=False)], LENGTHS, weights_wanted=True)
    assert none_is is not None
    assert none_is.name == "block"


def test_a_difference_is_judged_as_scipy_does_with_texts_as_clusters() -> None:
    from scipy import stats

    rng = torch.Generator().manual_seed(5)
    lengths = [int(each) for each in torch.randint(5, 60, (40,), generator=rng)]
    base = [0.001 + 0.0002 * float(each) for each in torch.rand(40, generator=rng)]
    verdicts = set()
    for shift in (0.0, 1e-5, 3e-5, 6e-5, 1e-4):
        other = [
            each + shift + 1e-4 * float(noise) for each, noise in zip(base, torch.randn(40, generator=rng), strict=True)
        ]
        differences = torch.tensor(
            [(b - a) * n for a, b, n in zip(base, other, lengths, strict=True)], dtype=torch.float64
        )
        weights = torch.tensor(lengths, dtype=torch.float64)
        mean = float(differences.sum() / weights.sum())
        rests = differences - mean * weights
        error = math.sqrt(40 / 39 * float((rests**2).sum())) / float(weights.sum())
        low = mean - stats.t.ppf(0.975, 39) * error
        mean_of = [
            math.fsum(a * n for a, n in zip(each, lengths, strict=True)) / sum(lengths) for each in (base, other)
        ]
        forms = [
            candidate("a", mean_of[0], per_sample=tuple(base)),
            candidate("b", mean_of[1], per_sample=tuple(other)),
        ]
        assert is_worse(forms[1], forms[0], lengths) == (low > 0)
        verdicts.add(low > 0)
    assert verdicts == {True, False}


def test_the_sqnr_of_all_is_that_of_the_sums_and_the_worst_module_is_the_lowest() -> None:
    form = MeasuredForm(name="x", failure=None, noise={"a": (100.0, 1.0), "b": (1.0, 0.1), "c": (4.0, 0.0)})
    assert form.sqnr_db == pytest.approx(10 * math.log10(105 / 1.1))
    assert form.worst() == ("b", pytest.approx(10.0))
    assert MeasuredForm(name="x", failure=None).sqnr_db is None
    assert MeasuredForm(name="x", failure=None).worst() is None
    assert decibels(1.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf


def test_every_scheme_of_the_simulator_is_a_form() -> None:
    for scheme in SIMULATED.values():
        form = form_of(scheme)
        assert (form.choice is None) == (scheme.name in {"MXFP8", "E5M2_DYNAMIC", "FP8_W8A16"})
