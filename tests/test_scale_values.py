"""Values of scales: bad ones planted in a real FP8 checkpoint, and numbers compared with what torch reads."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fp8cli.core.inspection.anatomy import dissect
from fp8cli.core.inspection.consistency import check_consistency
from fp8cli.core.inspection.dialect import recognise_dialect
from fp8cli.core.inspection.roles import role_table
from fp8cli.core.inspection.scale_sweep import DECODABLE, decode, sweep
from fp8cli.core.inspection.scale_values import check_scales
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.errors import BadInput
from fp8cli.formats.safetensors import DTYPES, TensorInfo
from tests.checkpoints import SINGLE, Tensors, change_tensors, look, quantize_bundled, troubles, values
from tests.costs import growth

UP = "model.layers.1.mlp.up_proj.weight_scale"
BOTH = ("FP8_DYNAMIC", "FP8_BLOCK")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("healthy")
    return {scheme: quantize_bundled(root / scheme, scheme) for scheme in BOTH}


def put(value: float, name: str = UP) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name][-1, 0] = value

    return change


@pytest.mark.parametrize("scheme", BOTH)
@pytest.mark.parametrize(
    ("value", "check", "status", "word"),
    [
        (math.nan, "scale.nan", "failed", "NaN"),
        (math.inf, "scale.infinite", "failed", "infinite"),
        (-math.inf, "scale.infinite", "failed", "infinite"),
        (0.0, "scale.zero", "failed", "zero"),
        (-0.5, "scale.negative", "failed", "negative"),
        (2.0**-130, "scale.subnormal", "warning", "subnormal"),
    ],
)
def test_a_bad_scale_is_found_with_tensor_place_and_count(
    healthy: dict[str, Path], tmp_path: Path, scheme: str, value: float, check: str, status: str, word: str
) -> None:
    folder = Path(shutil.copytree(healthy[scheme], tmp_path / scheme))
    change_tensors(folder, put(value))
    findings = values(folder)
    assert troubles(findings) == {check: status}
    finding = next(finding for finding in findings if finding.check == check)
    shape = load_file(folder / SINGLE)[UP].shape
    noun = "value" if shape.numel() == 1 else "values"
    assert finding.subject == UP
    assert finding.found == f"1 of {shape.numel():,} {noun} is {word}, the first at [{shape[0] - 1}, 0]"
    assert finding.consequence
    assert finding.remedy == "quantize again from the source: fp8 quantize SOURCE"


def test_the_same_fault_in_every_layer_is_one_finding(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(healthy["FP8_DYNAMIC"], tmp_path / "bad"))
    names = [f"model.layers.{layer}.mlp.up_proj.weight_scale" for layer in range(3)]
    change_tensors(folder, lambda tensors: [put(math.nan, name)(tensors) for name in names])
    (finding,) = values(folder)
    assert (finding.check, finding.count) == ("scale.nan", 3)
    assert finding.subject == "model.layers.{0..2}.mlp.up_proj.weight_scale"
    assert finding.found.startswith("3 of ")
    assert finding.found.endswith(f", the first at [{len(load_file(folder / SINGLE)[UP]) - 1}, 0] of `{names[0]}`")


@pytest.mark.parametrize("scheme", BOTH)
def test_the_statistics_are_those_of_torch(healthy: dict[str, Path], scheme: str) -> None:
    (stats,), findings = check_scales(*look(healthy[scheme]))
    scales = {
        name: tensor.float() for name, tensor in load_file(healthy[scheme] / SINGLE).items() if name.endswith("_scale")
    }
    every = torch.cat([scale.flatten() for scale in scales.values()])
    assert (stats.label, stats.dtypes, stats.tensors) == ("weight_scale", ("BF16",), len(scales))
    assert stats.values == len(every)
    assert (stats.minimum, stats.maximum) == (every.min().item(), every.max().item())
    # torch's own median is the lower of the two in the middle.
    assert stats.median == pytest.approx(every.quantile(0.5).item(), rel=1e-6)
    assert stats.bad == {}
    expected = {name: (scale.min().item(), scale.max().item()) for name, scale in scales.items()}
    assert dict(zip(stats.names, stats.ranges, strict=True)) == expected
    assert [finding.found for finding in findings] == [
        f"{len(every):,} scales in {len(scales)} tensors read: all finite and positive"
    ]


# Bytes to numbers, against torch

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
}


def test_every_dtype_that_is_read_has_its_counterpart_here() -> None:
    assert TORCH.keys() == DECODABLE


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E8M0", "U8", "F8_E4M3"])
def test_every_code_decodes_to_what_torch_reads(dtype: str) -> None:
    width = TORCH[dtype].itemsize
    data = b"".join(code.to_bytes(width, "little") for code in range(256**width))
    theirs = torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).double()
    with np.errstate(invalid="ignore"):
        ours = torch.from_numpy(decode(dtype, data)).double()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(width=32), min_size=1, max_size=5), min_size=1, max_size=8))
def test_a_sweep_counts_what_a_loop_over_all_values_counts(tensors: list[list[float]]) -> None:
    flat = [value for tensor in tensors for value in tensor]
    data = torch.tensor(flat, dtype=torch.float32).numpy().tobytes()
    found = sweep("F32", data, [len(tensor) for tensor in tensors])
    tests: dict[str, Callable[[float], bool]] = {
        "scale.nan": math.isnan,
        "scale.infinite": math.isinf,
        "scale.zero": lambda value: value == 0,
        "scale.negative": lambda value: -math.inf < value < 0,
        "scale.subnormal": lambda value: 0 < value < 2.0**-126,
    }
    for fault, test in tests.items():
        counts = [sum(map(test, tensor)) for tensor in tensors]
        assert (found.bad[fault].tolist() if fault in found.bad else [0] * len(tensors)) == counts
        places = {n: next(p for p, value in enumerate(t) if test(value)) for n, t in enumerate(tensors) if counts[n]}
        assert found.first.get(fault, {}) == places
    good = [[value for value in tensor if 0 < value < math.inf] for tensor in tensors]
    assert found.minima.tolist() == [min(tensor, default=math.inf) for tensor in good]
    assert found.maxima.tolist() == [max(tensor, default=0) for tensor in good]
    assert sorted(found.sample.tolist()) == sorted(value for tensor in good for value in tensor)


# Damaged files


class Memory:
    """Files in memory; reading one of `broken` raises."""

    def __init__(self, files: dict[str, bytes], broken: frozenset[str] = frozenset()) -> None:
        self.files = files
        self.broken = broken

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        for file, begin, end in ranges:
            if file in self.broken:
                raise BadInput(f"`{file}` cannot be read")
            yield self.files[file][begin:end]


def in_memory(reader: Memory, tensors: Sequence[TensorInfo], files: Sequence[str]) -> Survey:
    stored = {
        info.name: StoredTensor(name=info.name, file=file, info=info) for info, file in zip(tensors, files, strict=True)
    }
    return Survey(
        label="memory",
        files={},
        config=None,
        side_configs={},
        headers={},
        tensors=stored,
        findings=(),
        reader=reader,
    )


def test_scales_beyond_the_end_of_a_file_are_not_checked_and_the_others_are() -> None:
    one = torch.ones(4).numpy().tobytes()
    infos = [TensorInfo(f"{n}.weight_scale", "F32", (4, 1), 16 * n, 16 * n + 16) for n in range(3)]
    seen = in_memory(Memory({"f": one + one + one[:7]}), infos, "fff")
    (stats,), findings = check_scales(seen, recognise_dialect(seen))
    assert stats.tensors == 2
    assert [(finding.status, finding.subject, finding.found) for finding in findings] == [
        ("passed", None, "8 scales in 2 tensors read: all finite and positive"),
        ("not checked", "2.weight_scale", "1 scale tensor cannot be read: their file ends before they do"),
    ]


def test_a_file_that_cannot_be_read_hides_no_other_one() -> None:
    one = torch.ones(4).numpy().tobytes()
    infos = [TensorInfo(f"{n}.weight_scale", "F32", (4, 1), 0, 16) for n in range(3)]
    seen = in_memory(Memory({"a": one, "c": one}, frozenset("b")), infos, "abc")
    (stats,), findings = check_scales(seen, recognise_dialect(seen))
    assert stats.names == ("0.weight_scale", "2.weight_scale")
    assert [finding.found for finding in findings if finding.status == "not checked"] == [
        "1 scale tensor cannot be read: `b` cannot be read"
    ]


def test_powers_of_two_have_a_nan_of_their_own() -> None:
    infos = [TensorInfo("a.weight_scale", "F8_E8M0", (2, 2), 0, 4), TensorInfo("b.weight_scale", "U8", (2,), 4, 6)]
    seen = in_memory(Memory({"f": bytes([127, 0, 128, 255, 126, 255])}), infos, "ff")
    (stats,), findings = check_scales(seen, recognise_dialect(seen))
    assert (stats.minimum, stats.maximum, stats.bad) == (2.0**-127, 2.0, {"scale.nan": 2})
    assert [(finding.subject, finding.found) for finding in findings] == [
        ("a.weight_scale", "1 of 4 values is NaN, the first at [1, 1]"),
        ("b.weight_scale", "1 of 2 values is NaN, the first at [1]"),
    ]


def test_scales_of_whole_numbers_are_not_checked() -> None:
    infos = [TensorInfo("a.weight_scale", "I32", (1,), 0, 4)]
    seen = in_memory(Memory({"f": bytes(4)}), infos, "f")
    stats, findings = check_scales(seen, recognise_dialect(seen))
    assert stats == ()
    assert [(finding.status, finding.found) for finding in findings] == [
        ("not checked", "1 scale tensor in I32, which this tool does not read as scales")
    ]


def test_zeros_are_usual_among_the_scales_of_other_formats() -> None:
    infos = [TensorInfo("a.SCB", "F32", (2,), 0, 8), TensorInfo("b.scales", "F16", (2,), 8, 12)]
    seen = in_memory(Memory({"f": bytes(12)}), infos, "ff")
    assert troubles(check_scales(seen, recognise_dialect(seen))[1]) == {}


# What it costs


def many_experts(layers: int) -> Survey:
    """Lay out a mixture of 256 experts a layer in memory: 1,536 tensors for each."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": layers,
        "num_experts": 256,
        "hidden_size": 8,
        "moe_intermediate_size": 8,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 8,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    }
    infos: list[TensorInfo] = []
    for layer in range(layers):
        for expert in range(256):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}"
                begin = infos[-1].end if infos else 0
                infos.append(TensorInfo(f"{name}.weight", "F8_E4M3", (8, 8), begin, begin + 64))
                infos.append(TensorInfo(f"{name}.weight_scale_inv", "F32", (1, 1), begin + 64, begin + 68))
    data = (bytes(64) + torch.ones(1).numpy().tobytes()) * (len(infos) // 2)
    seen = in_memory(Memory({"f": data}), infos, "f" * len(infos))
    return Survey(**{**vars(seen), "config": config})


def look_through(seen: Survey) -> None:
    dialect = recognise_dialect(seen)
    anatomy = dissect(seen, dialect)
    role_table(seen, dialect, anatomy)
    check_consistency(seen, dialect, anatomy)
    check_scales(seen, dialect)


def test_four_times_the_tensors_take_about_four_times_as_long() -> None:
    few, many = many_experts(12), many_experts(48)
    assert growth(lambda: look_through(few), lambda: look_through(many)) < 7


def test_numpy_is_loaded_for_values_alone_and_torch_never(healthy: dict[str, Path]) -> None:
    program = """
import sys
from pathlib import Path
from fp8cli.core.inspection.consistency import check_consistency
from fp8cli.core.inspection.dialect import recognise_dialect
from fp8cli.core.inspection.roles import role_table
from fp8cli.core.inspection.scale_values import check_scales
from fp8cli.core.inspection.survey import survey
from fp8cli.formats.checkpoint import LocalFolder
seen = survey(LocalFolder(Path(sys.argv[1])))
dialect = recognise_dialect(seen)
role_table(seen, dialect)
check_consistency(seen, dialect)
print(sorted({"numpy", "torch", "transformers", "pandas"} & set(sys.modules)))
check_scales(seen, dialect)
print(sorted({"numpy", "torch", "transformers", "pandas"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program, str(healthy["FP8_DYNAMIC"])]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == ["[]", "['numpy']"]


# Names, dtypes and shapes from strangers

PARTS = (
    "model",
    "layers",
    "0",
    "1",
    "mlp",
    "experts",
    "self_attn",
    "k_proj",
    "gate",
    "lm_head",
    "\x1b[31m",
    "[bold]",
    "\u202e",
    "9" * 5_000,
)
ENDS = (
    "weight",
    "weight_scale",
    "weight_scale_inv",
    "input_scale",
    "k_scale",
    "weight_zero_point",
    "weight_packed",
    "qweight",
    "scales",
    "x_scale",
    "x_blocks",
    "x_scales",
    "scale",
    "x",
    "",
)
NAMES = st.builds(
    lambda parts, end: ".".join((*parts, end)), st.lists(st.sampled_from(PARTS), max_size=6), st.sampled_from(ENDS)
)
SHAPES = st.lists(st.integers(0, 40), max_size=4).map(tuple)
BLOCKS = st.sampled_from(
    (
        None,
        {"quant_method": "fp8", "activation_scheme": "static"},
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 8]},
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
            },
            "kv_cache_scheme": {"num_bits": 8, "type": "float"},
        },
    )
)


@settings(deadline=None, max_examples=300)
@given(
    rows=st.dictionaries(NAMES, st.tuples(st.sampled_from([*DTYPES]), SHAPES), max_size=12),
    block=BLOCKS,
    architecture=st.sampled_from(("LlamaForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM", "Unheard")),
    data=st.binary(max_size=64),
)
def test_no_tensors_whatsoever_end_in_an_exception(
    rows: dict[str, tuple[str, tuple[int, ...]]], block: object, architecture: str, data: bytes
) -> None:
    infos = []
    for name, (dtype, shape) in rows.items():
        size = math.prod(shape) * DTYPES[dtype].bits // 8
        infos.append(TensorInfo(name, dtype, shape, 0, size))
    seen = in_memory(Memory({"f": data * 2_000}), infos, "f" * len(infos))
    config = {"architectures": [architecture], "num_hidden_layers": 2, "num_experts": 3, "quantization_config": block}
    seen = Survey(**{**vars(seen), "config": config})
    dialect = recognise_dialect(seen)
    table = role_table(seen, dialect)
    assert sum(row.tensors for row in table) == len(infos)
    assert sum(row.bytes for row in table) == sum(info.bytes for info in infos)
    findings = (*check_consistency(seen, dialect), *check_scales(seen, dialect)[1])
    assert findings or not infos
    assert all(finding.found.isprintable() and len(finding.found) < 12_000 for finding in findings)
