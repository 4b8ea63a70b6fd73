"""Simulations of chosen modules and with llm-compressor's modifiers: words, refusals, records, and one real run."""

import itertools
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fp8cli.commands.compare import CompareRequest
from fp8cli.commands.compare import run as compare
from fp8cli.commands.evaluate import EvaluateRequest, choose_modifiers
from fp8cli.commands.evaluate import _of_simulation as note_of
from fp8cli.commands.evaluate import run as evaluate
from fp8cli.core.comparing.assembly import assemble
from fp8cli.core.comparing.sides import ReadySide, name_side
from fp8cli.core.comparing.simulations import modules_for
from fp8cli.core.comparing.verdicts import Limits
from fp8cli.core.evaluating.simulation import SimulationOrder, modules_of, settle
from fp8cli.core.evaluating.worker_events import Modifying
from fp8cli.core.exploring.forms import default_forms, modified_forms, named_forms
from fp8cli.core.machine.interpreters import Distribution, Interpreter
from fp8cli.core.measuring.outlook import estimate_memory
from fp8cli.core.quantizing.hessians import largest_hessians
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.simulating.modules import EVERY_LINEAR, ModuleOptions, check_modules
from fp8cli.core.simulating.planning import SimulationPlan, plan_simulation
from fp8cli.core.simulating.words import modifiers_of, simulated_scheme
from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.run_record import RunRecord, SimulationFacts, read_record
from fp8cli.render.comparison_tables import fidelity_table, other_metrics_table, quality_table
from fp8cli.render.console import Channel, Output
from fp8cli.render.progress import EvalBar
from fp8cli.schemes import SCHEMES
from fp8cli.simulator.applying import simulated
from fp8cli.simulator.scheme import SIMULATED, scheme_named, with_kv_cache, with_modifiers
from tests.calibrated import plan_of
from tests.comparisons import contest, several, simple
from tests.lm_eval_files import likelihood_sample
from tests.planting import STORIES
from tests.run_records import write_run
from tests.starting import fp8

IGNORED = ModuleOptions(ignore=("*.down_proj",))


# Words.


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("fp8_dynamic+gptq", "FP8_DYNAMIC+GPTQ"),
        ("Fp8-Block+KV+awq", "FP8_BLOCK+AWQ+KV"),
        ("fp8+gptq+smoothquant+kv-head", "FP8+SMOOTHQUANT+GPTQ+KV_HEAD"),
        ("fp8+smoothquant-0.80", "FP8+SMOOTHQUANT_0.8"),
        ("fp8+smoothquant_0.5", "FP8+SMOOTHQUANT"),
    ],
)
def test_parts_of_a_word_may_stand_in_any_order_and_the_name_has_one(word: str, name: str) -> None:
    scheme = simulated_scheme(word)
    assert scheme.name == name
    assert scheme.needs_data
    assert scheme == scheme_named(name)


def test_every_name_stands_for_the_scheme_that_has_it() -> None:
    strengths = (None, 0.0, 0.5, 1.0, 0.123456)
    for base, strength, awq, gptq, kv in itertools.product(
        SIMULATED.values(), strengths, (True, False), (True, False), (None, "tensor", "head")
    ):
        modified = with_modifiers(base, smoothing=strength, awq=awq, gptq=gptq)
        scheme = with_kv_cache(modified, kv)  # type: ignore[arg-type]
        assert scheme_named(scheme.name) == scheme
        assert scheme.base == base.name


@pytest.mark.parametrize(
    ("word", "options", "message"),
    [
        ("fp8+gptq+gptq", Modifiers(), "is nothing that can be simulated"),
        ("fp8+smoothquant+smoothquant-0.8", Modifiers(), "is nothing that can be simulated"),
        ("fp8+kv+kv-head", Modifiers(), "is nothing that can be simulated"),
        ("fp8+smoothquant-\u0660", Modifiers(), "is nothing that can be simulated"),
        ("gptq", Modifiers(), "is nothing that can be simulated"),
        ("fp8+smoothquant-1.5", Modifiers(), "--smoothing-strength 1.5 is not between 0 and 1"),
        ("fp8+smoothquant+awq", Modifiers(), "both move the scale of channels"),
        ("mxfp8+gptq", Modifiers(), "GPTQ cannot be simulated for `MXFP8+GPTQ`: fp8 quantize does not write MXFP8"),
        ("none+kv", Modifiers(gptq=True), "GPTQ cannot be simulated for `NONE+GPTQ+KV`: no weight is rounded"),
        ("fp8+gptq", Modifiers(awq=True), "`fp8+gptq` says itself what --awq would say"),
        ("fp8", Modifiers(smoothing=0.1234567), "a smoothing strength of 0.1234567 has more than 6 decimals"),
    ],
)
def test_words_that_make_no_sense_are_refused_in_a_sentence(word: str, options: Modifiers, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        simulated_scheme(word, options)
    assert message in refused.value.message
    assert refused.value.hint


def test_options_ask_for_what_the_word_does_not_say() -> None:
    options = choose_modifiers(smoothquant=True, strength=0.8, awq=False, gptq=True)
    scheme = simulated_scheme("fp8+kv", options)
    assert scheme.name == "FP8+SMOOTHQUANT_0.8+GPTQ+KV"
    assert modifiers_of(scheme) == options
    assert options.options == ("--smoothquant", "--gptq", "--smoothing-strength", "0.8")


# Modules.


def test_options_of_modules_are_words_of_a_command_and_mark_a_label() -> None:
    chosen = ModuleOptions(targets=("a", "re:b"), ignore=("*.c",), default_ignore=False)
    assert chosen.words == ("--targets", "a", "--targets", "re:b", "--ignore", "*.c", "--no-default-ignore")
    assert chosen.given == ("--targets", "--ignore", "--no-default-ignore")
    assert EVERY_LINEAR.words == EVERY_LINEAR.given == ()
    assert EVERY_LINEAR.mark == ""
    marks = {chosen.mark, IGNORED.mark, ModuleOptions(targets=("*.down_proj",)).mark}
    assert len(marks) == 3
    assert all(len(mark) == 6 for mark in marks)


@pytest.mark.parametrize(
    ("modules", "count"),
    [
        (EVERY_LINEAR, 21),
        (IGNORED, 18),
        (ModuleOptions(targets=("re:.*self_attn",)), 12),
        (ModuleOptions(default_ignore=False), 22),
    ],
)
def test_what_is_rounded_and_how_large_it_would_be_is_as_fp8_quantize_has_it(
    modules: ModuleOptions, count: int, tmp_path: Path
) -> None:
    plan = plan_simulation(open_checkpoint(LocalFolder(STORIES)), simulated_scheme("fp8_dynamic"), modules)
    assert len(plan.weights) == count
    run = fp8(tmp_path, "quantize", STORIES, "--dry-run", "--details", "--json", *modules.words)
    assert run.code == 0, run.err
    tensors = run.report["tensors"]
    assert {each["name"] for each in tensors if each["action"] == "quantize"} == set(plan.weights)


def test_a_module_that_is_ignored_gets_its_input_as_it_comes_and_keeps_its_weight() -> None:
    from transformers import AutoModelForCausalLM

    plan = plan_simulation(open_checkpoint(LocalFolder(STORIES)), simulated_scheme("fp8_dynamic"), IGNORED)
    names = tuple(each.removesuffix(".weight") for each in plan.weights)
    model = AutoModelForCausalLM.from_pretrained(STORIES, dtype="auto").eval()
    mlp = model.model.layers[0].mlp
    before = mlp.down_proj.weight.clone()
    came: dict[str, torch.Tensor] = {}
    went: dict[str, torch.Tensor] = {}
    for part in ("up_proj", "down_proj"):
        # Before the simulation's own, and after all of them.
        module = getattr(mlp, part)
        module.register_forward_pre_hook(lambda _, args, part=part: came.update({part: args[0]}))
        module.register_forward_hook(lambda _, args, __, part=part: went.update({part: args[0]}))
    with torch.inference_mode(), simulated(model, simulated_scheme("fp8_dynamic"), names):
        model(torch.tensor([[5, 9, 2, 300, 17]]))
        assert torch.equal(mlp.down_proj.weight, before)
    assert torch.equal(came["down_proj"], went["down_proj"])
    assert not torch.equal(came["up_proj"], went["up_proj"])


# Refusals of `fp8 eval` and `fp8 compare`.


def refused(folder: Path, **changes: Any) -> Fp8Error:
    fields = {"tasks": ("fp8_stories",), "checkpoint": str(STORIES), "runs": folder / "runs", "simulate": "fp8_dynamic"}
    with pytest.raises(Fp8Error) as refusal:
        evaluate(EvaluateRequest(**{**fields, **changes}))
    assert not (folder / "runs").exists()
    return refusal.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"simulate": None, "modules": IGNORED}, "--ignore would have no effect: nothing is simulated"),
        ({"simulate": None, "modifiers": Modifiers(gptq=True)}, "--gptq would have no effect: nothing is simulated"),
        ({"simulate": "none+kv", "modules": IGNORED}, "no weight is rounded, so --ignore would have no effect"),
        ({"modules": ModuleOptions(ignore=("*.down_prj",))}, "`*.down_prj` in `ignore` matches no module"),
        ({"modules": ModuleOptions(targets=("no_proj",))}, "`no_proj` in `targets` matches no module"),
        ({"modifiers": Modifiers(gptq=True), "backend": "vllm"}, "can be simulated on transformers alone"),
        ({"simulate": "fp8_dynamic+gptq", "dtype": "float32"}, "makes of the model in bfloat16, not in float32"),
    ],
)
def test_what_cannot_be_is_refused_before_a_worker_starts(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refusal = refused(tmp_path, **changes)
    assert message in refusal.message
    assert refusal.hint
    assert refusal.exit_code == 2


def a_plan(word: str) -> SimulationPlan:
    return SimulationPlan(
        scheme=simulated_scheme(word), modules=EVERY_LINEAR, weights=("a.weight",), dtype="bfloat16", predicted_bytes=1
    )


def test_an_interpreter_without_llm_compressor_is_refused_in_a_sentence() -> None:
    bare = Interpreter(python=Path("/opt/python"), named_by="--python")
    with pytest.raises(CannotRun) as refusal:
        settle(SimulationOrder(plan=a_plan("fp8+gptq"), data=None), bare, "bfloat16")
    assert refusal.value.message.startswith("llmcompressor: not installed in `/opt/python`, wanted llmcompressor>=")
    assert "uv pip install --python /opt/python" in (refusal.value.hint or "")
    plain = SimulationOrder(plan=a_plan("fp8_dynamic"), data=None)
    assert settle(plain, bare, "float32") is plain


def test_the_version_of_llm_compressor_decides_a_result_with_modifiers_alone() -> None:
    orders = []
    for version in ("0.14.0.1", "0.15"):
        there = {"llmcompressor": Distribution(name="llmcompressor", version=version)}
        python = Interpreter(python=Path("/opt/python"), named_by="--python", distributions=there)
        orders.append(settle(SimulationOrder(plan=a_plan("fp8_dynamic+gptq"), data=None), python, "bfloat16"))
    assert orders[0].deciding != orders[1].deciding
    assert orders[0].facts(None).llm_compressor == "0.14.0.1"
    assert orders[0].environment("cpu") == {"CT_ENFORCE_EAGER": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert "llmcompressor" not in SimulationOrder(plan=a_plan("fp8_dynamic"), data=None).deciding
    assert SimulationOrder(plan=a_plan("fp8_dynamic"), data=None).environment("cpu") == {}


def test_options_of_modules_without_a_side_to_simulate_are_refused(tmp_path: Path) -> None:
    options = EvaluateRequest(tasks=("fp8_stories",), runs=tmp_path, modules=IGNORED)
    with pytest.raises(UsageError, match="--ignore would have no effect: no side is to be simulated") as refusal:
        compare(CompareRequest(sides=(str(STORIES), str(STORIES)), evaluation=options))
    assert "sim:fp8_dynamic" in (refusal.value.hint or "")
    with pytest.raises(UsageError, match="fp8 quantize does not write MXFP8"):
        compare(CompareRequest(sides=(str(STORIES), "sim:mxfp8+gptq"), evaluation=options))


def facts_of(modules: ModuleOptions, scheme: str = "FP8_DYNAMIC") -> SimulationFacts:
    return SimulationFacts(scheme=scheme, predicted_bytes=7, targets=modules.targets, ignore=modules.ignore, weights=18)


def test_a_label_keeps_the_modules_that_it_was_simulated_with(tmp_path: Path) -> None:
    rows = [likelihood_sample(n, right=True, loss=1.0) for n in range(3)]
    write_run(tmp_path, "sim-FP8_DYNAMIC+GPTQ~1", {"t": rows}, simulated=facts_of(IGNORED, "FP8_DYNAMIC+GPTQ"))
    label, new = name_side("sim-FP8_DYNAMIC+GPTQ~1", tmp_path), name_side("sim:fp8_dynamic+gptq", tmp_path)
    assert (label.simulate, new.simulate) == ("FP8_DYNAMIC+GPTQ", "FP8_DYNAMIC+GPTQ")
    other = ModuleOptions(ignore=("*.up_proj",))
    request = EvaluateRequest(tasks=("t",), modules=other)
    assert modules_for(label, request) == IGNORED
    assert modules_for(new, request) == other
    assert modules_of(None) == EVERY_LINEAR


def test_one_scheme_in_other_modules_is_another_model(tmp_path: Path) -> None:
    rows = [likelihood_sample(n, right=n > 1, loss=1.0) for n in range(4)]
    for label, modules in (("one", EVERY_LINEAR), ("other", IGNORED)):
        write_run(tmp_path, label, {"t": rows}, simulated=facts_of(modules))
    one, other = (ReadySide(label=label, tasks=name_side(label, tmp_path).tasks()) for label in ("one", "other"))
    limits = Limits(margin=0.01, perplexity_margin=0.01, confidence=0.95)
    (found,) = assemble(one, [other], limits=limits, allow=frozenset()).contests
    assert not any("same checkpoint" in note for note in found.notes)
    assert found.other.settings["rounded"] == "18 weights, --ignore '*.down_proj'"
    (found,) = assemble(one, [replace(one, label="again")], limits=limits, allow=frozenset()).contests
    assert any("compares a thing with itself" in note for note in found.notes)


# Forms of an exploration.


def test_modifiers_add_a_form_for_each_that_can_be_written_and_has_none() -> None:
    added = modified_forms(default_forms(), Modifiers(smoothing=0.8, gptq=True))
    assert [form.name for form in added] == [f"{name}+SMOOTHQUANT_0.8+GPTQ" for name in SCHEMES]
    assert added[0].words == (*("--scheme", "FP8_DYNAMIC", "--smoothquant", "--gptq", "--smoothing-strength", "0.8"),)
    assert named_forms(["fp8+gptq+kv"])[0].words == ("--scheme", "FP8", "--gptq", "--kv-cache", "fp8")
    assert modified_forms(default_forms(), Modifiers()) == ()
    with pytest.raises(UsageError, match="--gptq would have no effect: there is no form to add that to"):
        modified_forms(named_forms(["mxfp8,fp8+kv,fp8_dynamic+gptq"]), Modifiers(gptq=True))


def test_a_copy_of_the_model_and_hessians_are_foreseen() -> None:
    plan = plan_of(STORIES, "FP8_DYNAMIC")
    plain, modified = estimate_memory(plan, 128), estimate_memory(plan, 128, copies=1, rounded=0)
    assert plain.least == modified.least
    weights = sum(tensor.source.bytes for tensor in plan.tensors if tensor.action != "drop")
    rounded = sum(tensor.source.bytes for tensor in plan.tensors if tensor.action == "quantize")
    # Of a layer: q, k, v, o, gate and up have 128 inputs, down has more.
    down = next(tensor for tensor in plan.tensors if tensor.name.endswith("down_proj.weight")).source.shape[1]
    assert largest_hessians(plan) == 4 * (6 * 128**2 + down**2)
    assert modified.most - plain.most == weights - rounded + largest_hessians(plan)


def test_a_name_of_no_model_is_looked_at_before_texts_are_asked_for(tmp_path: Path) -> None:
    run = fp8(tmp_path, "explore", "nope", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    assert run.code == 3
    assert "`nope`" in run.err
    assert "texts" not in run.err
    run = fp8(tmp_path, "explore", STORIES, "--scheme", "none+kv", "--ignore", "*.down_proj")
    assert (run.code, run.err.splitlines()[0]) == (
        2,
        "error: no weight is rounded, so --ignore would have no effect",
    )


# Screens.


def test_a_note_says_what_was_rounded_and_who_prepared_it() -> None:
    facts = replace(
        facts_of(IGNORED, "FP8_DYNAMIC+GPTQ"), source="t.jsonl", samples=9, tokens=1234, llm_compressor="0.14.0.1"
    )
    said = note_of(facts)
    assert "rounded are 18 weights, with --ignore '*.down_proj'" in said
    assert "its weights and scales are of 9 samples of t.jsonl, 1,234 tokens" in said
    assert said.endswith("prepared by llm-compressor 0.14.0.1")


def test_a_simulation_is_named_readably_above_narrow_columns() -> None:
    made = contest("sim-FP8_DYNAMIC+GPTQ", *simple().contests[0].tasks)
    other = replace(made, other=replace(made.other, simulated="FP8_DYNAMIC+GPTQ"))
    for table in (quality_table(simple(), other), other_metrics_table(simple(), other)):
        assert table is not None
        assert "simulated" in [column.title for column in table.columns]
    short = replace(made, other=replace(made.other, label="sim-FP8", simulated="FP8"))
    assert "sim-FP8" in [column.title for column in quality_table(simple(), short).columns]


def test_a_table_of_many_sides_is_divided_on_a_terminal_and_whole_in_a_pipe() -> None:
    labels = [f"sim-FP8_DYNAMIC+GPTQ~{number}" for number in range(4)]
    measured = next(each for each in several().contests if each.fidelity is not None)
    sides = tuple(replace(measured, other=replace(measured.other, label=label)) for label in labels)
    table = fidelity_table(replace(several(), contests=sides, noise=None))
    assert table is not None

    def written(*, terminal: bool) -> list[str]:
        paper = StringIO()
        Channel(stream=paper, terminal=terminal, width=80, color=False, unicode=True).table(table)
        return paper.getvalue().splitlines()

    boxed = written(terminal=True)
    assert max(map(len, boxed)) <= 80
    assert sum("KL divergence" in line for line in boxed) == 2
    assert all(sum(label in line for line in boxed) == 1 for label in labels)
    assert all(label in written(terminal=False)[0] for label in labels)


def test_the_bar_counts_what_llm_compressor_has_prepared() -> None:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=False, width=80, color=False, unicode=True)
    with EvalBar(Output(out=channel, err=channel)).running() as bar:
        bar.notify(Modifying(done=0, total=4))
        bar.notify(Modifying(done=4, total=4))
    assert "0/4 parts prepared by llm-compressor" in paper.getvalue()


def test_check_modules_has_nothing_against_a_scheme_of_weights() -> None:
    check_modules(IGNORED, simulated_scheme("mxfp8"))
    check_modules(EVERY_LINEAR, simulated_scheme("none+kv"))


# The real commands.


@pytest.mark.slow
def test_a_comparison_simulates_gptq_in_chosen_modules_as_the_written_checkpoint_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ("--ignore", "*.down_proj", "--num-calibration-samples", "16")
    written = fp8(tmp_path, "quantize", STORIES, "-o", "real", "--gptq", *chosen)
    assert written.code == 0, written.err
    asked = ("--tasks", "fp8_stories", "--limit", "24", "--fidelity-positions", "256", "--runs", "runs", "--json")
    run = fp8(tmp_path, "compare", STORIES, "real", "sim:fp8_dynamic+gptq", *asked, *chosen)
    assert run.code in {0, 1, 4}, run.err
    assert "torch" not in run.loaded
    label = f"sim-FP8_DYNAMIC+GPTQ~{IGNORED.mark}"
    sides = {each["other"]["label"]: each["other"] for each in run.report["comparison"]["contests"]}
    assert sides[label]["quantization"] == "FP8_DYNAMIC+GPTQ, simulated"
    assert sides[label]["settings"]["rounded"] == "18 weights, --ignore '*.down_proj'"
    assert sides[label]["predicted_bytes"] == sides["fp8"]["bytes_on_disk"]
    assert run.report["command"].count("--ignore '*.down_proj'") == 1
    ours, theirs, base = (_run_of(Path("runs") / name) for name in (label, "fp8", "base"))
    assert np.array_equal(ours[1], theirs[1])
    assert not np.array_equal(ours[1], base[1])
    assert ours[2] == theirs[2]
    record: RunRecord = ours[0]
    assert record.executed_as == "simulated"
    assert record.simulated is not None
    assert (record.simulated.ignore, record.simulated.weights) == (("*.down_proj",), 18)
    assert record.executed_by is not None
    assert str(record.simulated.llm_compressor) in record.executed_by
    again = evaluate(
        EvaluateRequest(
            tasks=("fp8_stories",),
            checkpoint=str(STORIES),
            limit=24,
            fidelity_positions=256,
            runs=Path("runs"),
            simulate="fp8_dynamic",
            modifiers=Modifiers(gptq=True),
            modules=IGNORED,
            calibration=_samples(16),
        )
    )
    assert again.answered
    assert again.label == label


def _samples(count: int) -> Any:
    from fp8cli.commands.evaluate import CalibrationOptions

    return CalibrationOptions(samples=count)


def _run_of(folder: Path) -> tuple[RunRecord, Any, list[Any]]:
    """The record of a run, its log-probabilities, and its answers."""
    (path,) = folder.glob("run_*.json")
    record = read_record(path)
    assert record.fidelity is not None
    (samples,) = folder.glob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    logprobs = np.load(folder / record.fidelity.folder / "logprobs.npy")
    return record, logprobs, [(row["doc_id"], row["resps"], row["acc"]) for row in rows]
