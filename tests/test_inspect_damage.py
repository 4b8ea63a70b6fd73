"""A checkpoint damaged in any of the known ways is never called healthy by `fp8 inspect`, and a sound one always is.

Damage is planted in a real FP8 checkpoint, or is a whole folder of malformed.py, and the whole command is run: its
exit code, its verdict in words and in JSON, and the check that must have failed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inspecting import fp8_inspect
from tests.malformed import CHECKS, CONFIG, FLAWED_FOLDERS, MALFORMED, SOUND_FILES, Flawed, Malformed, Sound
from tests.planting import (
    LAYER,
    STORIES,
    Tensors,
    change,
    change_config,
    quantize_stories,
    set_code,
    set_scale,
)
from tests.sparse import write_weights
from tests.test_consistency import CONFIG_FAULTS, TENSOR_FAULTS

WEIGHT, SCALE = f"{LAYER}.weight", f"{LAYER}.weight_scale"
NORM = "model.norm.weight"
UNHEARD_OF = {"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard_of"}
"""An architecture that promises nothing, so that one tensor `a` is a whole checkpoint."""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_stories(tmp_path_factory.mktemp("healthy") / "stories-FP8-dynamic")


def assert_damaged(folder: Path, check: str, *words: str) -> None:
    run = fp8_inspect(folder, *words, "--json")
    assert run.code == 1
    assert (run.report["verdict"], check in run.failed()) == ("damaged", True), run.failed()
    in_words = fp8_inspect(folder, *words)
    assert in_words.code == 1
    assert in_words.out.splitlines()[-1].startswith("damaged: ")
    assert f"✗ failed       {check} " in in_words.out
    assert "vllm serve" not in in_words.out


def assert_not_damaged(folder: Path, *words: str, verdict: str = "healthy") -> None:
    run = fp8_inspect(folder, *words, "--json")
    assert run.failed() == set()
    assert (run.code, run.report["verdict"]) == (0, verdict)
    in_words = fp8_inspect(folder, *words)
    assert in_words.code == 0
    assert in_words.out.splitlines()[-1].startswith(f"{verdict}: ")


# Sound ones


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_what_fp8_quantize_makes_is_healthy(tmp_path: Path, scheme: str) -> None:
    made = quantize_stories(tmp_path / scheme, scheme)
    assert_not_damaged(made)
    assert_not_damaged(made, "--against", str(STORIES))
    assert_not_damaged(made, "--verify", "--against", str(STORIES))
    # Without it no hash is stored.
    (made / "fp8.json").unlink()
    assert_not_damaged(made, "--verify", "--against", str(STORIES), verdict="no fault found")


def test_the_source_is_healthy() -> None:
    assert_not_damaged(STORIES)
    assert_not_damaged(STORIES, "--verify", verdict="no fault found")


@pytest.mark.parametrize(
    "case",
    [case for case in SOUND_FILES if case.name not in {"escaped_metadata_key", "metadata_only", "no_tensors"}],
    ids=lambda case: case.name,
)
def test_a_file_that_only_looks_odd_is_healthy(case: Sound, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    case.build(folder)
    (folder / "config.json").write_text(json.dumps(UNHEARD_OF))
    # Nobody has heard of the architecture, so what it needs is not checked.
    assert_not_damaged(folder, verdict="no fault found")


# Tensors and config


@pytest.mark.parametrize("name", [name for name in TENSOR_FAULTS if "failed" in TENSOR_FAULTS[name][1].values()])
def test_damaged_tensors_are_never_healthy(healthy: Path, tmp_path: Path, name: str) -> None:
    plant, expected, _, _ = TENSOR_FAULTS[name]
    folder = change(healthy, tmp_path / "copy", plant)
    for check in (check for check, status in expected.items() if status == "failed"):
        assert_damaged(folder, check)


@pytest.mark.parametrize("name", [name for name in CONFIG_FAULTS if "failed" in CONFIG_FAULTS[name][1].values()])
def test_a_config_that_does_not_fit_is_never_healthy(healthy: Path, tmp_path: Path, name: str) -> None:
    plant, expected, _, _ = CONFIG_FAULTS[name]
    folder = shutil.copytree(healthy, tmp_path / "copy")
    change_config(folder, plant)
    for check in (check for check, status in expected.items() if status == "failed"):
        assert_damaged(folder, check)


@pytest.mark.parametrize(
    ("value", "check"),
    [
        (float("nan"), "scale.nan"),
        (float("inf"), "scale.infinite"),
        (float("-inf"), "scale.infinite"),
        (0.0, "scale.zero"),
        (-0.0, "scale.zero"),
        (-0.01, "scale.negative"),
        (-(2.0**-130), "scale.negative"),
    ],
)
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_one_bad_scale_is_never_healthy(tmp_path: Path, scheme: str, value: float, check: str) -> None:
    made = quantize_stories(tmp_path / scheme, scheme)
    folder = change(made, tmp_path / "copy", lambda tensors: set_scale(tensors, SCALE, 0, value))
    assert_damaged(folder, check)


# Files and index


def build(case: Malformed | Flawed, folder: Path) -> Path:
    """Build a case on an architecture that promises nothing, so that its own damage alone decides."""
    case.build(folder)
    config = folder / "config.json"
    if config.is_file() and not config.is_symlink() and config.read_bytes() == json.dumps(CONFIG).encode():
        mode = config.stat().st_mode
        config.write_text(json.dumps(UNHEARD_OF))
        config.chmod(mode)
    return folder


FAILED_FLAWS = [case for case in FLAWED_FOLDERS if case.status == "failed"]
OTHER_FLAWS = [case for case in FLAWED_FOLDERS if case.status != "failed"]
WARNED = {"index.total_size"}
"""Checks of MALFORMED that no loader minds."""


def check_of(case: Malformed) -> str:
    return CHECKS.get(case.name, "file.header")


@pytest.mark.parametrize("case", [c for c in MALFORMED if check_of(c) not in WARNED], ids=lambda case: case.name)
def test_a_malformed_checkpoint_is_never_healthy(case: Malformed, tmp_path: Path) -> None:
    assert_damaged(build(case, tmp_path / "checkpoint"), check_of(case))


@pytest.mark.parametrize("case", FAILED_FLAWS, ids=lambda case: case.name)
def test_a_flawed_checkpoint_is_never_healthy(case: Flawed, tmp_path: Path) -> None:
    assert_damaged(build(case, tmp_path / "checkpoint"), case.check)


@pytest.mark.parametrize("case", OTHER_FLAWS, ids=lambda case: case.name)
def test_what_is_odd_but_loads_is_a_warning_or_not_checked(case: Flawed, tmp_path: Path) -> None:
    folder = build(case, tmp_path / "checkpoint")
    assert_not_damaged(folder, verdict="doubtful" if case.status == "warning" else "no fault found")
    assert case.status in fp8_inspect(folder, "--json").status_of(case.check)


@pytest.mark.parametrize("case", [c for c in MALFORMED if check_of(c) in WARNED], ids=lambda case: case.name)
def test_a_wrong_total_size_is_a_warning(case: Malformed, tmp_path: Path) -> None:
    folder = build(case, tmp_path / "checkpoint")
    assert_not_damaged(folder, verdict="doubtful")
    assert "warning" in fp8_inspect(folder, "--json").status_of(check_of(case))


def test_a_subnormal_scale_is_a_warning(healthy: Path, tmp_path: Path) -> None:
    folder = change(healthy, tmp_path / "copy", lambda tensors: set_scale(tensors, SCALE, 3, 2.0**-130))
    assert_not_damaged(folder, verdict="doubtful")
    assert fp8_inspect(folder, "--json").status_of("scale.subnormal") == {"warning"}


# With --verify


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_nan_among_the_codes_is_found_by_verify_alone(healthy: Path, tmp_path: Path, code: int) -> None:
    folder = change(healthy, tmp_path / "copy", lambda tensors: set_code(tensors, WEIGHT, 5, 7, code))
    assert_not_damaged(folder)
    assert_damaged(folder, "weight.finite", "--verify")


def test_a_nan_in_what_is_not_quantized_is_found_by_verify(healthy: Path, tmp_path: Path) -> None:
    folder = change(healthy, tmp_path / "copy", lambda tensors: set_scale(tensors, NORM, 3, float("inf")))
    assert_damaged(folder, "weight.finite", "--verify")


def test_a_file_that_is_not_what_its_stored_hash_says_is_found_by_verify(healthy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(healthy, tmp_path / "copy")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    assert_not_damaged(folder, "--verify")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    assert_damaged(folder, "hash.sha256", "--verify")


def test_saturated_codes_and_rows_of_zeros_are_warnings(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        codes = tensors[WEIGHT].view(torch.uint8).clone()
        codes[0] = 0
        codes[1:9] = 0x7E
        tensors[WEIGHT] = codes.view(torch.float8_e4m3fn)

    folder = change(healthy, tmp_path / "copy", plant)
    assert_not_damaged(folder, "--verify", verdict="doubtful")
    run = fp8_inspect(folder, "--verify", "--json")
    assert run.status_of("weight.saturated") == run.status_of("weight.zero_rows") == {"warning"}


# With --against


def flip_a_bit(tensors: Tensors) -> None:
    bits = tensors[NORM].view(torch.int16).clone()
    bits[-1] ^= 1
    tensors[NORM] = bits.view(torch.bfloat16)


def swap(tensors: Tensors) -> None:
    first, second = (f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1))
    for part in ("weight", "weight_scale"):
        names = f"{first}.{part}", f"{second}.{part}"
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def upside_down(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8).flip(0).view(torch.float8_e4m3fn)


AGAINST: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "one bit of a norm": (flip_a_bit, "against.copies"),
    "a tensor that is missing": (lambda t: t.pop("model.layers.0.input_layernorm.weight"), "against.accounted"),
    "a tensor of another model": (lambda t: t.update({"model.extra.weight": torch.zeros(3)}), "against.accounted"),
    "a tensor cut in half": (lambda t: t.update({NORM: t[NORM][:64].clone()}), "against.accounted"),
    "a scale twice too large": (lambda t: t.update({SCALE: t[SCALE] * 2}), "against.sqnr"),
    "rows in another order": (lambda t: t.update({WEIGHT: upside_down(t[WEIGHT])}), "against.sqnr"),
    "weights of two layers swapped": (swap, "against.sqnr"),
}


@pytest.mark.parametrize("name", [*AGAINST])
def test_what_is_not_from_its_source_is_never_healthy(healthy: Path, tmp_path: Path, name: str) -> None:
    plant, check = AGAINST[name]
    assert_damaged(change(healthy, tmp_path / "copy", plant), check, "--against", str(STORIES))


@pytest.mark.parametrize("words", [("--verify",), ("--against", str(STORIES)), ("--verify", "--against", str(STORIES))])
def test_a_cut_file_is_damaged_however_closely_one_looks(healthy: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = shutil.copytree(healthy, tmp_path / "copy")
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size * 2 // 3)
    assert_damaged(folder, "file.cut_short", *words)


@pytest.mark.parametrize("case", [c for c in MALFORMED if check_of(c) not in WARNED], ids=lambda case: case.name)
def test_a_malformed_checkpoint_is_survived_however_closely_one_looks(case: Malformed, tmp_path: Path) -> None:
    folder = build(case, tmp_path / "checkpoint")
    assert fp8_inspect(folder, "--verify", "--json").code == 1
    assert fp8_inspect(folder, "--against", str(STORIES), "--json").code == 1
    # As the source of a sound one, it is one where nothing, or little, can be found.
    assert fp8_inspect(STORIES, "--against", str(folder), "--json").code == 1


# Whatever lies in the files: never a traceback, and one of the codes that there are.

fuzzed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
PLACES = ("config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json")
EXIT_CODES = {0, 1, 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a real FP8 checkpoint of 2 kB, with an index."""
    folder = tmp_path_factory.mktemp("small")
    tensors = [
        ("model.layers.0.mlp.down_proj.weight", "F8_E4M3", (16, 16)),
        ("model.layers.0.mlp.down_proj.weight_scale", "BF16", (16, 1)),
        ("model.norm.weight", "BF16", (16,)),
    ]
    write_weights(folder / "model.safetensors", tensors)
    quantization = json.loads((quantize_stories(folder / "q") / "config.json").read_text())
    size = 256 + 32 + 32
    index = {"metadata": {"total_size": size}, "weight_map": {name: "model.safetensors" for name, _, _ in tensors}}
    return {
        "config.json": json.dumps(quantization).encode(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


def assert_survived(files: dict[str, bytes], *words: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        for views in ((), ("--json", "--details"), ("--csv",), ("--markdown", "--full")):
            assert fp8_inspect(name, *views, *words).code in EXIT_CODES


@fuzzed
@given(st.dictionaries(st.sampled_from(PLACES), st.binary(max_size=80), min_size=1, max_size=3))
def test_any_bytes_in_any_file_are_survived(small: dict[str, bytes], files: dict[str, bytes]) -> None:
    assert_survived(small | files)


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Return `content` with up to four bytes changed, put in or cut off."""
    telling = st.integers(0, 255) | st.sampled_from(list(b'"{}[]:,0129-. \\'))
    change = st.tuples(st.sampled_from("change insert cut".split()), st.integers(0, len(content) - 1), telling)

    def apply(changes: list[tuple[str, int, int]]) -> bytes:
        mutated = bytearray(content)
        for kind, place, byte in changes:
            if kind == "insert":
                mutated.insert(place, byte)
            elif kind == "cut":
                del mutated[max(place, len(content) // 2) :]
            elif place < len(mutated):
                mutated[place] = byte
        return bytes(mutated)

    return st.lists(change, min_size=1, max_size=4).map(apply)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@fuzzed
@given(data=st.data())
def test_a_real_file_with_some_bytes_changed_is_survived(
    small: dict[str, bytes], file: str, data: st.DataObject
) -> None:
    assert_survived(small | {file: data.draw(mutations(small[file]))}, "--verify", "--against", str(STORIES))


def json_paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from json_paths(child, (*path, key))


odd_values = st.sampled_from(
    [None, True, -1, 0, 1, 10**30, -0.5, 1e308, "", "float", "tensor", "re:(", [], [None], {}, {"a": 1}, [[128, 128]]]
)


@fuzzed
@given(data=st.data())
def test_a_real_config_with_odd_values_is_survived(small: dict[str, bytes], data: st.DataObject) -> None:
    config = json.loads(small["config.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*json_paths(config)]))
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = data.draw(odd_values)
    assert_survived(small | {"config.json": json.dumps(config).encode()})
