"""`fp8 inspect`: the seed's figures, the whole document, what is found without being named, usage, and costs.

The screens stand in test_inspect_screens.py, every kind of damage in test_inspect_damage.py.
"""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from safetensors import safe_open

from fp8cli import __version__
from fp8cli.commands.inspect import InspectRequest, run
from tests.inspecting import fp8_inspect, printed
from tests.sparse import FP8_DYNAMIC_BLOCK, FP8_DYNAMIC_CONFIG, llama, llama_config, write_checkpoint

LLAMA_3_8B = {"layers": 32, "vocabulary": 128256, "hidden": 4096, "intermediate": 14336, "kv": 1024}
TINY = {"layers": 4, "vocabulary": 256, "hidden": 64, "intermediate": 128, "kv": 32}


@pytest.fixture(scope="module")
def llama_3_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out Meta-Llama-3-8B under FP8_DYNAMIC: 9.08 GB of holes."""
    folder = tmp_path_factory.mktemp("seed") / "Meta-Llama-3-8B-FP8"
    return write_checkpoint(folder, llama(**LLAMA_3_8B), llama_config(**LLAMA_3_8B))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny-FP8-dynamic", llama(**TINY), llama_config(**TINY))


def test_the_figures_are_those_of_the_seed(llama_3_8b: Path) -> None:
    text = printed(run(InspectRequest(source=llama_3_8b)))
    assert text.split("\n\n")[1] == (
        """\
dtype                tensors     parameters     mem (MB)    share
torch.bfloat16           291  1,050,939,392  2104.631296   23.2 %
torch.float8_e4m3fn      224  6,979,321,856  6979.321856   76.8 %
total                    515  8,030,261,248  9083.953152  100.0 %
9.08 GB = 8.46 GiB in 1 file · headers 61,288 bytes"""
    )
    assert text.rstrip().endswith("\nhealthy: 16 passed")


def test_the_figures_of_the_seed_fit_80_columns(llama_3_8b: Path) -> None:
    assert printed(run(InspectRequest(source=llama_3_8b)), width=80).split("\n\n")[1] == (
        """\
╭─────────────────────┬─────────┬───────────────┬─────────────┬─────────╮
│ dtype               │ tensors │    parameters │    mem (MB) │   share │
├─────────────────────┼─────────┼───────────────┼─────────────┼─────────┤
│ torch.bfloat16      │     291 │ 1,050,939,392 │ 2104.631296 │  23.2 % │
│ torch.float8_e4m3fn │     224 │ 6,979,321,856 │ 6979.321856 │  76.8 % │
├─────────────────────┼─────────┼───────────────┼─────────────┼─────────┤
│ total               │     515 │ 8,030,261,248 │ 9083.953152 │ 100.0 % │
╰─────────────────────┴─────────┴───────────────┴─────────────┴─────────╯
9.08 GB = 8.46 GiB in 1 file · headers 61,288 bytes"""
    )


def test_the_document_holds_the_figures_of_the_seed(llama_3_8b: Path) -> None:
    assert fp8_inspect(llama_3_8b, "--json").report["dtypes"] == [
        {
            "dtype": "torch.bfloat16",
            "tensors": 291,
            "parameters": 1_050_939_392,
            "bytes": 2_104_631_296,
            "share": 2_104_631_296 / 9_083_953_152,
        },
        {
            "dtype": "torch.float8_e4m3fn",
            "tensors": 224,
            "parameters": 6_979_321_856,
            "bytes": 6_979_321_856,
            "share": 6_979_321_856 / 9_083_953_152,
        },
    ]


UNKNOWN_CACHE = "its config.json does not say how many layers there are"
UNKNOWN_HEADS = "its config.json does not say how many heads there are"
SCHEMES = "compressed_tensors/schemes"
NATIVE = "computes in FP8 (W8A8)"
WEIGHT_ONLY = "keeps weights in FP8 and computes in 16 bits"
NO_KERNEL = "vLLM 0.32 has no kernel for this kind of FP8 on compute capability 7.0"
ON_GENERATIONS: list[tuple[str, list[int], str, str, str, str | None, list[str], list[str]]] = [
    ("Volta", [7, 0], "V100", "unsupported", "cannot load it", NO_KERNEL, [], []),
    ("Turing", [7, 5], "T4, RTX 20", "weight-only", WEIGHT_ONLY, None, ["--dtype", "half"], ["has no BF16"]),
    ("Ampere", [8, 0], "A100, A30", "weight-only", WEIGHT_ONLY, None, [], []),
    ("Ampere", [8, 6], "A10, A40, RTX A6000, RTX 30", "weight-only", WEIGHT_ONLY, None, [], []),
    ("Ada", [8, 9], "L4, L40S, RTX 40", "native", NATIVE, None, [], []),
    ("Hopper", [9, 0], "H100, H200, GH200", "native", NATIVE, None, [], []),
    ("Blackwell", [10, 0], "B200, GB200", "native", NATIVE, None, [], []),
    ("Blackwell", [10, 3], "B300, GB300", "native", NATIVE, None, [], []),
    ("Blackwell", [12, 0], "RTX PRO 6000, RTX 50", "native", NATIVE, None, [], []),
]
H100_BYTES = 85_520_809_984
# 92 % of the memory, less a reserve of 4 %.
ROOM = int(0.92 * H100_BYTES) - int(0.04 * H100_BYTES)
CONFIG = "E4M3 weights per channel, activations per token at run time"
FINDINGS = (
    ("config", "passed", "`config.json` is a JSON object", 1),
    ("file.header", "passed", "1 header read, well-formed", 1),
    ("file.size", "passed", "1 weight file: no byte missing, unused or used twice", 1),
    ("index", "passed", "3 tensors in `model.safetensors`, which needs no index", 1),
    ("file.mode", "passed", "2 files, each open to more users than its owner", 2),
    ("config.quantization", "passed", f"config and tensors agree: {CONFIG}", 1),
    ("scale.missing", "passed", "1 FP8 weight, each with its scale", 1),
    ("scale.orphan", "passed", "no scale without a quantized weight", 1),
    ("scale.zero_point", "passed", "no zero point beside a weight that needs none", 1),
    ("scale.name", "passed", "every scale under the name that loaders look for", 1),
    ("scale.shape", "passed", "1 scale of the shape that the config asks for", 1),
    ("scale.dtype", "passed", "1 scale in BF16", 1),
    (
        "config.modules",
        "passed",
        "0 Linear modules quantized, told by their names and shapes; none of them is listed as ignored",
        0,
    ),
    (
        "tensor.missing",
        "not checked",
        "the architecture `unknown` is not in the built-in table, so roles are told by names and shapes",
        1,
    ),
    ("scale.values", "passed", "4 scales in 1 tensor read: all finite and positive", 1),
)


def row(**fields: object) -> dict[str, object]:
    return {"file": "model.safetensors", **fields}


def test_the_document_is_this_whole(tmp_path: Path) -> None:
    tensors = [("a.weight", "F8_E4M3", (4, 8)), ("a.weight_scale", "BF16", (4, 1)), ("b.weight", "BF16", (8,))]
    config = {"quantization_config": FP8_DYNAMIC_BLOCK | {"ignore": []}}
    folder = write_checkpoint(tmp_path / "tiny", tensors, config)
    by_tensor = [
        {
            "name": "a.weight",
            "role": "quantized weights",
            "dtype": "torch.float8_e4m3fn",
            "shape": [4, 8],
            "parameters": 32,
            "bytes": 32,
        },
        {
            "name": "a.weight_scale",
            "role": "scales",
            "dtype": "torch.bfloat16",
            "shape": [4, 1],
            "parameters": 0,
            "bytes": 8,
        },
        {"name": "b.weight", "role": "other", "dtype": "torch.bfloat16", "shape": [8], "parameters": 8, "bytes": 16},
    ]
    bf16 = {"dtype": "torch.bfloat16"}
    codes = {"dtype": "torch.float8_e4m3fn", "tensors": 1, "parameters": 32, "bytes": 32, "share": 32 / 56}
    assert json.loads(fp8_inspect(folder, "--json", "--details").out) == {
        "schema_version": 1,
        "command": "inspect",
        "fp8_version": __version__,
        "ok": True,
        "exit_code": 0,
        "result": {
            "name": "tiny",
            "path": str(folder),
            "architecture": None,
            "verdict": "no fault found",
            "quantization": {
                "dialect": "compressed-tensors",
                "scheme": "FP8_DYNAMIC",
                "words": CONFIG,
                "format": "float-quantized",
                "kv_cache": None,
                "ignored": [],
                "fp8_weights": 1,
            },
            "dtypes": [bf16 | {"tensors": 2, "parameters": 8, "bytes": 24, "share": 24 / 56}, codes],
            "roles": [
                codes | {"role": "quantized weights", "bits_per_weight": 8.0},
                bf16
                | {"role": "scales", "tensors": 1, "parameters": 0, "bytes": 8, "share": 8 / 56}
                | {"bits_per_weight": None},
                bf16
                | {"role": "other", "tensors": 1, "parameters": 8, "bytes": 16, "share": 16 / 56}
                | {"bits_per_weight": 16.0},
            ],
            "total": {"tensors": 3, "parameters": 40, "bytes": 56},
            "files": 1,
            "header_bytes": (folder / "model.safetensors").stat().st_size - 56,
            "findings": [
                {"check": check, "status": status, "subject": None, "found": found}
                | {"consequence": None, "remedy": None, "count": count}
                for check, status, found, count in FINDINGS
            ],
            "scales": [
                {"label": "weight_scale", "dtypes": ["BF16"], "tensors": 1, "values": 4, "bad": {}}
                | {"minimum": 1.0, "median": 1.0, "maximum": 1.0}
                | {"names": ["a.weight_scale"], "ranges": [[1.0, 1.0]]}
            ],
            "serving": {
                "weight_bytes": 56,
                "cache": {
                    "rule": f"unknown: {UNKNOWN_CACHE}",
                    "numbers": "16 bits",
                    "number_bytes": 2,
                    "groups": [],
                    "unknown": UNKNOWN_CACHE,
                },
                "longest": None,
                "contexts": [],
                "parallel": [
                    {"size": 1, "verdict": "works", "reasons": [], "remedy": None},
                    *(
                        {"size": size, "verdict": "not checked", "reasons": [UNKNOWN_HEADS], "remedy": None}
                        for size in (2, 4, 8, 16)
                    ),
                ],
                "not_judged": ["a.weight"],
                "required": None,
                "vllm": {
                    "least": None,
                    "checked": "0.32.0",
                    "needs": [
                        {"what": "FP8 with dynamic activations, compressed-tensors", "known": "since"}
                        | {"release": "0.5.3", "lacking": "0.5.2", "below": None}
                        | {"source": f"{SCHEMES}/compressed_tensors_w8a8_fp8.py: QuantizationStrategy.CHANNEL"},
                        {"what": "its architecture", "known": "unknown", "release": None, "lacking": None}
                        | {"source": "config.json names no architecture", "below": None},
                    ],
                },
                "generations": [
                    {
                        "generation": {"name": name, "capability": capability, "examples": examples},
                        "needs": {"mode": mode, "experts": None, "words": words, "refusal": refusal}
                        | {"fp8_cache": False, "options": options, "notes": notes},
                    }
                    for name, capability, examples, mode, words, refusal, options, notes in ON_GENERATIONS
                ],
                "gpus": [
                    {
                        "gpu": {"name": "H100", "memory_bytes": H100_BYTES, "capability": [9, 0]}
                        | {"gfx": None, "nominal": False, "count": None},
                        "needs": {"mode": "native", "experts": None, "words": "computes in FP8 (W8A8)"}
                        | {"refusal": None, "fp8_cache": False, "options": [], "notes": []},
                        "reserve_bytes": int(0.04 * H100_BYTES),
                        "fits": [
                            {
                                "gpus": gpus,
                                "verdict": "unknown",
                                "reason": f"the weights fit, but the KV cache is unknown: {UNKNOWN_CACHE}",
                                "weight_bytes": share,
                                "room_bytes": ROOM - share,
                            }
                            | {"tokens": None, "context": None, "sequences": [], "command": None}
                            for gpus, share in ((1, 56), (2, 28), (4, 14), (8, 7), (16, 4))
                        ],
                        "best": None,
                        "here": None,
                    }
                ],
                "utilization": 0.92,
            },
            "against": None,
            "groups": [
                {"pattern": each["name"], "count": 1} | {key: each[key] for key in each if key != "name"}
                for each in by_tensor
            ],
            "tensors": [{"file": "model.safetensors"} | each for each in by_tensor],
        },
        "error": None,
    }


# Which tensors there are


def test_the_safetensors_library_sees_the_same_tensors(llama_3_8b: Path) -> None:
    report = run(InspectRequest(source=llama_3_8b, full=True))
    assert report.tensors is not None
    with safe_open(llama_3_8b / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        theirs = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    short = {"torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3"}
    assert {row.name: (short[row.dtype], row.shape) for row in report.tensors} == theirs
    size = (llama_3_8b / "model.safetensors").stat().st_size
    assert report.total.bytes + report.header_bytes == size


def test_full_lists_every_tensor_layer_2_before_layer_10(tmp_path: Path) -> None:
    tensors = [(f"layers.{layer}.weight", "BF16", (2,)) for layer in range(12)]
    folder = write_checkpoint(tmp_path / "twelve", tensors, {})
    (listed,) = (part for part in fp8_inspect(folder, "--full").out.split("\n\n") if part.startswith("tensors\n"))
    assert listed.splitlines()[2:] == [
        f"{f'layers.{layer}.weight':16}  other  bfloat16  [2]    0.000004" for layer in range(12)
    ]


def test_a_csv_reads_back_as_every_tensor(tiny: Path) -> None:
    report = run(InspectRequest(source=tiny, full=True))
    rows = [*csv.DictReader(StringIO(fp8_inspect(tiny, "--csv").out))]
    assert report.tensors is not None
    assert [each["tensor"] for each in rows] == [each.name for each in report.tensors]
    assert sum(int(each["bytes"]) for each in rows) == report.total.bytes
    assert sum(int(each["parameters"]) for each in rows) == report.total.parameters


def test_details_in_the_document_are_patterns_and_tensors(tiny: Path) -> None:
    report = fp8_inspect(tiny, "--json", "--details").report
    assert (len(report["groups"]), len(report["tensors"])) == (19, 67)
    assert report["groups"][4] == {
        "pattern": "model.layers.{0..3}.mlp.down_proj.weight_scale",
        "count": 4,
        "role": "scales",
        "dtype": "torch.bfloat16",
        "shape": [64, 1],
        "parameters": 0,
        "bytes": 512,
    }
    assert sum(group["bytes"] for group in report["groups"]) == sum(each["bytes"] for each in report["tensors"])


DTYPES = ["dtype", "tensors", "parameters", "mem (MB)", "share"]
FIT = ["GPU", "GPUs", "longest context", "computes"]


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (60, [["dtype", "tensors", "mem (MB)"], ["role", "dtype", "mem (MB)"], ["tensor", "mem (MB)"]]),
        (
            80,
            [DTYPES, ["role", "dtype", "mem (MB)", "bits/weight"], ["tensor", "dtype", "mem (MB)"]],
        ),
        (
            120,
            [
                DTYPES,
                ["role", "dtype", "tensors", "parameters", "mem (MB)", "share", "bits/weight"],
                ["tensor", "role", "dtype", "shape", "mem (MB)"],
            ],
        ),
    ],
)
def test_a_narrow_terminal_loses_the_least_useful_columns(
    llama_3_8b: Path, width: int, titles: list[list[str]]
) -> None:
    report = run(InspectRequest(source=llama_3_8b, details=True, gpus=("H100",)))
    lines = printed(report, width=width, details=True).splitlines()
    assert max(len(line) for line in lines if line.startswith(tuple("╭│├╰"))) <= width
    heads = [lines[number + 1] for number, line in enumerate(lines) if line.startswith("╭")]
    by_dtype, by_role, by_gpu, by_generation, by_release, by_tensor = [
        [title.strip() for title in head.strip("│").split("│")] for head in heads
    ]
    assert [by_dtype, by_role, by_tensor] == titles
    assert by_gpu == FIT
    assert {"capability", "computes"} <= set(by_generation)
    assert by_release[:2] == ["vLLM", "for"]
    assert any("6979.321856" in line for line in lines)


def test_scales_are_tensors_and_bytes_but_not_parameters(tmp_path: Path) -> None:
    tensors = [
        ("a.weight", "F8_E4M3", (4, 4)),
        ("a.weight_scale", "F32", (4, 1)),
        ("b.weight", "F8_E4M3", (4, 4)),
        ("b.weight_scale_inv", "F32", (1, 1)),
        ("a.input_scale", "F32", (1,)),
        ("attn.k_scale", "F32", ()),
        ("attn.v_scale", "F32", ()),
        ("experts.gate_up_proj", "F8_E4M3", (2, 4, 4)),
        ("experts.gate_up_proj_scale", "F32", (2, 4, 1)),
        ("logit_scale", "F32", ()),
    ]
    report = run(InspectRequest(source=write_checkpoint(tmp_path / "scales", tensors, {}), full=True))
    assert report.tensors is not None
    counted = {row.name: row.parameters for row in report.tensors if row.parameters}
    assert counted == {"a.weight": 16, "b.weight": 16, "experts.gate_up_proj": 32, "logit_scale": 1}
    assert (report.total.tensors, report.total.parameters) == (10, 65)
    assert report.total.bytes == 16 + 16 + 16 + 4 + 4 + 4 + 4 + 32 + 32 + 4


def test_tensors_of_unlike_shape_or_dtype_do_not_fold(tmp_path: Path) -> None:
    tensors = [("l.0.w", "BF16", (4, 4)), ("l.1.w", "BF16", (4, 8)), ("l.2.w", "F8_E4M3", (4, 4))]
    report = run(InspectRequest(source=write_checkpoint(tmp_path / "unlike", tensors, {}), details=True))
    assert report.groups is not None
    assert [group.pattern for group in report.groups] == ["l.0.w", "l.1.w", "l.2.w"]


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ({}, ["model · FP8 without a config", "E4M3 weights without scales; activations unknown"]),
        (
            FP8_DYNAMIC_CONFIG | {"quantization_config": {"quant_method": "quark"}},
            ["model · LlamaForCausalLM · AMD Quark", "how its weights are quantized is not known here"],
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "activation_scheme": "dynamic",
                    "modules_to_not_convert": ["re:.*norm", *(f"{m}.{n}" for n in range(9) for m in "abcde")],
                }
            },
            [
                "model · fp8 (AutoFP8)",
                "E4M3 weights per tensor, activations at run time",
                "ignored: re:.*norm, a.{0..8}, b.{0..8}, c.{0..8} and 2 more",
            ],
        ),
    ],
)
def test_the_first_lines_say_what_is_known(tmp_path: Path, config: dict[str, object], lines: list[str]) -> None:
    folder = write_checkpoint(tmp_path / "model", [("a.weight", "F8_E4M3", (2, 2))], config)
    assert fp8_inspect(folder).out.split("\n\n")[0].splitlines() == lines


# What is inspected


def test_without_a_name_the_one_fp8_checkpoint_here_is_inspected(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert fp8_inspect("--json").report["path"] == tiny.name
    monkeypatch.chdir(tiny)
    assert fp8_inspect("--json").report["name"] == tiny.name


def test_one_file_is_inspected_by_itself(tiny: Path) -> None:
    report = run(InspectRequest(source=tiny / "model.safetensors"))
    folder = run(InspectRequest(source=tiny))
    assert (report.dtypes, report.total) == (folder.dtypes, folder.total)
    assert (report.verdict, folder.verdict) == ("no fault found", "healthy")


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_truncated_shard_is_a_finding_and_the_rest_is_shown(tiny: Path, name: str) -> None:
    file = tiny / "model.safetensors"
    whole = fp8_inspect(tiny / name, "--json").report
    os.truncate(file, file.stat().st_size - 4096)
    run = fp8_inspect(tiny / name, "--json")
    assert (run.code, run.report["verdict"], run.status_of("file.cut_short")) == (1, "damaged", {"failed"})
    assert run.report["dtypes"] == whole["dtypes"]


def test_an_empty_folder_is_damaged_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = fp8_inspect(tmp_path / "empty", "--json")
    assert (empty.code, empty.report["total"]["bytes"]) == (1, 0)
    missing = fp8_inspect(tmp_path / "nothing")
    assert (missing.code, missing.out) == (3, "")
    assert missing.err.startswith(f"error: `{tmp_path / 'nothing'}` does not exist\n\nhint: ")


def test_the_command_line_says_the_same_in_words_and_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_checkpoint(tmp_path / name, [("a.weight", "F8_E4M3", (2, 2))], {})
    monkeypatch.chdir(tmp_path)
    run = fp8_inspect("--json")
    assert run.code == 2
    assert run.err == "error: 2 FP8 checkpoints lie here: `a`, `b`\n\nhint: name one of them: fp8 inspect a\n"
    assert json.loads(run.out)["error"] == {
        "message": "2 FP8 checkpoints lie here: `a`, `b`",
        "hint": "name one of them: fp8 inspect a",
    }


# Usage


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (
            ("--json", "--csv"),
            2,
            "--json, --csv and --markdown exclude each other\n\nhint: choose one; --plot goes with any of them",
        ),
        (
            ("--csv", "--markdown"),
            2,
            "--json, --csv and --markdown exclude each other\n\nhint: choose one; --plot goes with any of them",
        ),
        (
            ("--gpu", "H1000"),
            2,
            (
                "--gpu `H1000` is no GPU of this tool's catalogue\n\n"
                "hint: it knows H100, V100-32GB, H800 and others, by such names as --gpu H100"
            ),
        ),
        (
            ("--context", "0"),
            2,
            "--context 0 is no length of context\n\nhint: give a number of tokens, such as --context 32768",
        ),
        (
            ("--context", "4096", "--context", "-5"),
            2,
            "--context -5 is no length of context\n\nhint: give a number of tokens, such as --context 32768",
        ),
        (
            ("--revision", "main"),
            2,
            (
                "`{ckpt}` is a folder here, and a folder has no revisions\n\n"
                "hint: leave --revision out; it is for models on the Hub"
            ),
        ),
        (
            ("--against", "./nothing"),
            3,
            "`./nothing` does not exist\n\nhint: give a checkpoint folder, or a model on the Hub as ORG/NAME",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    tiny: Path, words: tuple[str, ...], code: int, error: str
) -> None:
    run = fp8_inspect(tiny, *words)
    assert (run.code, run.err) == (code, f"error: {error.format(ckpt=tiny)}\n")
    assert run.out == "" or json.loads(run.out)["error"]["message"] == error.split("\n", maxsplit=1)[0]


def test_verify_without_the_kernel_is_refused(tiny: Path) -> None:
    command = [sys.executable, "-m", "fp8cli", "inspect", str(tiny), "--verify"]
    finished = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"FP8_KERNEL": "off"}
    )
    assert (finished.returncode, finished.stdout) == (3, "")
    assert finished.stderr.startswith("error: the compiled kernel, which reads weights, is not there\n\nhint: ")


def test_an_interrupt_ends_a_verification_without_a_traceback(tmp_path: Path) -> None:
    shapes = {"layers": 400, "vocabulary": 256, "hidden": 4096, "intermediate": 14336, "kv": 1024}
    folder = write_checkpoint(tmp_path / "large", llama(**shapes), llama_config(**shapes))
    # No bar but lines, and the first of them comes when the reading has begun.
    command = [sys.executable, "-c", _SPEAKS_AT_ONCE, "inspect", str(folder), "--verify", "--gpu", "H100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "GB" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "error: interrupted" in err.splitlines()
    assert "Traceback" not in err
    assert time.monotonic() - begun < 5


_SPEAKS_AT_ONCE = """
import sys
from fp8cli.render import byte_bar
byte_bar._SECONDS_BETWEEN_LINES = 0.0
from fp8cli.cli.app import main
sys.exit(main())
"""


# What it costs

PROGRAM = """
import sys
from fp8cli.cli.app import main
import atexit
heavy = {"torch", "pandas", "transformers", "rich.console", "safetensors"}
atexit.register(lambda: print("loaded", heavy & set(sys.modules), file=sys.stderr))
main()
"""


def processor_seconds(folder: Path, *words: str, runs: int) -> float:
    """Inspect in processes of their own, into a pipe; return the least processor time of one."""
    command = [sys.executable, "-c", PROGRAM, "inspect", str(folder), "--gpu", "H100", *words]
    seconds = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what other programs on the machine do is none of our cost.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert finished.stderr == "loaded set()\n"
    return min(seconds)


def test_five_times_the_tensors_take_at_most_five_times_as_long_and_no_heavy_library(tmp_path: Path) -> None:
    seconds = []
    for layers in (1250, 6250):
        shapes = {**TINY, "layers": layers}
        folder = write_checkpoint(tmp_path / str(layers), llama(**shapes), llama_config(**shapes))
        seconds.append(processor_seconds(folder, runs=3))
    # Half as much again for noise; scripts/bench.py has the figures.
    assert seconds[1] / seconds[0] < 7.5
