"""Every broken file and folder by name: how to build it, and what must be said about it.

A case is a whole checkpoint folder, so that the reader, `fp8 inspect` and `fp8 quantize` can all be held against
it. `BROKEN_FILES` have a broken `model.safetensors` that the safetensors library refuses too; `STRICTER_FILES`
are the few it takes and this tool does not; `BROKEN_FOLDERS` are made of sound files that do not fit together.
`SOUND_FILES` look odd and must be read. The patterns are for `re.search` in the error's message, and in the finding
of a survey, which `CHECKS` names. `FLAWED_FOLDERS` can be opened, and a survey must still say what is wrong.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

U64: Final = 2**64
CONFIG: Final = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
INDEX: Final = "model.safetensors.index.json"
SHARDS: Final = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Malformed(NamedTuple):
    name: str
    build: Callable[[Path], None]
    message: str


class Sound(NamedTuple):
    name: str
    build: Callable[[Path], None]


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **extra: object) -> dict[str, object]:
    """Return a tensor's entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


def pack(header: str | bytes | Mapping[str, object], data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a file: the length of the header (or the one given), the header, the data."""
    text = json.dumps(header) if isinstance(header, Mapping) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def write_folder(folder: Path, **files: bytes | str) -> None:
    """Write a config.json and the given files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": json.dumps(CONFIG), **files}.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def single(content: bytes) -> Callable[[Path], None]:
    """Return a builder of a folder with that `model.safetensors`."""
    return lambda folder: write_folder(folder, **{"model.safetensors": content})


def shard(*names: str, size: int = 4) -> bytes:
    """Return a sound file of F32 tensors with `size` bytes each."""
    header = {
        name: entry(shape=[size // 4], offsets=[number * size, number * size + size])
        for number, name in enumerate(names)
    }
    return pack(header, bytes(size * len(names)))


def sharded(
    index: object = None, first: bytes | None = None, second: bytes | None = None, **more: bytes | str
) -> Callable[[Path], None]:
    """Return a builder of a folder with two shards, `a` in the first and `b` in the second, one part replaced."""
    files: dict[str, bytes | str] = {
        SHARDS[0]: shard("a") if first is None else first,
        SHARDS[1]: shard("b") if second is None else second,
        INDEX: index if isinstance(index, str) else json.dumps(_index() if index is None else index),
        **more,
    }
    return lambda folder: write_folder(folder, **files)


def _index(weight_map: Mapping[str, object] | None = None, total_size: object = 8) -> dict[str, object]:
    places = {"a": SHARDS[0], "b": SHARDS[1]} if weight_map is None else dict(weight_map)
    return {"metadata": {"total_size": total_size}, "weight_map": places}


def _without(name: str, build: Callable[[Path], None]) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        build(folder)
        (folder / name).unlink()

    return remove


def _linked(name: str, target: str, build: Callable[[Path], None]) -> Callable[[Path], None]:
    """Replace a file by a link, and put a sound file where `../outside` would lead."""

    def link(folder: Path) -> None:
        build(folder)
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / name).write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return link


def _absolute_in_weight_map(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.safetensors").write_bytes(shard("b"))
    sharded(_index({"a": SHARDS[0], "b": str(outside / "secret.safetensors")}))(folder)


def _relative_in_weight_map(folder: Path) -> None:
    _absolute_in_weight_map(folder)
    sharded(_index({"a": SHARDS[0], "b": "../outside/secret.safetensors"}))(folder)


def _shard_in_a_sub_folder(folder: Path) -> None:
    sharded(_index({"a": SHARDS[0], "b": f"sub/{SHARDS[1]}"}))(folder)
    (folder / "sub").mkdir()
    (folder / SHARDS[1]).rename(folder / "sub" / SHARDS[1])


def _folder_with_the_name_of_a_shard(folder: Path) -> None:
    write_folder(folder)
    (folder / "model.safetensors").mkdir()


def _instead(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: write_folder(folder, **{name: content})


def _config(content: bytes | str) -> Callable[[Path], None]:
    return lambda folder: write_folder(folder, **{"model.safetensors": shard("a"), "config.json": content})


def _deep(levels: int) -> dict[str, object]:
    nested: list[object] = []
    for _ in range(levels - 1):
        nested = [nested]
    return entry(x=nested)


F32: Final = bytes(4)
_OVER: Final = pack({"a": entry()}, F32)
_TWO: Final = pack({"a": entry(), "b": entry(offsets=[4, 8])}, bytes(8))
_LFS: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4998549504\n"
_HTML: Final = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"


def _refused(name: str, content: bytes, message: str) -> Malformed:
    return Malformed(name, single(content), message)


def _text_entry(fields: str) -> bytes:
    return pack(f'{{"a":{{{fields}}}}}', F32)


BROKEN_FILES: Final = (
    _refused("empty_file", b"", r"is 0 bytes long, too short"),
    _refused("seven_bytes", b"\x02\0\0\0\0\0\0", r"is 7 bytes long, too short"),
    _refused("only_a_length", pack("", length=2), r"ends inside its header: header promises 10 bytes, file has 8$"),
    _refused("length_beyond_the_file", pack("{}", length=50), r"ends inside its header: .* 58 bytes, file has 10$"),
    _refused("length_cuts_the_json", pack({"a": entry()}, F32, length=20), r"broken header: .* at character"),
    _refused("length_zero", pack("", F32), r"broken header: it is empty"),
    _refused("length_2_to_the_63", pack("{}", length=2**63), r"claims a header of 9,223,372,036,854,775,808 bytes"),
    _refused(
        "length_2_to_the_64_minus_1", pack("{}", length=U64 - 1), r"claims a header of 18,446,744,073,709,551,615"
    ),
    _refused(
        "length_one_over_the_limit", pack("{}", length=100_000_001), r"100,000,001 bytes, the limit is 100,000,000"
    ),
    _refused(
        "pickle_in_a_zip", b"PK\x03\x04\0\0\x08\x08" + bytes(64), r"is a zip archive, as PyTorch writes its pickles"
    ),
    _refused("bare_pickle", b"\x80\x02}q\0(X\x01\0\0\0aq\x01" + bytes(64), r"is a Python pickle, not safetensors"),
    _refused("pickle_protocol_4", b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", r"is a Python pickle, not safetensors"),
    _refused("git_lfs_pointer", _LFS, r"is a Git LFS pointer, not the file it points to, not safetensors"),
    _refused("html_page", _HTML, r"is an HTML page, not safetensors"),
    _refused("xml_page", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', r"is an XML page"),
    _refused("plain_text", b"Entry not found", r"begins with b'Entry not found', which claims a header of"),
    _refused("gguf", b"GGUF\x03\0\0\0" + bytes(64), r"is a GGUF file"),
    _refused("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(64), r"is an HDF5 file"),
    _refused("gzip_with_a_credible_length", b"\x1f\x8b\x08\0\0\0\0\0" + bytes(600_000), r"is a gzip archive"),
    _refused("all_zeros", bytes(64), r"broken header: it is empty"),
    _refused("name_not_utf8", pack(b'{"\xff":{}}'), r"broken header: not UTF-8 at byte 2"),
    _refused("surrogate_as_utf8", pack(b'{"\xed\xa0\x80":{}}'), r"broken header: not UTF-8"),
    _refused("byte_order_mark", pack(b"\xef\xbb\xbf{}"), r"broken header: .*BOM"),
    _refused("trailing_nul", pack(b"{}\0"), r"broken header: Extra data at character 2"),
    _refused("trailing_garbage", pack('{"a":1}}'), r"broken header: Extra data"),
    _refused("form_feed_before_the_json", pack("\f{}"), r"broken header"),
    _refused("raw_newline_in_a_name", pack('{"a\nb":1}'), r"broken header: Invalid control character"),
    _refused("json_cut_short", pack('{"a":{'), r"broken header"),
    _refused("list_as_header", pack("[]"), r"it is not a JSON object"),
    _refused("null_as_header", pack("null"), r"it is not a JSON object"),
    _refused("nested_thousands_deep", pack("[" * 100_000), r"broken header: nested too deeply"),
    _refused("nan_as_offset", _text_entry('"dtype":"F32","shape":[1],"data_offsets":[NaN,4]'), r"NaN is not JSON"),
    _refused("entry_is_null", pack({"a": None}), r"describes `a` by None, not by a JSON object"),
    _refused("entry_is_text", pack({"a": "F32"}), r"describes `a` by 'F32'"),
    _refused("half_a_surrogate_pair_in_a_name", pack({"\ud800": entry()}, F32), r"half of a surrogate pair"),
    _refused("trailing_half_of_a_surrogate_pair", pack({"x\udc00": entry()}, F32), r"half of a surrogate pair"),
    _refused("half_a_surrogate_pair_in_the_metadata", pack({"__metadata__": {"k": "\udfff"}}), r"surrogate pair"),
    _refused("half_a_surrogate_pair_in_an_extra_field", pack({"a": entry(x="\ud83d")}, F32), r"surrogate pair"),
    # Duplicates that the library notices as well; see STRICTER_FILES for the others.
    _refused(
        "duplicate_name_on_other_bytes",
        pack(f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry(offsets=[4, 8]))}}}', bytes(8)),
        r"names `a` twice",
    ),
    _refused("duplicate_metadata", pack('{"__metadata__":{},"__metadata__":{}}'), r"names `__metadata__` twice"),
    _refused(
        "duplicate_field",
        _text_entry('"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]'),
        r"names `dtype` twice",
    ),
    _refused("overlap", pack({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), r"overlaps the tensor before `b`"),
    _refused("two_names_on_the_same_bytes", pack({"a": entry(), "b": entry()}, F32), r"overlaps the tensor before `b`"),
    _refused(
        "hole",
        pack({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
        r"leaves a hole before `b`: data begins at byte \d+ instead of \d+",
    ),
    _refused("hole_at_the_start", pack({"a": entry(offsets=[4, 8])}, bytes(8)), r"leaves a hole before `a`"),
    _refused(
        "empty_tensor_beyond_the_data", pack({"a": entry(shape=[0], offsets=[5, 5])}), r"leaves a hole before `a`"
    ),
    _refused("end_before_begin", pack({"a": entry(offsets=[4, 0])}, F32), r"gives `a` -4 bytes, but F32 \[1\] needs 4"),
    _refused("bytes_unused_at_the_end", _OVER + b"x", r"has 1 bytes too many: header promises 73, file has 74"),
    _refused("data_without_tensors", pack("{}", F32), r"has 4 bytes too many"),
    _refused("cut_by_one_byte", _OVER[:-1], r"ends 1 bytes early: header promises 73, file has 72"),
    _refused("cut_in_half", _TWO[: -len(_TWO) // 2], r"ends inside its header"),
    _refused("cut_before_the_data", _TWO[:-8], r"ends 8 bytes early"),
    _refused("negative_offset", pack({"a": entry(offsets=[-4, 0])}, F32), r"offsets that are not two sizes: \[-4, 0\]"),
    _refused("minus_zero_offset", _text_entry('"dtype":"F32","shape":[1],"data_offsets":[-0,4]'), r"not two sizes"),
    _refused("float_offset", pack({"a": entry(offsets=[0, 4.0])}, F32), r"not two sizes: \[0, 4.0\]"),
    _refused("exponent_offset", _text_entry('"dtype":"F32","shape":[1],"data_offsets":[0,4e0]'), r"not two sizes"),
    _refused("float_dimension", pack({"a": entry(shape=[1.0])}, F32), r"a shape that is not a list of sizes: \[1.0\]"),
    _refused("exponent_dimension", _text_entry('"dtype":"F32","shape":[1e0],"data_offsets":[0,4]'), r"list of sizes"),
    _refused("negative_dimension", pack({"a": entry(shape=[-1])}, F32), r"list of sizes: \[-1\]"),
    _refused("boolean_dimension", pack({"a": entry(shape=[True])}, F32), r"list of sizes: \[True\]"),
    _refused("text_dimension", pack({"a": entry(shape=["1"])}, F32), r"list of sizes"),
    _refused("shape_is_a_number", pack({"a": entry(shape=1)}, F32), r"list of sizes: 1$"),
    _refused("shape_is_null", pack({"a": entry(shape=None)}, F32), r"list of sizes: None"),
    _refused("dimension_2_to_the_64", pack({"a": entry(shape=[U64, 0], offsets=[0, 0])}), r"list of sizes"),
    _refused(
        "dimension_of_5000_digits", _text_entry(f'"dtype":"F32","shape":[{"9" * 5000}],"data_offsets":[0,4]'), "head"
    ),
    _refused("offset_2_to_the_64", pack({"a": entry(offsets=[0, U64])}, F32), r"not two sizes"),
    _refused("three_offsets", pack({"a": entry(offsets=[0, 4, 8])}, F32), r"not two sizes: \[0, 4, 8\]"),
    _refused("one_offset", pack({"a": entry(offsets=[0])}, F32), r"not two sizes: \[0\]"),
    _refused("offsets_are_an_object", pack({"a": entry(offsets={"0": 0, "1": 4})}, F32), r"not two sizes"),
    _refused("no_offsets", pack({"a": {"dtype": "F32", "shape": [1]}}, F32), r"not two sizes: None"),
    _refused("no_shape", pack({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, F32), r"list of sizes: None"),
    _refused("no_dtype", pack({"a": {"shape": [1], "data_offsets": [0, 4]}}, F32), r"the unknown dtype None"),
    _refused(
        "shape_larger_than_bytes", pack({"a": entry(shape=[2])}, F32), r"gives `a` 4 bytes, but F32 \[2\] needs 8"
    ),
    _refused(
        "shape_smaller_than_bytes", pack({"a": entry(offsets=[0, 8])}, bytes(8)), r"gives `a` 8 bytes, .* needs 4"
    ),
    _refused(
        "shape_overflows",
        pack({"a": entry(shape=[2**63, 4], offsets=[0, 0])}),
        r"an impossible shape: F32 \[9223372036854775808, 4\] is more than 64 bits can count",
    ),
    _refused("shape_overflows_before_its_zero", pack({"a": entry(shape=[2**63, 4, 0], offsets=[0, 0])}), r"64 bits"),
    _refused("bits_overflow", pack({"a": entry(shape=[2**60], offsets=[0, 2**62])}), r"64 bits can count"),
    _refused("bits_wrap_round_to_zero", pack({"a": entry(shape=[2**61], offsets=[0, 0])}), r"64 bits can count"),
    _refused("metadata_value_is_a_number", pack({"__metadata__": {"a": 1}}), r"`__metadata__` must map text to text"),
    _refused("metadata_value_is_null", pack({"__metadata__": {"a": None}}), r"`__metadata__` must map text to text"),
    _refused("metadata_is_a_list", pack({"__metadata__": []}), r"`__metadata__` must map text to text"),
    _refused("metadata_is_text", pack({"__metadata__": "pt"}), r"`__metadata__` must map text to text"),
    _refused("unknown_dtype", pack({"a": entry("FP8")}, F32), r"gives `a` the unknown dtype 'FP8'"),
    _refused("lower_case_dtype", pack({"a": entry("f32")}, F32), r"the unknown dtype 'f32'"),
    _refused("dtype_is_a_number", pack({"a": entry(32)}, F32), r"the unknown dtype 32"),
    _refused("dtype_is_a_list", pack({"a": entry(["F32"])}, F32), r"the unknown dtype \['F32'\]"),
    _refused("odd_number_of_f4", pack({"a": entry("F4", [3], [0, 1])}, b"a"), r"F4 \[3\] does not fill whole bytes"),
    _refused("two_f6", pack({"a": entry("F6_E2M3", [2], [0, 1])}, b"a"), r"F6_E2M3 \[2\] does not fill whole bytes"),
    _refused("extra_field_nested_126_deep", pack({"a": _deep(126)}, F32), r"an extra field .*: nested too deeply"),
    _refused("extra_field_beyond_a_double", _text_entry(f'{json.dumps(entry())[1:-1]},"x":1e999'), r"too large"),
    _refused("extra_field_of_400_digits", _text_entry(f'{json.dumps(entry())[1:-1]},"x":{"9" * 400}'), r"too large"),
    _refused(
        "escape_sequence_in_a_broken_name", pack({"\x1b[31m": entry("FP8")}, F32), r"gives `\\x1b\[31m` the unknown"
    ),
    _refused(
        "name_of_a_megabyte", pack({"x" * 1_000_000: entry("FP8")}, F32), r"gives `x+…x+` the unknown dtype 'FP8'"
    ),
)

# What the library takes, and this tool refuses: a name given twice, and two spellings the format does not have.
STRICTER_FILES: Final = (
    _refused(
        "duplicate_name_same_entry",
        pack(f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}', F32),
        r"names `a` twice in its header",
    ),
    _refused(
        "duplicate_name_last_covers_all",
        pack(f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry(shape=[2], offsets=[0, 8]))}}}', bytes(8)),
        r"names `a` twice in its header",
    ),
    _refused("duplicate_in_the_metadata", pack('{"__metadata__":{"k":"1","k":"2"}}'), r"names `k` twice"),
    _refused("duplicate_extra_field", _text_entry(f'{json.dumps(entry())[1:-1]},"x":1,"x":2'), r"names `x` twice"),
    _refused("entry_as_a_list", pack({"a": ["F32", [1], [0, 4]]}, F32), r"describes `a` by \['F32', \[1\], \[0, 4\]\]"),
    _refused("dtype_as_an_object", pack({"a": entry({"F32": None})}, F32), r"the unknown dtype \{'F32': None\}"),
)


def _sound(name: str, content: bytes) -> Sound:
    return Sound(name, single(content))


def _header_of_the_largest_size(folder: Path) -> None:
    header = json.dumps({"a": entry()}).encode()
    write_folder(folder, **{"model.safetensors": pack(header.ljust(100_000_000), F32)})


SOUND_FILES: Final = (
    _sound("plain", _OVER),
    _sound("leading_spaces", pack("   " + json.dumps({"a": entry()}), F32)),
    _sound("trailing_spaces", pack(json.dumps({"a": entry()}) + "     ", F32)),
    _sound("other_white_space", pack("\n\t\r" + json.dumps({"a": entry()}, indent=1) + "\n", F32)),
    _sound(
        "order_of_the_header_is_not_that_of_the_data", pack({"b": entry(offsets=[4, 8]), "a": entry()}, b"aaaabbbb")
    ),
    _sound("null_metadata", pack({"__metadata__": None, "a": entry()}, F32)),
    _sound("escaped_metadata_key", pack('{"\\u005f_metadata__":{"k":"v"}}')),
    _sound("metadata_only", pack({"__metadata__": {"format": "pt"}})),
    _sound("no_tensors", pack("{}")),
    _sound("scalar", pack({"a": entry(shape=[])}, F32)),
    _sound("many_dimensions", pack({"a": entry(shape=[1] * 70)}, F32)),
    _sound("empty_tensor", pack({"a": entry(shape=[0], offsets=[0, 0])})),
    _sound("empty_tensor_of_huge_dimensions", pack({"a": entry(shape=[0, 2**63, 4], offsets=[0, 0])})),
    _sound("two_empty_tensors", pack({n: entry(shape=[0, 3], offsets=[0, 0]) for n in "ab"})),
    _sound(
        "empty_tensor_between_two",
        pack({"a": entry(), "e": entry(shape=[0], offsets=[4, 4]), "b": entry(offsets=[4, 8])}, b"aaaabbbb"),
    ),
    _sound("misaligned", pack({"a": entry("U8", [1], [0, 1]), "b": entry(offsets=[1, 5])}, b"abbbb")),
    _sound("f4", pack({"a": entry("F4", [64], [0, 32])}, bytes(range(32)))),
    _sound("f6_e2m3", pack({"a": entry("F6_E2M3", [4], [0, 3])}, b"abc")),
    _sound("f6_e3m2", pack({"a": entry("F6_E3M2", [2, 4], [0, 6])}, b"abcdef")),
    _sound("extra_fields", pack({"a": entry(x={"y": [1, 2.5, None, True, "z"]}, stride=[1])}, F32)),
    _sound("extra_field_nested_125_deep", pack({"a": _deep(125)}, F32)),
    _sound("extra_field_of_300_digits", _text_entry(f'{json.dumps(entry())[1:-1]},"x":{"9" * 300}')),
    _sound("extra_minus_zero", _text_entry(f'{json.dumps(entry())[1:-1]},"x":-0')),
    _sound("empty_name", pack({"": entry()}, F32)),
    _sound("control_characters_in_names", pack({"\0\x1b[31m\n\x7f\x9b": entry()}, F32)),
    _sound("markup_and_paths_in_names", pack({"[bold]x[/]": entry(), "../../etc": entry(offsets=[4, 8])}, bytes(8))),
    _sound("non_ascii_names", pack('{"ä漢😀":%s}' % json.dumps(entry()), F32)),  # noqa: UP031
    _sound("surrogate_pair_in_a_name", pack({"😀": entry()}, F32)),
    _sound("quotes_and_backslashes_in_names", pack({'"\\/-0\\ud800': entry()}, F32)),
    _sound("name_of_a_megabyte", pack({"x" * 1_000_000: entry()}, F32)),
    Sound("header_of_the_largest_size", _header_of_the_largest_size),
)

BROKEN_FOLDERS: Final = (
    Malformed(
        "index_leads_out_by_dots", _relative_in_weight_map, r"`\.\./outside/secret\.safetensors`, which is not a file"
    ),
    Malformed(
        "index_leads_out_absolutely", _absolute_in_weight_map, r"names `/.*secret\.safetensors`, which is not a file"
    ),
    Malformed(
        "index_leads_out_by_backslashes",
        sharded(_index({"a": SHARDS[0], "b": "..\\outside\\secret.safetensors"})),
        r"names `\.\.\\outside\\secret\.safetensors`, which is not a file",
    ),
    Malformed("index_names_a_sub_folder", _shard_in_a_sub_folder, r"names `sub/.*`, which is not a file in the"),
    Malformed("index_names_nothing", sharded(_index({"a": SHARDS[0], "b": ""})), r"names ``, which is not a file"),
    Malformed("index_names_the_parent", sharded(_index({"a": SHARDS[0], "b": ".."})), r"names `\.\.`"),
    Malformed("index_names_a_number", sharded(_index({"a": SHARDS[0], "b": 2})), r"maps `b` to 2, not to a file name"),
    Malformed("missing_shard", _without(SHARDS[1], sharded()), rf"`{SHARDS[1]}` is missing: `{INDEX}` names it"),
    Malformed("no_index", _without(INDEX, sharded()), rf"has 2 files `model\*.safetensors` but no `{INDEX}`"),
    Malformed(
        "one_shard_and_no_index",
        _without(SHARDS[1], _without(INDEX, sharded())),
        rf"has no `model.safetensors` and no index to shards, only a differently named file \(`{SHARDS[0]}`\)",
    ),
    Malformed(
        "single_file_and_index", sharded(**{"model.safetensors": shard("a", "b")}), r"has both `model.safetensors` and"
    ),
    Malformed("variant_only", _instead("model.fp16.safetensors", shard("a")), r"differently named"),
    Malformed(
        "single_file_and_variant",
        lambda folder: write_folder(folder, **{n: shard("a") for n in ("model.safetensors", "model.fp16.safetensors")}),
        rf"has 2 files `model\*.safetensors` but no `{INDEX}`",
    ),
    Malformed(
        "tensor_in_two_shards",
        sharded(second=shard("a", "b")),
        rf"`a` lies in two shards, `{SHARDS[0]}` and `{SHARDS[1]}`",
    ),
    Malformed(
        "unindexed_tensor",
        sharded(_index(total_size=12), second=shard("b", "c")),
        rf"`c` lies in `{SHARDS[1]}`, but .* does not name it",
    ),
    Malformed(
        "ghost_tensor",
        sharded(_index({"a": SHARDS[0], "b": SHARDS[1], "ghost": SHARDS[1]})),
        rf"`ghost` is missing: `{INDEX}` puts it in `{SHARDS[1]}`, which lacks it",
    ),
    Malformed(
        "tensor_in_the_wrong_shard",
        sharded(_index({"a": SHARDS[1], "b": SHARDS[1], "c": SHARDS[0]}), first=shard("a", "c")),
        rf"`a` lies in `{SHARDS[0]}`, but `{INDEX}` puts it in `{SHARDS[1]}`",
    ),
    Malformed(
        "wrong_total_size", sharded(_index(total_size=9)), rf"`{INDEX}` promises 9 bytes of tensors, the shards hold 8"
    ),
    Malformed("total_size_is_text", sharded(_index(total_size="8")), r"promises '8' bytes of tensors"),
    Malformed(
        "extra_shard",
        sharded(**{"model-00003-of-00003.safetensors": shard("c")}),
        r"`model-00003-.*` lies in the folder but",
    ),
    Malformed("no_weight_map", sharded({"metadata": {"total_size": 8}}), r"has no `weight_map`"),
    Malformed("empty_weight_map", sharded({"weight_map": {}}), r"has no `weight_map`"),
    Malformed("weight_map_is_a_list", sharded({"weight_map": list(SHARDS)}), r"has no `weight_map`"),
    Malformed("index_is_broken_json", sharded('{"weight_map": {'), rf"`{INDEX}` in `.*` is not valid JSON"),
    Malformed("index_is_a_list", sharded([]), rf"`{INDEX}` in `.*` is not a JSON object"),
    Malformed("index_is_a_git_lfs_pointer", sharded(_LFS.decode()), rf"`{INDEX}` is a Git LFS pointer, .* not JSON"),
    Malformed("shard_is_a_git_lfs_pointer", sharded(second=_LFS), rf"`{SHARDS[1]}` is a Git LFS pointer"),
    Malformed("shard_is_an_html_page", sharded(second=_HTML), rf"`{SHARDS[1]}` is an HTML page"),
    Malformed("shard_of_zero_bytes", sharded(second=b""), rf"`{SHARDS[1]}` is 0 bytes long"),
    Malformed("shard_cut_short", sharded(second=shard("b")[:-1]), rf"`{SHARDS[1]}` ends 1 bytes early"),
    Malformed("shards_without_tensors", sharded(first=pack("{}"), second=pack("{}")), r"holds no tensors"),
    Malformed("file_without_tensors", single(pack("{}")), r"holds no tensors"),
    Malformed("folder_for_a_file", _folder_with_the_name_of_a_shard, r"holds no weights"),
    Malformed(
        "link_leads_out",
        _linked("model.safetensors", "../outside/model.safetensors", single(_OVER)),
        r"links to `.*`, outside",
    ),
    Malformed(
        "config_link_leads_out",
        _linked("config.json", "../outside/config.json", single(_OVER)),
        r"`config.json` links to",
    ),
    Malformed(
        "dangling_link",
        _linked("model.safetensors", "gone", single(_OVER)),
        r"is a link to `gone`, which is not there as a file",
    ),
    Malformed(
        "link_to_itself",
        _linked("model.safetensors", "model.safetensors", single(_OVER)),
        r"is a link to `model.safetensors`",
    ),
    Malformed(
        "link_to_a_device", _linked("model.safetensors", "/dev/zero", single(_OVER)), r"links to `/dev/zero`, outside"
    ),
    Malformed("no_config", _without("config.json", single(_OVER)), r"has no `config.json`"),
    Malformed("broken_config", _config('{"model_type": '), r"`config.json` in `.*` is not valid JSON"),
    Malformed("config_is_a_list", _config("[]"), r"`config.json` in `.*` is not a JSON object"),
    Malformed("config_is_empty", _config(""), r"`config.json` in `.*` is not valid JSON"),
    Malformed("config_is_not_utf8", _config(b'{"a":"\xff"}'), r"is not valid JSON: 'utf-8' codec"),
    Malformed("config_is_utf16", _config('{"a": 1}'.encode("utf-16")), r"is not valid JSON"),
    Malformed("config_with_a_byte_order_mark", _config(b"\xef\xbb\xbf{}"), r"is not valid JSON: Unexpected UTF-8 BOM"),
    Malformed("config_nested_too_deeply", _config('{"a":' * 100_000), r"is not valid JSON: nested too deeply"),
    Malformed("config_with_5000_digits", _config('{"a": %s}' % ("9" * 5000)), r"is not valid JSON"),
    Malformed("config_is_a_git_lfs_pointer", _config(_LFS), r"`config.json` is a Git LFS pointer, .* not JSON"),
    Malformed(
        "pickles_only",
        _instead("pytorch_model.bin", b"PK\x03\x04"),
        r"only PyTorch pickles, which can run code .*\(`pytorch_model.bin`\)",
    ),
    Malformed("gguf_only", _instead("model-Q4_K_M.gguf", b"GGUF"), r"only GGUF \(`model-Q4_K_M.gguf`\)"),
    Malformed("onnx_only", _instead("model.onnx", b"\x08"), r"only ONNX \(`model.onnx`\)"),
    Malformed(
        "differently_named",
        _instead("weights.safetensors", _OVER),
        r"a differently named file \(`weights.safetensors`\)",
    ),
    Malformed(
        "consolidated_only", _instead("consolidated.safetensors", _OVER), r"named file \(`consolidated.safetensors`\)"
    ),
    Malformed("no_weights", write_folder, r"holds no weights"),
    Malformed("empty_folder", lambda folder: folder.mkdir(parents=True, exist_ok=True), r"is empty"),
)

MALFORMED: Final = (*BROKEN_FILES, *STRICTER_FILES, *BROKEN_FOLDERS)

CHECKS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        """
        empty_file seven_bytes only_a_length length_beyond_the_file cut_by_one_byte cut_in_half cut_before_the_data
        shard_of_zero_bytes shard_cut_short
        """.split(),
        "file.cut_short",
    ),
    **dict.fromkeys(
        """
        pickle_in_a_zip bare_pickle pickle_protocol_4 git_lfs_pointer html_page xml_page gguf hdf5
        gzip_with_a_credible_length shard_is_a_git_lfs_pointer shard_is_an_html_page index_is_a_git_lfs_pointer
        config_is_a_git_lfs_pointer
        """.split(),
        "file.impostor",
    ),
    **dict.fromkeys(
        """
        duplicate_name_on_other_bytes duplicate_metadata duplicate_field duplicate_name_same_entry
        duplicate_name_last_covers_all duplicate_in_the_metadata duplicate_extra_field
        """.split(),
        "header.duplicate",
    ),
    **dict.fromkeys(
        "overlap two_names_on_the_same_bytes hole hole_at_the_start empty_tensor_beyond_the_data".split(), "file.layout"
    ),
    **dict.fromkeys(["bytes_unused_at_the_end", "data_without_tensors"], "file.surplus"),
    **dict.fromkeys(
        """
        index_leads_out_by_dots index_leads_out_absolutely index_leads_out_by_backslashes index_names_a_sub_folder
        index_names_nothing index_names_the_parent
        """.split(),
        "index.path",
    ),
    **dict.fromkeys(
        "index_names_a_number no_weight_map empty_weight_map weight_map_is_a_list".split(), "index.weight_map"
    ),
    "missing_shard": "index.missing_shard",
    **dict.fromkeys(["no_index", "single_file_and_variant"], "index.absent"),
    "single_file_and_index": "index.single_beside",
    "tensor_in_two_shards": "index.duplicate",
    "unindexed_tensor": "index.unlisted",
    "ghost_tensor": "index.ghost",
    "tensor_in_the_wrong_shard": "index.wrong_shard",
    **dict.fromkeys(["wrong_total_size", "total_size_is_text"], "index.total_size"),
    "extra_shard": "index.extra_shard",
    **dict.fromkeys(["index_is_broken_json", "index_is_a_list"], "index.json"),
    **dict.fromkeys(
        "shards_without_tensors file_without_tensors folder_for_a_file no_weights empty_folder".split(), "weights.none"
    ),
    **dict.fromkeys(
        """
        one_shard_and_no_index variant_only pickles_only gguf_only onnx_only differently_named consolidated_only
        """.split(),
        "weights.other",
    ),
    **dict.fromkeys(
        "link_leads_out config_link_leads_out dangling_link link_to_itself link_to_a_device".split(), "file.link"
    ),
    "no_config": "config.missing",
    **dict.fromkeys(
        """
        broken_config config_is_a_list config_is_empty config_is_not_utf8 config_is_utf16 config_nested_too_deeply
        config_with_a_byte_order_mark config_with_5000_digits
        """.split(),
        "config.json",
    ),
}
"""Case → the check of a survey that must find it; where nothing stands here, it is `file.header`."""


class Flawed(NamedTuple):
    name: str
    build: Callable[[Path], None]
    check: str
    status: str
    message: str
    also: tuple[str, ...] = ()
    """Other checks that cannot pass then."""


def _beside(name: str, content: bytes | str, build: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    """Return a builder of a sound folder with one more file."""

    def add(folder: Path) -> None:
        (build or single(_OVER))(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return add


def _closed(*names: str) -> Callable[[Path], None]:
    def close(folder: Path) -> None:
        single(_OVER)(folder)
        for name in names:
            (folder / name).chmod(0o600)

    return close


def _dangling_side_file(folder: Path) -> None:
    single(_OVER)(folder)
    (folder / "tokenizer.json").symlink_to("gone")


def _broken_off_download_in_the_cache(folder: Path) -> None:
    _beside(".cache/huggingface/download/abc.incomplete", b"half")(folder)


def _unfinished_run_beside(folder: Path) -> None:
    single(_OVER)(folder)
    (folder.parent / f".{folder.name}.fp8-partial" / "checkpoint").mkdir(parents=True)


class RunsACommand:
    """What a pickle makes of it calls os.system when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("false",)


FLAWED_FOLDERS: Final = (
    Flawed(
        "weights_only_for_their_owner", _closed("model.safetensors"), "file.mode", "warning", r"alone: its mode is 0600"
    ),
    Flawed(
        "all_only_for_their_owner",
        _closed("config.json", "model.safetensors"),
        "file.mode",
        "warning",
        r"^`config.json` and 1 more file can be read by the owner alone",
    ),
    Flawed("tokenizer_is_a_git_lfs_pointer", _beside("tokenizer.json", _LFS), "file.impostor", "failed", "Git LFS"),
    Flawed("model_file_is_a_git_lfs_pointer", _beside("tokenizer.model", _LFS), "file.impostor", "failed", "Git LFS"),
    Flawed("tokenizer_is_an_html_page", _beside("tokenizer.json", _HTML), "file.impostor", "failed", "an HTML page"),
    Flawed("tokenizer_of_zero_bytes", _beside("tokenizer.json", b""), "file.empty", "failed", "`tokenizer.json` is em"),
    Flawed("template_of_zero_bytes", _beside("chat_template.jinja", b""), "file.empty", "failed", "is empty"),
    Flawed("tokenizer_cut_short", _beside("tokenizer.json", '{"a": [1, 2'), "file.json", "failed", "is not valid JSON"),
    Flawed(
        "long_tokenizer_cut_short",
        _beside("tokenizer.json", json.dumps(["x" * 100] * 5000)[:-1]),
        "file.json",
        "failed",
        "does not begin and end as JSON does",
    ),
    Flawed(
        "side_config_with_a_mark", _beside("generation_config.json", b"\xef\xbb\xbf{}"), "file.json", "failed", "BOM"
    ),
    Flawed("dangling_side_file", _dangling_side_file, "file.link", "failed", "`tokenizer.json` is a link to `gone`"),
    Flawed(
        "broken_off_download",
        _beside("model-00002.safetensors.incomplete", b"half"),
        "folder.unfinished_download",
        "warning",
        "`model-00002.safetensors.incomplete` is what a broken-off download",
    ),
    Flawed(
        "broken_off_download_in_the_cache",
        _broken_off_download_in_the_cache,
        "folder.unfinished_download",
        "warning",
        "abc.incomplete` is what a broken-off download has left",
    ),
    Flawed(
        "unfinished_run_beside", _unfinished_run_beside, "folder.unfinished_run", "warning", "has not finished: `.*fp8-"
    ),
    Flawed(
        "pickle_that_runs_a_command",
        _beside("pytorch_model.bin", pickle.dumps({"a": RunsACommand()})),
        "file.pickle",
        "failed",
        r"^`pytorch_model.bin` is an unsafe pickle: it calls `os.system`$",
    ),
    Flawed(
        "pickle_of_a_class",
        _beside("training_args.bin", pickle.dumps(Path("x"))),
        "file.pickle_code",
        "warning",
        "is a pickle that runs code of `pathlib.",
    ),
    Flawed(
        "no_pickle_at_all", _beside("training_args.bin", b"nonsense"), "file.pickle", "not checked", "no whole pickle"
    ),
    Flawed(
        "mistral_format_beside",
        _beside("consolidated.safetensors", _OVER),
        "weights.beside",
        "warning",
        "`consolidated.safetensors` lies beside the weights: vLLM loads it instead",
    ),
    Flawed(
        "another_weight_file_beside",
        _beside("adapter.safetensors", shard("b")),
        "weights.beside",
        "warning",
        "`adapter.safetensors` lies beside `model.safetensors`: vLLM loads both",
    ),
    Flawed(
        "the_same_tensor_beside",
        _beside("other.safetensors", _OVER),
        "index.duplicate",
        "failed",
        "`a` lies in two shards, `model.safetensors` and `other.safetensors`",
        also=("weights.beside",),
    ),
    Flawed(
        "damaged_file_beside",
        _beside("adapter.safetensors", shard("b")[:-1]),
        "file.cut_short",
        "failed",
        "1 bytes early",
        also=("weights.beside",),
    ),
    Flawed(
        "index_without_metadata",
        sharded({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}),
        "index.metadata",
        "failed",
        "has no `metadata`",
    ),
    Flawed(
        "index_without_a_total_size",
        sharded({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}),
        "index.total_size",
        "not checked",
        "promises no total size",
    ),
)
