"""`fp8 inspect`: the seed's figures, what is folded, what is found without being named, and both ways to print it."""

import itertools
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from fp8cli import __version__
from fp8cli.commands.inspect import InspectReport, InspectRequest, find_checkpoint, run
from fp8cli.core.folding import fold
from fp8cli.core.quantization import mentions_fp8, read_quantization
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.safetensors import lay_out
from fp8cli.render.console import Channel, Output
from fp8cli.render.inspection import show
from fp8cli.schemes import SCHEMES

Tensors = Iterable[tuple[str, str, tuple[int, ...]]]

FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
DYNAMIC_GROUP = {
    "targets": ["Linear"],
    "weights": {**FLOAT8, "strategy": "channel", "dynamic": False},
    "input_activations": {**FLOAT8, "strategy": "token", "dynamic": True},
}
FP8_DYNAMIC_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": DYNAMIC_GROUP},
        "ignore": ["lm_head"],
    },
}


def write_weights(file: Path, tensors: Tensors) -> None:
    """Write a file whose tensors are holes: they read as zeros and take no disk."""
    first_bytes, header = lay_out(tensors, {"format": "pt"})
    file.write_bytes(first_bytes)
    os.truncate(file, header.file_bytes)


def write_checkpoint(folder: Path, tensors: Tensors, config: Mapping[str, object] | None) -> Path:
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def llama(*, layers: int, vocabulary: int, hidden: int, intermediate: int, kv: int) -> Tensors:
    """Name the tensors of a Llama under FP8_DYNAMIC: E4M3 linears with BF16 scales [out, 1], the rest BF16."""
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", "BF16", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", "BF16", (hidden,)
        for name, (rows, columns) in linears.items():
            yield f"{prefix}.{name}.weight", "F8_E4M3", (rows, columns)
            yield f"{prefix}.{name}.weight_scale", "BF16", (rows, 1)


def printed(report: InspectReport, *, width: int | None = None, as_json: bool = False) -> str:
    """Print a report on a terminal `width` cells wide, or into a pipe."""
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=True)
    show(report, Output(out=channel, err=channel, json=as_json))
    # A line broken between words keeps the space at its end.
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().splitlines())


@pytest.fixture(scope="module")
def llama_3_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out Meta-Llama-3-8B under FP8_DYNAMIC: 9.08 GB of holes."""
    tensors = llama(layers=32, vocabulary=128256, hidden=4096, intermediate=14336, kv=1024)
    return write_checkpoint(tmp_path_factory.mktemp("seed") / "Meta-Llama-3-8B-FP8", tensors, FP8_DYNAMIC_CONFIG)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tensors = llama(layers=4, vocabulary=256, hidden=64, intermediate=128, kv=32)
    return write_checkpoint(tmp_path / "tiny-FP8-dynamic", tensors, FP8_DYNAMIC_CONFIG)


def test_a_pipe_gets_the_figures_of_the_seed(llama_3_8b: Path) -> None:
    assert printed(run(InspectRequest(source=llama_3_8b))) == (
        "Meta-Llama-3-8B-FP8 · LlamaForCausalLM · FP8_DYNAMIC: E4M3 weights per channel, "
        "activations per token at run time · ignored: lm_head\n"
        """
dtype                tensors     parameters     mem (MB)    share
torch.bfloat16           291  1,050,939,392  2104.631296   23.2 %
torch.float8_e4m3fn      224  6,979,321,856  6979.321856   76.8 %
total                    515  8,030,261,248  9083.953152  100.0 %

9.08 GB = 8.46 GiB in 1 file · headers 61,288 bytes
"""
    )


def test_a_terminal_of_80_columns_gets_a_box(llama_3_8b: Path) -> None:
    assert printed(run(InspectRequest(source=llama_3_8b)), width=80) == (
        """\
Meta-Llama-3-8B-FP8 · LlamaForCausalLM · FP8_DYNAMIC: E4M3 weights per channel,
activations per token at run time · ignored: lm_head

╭─────────────────────┬─────────┬───────────────┬─────────────┬─────────╮
│ dtype               │ tensors │    parameters │    mem (MB) │   share │
├─────────────────────┼─────────┼───────────────┼─────────────┼─────────┤
│ torch.bfloat16      │     291 │ 1,050,939,392 │ 2104.631296 │  23.2 % │
│ torch.float8_e4m3fn │     224 │ 6,979,321,856 │ 6979.321856 │  76.8 % │
├─────────────────────┼─────────┼───────────────┼─────────────┼─────────┤
│ total               │     515 │ 8,030,261,248 │ 9083.953152 │ 100.0 % │
╰─────────────────────┴─────────┴───────────────┴─────────────┴─────────╯

9.08 GB = 8.46 GiB in 1 file · headers 61,288 bytes
"""
    )


def test_a_document_has_all_that_the_table_has(llama_3_8b: Path) -> None:
    assert json.loads(printed(run(InspectRequest(source=llama_3_8b)), as_json=True)) == {
        "schema_version": 1,
        "command": "inspect",
        "fp8_version": __version__,
        "ok": True,
        "exit_code": 0,
        "result": {
            "name": "Meta-Llama-3-8B-FP8",
            "path": str(llama_3_8b),
            "architecture": "LlamaForCausalLM",
            "has_config": True,
            "has_fp8_tensors": True,
            "quantization": {
                "method": "compressed-tensors",
                "scheme": "FP8_DYNAMIC",
                "words": "E4M3 weights per channel, activations per token at run time",
                "ignored": ["lm_head"],
            },
            "dtypes": [
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
            ],
            "total": {"tensors": 515, "parameters": 8_030_261_248, "bytes": 9_083_953_152},
            "files": 1,
            "header_bytes": 61_288,
            "groups": None,
            "tensors": None,
        },
        "error": None,
    }


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


def test_details_fold_repeated_layers(tiny: Path) -> None:
    text = printed(run(InspectRequest(source=tiny, details=True)))
    assert text.split("\n\n")[3] == (
        """\
tensor                                                  dtype                shape      mem (MB)
lm_head.weight                                          torch.bfloat16       [256, 64]  0.032768
model.embed_tokens.weight                               torch.bfloat16       [256, 64]  0.032768
model.layers.{0..3}.input_layernorm.weight ×4           torch.bfloat16       [64]       0.000512
model.layers.{0..3}.mlp.down_proj.weight ×4             torch.float8_e4m3fn  [64, 128]  0.032768
model.layers.{0..3}.mlp.down_proj.weight_scale ×4       torch.bfloat16       [64, 1]    0.000512
model.layers.{0..3}.mlp.gate_proj.weight ×4             torch.float8_e4m3fn  [128, 64]  0.032768
model.layers.{0..3}.mlp.gate_proj.weight_scale ×4       torch.bfloat16       [128, 1]   0.001024
model.layers.{0..3}.mlp.up_proj.weight ×4               torch.float8_e4m3fn  [128, 64]  0.032768
model.layers.{0..3}.mlp.up_proj.weight_scale ×4         torch.bfloat16       [128, 1]   0.001024
model.layers.{0..3}.post_attention_layernorm.weight ×4  torch.bfloat16       [64]       0.000512
model.layers.{0..3}.self_attn.k_proj.weight ×4          torch.float8_e4m3fn  [32, 64]   0.008192
model.layers.{0..3}.self_attn.k_proj.weight_scale ×4    torch.bfloat16       [32, 1]    0.000256
model.layers.{0..3}.self_attn.o_proj.weight ×4          torch.float8_e4m3fn  [64, 64]   0.016384
model.layers.{0..3}.self_attn.o_proj.weight_scale ×4    torch.bfloat16       [64, 1]    0.000512
model.layers.{0..3}.self_attn.q_proj.weight ×4          torch.float8_e4m3fn  [64, 64]   0.016384
model.layers.{0..3}.self_attn.q_proj.weight_scale ×4    torch.bfloat16       [64, 1]    0.000512
model.layers.{0..3}.self_attn.v_proj.weight ×4          torch.float8_e4m3fn  [32, 64]   0.008192
model.layers.{0..3}.self_attn.v_proj.weight_scale ×4    torch.bfloat16       [32, 1]    0.000256
model.norm.weight                                       torch.bfloat16       [64]       0.000128
"""
    )


def test_full_lists_every_tensor_layer_2_before_layer_10(tmp_path: Path) -> None:
    tensors = [(f"layers.{layer}.weight", "BF16", (2,)) for layer in range(12)]
    report = run(InspectRequest(source=write_checkpoint(tmp_path / "twelve", tensors, {}), full=True))
    assert printed(report).split("\n\n")[3].splitlines()[1:] == [
        f"{f'layers.{layer}.weight':16}  torch.bfloat16  [2]    0.000004" for layer in range(12)
    ]


def test_details_in_the_document_are_patterns_and_tensors(tiny: Path) -> None:
    document = json.loads(printed(run(InspectRequest(source=tiny, details=True)), as_json=True))
    groups, tensors = document["result"]["groups"], document["result"]["tensors"]
    assert (len(groups), len(tensors)) == (19, 67)
    assert groups[4] == {
        "pattern": "model.layers.{0..3}.mlp.down_proj.weight_scale",
        "count": 4,
        "dtype": "torch.bfloat16",
        "shape": [64, 1],
        "parameters": 0,
        "bytes": 512,
        "is_scale": True,
    }
    assert sum(group["bytes"] for group in groups) == sum(tensor["bytes"] for tensor in tensors)


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (40, [["dtype", "mem (MB)"], ["tensor", "mem (MB)"]]),
        (80, [["dtype", "tensors", "parameters", "mem (MB)", "share"], ["tensor", "dtype", "mem (MB)"]]),
        (120, [["dtype", "tensors", "parameters", "mem (MB)", "share"], ["tensor", "dtype", "shape", "mem (MB)"]]),
        (200, [["dtype", "tensors", "parameters", "mem (MB)", "share"], ["tensor", "dtype", "shape", "mem (MB)"]]),
    ],
)
def test_a_narrow_terminal_loses_the_least_useful_columns(
    llama_3_8b: Path, width: int, titles: list[list[str]]
) -> None:
    lines = printed(run(InspectRequest(source=llama_3_8b, details=True)), width=width).splitlines()
    assert max(map(len, lines)) <= width
    heads = [lines[number + 1] for number, line in enumerate(lines) if line.startswith("╭")]
    assert [[title.strip() for title in head.strip("│").split("│")] for head in heads] == titles
    assert any("6979.321856" in line for line in lines)


# What a tensor counts as


def test_scales_are_tensors_and_bytes_but_not_parameters(tmp_path: Path) -> None:
    tensors = [
        ("a.weight", "F8_E4M3", (4, 4)),
        ("a.weight_scale", "F32", (4, 1)),
        ("a.weight_scale_inv", "F32", (1, 1)),
        ("a.input_scale", "F32", (1,)),
        ("a.weight_zero_point", "I8", (4, 1)),
        ("attn.k_scale", "F32", ()),
        ("attn.v_scale", "F32", ()),
        ("experts.gate_up_proj", "F8_E4M3", (2, 4, 4)),
        ("experts.gate_up_proj_scale", "F32", (2, 4, 1)),
        ("logit_scale", "F32", ()),
    ]
    report = run(InspectRequest(source=write_checkpoint(tmp_path / "scales", tensors, {}), full=True))
    assert report.tensors is not None
    counted = {row.name: row.parameters for row in report.tensors if row.parameters}
    assert counted == {"a.weight": 16, "experts.gate_up_proj": 32, "logit_scale": 1}
    assert (report.total.tensors, report.total.parameters) == (10, 49)
    assert report.total.bytes == 16 + 16 + 4 + 4 + 4 + 4 + 4 + 32 + 32 + 4


# Folding


def test_experts_fold_along_both_indices() -> None:
    names = [f"layers.{layer}.experts.{expert}.w1" for layer in range(4) for expert in range(128)]
    assert [found.pattern for found in fold(names)] == ["layers.{0..3}.experts.{0..127}.w1"]


def test_a_missing_expert_splits_the_pattern() -> None:
    names = [f"l.{layer}.e.{expert}" for layer in range(4) for expert in range(3) if (layer, expert) != (2, 1)]
    assert [found.pattern for found in fold(names)] == ["l.{0,1,3}.e.{0..2}", "l.2.e.{0,2}"]


@pytest.mark.parametrize(
    ("numbers", "pattern"),
    [
        ([7], "a.7"),
        ([0, 1], "a.{0,1}"),
        ([0, 2, 3, 4, 5], "a.{0,2..5}"),
        ([10, 9, 8, 3], "a.{3,8..10}"),
    ],
)
def test_numbers_fold_into_ranges(numbers: list[int], pattern: str) -> None:
    assert [found.pattern for found in fold(f"a.{number}" for number in numbers)] == [pattern]


def test_tensors_of_unlike_shape_or_dtype_do_not_fold(tmp_path: Path) -> None:
    tensors = [("l.0.w", "BF16", (4, 4)), ("l.1.w", "BF16", (4, 8)), ("l.2.w", "F8_E4M3", (4, 4))]
    report = run(InspectRequest(source=write_checkpoint(tmp_path / "unlike", tensors, {}), details=True))
    assert report.groups is not None
    assert [group.pattern for group in report.groups] == ["l.0.w", "l.1.w", "l.2.w"]


def expand(pattern: str) -> list[str]:
    """Read a pattern back, the way a shell would."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices: list[list[str]] = []
    for position, part in enumerate(parts):
        if position % 2 == 0:
            choices.append([part])
            continue
        ranges = [item.partition("..") for item in part.split(",")]
        choices.append([str(n) for first, _, last in ranges for n in range(int(first), int(last or first) + 1)])
    return ["".join(choice) for choice in itertools.product(*choices)]


@given(st.sets(st.from_regex(r"[a-c]\.(0|[1-9]|1[0-2]|007)\.[xy](0|1|2|3)?", fullmatch=True), max_size=60))
def test_patterns_stand_for_every_name_exactly_once(names: set[str]) -> None:
    folds = fold(names)
    assert sorted(name for found in folds for name in found.names) == sorted(names)
    for found in folds:
        assert expand(found.pattern) == list(found.names)


def test_a_hostile_name_of_ten_thousand_numbers_folds() -> None:
    names = [f"{'1.' * 10_000}{last}" for last in range(2)] + ["9" * 5000]
    assert sorted(name for found in fold(names) for name in found.names) == sorted(names)


# What the config says


def group(weights: Mapping[str, object], activations: Mapping[str, object] | None) -> dict[str, object]:
    block = {"targets": ["Linear"], "weights": {**FLOAT8, **weights}, "input_activations": None}
    if activations is not None:
        block["input_activations"] = {**FLOAT8, **activations}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": block}}}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FP8_DYNAMIC", group({"strategy": "channel"}, {"strategy": "token", "dynamic": True})),
        (
            "FP8_BLOCK",
            group(
                {"strategy": "block", "block_structure": [128, 128]},
                {"strategy": "group", "group_size": 128, "dynamic": True},
            ),
        ),
        ("FP8", group({"strategy": "tensor"}, {"strategy": "tensor", "dynamic": False})),
    ],
)
def test_each_scheme_is_told_by_its_config(name: str, config: dict[str, object]) -> None:
    found = read_quantization(config)
    assert found is not None
    assert (found.scheme, found.words) == (name, SCHEMES[name].summary)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (group({"strategy": "channel"}, None), "E4M3 weights per channel, activations left alone"),
        (
            group({"strategy": "group", "group_size": 32}, {"strategy": "group", "group_size": 32, "dynamic": True}),
            "E4M3 weights per group of 32, activations per group of 32 at run time",
        ),
        (group({"strategy": "channel"}, {"strategy": "token", "dynamic": "local"}), None),
        (group({"strategy": "attn_head"}, {"strategy": "token", "dynamic": True}), None),
        (group({"strategy": "channel", "num_bits": 4}, None), None),
        (group({"strategy": "channel", "type": "int"}, None), None),
        (
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "fmt": "e4m3",
                    "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128],
                }
            },
            "E4M3 weights per 128×128 block, activations per group of 128 at run time",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}},
            "E4M3 weights per tensor, activations per tensor, calibrated",
        ),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2", "activation_scheme": "static"}}, None),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "sometimes"}}, None),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, None),
        ({"text_config": group({"strategy": "channel"}, None)}, "E4M3 weights per channel, activations left alone"),
    ],
)
def test_other_configs_get_words_only_where_they_are_sure(config: dict[str, object], words: str | None) -> None:
    found = read_quantization(config)
    assert found is not None
    assert found.words == words


def test_a_mixture_of_schemes_gets_no_words() -> None:
    config = group({"strategy": "channel"}, None)
    block = config["quantization_config"]
    assert isinstance(block, dict)
    block["config_groups"]["group_1"] = DYNAMIC_GROUP
    found = read_quantization(config)
    assert found is not None
    assert (found.method, found.words) == ("compressed-tensors", None)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": "fp8"}])
def test_no_block_is_no_quantization(config: dict[str, object]) -> None:
    assert read_quantization(config) is None
    assert not mentions_fp8(config)


INT4_WITH_FP8_CACHE = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
        "kv_cache_scheme": {**FLOAT8, "strategy": "tensor"},
        "ignore": ["model.fp8_router"],
    }
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FP8_DYNAMIC_CONFIG, True),
        ({"quantization_config": {"quant_method": "fp8"}}, True),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, True),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": {"default": "Float8Tensor"}}}, True),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, False),
        (INT4_WITH_FP8_CACHE, False),
    ],
)
def test_a_config_speaks_of_fp8_only_for_weights(config: dict[str, object], *, expected: bool) -> None:
    assert mentions_fp8(config) is expected


@pytest.mark.parametrize(
    ("config", "first_line"),
    [
        ({}, "model · FP8 tensors, but no quantization_config"),
        (None, "model · no config.json"),
        (
            {"architectures": ["A"], "quantization_config": {"quant_method": "quark"}},
            "model · A · quantized: quark",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "activation_scheme": "dynamic",
                    "modules_to_not_convert": ["re:.*norm", *(f"{m}.{n}" for n in range(9) for m in "abcde")],
                }
            },
            (
                "model · fp8: E4M3 weights per tensor, activations at run time "
                "· ignored: re:.*norm, a.{0..8}, b.{0..8}, c.{0..8} and 2 more"
            ),
        ),
    ],
)
def test_the_first_line_says_what_is_known(tmp_path: Path, config: dict[str, object] | None, first_line: str) -> None:
    folder = write_checkpoint(tmp_path / "model", [("a.weight", "F8_E4M3", (2, 2))], config)
    assert printed(run(InspectRequest(source=folder))).splitlines()[0] == first_line


# What is inspected


BF16_TENSORS = [("a.weight", "BF16", (2, 2))]
FP8_TENSORS = [("a.weight", "F8_E4M3", (2, 2))]


def test_without_a_name_the_current_folder_is_inspected(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "here", BF16_TENSORS, {})
    write_checkpoint(tmp_path / "here" / "below", FP8_TENSORS, FP8_DYNAMIC_CONFIG)
    assert find_checkpoint(tmp_path / "here") == tmp_path / "here"


@pytest.mark.parametrize(
    ("tensors", "config"),
    [(FP8_TENSORS, {}), (BF16_TENSORS, FP8_DYNAMIC_CONFIG)],
    ids=["by its tensors", "by its config"],
)
def test_without_a_name_the_one_fp8_checkpoint_below_is_inspected(
    tmp_path: Path, tensors: Tensors, config: dict[str, object]
) -> None:
    write_checkpoint(tmp_path / "base", BF16_TENSORS, {})
    # Scales of other formats are 8-bit floats too, of a kind that holds no weights.
    write_checkpoint(tmp_path / "mxfp4", [("a.blocks", "U8", (2, 2)), ("a.scales", "F8_E8M0", (2,))], {})
    write_checkpoint(tmp_path / ".unfinished", FP8_TENSORS, FP8_DYNAMIC_CONFIG)
    write_checkpoint(tmp_path / "no-config", FP8_TENSORS, None)
    quantized = write_checkpoint(tmp_path / "quantized", tensors, config)
    report = run(InspectRequest(start=tmp_path))
    assert report.path == quantized


def test_two_fp8_checkpoints_are_both_named(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "a b", FP8_TENSORS, {})
    second = write_checkpoint(tmp_path / "c", FP8_TENSORS, {})
    with pytest.raises(UsageError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.message == f"2 FP8 checkpoints lie here: `{first}`, `{second}`"
    assert caught.value.hint == f"name one of them: fp8 inspect '{first}'"


def test_no_checkpoint_at_all_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.message == f"`{tmp_path}` is no checkpoint, and no folder in it is an FP8 checkpoint"
    assert caught.value.hint == "name the checkpoint: fp8 inspect PATH"


def test_a_checkpoint_that_is_not_fp8_is_offered_but_not_taken(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", BF16_TENSORS, {})
    broken = write_checkpoint(tmp_path / "broken", BF16_TENSORS, {})
    (broken / "model.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.hint == f"`{base}` is a checkpoint, though not in FP8: fp8 inspect {base}"


def test_one_file_is_inspected_by_itself(tiny: Path) -> None:
    report = run(InspectRequest(source=tiny / "model.safetensors"))
    folder = run(InspectRequest(source=tiny))
    assert (report.dtypes, report.total) == (folder.dtypes, folder.total)
    assert printed(report).splitlines()[0] == "model.safetensors · no config.json"


def test_a_folder_without_a_config_is_checked_like_any_other(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "no-config", FP8_TENSORS, None)
    assert run(InspectRequest(source=folder)).total.bytes == 4
    write_weights(folder / "model-2.safetensors", FP8_TENSORS)
    with pytest.raises(BadInput, match=r"has 2 .* but no `model\.safetensors\.index\.json`"):
        run(InspectRequest(source=folder))


def test_a_dangling_config_is_not_the_same_as_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "dangling", FP8_TENSORS, None)
    (folder / "config.json").symlink_to(folder / "gone.json")
    with pytest.raises(BadInput, match=r"`config\.json`"):
        run(InspectRequest(source=folder))


def test_a_truncated_shard_is_refused(tiny: Path) -> None:
    file = tiny / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4096)
    with pytest.raises(BadInput, match=r"`model\.safetensors` ends 4,096 bytes early"):
        run(InspectRequest(source=tiny))


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        run(InspectRequest(source=tmp_path / "nothing"))
    assert caught.value.message == f"there is no file or folder `{tmp_path / 'nothing'}`"
    assert caught.value.hint is not None


def test_the_command_line_says_the_same_in_words_and_in_json(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", FP8_TENSORS, {})
    write_checkpoint(tmp_path / "b", FP8_TENSORS, {})
    finished = subprocess.run(
        [sys.executable, "-m", "fp8cli", "inspect", "--json"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert finished.stderr == "error: 2 FP8 checkpoints lie here: `a`, `b`\n\nhint: name one of them: fp8 inspect a\n"
    assert json.loads(finished.stdout)["error"] == {
        "message": "2 FP8 checkpoints lie here: `a`, `b`",
        "hint": "name one of them: fp8 inspect a",
    }


# What it costs

PROGRAM = """
import sys
from pathlib import Path
from fp8cli.commands.inspect import InspectRequest, run
from fp8cli.render.console import Output
from fp8cli.render.inspection import show
show(run(InspectRequest(source=Path(sys.argv[1]), details=True)), Output.standard())
heavy = {"torch", "numpy", "pandas", "rich.console", "safetensors"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""


def test_two_thousand_tensors_into_a_pipe_take_no_library_and_under_four_tenths_of_a_second(tmp_path: Path) -> None:
    tensors = llama(layers=125, vocabulary=256, hidden=64, intermediate=128, kv=32)
    folder = write_checkpoint(tmp_path / "deep", tensors, FP8_DYNAMIC_CONFIG)
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what other programs on the machine do is none of our cost.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert re.search(r"^total +2,003 ", finished.stdout, re.MULTILINE)
    assert min(seconds) <= 0.4
