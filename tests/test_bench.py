"""The benchmark's arithmetic, its checkpoints and its tables; how long anything takes is not asserted anywhere."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_checkpoint import Llama, Mixture, write_checkpoint
from bench_machine import file_system, lack_of_room
from bench_report import (
    Comparison,
    Goal,
    Measurement,
    compare,
    comparison_table,
    cpu,
    measurement_table,
    paired_ratio,
    startup_table,
    wall,
)
from bench_rows import NotMeasuredError, Row, digests, measure, measure_rounds
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

SCRIPT = Path(__file__).parents[1] / "scripts/bench.py"
TOY = Llama(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=160)
TITLES = {
    "cp": "`cp -r`",
    "cp-sync": "copy and sync",
    "torch": "torch",
    "quantize": "ours",
    "block": "ours in blocks",
    "model-free": "theirs",
    "memory": "ours, large",
}


def run_of(wall_seconds: float, cpu_seconds: float = 1.0, peak_bytes: int = 2**30) -> Measurement:
    return Measurement(wall_seconds=wall_seconds, cpu_seconds=cpu_seconds, peak_bytes=peak_bytes)


def python_row(program: str, **facts: object) -> Row:
    return Row(title="it", command=lambda source, out: [sys.executable, "-c", program, source, out], **facts)


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_the_medians() -> None:
    ours = [run_of(1.0), run_of(30.0), run_of(3.0)]
    yardstick = [run_of(2.0), run_of(10.0), run_of(20.0)]
    assert paired_ratio(wall, ours, yardstick) == 0.5
    assert paired_ratio(cpu, ours, yardstick) == 1.0


def test_a_ratio_of_different_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_ratio(wall, [run_of(1.0), run_of(1.0)], [run_of(1.0)])


def test_a_goal_is_met_on_its_bound() -> None:
    assert Goal(relation="≤", bound=0.8).is_met_by(0.8)
    assert not Goal(relation="≤", bound=0.8).is_met_by(0.81)
    assert Goal(relation="≥", bound=5).is_met_by(5.0)
    assert not Goal(relation="≥", bound=5).is_met_by(4.9)
    with pytest.raises(ValueError, match="cannot be < something"):
        Goal(relation="<", bound=1).is_met_by(1)


def test_every_goal_is_compared_when_everything_was_measured() -> None:
    runs = {
        "cp": [run_of(10.0)],
        "cp-sync": [run_of(12.0)],
        "torch": [run_of(1.0, peak_bytes=2**28)],
        "quantize": [run_of(6.0, cpu_seconds=8.0, peak_bytes=2**29)],
        "model-free": [run_of(60.0, cpu_seconds=40.0)],
        "memory": [run_of(20.0, peak_bytes=2**31)],
    }
    assert [(one.what, one.value, one.goal and one.goal.is_met_by(one.value)) for one in compare(runs, TITLES)] == [
        ("ours: wall time ÷ `cp -r`", 0.6, True),
        ("ours: wall time ÷ copy and sync", 0.5, None),
        ("theirs: wall time ÷ ours", 10.0, True),
        ("ours: CPU time ÷ theirs", 0.2, False),
        ("ours: highest peak memory", 0.5, True),
        ("the same, over torch", 0.25, None),
        ("ours, large: highest peak memory", 2.0, False),
        ("the same, over torch", 1.75, None),
    ]


def test_what_was_not_measured_is_not_compared() -> None:
    assert list(compare({"cp": [run_of(10.0)], "torch": [run_of(1.0)]}, TITLES)) == []
    assert [one.what for one in compare({"quantize": [run_of(1.0)]}, TITLES)] == ["ours: highest peak memory"]


def test_the_table_of_measurements_reads_as_it_should() -> None:
    runs = {
        "cp": [run_of(10.0), run_of(12.0)],
        "quantize": [run_of(5.0, 4.0, 2**29), run_of(9.0, 5.0, 2**29)],
        "memory": [run_of(20.0, 21.0, 2**29)],
    }
    names = ("cp", "quantize", "model-free", "memory")
    assert measurement_table(names, TITLES, runs, {"model-free": "llmcompressor is not installed"}) == (
        "| run | wall s (range) | CPU s | peak memory | wall ÷ `cp -r` |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| `cp -r` | 11.00 (10.00 – 12.00) | 1.00 | 1.00 GiB | 1.00 |\n"
        "| ours | 7.00 (5.00 – 9.00) | 4.50 | 0.50 GiB | 0.62 |\n"
        "| theirs | not measured (llmcompressor is not installed) |  |  |  |\n"
        "| ours, large | – | – | 0.50 GiB | – |"
    )


def test_the_yardstick_need_not_be_among_the_rows() -> None:
    """`--only quantize` leaves it out."""
    shown = measurement_table(["quantize"], {"quantize": "ours"}, {"quantize": [run_of(1.0)]}, {})
    assert shown.splitlines()[0].split("|")[-2].strip() == "wall ÷ cp"
    assert shown.splitlines()[2].split("|")[-2].strip() == "–"


def test_the_table_of_comparisons_says_which_goals_are_met() -> None:
    comparisons = (
        Comparison(what="a", value=0.75, goal=Goal(relation="≤", bound=0.8)),
        Comparison(what="b", value=4.0, goal=Goal(relation="≥", bound=5)),
        Comparison(what="c", value=0.5, unit=" GiB"),
    )
    assert comparison_table(comparisons) == (
        "| ratio | measured | goal | met |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a | 0.75 | ≤ 0.8 | yes |\n"
        "| b | 4 | ≥ 5 | **no** |\n"
        "| c | 0.5 GiB | – | – |"
    )


def test_the_table_of_starts_compares_with_its_first_row() -> None:
    runs = {"pass": [run_of(0.01), run_of(0.02)], "help": [run_of(0.06), run_of(0.08)]}
    titles = {"pass": "`pass`", "help": "`help`", "inspect": "`inspect`"}
    assert startup_table(("pass", "help", "inspect"), titles, runs, {"inspect": "exit code 3: no"}) == (
        "| start | wall s | ÷ `pass` |\n"
        "| --- | ---: | ---: |\n"
        "| `pass` | 0.015 | 1.0 |\n"
        "| `help` | 0.070 | 5.0 |\n"
        "| `inspect` | not measured (exit code 3: no) |  |"
    )


def test_a_made_checkpoint_is_what_transformers_builds_from_its_config(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "toy", TOY, shard_bytes=50_000)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made.folder))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    found, files = {}, sorted(made.folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as shard:
            found |= {name: (file.name, shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118 - no mapping
    assert {name: tuple(tensor.shape) for name, (_, tensor) in found.items()} == expected
    assert {tensor.dtype for _, tensor in found.values()} == {torch.bfloat16}

    index = json.loads((made.folder / "model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"] == {name: file for name, (file, _) in found.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in found.values())
    assert (made.tensors, made.shards) == (len(expected), len(files))
    assert made.shards > 2
    assert made.bytes == sum(file.stat().st_size for file in files)


def test_made_weights_are_normal_and_differ_from_row_to_row(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "toy", TOY)
    with safe_open(made.folder / "model-00001-of-00001.safetensors", framework="pt") as shard:
        weight = shard.get_tensor("model.embed_tokens.weight").float()
        other = shard.get_tensor("lm_head.weight").float()
    assert abs(weight.std().item() - 0.02) < 0.001
    assert abs(weight.mean().item()) < 0.001
    assert len(weight.unique(dim=0)) == len(weight)
    assert not torch.equal(weight, other)


def test_the_default_llama_has_the_parameters_of_llama_3_8b() -> None:
    parameters = 0
    for _, (rows, *columns) in Llama().tensors():
        parameters += rows * (columns[0] if columns else 1)
    assert parameters == 8_030_261_248


def test_a_sparse_mixture_is_one_that_quantize_accepts(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "huge", Mixture(experts=4, layers=2), shard_bytes=10**9, sparse=True)
    on_disk = sum(file.stat().st_blocks * 512 for file in made.folder.iterdir())
    assert on_disk < 10**6 < 10**9 < made.bytes
    command = [sys.executable, "-m", "fp8cli", "quantize", str(made.folder), "--dry-run", "--json"]
    ran = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)


def test_a_process_is_measured_with_its_children(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "toy", TOY)
    waste = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7)); bytes(range(256)) * 2**20'])"
    )
    run = measure(python_row(waste), made, tmp_path / "out")
    assert run.peak_bytes > 2**28
    assert run.cpu_seconds > 0
    assert run.wall_seconds > 0


def test_a_failing_row_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "toy", TOY)
    rows = {
        "bad": python_row("print('something'); raise SystemExit('no luck')"),
        "explained": python_row("print('error: it is broken'); raise SystemExit('hint: mend it')"),
        "absent": python_row("pass", needs="no-such-library"),
        "too large": python_row("pass", output_share=1e18),
        "good": python_row("import shutil, sys; shutil.copytree(*sys.argv[1:])", is_fp8=True, cuda=True),
    }
    results = measure_rounds(rows, dict.fromkeys(rows, made), tmp_path, rounds=2)
    assert results.reasons["bad"] == "exit code 1: no luck"
    assert results.reasons["explained"] == "exit code 1: error: it is broken"
    assert results.reasons["absent"] == "no-such-library is not installed"
    assert "GB of disk" in results.reasons["too large"]
    assert {name: len(runs) for name, runs in results.runs.items()} == {"good": 2}
    shard = next(made.folder.glob("*.safetensors"))
    assert results.digests == {"good": {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest()}}
    assert digests(made.folder) == results.digests["good"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_lack_of_memory_is_said_with_both_numbers(tmp_path: Path) -> None:
    assert lack_of_room(tmp_path, disk_bytes=1, memory_bytes=1) is None
    lack = lack_of_room(tmp_path, disk_bytes=1, memory_bytes=10**18)
    assert lack is not None
    assert lack.startswith("needs 1000000000.0 GB of memory, ")


def test_the_file_system_is_the_one_the_kernel_names(tmp_path: Path) -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(tmp_path) not in {"proc", "unknown"}


def test_an_unmeasurable_row_raises(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "toy", TOY)
    with pytest.raises(NotMeasuredError, match="exit code 3: no output"):
        measure(python_row("raise SystemExit(3)"), made, tmp_path / "out")
    measure(python_row("raise SystemExit(3)", exit_codes=(0, 3)), made, tmp_path / "out")


def test_a_small_benchmark_prints_its_tables_and_leaves_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    work = tmp_path / "work"
    work.mkdir()
    words = ["--small", "--repeats", "1", "--on", str(work), "--json", str(report)]
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--only", "cp", "quantize", "verify", "against", "startup"],
        capture_output=True,
        text=True,
        check=True,
    )
    first_cells = [line.split(" | ")[0] for line in ran.stdout.splitlines() if line.startswith("|")]
    assert first_cells == [
        "| run",
        "| ---",
        "| `cp -r`",
        "| `fp8 quantize`",
        "| `fp8 inspect --verify`",
        "| `fp8 inspect --against BASE`",
        "| ratio",
        "| ---",
        "| `fp8 quantize`: wall time ÷ `cp -r`",
        "| `fp8 quantize`: highest peak memory",
        "| start",
        "| ---",
        "| `python -c pass`",
        "| `fp8 --help`",
        "| `fp8 inspect` of 2,001 tensors, 6.2 GB",
        "| `fp8 inspect` of 3,555 tensors, 3.2 GB",
        "| `fp8 inspect` of 9,873 tensors, 129.5 GB",
        "| `fp8 quantize --dry-run` of 9,873 tensors, 129.5 GB",
    ]
    assert "not measured" not in ran.stdout
    document = json.loads(report.read_text("utf-8"))
    assert set(document["facts"]) >= {"command", "date", "processor", "cores", "gpu", "versions"}
    assert len(document["places"][0]["results"]["runs"]["quantize"]) == 1
    assert len(document["start"]["results"]["runs"]["dry-run"]) == 3
    assert list(work.iterdir()) == []
