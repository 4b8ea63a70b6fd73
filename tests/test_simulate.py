"""`fp8 eval --simulate` and `fp8 compare base sim:SCHEME`: beside the checkpoints that `fp8 quantize` writes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from fp8cli.commands.compare import CompareRequest
from fp8cli.commands.compare import run as compare
from fp8cli.commands.evaluate import CalibrationOptions, EvaluateReport, EvaluateRequest
from fp8cli.commands.evaluate import _of_simulation as note_of
from fp8cli.commands.evaluate import run as evaluate
from fp8cli.core.comparing.sides import name_side
from fp8cli.core.comparing.simulations import data_of
from fp8cli.core.evaluating.eval_events import EvalEvent, Prepared
from fp8cli.core.evaluating.worker_events import Observing
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.core.simulating.planning import plan_simulation
from fp8cli.errors import Fp8Error
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.run_record import RunRecord, SimulationFacts, read_record
from fp8cli.render.comparison_tables import cost_table
from fp8cli.render.console import Channel, Output
from fp8cli.render.evaluation import show
from fp8cli.render.progress import EvalBar
from fp8cli.samples.request import SampleRequest
from fp8cli.simulator.job import SimulationJob
from fp8cli.simulator.scheme import EVERY_SCHEME, SIMULATED
from fp8cli.worker.failures import Failure
from fp8cli.worker.protocol import Job, read_job, write_job
from fp8cli.worker.simulation import read_samples
from tests.calibrated import made_up, plan_of, write
from tests.comparisons import contest, simple
from tests.hand_made_records import a_record
from tests.lm_eval_files import likelihood_sample
from tests.planting import STORIES, quantize_stories
from tests.run_records import write_run
from tests.starting import Run, fp8

ITEMS = 120
ROWS = 24
DATA = ("--calibration-data", "texts.jsonl", "--num-calibration-samples", str(ROWS))
PAIRS = {"dynamic": "sim-FP8_DYNAMIC", "static": "sim-FP8+KV"}
"""Checkpoints that are written, and the labels of the same simulated."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One comparison of the bundled model with two checkpoints and the simulations of both."""

    folder: Path
    run: Run

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def record(self, label: str) -> RunRecord:
        (path,) = (self.runs / label).glob("run_*.json")
        return read_record(path)

    def logprobs(self, label: str) -> Any:
        record = self.record(label)
        assert record.fidelity is not None
        return np.load(self.runs / label / record.fidelity.folder / "logprobs.npy")

    def answers(self, label: str) -> list[tuple[Any, ...]]:
        (path,) = (self.runs / label).glob("samples_*.jsonl")
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [(row["doc_id"], row["resps"], row["acc"]) for row in rows]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    lines = BUNDLED_STORIES.read_text("utf-8").splitlines()[-ROWS:]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    here = pytest.MonkeyPatch()
    here.chdir(folder)
    try:
        quantize_stories(folder / "dynamic")
        static = fp8(folder, "quantize", STORIES, "-o", "static", "--scheme", "FP8", "--kv-cache", "fp8", *DATA)
        assert static.code == 0, static.err
        words = ("--tasks", "fp8_stories", "--sample", str(ITEMS), "--runs", "runs", "--json", *DATA)
        run = fp8(folder, "compare", STORIES, "dynamic", "static", "sim:fp8-dynamic", "sim:FP8+kv", *words)
    finally:
        here.undo()
    assert run.code in {0, 1, 4}, run.err
    return Compared(folder=folder, run=run)


slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("real", PAIRS)
def test_a_simulation_answers_as_the_written_checkpoint_to_the_last_bit(real: str, compared: Compared) -> None:
    ours, theirs = compared.answers(PAIRS[real]), compared.answers(real)
    assert len(ours) == ITEMS
    assert ours == theirs
    assert ours != compared.answers("base")
    assert np.array_equal(compared.logprobs(PAIRS[real]), compared.logprobs(real))
    assert not np.array_equal(compared.logprobs(PAIRS[real]), compared.logprobs("base"))


@slow
def test_the_report_says_simulated_and_that_sizes_are_predicted(compared: Compared) -> None:
    sides = {each["other"]["label"]: each["other"] for each in compared.run.report["comparison"]["contests"]}
    assert list(sides) == [*PAIRS, *PAIRS.values()]
    for real, label in PAIRS.items():
        simulated, written = sides[label], sides[real]
        assert simulated["executed_as"] == "simulated"
        assert written["executed_as"] == "fake-quant"
        assert simulated["bytes_on_disk"] is None
        assert simulated["predicted_bytes"] == written["bytes_on_disk"]
        assert written["predicted_bytes"] is None
        assert ("data of the scales" in simulated["settings"]) == (real == "static")
        assert simulated["tokens_per_second"] is simulated["peak_memory_bytes"] is None
    assert [each["verdict"] for each in compared.run.report["comparison"]["contests"]][:2] == [
        each["verdict"] for each in compared.run.report["comparison"]["contests"]
    ][2:]
    assert "torch" not in compared.run.loaded


@slow
def test_the_record_says_what_was_rounded_and_with_what_data(compared: Compared) -> None:
    base, dynamic, static = map(compared.record, ("base", *PAIRS.values()))
    assert base.simulated is None
    assert dynamic.executed_as == static.executed_as == "simulated"
    assert dynamic.executed_by == "FP8_DYNAMIC in 21 Linears"
    assert static.executed_by == "FP8+KV in 21 Linears and the KV caches of 3 layers"
    assert dynamic.model == base.model
    assert dynamic.simulated is not None
    assert dynamic.simulated.source is dynamic.simulated.tokens is None
    assert static.simulated is not None
    assert (static.simulated.scheme, static.simulated.data, static.simulated.samples) == ("FP8+KV", "texts.jsonl", ROWS)
    assert static.simulated.data_fingerprint
    recipe = (compared.folder / "static" / "recipe.yaml").read_text("utf-8")
    assert static.simulated.token_ids_sha256
    assert static.simulated.token_ids_sha256 in recipe
    keys = {record.tasks["fp8_stories"].key for record in (base, dynamic, static)}
    assert len(keys) == 3


def asked(compared: Compared, **changes: Any) -> EvaluateRequest:
    return EvaluateRequest(tasks=("fp8_stories",), sample=ITEMS, runs=compared.runs, checkpoint=str(STORIES), **changes)


@slow
@pytest.mark.parametrize(
    ("simulate", "label"), [(None, "base"), ("FP8_DYNAMIC", "sim-FP8_DYNAMIC"), ("fp8_dynamic", "sim-FP8_DYNAMIC")]
)
def test_records_answer_for_their_own_form_alone(simulate: str | None, label: str, compared: Compared) -> None:
    report = evaluate(asked(compared, simulate=simulate))
    assert report.answered
    assert report.record == compared.record(label)
    assert report.label == label


@slow
def test_other_data_is_another_simulation_and_a_label_is_gone_on_with_as_it_was(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compared.folder)
    again = evaluate(asked(compared, simulate="fp8+kv", calibration=CalibrationOptions(data="texts.jsonl", samples=24)))
    assert again.answered
    events: list[EvalEvent] = []
    request = CompareRequest(
        sides=("base", "sim-FP8+KV"),
        evaluation=EvaluateRequest(
            tasks=("fp8_stories",),
            sample=ITEMS,
            runs=compared.runs,
            calibration=CalibrationOptions(samples=ROWS // 2, data="texts.jsonl"),
        ),
    )
    report = compare(request, events.append)
    (contest,) = report.comparison.contests
    assert contest.other.simulated == "FP8+KV"
    assert [each.total for each in events if isinstance(each, Observing)][:1] == [ROWS // 2]
    # The base was answered from its record.
    assert [each.simulated for each in events if isinstance(each, Prepared)] == ["FP8+KV"]
    assert "--num-calibration-samples 12" in report.command
    records = [read_record(path) for path in (compared.runs / "sim-FP8+KV").glob("run_*.json")]
    digests = {record.simulated.token_ids_sha256 for record in records if record.simulated is not None}
    assert len(records) == len(digests) == 2


def test_data_that_is_not_named_is_that_of_the_newest_run(tmp_path: Path) -> None:
    facts = SimulationFacts(scheme="FP8+KV", predicted_bytes=7, data="t.jsonl", source="t.jsonl", samples=3, seed=9)
    rows = [likelihood_sample(n, right=True, loss=1.0) for n in range(3)]
    write_run(tmp_path, "sim-FP8+KV", {"fp8_stories": rows}, simulated=facts)
    side = name_side("sim-FP8+KV", tmp_path)
    assert side.simulate == "FP8+KV"
    nothing = EvaluateRequest(tasks=("t",))
    assert data_of(side, nothing) == CalibrationOptions(data="t.jsonl", samples=3, seed=9)
    named = replace(nothing, calibration=CalibrationOptions(samples=8))
    assert data_of(side, named) == CalibrationOptions(samples=8)
    assert data_of(replace(side, simulate="MXFP8"), named) == CalibrationOptions()
    assert data_of(replace(side, simulate=None), named) == CalibrationOptions()


@pytest.mark.parametrize("name", [name for name in EVERY_SCHEME if not name.endswith("KV_HEAD")])
def test_a_predicted_size_is_that_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    scheme = EVERY_SCHEME[name]
    base, _, _ = name.partition("+")
    predicted = plan_simulation(open_checkpoint(LocalFolder(STORIES)), scheme)
    written = {"NONE": None, "FP8_W8A16": "FP8_DYNAMIC", "E5M2_DYNAMIC": "FP8_DYNAMIC", "MXFP8": "FP8_DYNAMIC"}
    plan = plan_of(STORIES, written.get(base, base), scheme.kv_cache)
    write(STORIES, tmp_path / "real", plan, made_up(plan))
    size = 0
    with safe_open(tmp_path / "real" / "model.safetensors", "pt") as file:
        for tensor in file.keys():  # noqa: SIM118 - no mapping
            value = file.get_tensor(tensor)
            size += value.nbytes
            if base == "MXFP8" and tensor.endswith("weight_scale"):
                rows, columns = file.get_tensor(tensor.removesuffix("_scale")).shape
                size += rows * columns // 32 - value.nbytes
    assert predicted.predicted_bytes == size
    assert set(predicted.weights) == {each.name for each in plan.tensors if each.action == "quantize"}
    assert predicted.dtype == "bfloat16"


# What is refused, in one sentence, before anything is loaded.


def refused(folder: Path, **changes: Any) -> Fp8Error:
    fields = {"tasks": ("fp8_stories",), "checkpoint": str(STORIES), "runs": folder / "runs", "simulate": "fp8_dynamic"}
    with pytest.raises(Fp8Error) as refusal:
        evaluate(EvaluateRequest(**{**fields, **changes}))
    assert not (folder / "runs").exists()
    return refusal.value


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"simulate": "fp9"}, "`fp9` is nothing that can be simulated", "mxfp8"),
        ({"simulate": "none"}, "`none` rounds nothing", "none+kv"),
        ({"simulate": "\x1b[31m" * 2000}, "is nothing that can be simulated", "fp8_dynamic"),
        ({"backend": "vllm"}, "on transformers alone: what vLLM computes cannot be reached", "--backend hf"),
        ({"server": "http://localhost:1"}, "what a server computes cannot be reached", "fp8 quantize"),
        ({"calibration": CalibrationOptions(samples=3)}, "--num-calibration-samples would have no effect", "+kv"),
        (
            {"simulate": None, "calibration": CalibrationOptions(data="x", seed=1)},
            "--calibration-data and --calibration-seed would have no effect: nothing is simulated",
            "--simulate fp8",
        ),
        (
            {"simulate": "fp8", "calibration": CalibrationOptions(data="nowhere.jsonl")},
            "`nowhere.jsonl` does not exist",
            "calibration data is",
        ),
        ({"simulate": "fp8", "calibration": CalibrationOptions(max_seq_length=0)}, "--max-seq-length 0 leaves", "2048"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str, hint: str, tmp_path: Path) -> None:
    refusal = refused(tmp_path, **changes)
    assert message in refusal.message
    assert hint in (refusal.hint or "")
    assert "\x1b" not in str(refusal)
    assert refusal.exit_code == (3 if "nowhere" in message else 2)


def test_a_checkpoint_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    refusal = refused(tmp_path, checkpoint=str(quantize_stories(tmp_path / "fp8")))
    assert "is quantized already (FP8_DYNAMIC, compressed-tensors), so FP8_DYNAMIC cannot be" in refusal.message
    assert refusal.exit_code == 3


def test_a_model_of_the_users_own_needs_data_for_a_scheme_that_takes_some(tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path / "own")
    refusal = refused(tmp_path, checkpoint=str(tmp_path / "own"), simulate="mxfp8+kv")
    assert refusal.message == "calibration needs data"
    assert "--calibration-data" in (refusal.hint or "")


def test_a_wrong_word_is_one_line_on_the_screen(tmp_path: Path) -> None:
    run = fp8(tmp_path, "eval", STORIES, "--tasks", "fp8_stories", "--simulate", "fp8_dinamic")
    assert run.code == 2
    assert run.err.startswith("error: `fp8_dinamic` is nothing that can be simulated\n\nhint: there are fp8_dynamic, ")
    assert "torch" not in run.loaded


def test_help_names_every_scheme(tmp_path: Path) -> None:
    run = fp8(tmp_path, "eval", "--help")
    assert all(name.lower() in run.out for name in SIMULATED)
    assert "torch" not in run.loaded


# Sides of a comparison.


def compare_refused(folder: Path, *sides: object, **options: Any) -> Fp8Error:
    evaluation = EvaluateRequest(**{"tasks": ("fp8_stories",), "runs": folder / "runs", **options})
    with pytest.raises(Fp8Error) as refusal:
        compare(CompareRequest(sides=tuple(map(str, sides)), evaluation=evaluation))
    return refusal.value


def test_sides_that_cannot_be_simulated_are_refused(tmp_path: Path) -> None:
    assert "so it cannot be the base" in compare_refused(tmp_path, "sim:fp8", STORIES).message
    assert "`fp9` is nothing" in compare_refused(tmp_path, STORIES, "sim:fp9").message
    refusal = compare_refused(tmp_path, STORIES, "sim:mxfp8", calibration=CalibrationOptions(samples=4))
    assert "no side takes its scales from data" in refusal.message
    table = tmp_path / "base.md"
    table.write_text(
        "|Tasks|Version|Filter|n-shot|Metric|   |Value|   |Stderr|\n"
        "|---|---|---|---|---|---|---|---|---|\n|t|1|none|0|acc|↑|0.5|±|0.1|\n",
        encoding="utf-8",
    )
    refusal = compare_refused(tmp_path, table, "sim:fp8_dynamic")
    assert "the checkpoint of" in refusal.message
    assert refusal.exit_code == 2


def test_a_base_that_vllm_ran_is_to_be_run_on_transformers_first(tmp_path: Path) -> None:
    write_run(
        tmp_path / "runs",
        "base",
        {"fp8_stories": [likelihood_sample(n, right=True, loss=1.0) for n in range(3)]},
        settings={"backend": "vllm"},
    )
    refusal = compare_refused(tmp_path, "base", "sim:fp8_dynamic", tasks=())
    assert "`base` was run on vllm" in refusal.message
    assert "--backend hf" in (refusal.hint or "")


# What the worker is told, and data that only it can read.


def a_job(simulation: SimulationJob | None) -> Job:
    return Job(
        backend="hf",
        model_args={"pretrained": str(BUNDLED_MODEL)},
        tasks=("t",),
        include_paths=(),
        include_defaults=False,
        num_fewshot=None,
        limit=None,
        sample=None,
        sample_seed=1,
        apply_chat_template=False,
        system_instruction=None,
        fewshot_as_multiturn=False,
        batch_size=1,
        device="cpu",
        gen_kwargs=None,
        seeds={},
        confirm_unsafe_code=False,
        fidelity=None,
        simulation=simulation,
    )


def parquet_request(place: Path) -> SampleRequest:
    return SampleRequest(
        kind="parquet",
        source="texts.parquet",
        place=str(place),
        configuration=None,
        split="train",
        column="story",
        samples=2,
        max_seq_length=16,
        seed=1,
        chat_template=None,
    )


@pytest.mark.parametrize("samples", [None, parquet_request(Path("p"))])
def test_a_job_is_read_as_it_was_written(samples: SampleRequest | None, tmp_path: Path) -> None:
    simulation = SimulationJob(scheme="FP8+KV", weights=("a.weight", "b.weight"), dtype="bfloat16", samples=samples)
    for job in (a_job(simulation), a_job(None)):
        write_job(job, tmp_path)
        assert read_job(tmp_path) == job


def test_data_that_only_the_worker_can_read_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a", "b", "c"]}).to_parquet(str(tmp_path / "texts.parquet"))
    request = parquet_request(tmp_path / "texts.parquet")
    simulation = SimulationJob(scheme="FP8", weights=(), dtype="bfloat16", samples=request)
    with pytest.raises(Failure, match=r"texts\.parquet.* has no column `story`") as refusal:
        read_samples(a_job(simulation), tmp_path)
    assert refusal.value.kind == "data"


def test_records_without_a_simulation_are_read_as_ever(tmp_path: Path) -> None:
    from dataclasses import asdict

    fields = asdict(a_record())
    del fields["simulated"]
    (tmp_path / "run_x.json").write_text(json.dumps(fields), encoding="utf-8")
    assert read_record(tmp_path / "run_x.json").simulated is None
    facts = SimulationFacts(scheme="MXFP8+KV", predicted_bytes=7, source="s", tokens=5)
    (tmp_path / "run_y.json").write_text(json.dumps(asdict(a_record(simulated=facts))), encoding="utf-8")
    assert read_record(tmp_path / "run_y.json").simulated == facts


# Screens.


def drawn(draw: Callable[[Output], None], *, terminal: bool = True) -> str:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=terminal, width=80, color=False, unicode=True)
    draw(Output(out=channel, err=channel))
    return paper.getvalue()


def test_the_screen_of_an_evaluation_says_simulated() -> None:
    facts = SimulationFacts(scheme="MXFP8+KV", predicted_bytes=820_000, source="\x1b[31mtexts", samples=9, tokens=1234)
    record = a_record(
        simulated=facts, executed_as="simulated", executed_by="MXFP8+KV in 21 Linears", label="sim-MXFP8+KV"
    )
    report = EvaluateReport(
        checkpoint="./stories",
        label="sim-MXFP8+KV",
        answered=False,
        folder=Path("fp8-runs/sim-MXFP8+KV"),
        record=record,
        record_file=Path("fp8-runs/sim-MXFP8+KV/run_x.json"),
        results=(),
        earlier=(),
        notes=(note_of(facts),),
        next_command="fp8 compare base sim-MXFP8+KV",
    )
    screen = drawn(lambda output: show(report, output))
    assert max(map(len, screen.splitlines())) <= 80
    assert "\x1b" not in screen
    words = " ".join(screen.split())
    assert "./stories · MXFP8+KV, simulated" in words
    assert "weights 0.00164 GB · 0.000820 GB predicted" in words
    assert "simulated: weights and activations rounded to 8 bits and back" in words
    assert "its scales are of 9 samples of" in words


def test_the_screen_of_a_comparison_sets_predicted_sizes_beside_those_on_disk() -> None:
    other = contest("sim-MXFP8", *simple().contests[0].tasks)
    simulated = replace(
        other.other, simulated="MXFP8", predicted_bytes=1_000_000, bytes_on_disk=None, executed_as="simulated"
    )
    base = replace(simple().base, bytes_on_disk=2_000_000)
    table = cost_table(replace(simple(), base=base, contests=(replace(other, other=simulated),)))
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["size on disk"][1] == "-"
    assert rows["size, predicted"] == ("-", "1.00 MB (×0.50)")
    assert rows["executed as"][1] == "simulated"
    plain = cost_table(simple())
    assert plain is not None
    assert "size, predicted" not in {row[0] for row in plain.rows}


def test_the_bar_counts_the_texts_that_give_scales() -> None:
    def draw(output: Output) -> None:
        with EvalBar(output).running() as bar:
            bar.notify(
                Prepared(checkpoint="m", label="l", backend="hf", why="w", tasks=("t",), known=(), simulated="FP8")
            )
            for done in range(3):
                bar.notify(Observing(done=done, total=2))

    lines = drawn(draw, terminal=False).splitlines()
    assert lines[0] == "m (l), FP8 simulated: t on transformers, because w"
    assert "0/2 texts observed for the scales" in lines
