"""The header reader and writer, held against the safetensors library: what it refuses, takes and writes."""

import gc
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fp8cli.errors import BadInput
from fp8cli.formats.safetensors import (
    DTYPES,
    MAX_HEADER_BYTES,
    Header,
    data_bytes,
    header_length,
    lay_out,
    parse_header,
    read_header,
)
from tests.costs import growth
from tests.malformed import BROKEN_FILES, SOUND_FILES, STRICTER_FILES, Malformed, Sound, entry, pack

Read = dict[str, tuple[str, list[int], bytes]]


def read_by_the_library(content: bytes) -> Read | None:
    """Name → dtype, shape, bytes, as the library has them; None if it refuses the file."""
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (spec["dtype"], spec["shape"], bytes(spec["data"])) for name, spec in tensors}


def read_by_us(content: bytes) -> Read | None:
    """The same, as this tool has them. Any other exception than BadInput fails the test."""
    try:
        length = header_length(content[:32], len(content), name="x")
        header = parse_header(content[8 : 8 + length], len(content), name="x")
    except BadInput as refusal:
        assert_is_one_sentence(refusal)
        return None
    return {info.name: (info.dtype, list(info.shape), content[info.begin : info.end]) for info in header.tensors}


def assert_is_one_sentence(refusal: BadInput) -> None:
    assert refusal.message.isprintable()
    assert len(refusal.message) < 12_000
    assert not refusal.message.endswith(".")
    refusal.message.encode()


def cases(rows: tuple[Malformed | Sound, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", rows, ids=[row.name for row in rows])


def model_file(case: Malformed | Sound, folder: Path) -> Path:
    case.build(folder)
    return folder / "model.safetensors"


@cases(BROKEN_FILES)
def test_what_the_library_refuses_is_refused_in_one_sentence(case: Malformed, tmp_path: Path) -> None:
    path = model_file(case, tmp_path)
    with pytest.raises((safetensors.SafetensorError, OSError)):
        safetensors.safe_open(path, "pt")
    assert read_by_the_library(path.read_bytes()) is None
    with pytest.raises(BadInput) as refusal:
        read_header(path)
    assert_is_one_sentence(refusal.value)
    assert refusal.value.message.startswith("`model.safetensors` ")
    assert re.search(case.message, refusal.value.message)


@cases(STRICTER_FILES)
def test_what_only_the_library_takes_is_refused_in_one_sentence(case: Malformed, tmp_path: Path) -> None:
    path = model_file(case, tmp_path)
    assert read_by_the_library(path.read_bytes()) is not None
    with pytest.raises(BadInput, match=case.message) as refusal:
        read_header(path)
    assert_is_one_sentence(refusal.value)


@cases(SOUND_FILES)
def test_what_the_library_takes_is_read_alike(case: Sound, tmp_path: Path) -> None:
    path = model_file(case, tmp_path)
    header = read_header(path)
    with safetensors.safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        theirs = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        metadata = file.metadata()
    assert {info.name: (info.dtype, info.shape) for info in header.tensors} == theirs
    assert header.metadata == (metadata or {})
    content = path.read_bytes()
    assert read_by_us(content) == read_by_the_library(content)
    assert [info.begin for info in header.tensors] == sorted(info.begin for info in header.tensors)
    assert header.data_begin + sum(info.bytes for info in header.tensors) == header.file_bytes == len(content)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    for name, message in (
        ("missing", "`missing` does not exist"),
        ("gone", "`gone` does not exist"),
        ("folder", "`folder` is a folder, not safetensors"),
        ("pipe", "`pipe` is not a regular file, not safetensors"),
    ):
        with pytest.raises(BadInput) as refusal:
            read_header(tmp_path / name)
        assert refusal.value.message == message


def test_messages_call_the_file_as_the_caller_does(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(BadInput, match="`shard one` is 0 bytes long"):
        read_header(tmp_path / "x", name="shard one")


# Fuzzing. Everything begins with a sound file and changes little of it, so that both answers come up.
numbers = st.sampled_from([0, 1, 2, 4, 8, -1, 2**61, 2**63, 2**64 - 1, 2**64, 1.0, True, "1", None])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def valid_headers(draw: st.DrawFn) -> tuple[dict[str, dict[str, object]], int]:
    """The entries of a sound file, in any order, and how many bytes of data belong to them."""
    sizes = st.lists(st.integers(0, 3), max_size=3)
    specs = draw(st.dictionaries(st.text(max_size=4), st.tuples(st.sampled_from([*DTYPES]), sizes), max_size=4))
    specs.pop("__metadata__", None)
    header = {}
    end = 0
    for name, (dtype, shape) in specs.items():
        whole = [*shape, 8] if DTYPES[dtype].bits % 8 else shape
        begin, end = end, end + data_bytes(dtype, whole)
        header[name] = entry(dtype, whole, [begin, end])
    return {name: header[name] for name in draw(st.permutations([*header]))}, end


def data_of(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    """A sound file, with or without metadata, in any white space."""
    header, size = draw(valid_headers())
    metadata = draw(st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
    whole = {"__metadata__": metadata, **header} if draw(st.booleans()) else header
    text = json.dumps(whole, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
    return pack(text, data_of(size))


@st.composite
def nearly_valid_files(draw: st.DrawFn) -> bytes:
    """A sound file with one or two values of its header replaced, added or taken away."""
    header, size = draw(valid_headers())
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*header, "new"]))
        fields = header.get(name)
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))
        if not isinstance(fields, dict):
            header[name] = draw(st.just(entry("U8", [0], [size, size])) | anything)
        elif isinstance(old := fields.get(field), list) and old:
            place = draw(st.integers(0, len(old) - 1))
            fields[field] = [*old[:place], draw(numbers), *old[place + 1 :]]
        elif draw(st.booleans()):
            fields[field] = draw(st.sampled_from([*DTYPES, [], {"F32": None}]) | anything)
        else:
            fields.pop(field, None)
    return pack(json.dumps(header), data_of(size + draw(st.sampled_from([0, 0, 0, 0, 1, 4]))))


fuzzed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_agrees_with_the_library(content: bytes) -> None:
    theirs, ours = read_by_the_library(content), read_by_us(content)
    if ours is not None:
        assert ours == theirs
    elif theirs is not None:
        assert is_a_known_difference(content)


def is_a_known_difference(content: bytes) -> bool:
    """Whether a header has what STRICTER_FILES lists: a name given twice, or one of the two odd spellings."""
    found = []

    def look(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found.append(len(dict(pairs)) != len(pairs))
        return dict(pairs)

    length = int.from_bytes(content[:8], "little")
    top = json.loads(content[8 : 8 + length], object_pairs_hook=look)
    entries = [value for name, value in top.items() if name != "__metadata__"]
    odd = any(isinstance(value, list) or isinstance(value.get("dtype"), dict) for value in entries)
    return odd or any(found)


@fuzzed
@given(valid_files())
def test_any_valid_file_is_read_as_the_library_reads_it(content: bytes) -> None:
    theirs = read_by_the_library(content)
    assert theirs is not None
    assert read_by_us(content) == theirs


@fuzzed
@given(nearly_valid_files())
def test_a_file_with_a_value_changed_is_taken_or_refused_as_the_library_does(content: bytes) -> None:
    assert_agrees_with_the_library(content)


@fuzzed
@given(st.text(max_size=60) | st.text('{}[]":,0123456789-.eE \\unaltrf\t\n', max_size=60), st.binary(max_size=8))
def test_any_text_is_taken_or_refused_as_the_library_does(text: str, data: bytes) -> None:
    assert_agrees_with_the_library(pack(text.encode("utf-8", "surrogatepass"), data))


@fuzzed
@given(valid_files(), st.data())
def test_a_file_with_some_bytes_changed_is_taken_or_refused_as_the_library_does(
    content: bytes, data: st.DataObject
) -> None:
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        byte = data.draw(st.integers(0, 255) | st.sampled_from(list(b'"{}[]:,0129- \\')))
        match data.draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                mutated[place] = byte
            case "insert":
                mutated.insert(place, byte)
            case "remove":
                del mutated[place]
            case _:
                del mutated[place:]
        if not mutated:
            break
    assert_agrees_with_the_library(bytes(mutated))


@fuzzed
@given(valid_files(), st.integers(8, 200), st.sampled_from(list(b'"{}[]:,0129- \\x')))
def test_one_changed_byte_in_the_json_is_taken_or_refused_as_the_library_does(
    content: bytes, place: int, byte: int
) -> None:
    length = int.from_bytes(content[:8], "little")
    mutated = bytearray(content)
    mutated[8 + place % length] = byte
    assert_agrees_with_the_library(bytes(mutated))


@fuzzed
@given(st.binary(max_size=64))
def test_any_bytes_are_taken_or_refused_as_the_library_does(content: bytes) -> None:
    assert_agrees_with_the_library(content)


# Writing.
torch_dtypes = {tag: getattr(torch, dtype.torch_name, None) for tag, dtype in DTYPES.items()}
WRITABLE = {tag: dtype for tag, dtype in torch_dtypes.items() if dtype is not None}


def header_of_the_library(content: bytes) -> bytes:
    return content[: 8 + int.from_bytes(content[:8], "little")]


def make_tensors(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Tensors of these dtypes and shapes; an F4 of torch holds two values in each of its elements."""
    tensors = {}
    for name, (tag, shape) in specs.items():
        whole = (*shape[:-1], shape[-1] // 2) if tag == "F4" else shape
        tensors[name] = torch.empty(whole, dtype=WRITABLE[tag])
    return tensors


shapes = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(lambda sizes: (*sizes[:-1], sizes[-1] * 2))
specs = st.dictionaries(
    st.text(max_size=6).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from([*WRITABLE]), shapes),
    max_size=12,
)


def test_torch_has_all_dtypes_but_the_six_bit_ones() -> None:
    assert set(DTYPES) - set(WRITABLE) == {"F6_E2M3", "F6_E3M2"}


@fuzzed
@given(specs, st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=1))
@example({"": ("F32", (2,)), '"\\/\b\f\n\r\t\x00\x1f\x7f\u2028ä漢😀': ("F32", (2,))}, {"format": "pt"})
def test_the_layout_is_byte_for_byte_the_librarys(
    specs: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    # The library itself writes broken JSON, `{},"__metadata__":{}}`, for no tensors and empty metadata.
    assume(specs or metadata != {})
    content = save(make_tensors(specs), metadata)
    first, header = lay_out(((name, tag, shape) for name, (tag, shape) in specs.items()), metadata)
    assert first == header_of_the_library(content)
    assert header.file_bytes == len(content)
    assert parse_header(first[8:], header.file_bytes, name="x") == header


def test_the_layout_has_the_librarys_bytes_for_one_tensor_of_every_dtype() -> None:
    specs = {f"t{number}": (tag, (4, 2)) for number, tag in enumerate(WRITABLE)}
    first, _ = lay_out((name, tag, shape) for name, (tag, shape) in specs.items())
    assert first == header_of_the_library(save(make_tensors(specs)))


def test_the_six_bit_dtypes_lie_where_the_library_orders_them() -> None:
    # The library cannot write them from torch; the order of its dtypes is the order of its own error message.
    content = pack({"a": entry("none")})
    with pytest.raises(safetensors.SafetensorError) as refusal:
        safetensors.deserialize(content)
    assert re.findall(r"`(\w+)`", str(refusal.value))[1:] == [*DTYPES]


def test_several_metadata_keys_come_back_from_the_library() -> None:
    metadata = {"format": "pt", "ä": '"\\', "z": ""}
    first, _ = lay_out([("a", "U8", (1,))], metadata)
    assert parse_header(first[8:], len(first) + 1, name="x").metadata == metadata
    assert {**safetensors_metadata(first + b"x")} == metadata


def safetensors_metadata(content: bytes) -> Mapping[str, str]:
    length = int.from_bytes(content[:8], "little")
    assert safetensors.deserialize(content)
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_the_layout_of_nothing_is_the_librarys() -> None:
    first, header = lay_out([])
    assert first == save({})
    assert header == Header((), {}, 16, 16)


def test_the_data_begins_at_a_multiple_of_eight() -> None:
    for length in range(1, 20):
        _, header = lay_out([("x" * length, "F64", (1,))])
        assert header.data_begin % 8 == 0


def test_a_name_cannot_be_laid_out_twice_or_be_the_metadatas() -> None:
    with pytest.raises(ValueError, match="twice"):
        lay_out([("a", "F32", (1,)), ("a", "F32", (1,))])
    with pytest.raises(ValueError, match="not a name for a tensor"):
        lay_out([("__metadata__", "F32", (1,))])


def test_a_header_that_no_reader_would_take_is_not_laid_out() -> None:
    with pytest.raises(BadInput, match=r"need a header of 100,000,0.. bytes, the limit is 100,000,000"):
        lay_out([("x" * MAX_HEADER_BYTES, "F32", (1,))])


@pytest.mark.parametrize(("dtype", "shape", "expected"), [("F32", (), 4), ("F4", (3, 2), 3), ("F6_E2M3", (4,), 3)])
def test_bytes_of_a_tensor(dtype: str, shape: tuple[int, ...], expected: int) -> None:
    assert data_bytes(dtype, shape) == expected


def test_a_shape_of_a_million_huge_sizes_is_refused_quickly() -> None:
    header = pack({"a": entry(shape=[2**63] * 1_000_000, offsets=[0, 4])}, bytes(4))
    begun = time.process_time()
    assert read_by_us(header) is None
    assert time.process_time() - begun < 5


def write_experts(path: Path, count: int) -> Path:
    names = (f"model.layers.{n // 1000}.mlp.experts.{n % 1000}.down_proj.weight" for n in range(count))
    first, header = lay_out((name, "BF16", (1, 4)) for name in names)
    with path.open("wb") as file:
        file.write(first)
        file.truncate(header.file_bytes)
    return path


def test_five_times_the_tensors_of_a_header_take_about_five_times_as_long(tmp_path: Path) -> None:
    few, many = (write_experts(tmp_path / f"{count}.safetensors", count) for count in (20_000, 100_000))
    assert len(read_header(many).tensors) == 100_000
    assert growth(lambda: read_header(few), lambda: read_header(many)) < 9
    assert gc.isenabled(), "reading pauses the collector and lets it go on"
