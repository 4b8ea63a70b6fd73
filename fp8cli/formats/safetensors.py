"""The safetensors container: read a header strictly, lay one out, and nothing else.

A file is an 8-byte little-endian header length, that many bytes of JSON, then the data:

    {"__metadata__": {"format": "pt"}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …}

Offsets count from the first data byte, end one past the last, and must cover the data without hole or overlap.
Reading is as strict as the safetensors library (0.8), and stricter in two places: of two equal names the library
lets the last win, here a name given twice is an error; and its parser takes two spellings the format does not
have (`["F32", [1], [0, 4]]` for a tensor, `{"F32": null}` for a dtype), which no writer uses. Shapes and
offsets come from strangers, so everything is checked before anyone allocates by it.
"""

import gc
import json
import math
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput
from fp8cli.formats.complaints import Complain, Complaint, Fault, refuse
from fp8cli.formats.impostor import SNIFF_BYTES, refuse_impostor
from fp8cli.formats.strict_json import parse_strictly, refuse_deep_or_huge

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The library's own limit on the JSON."""

_U64_MAX: Final = 2**64 - 1
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True)
class Dtype:
    """One element type: its tag in the file, its width, and torch's name for it (as text: no torch here)."""

    tag: str
    bits: int
    torch_name: str
    floating: bool


# In the library's own order, which is also its order of tensors in a file (last first, see `lay_out`).
_DTYPES: Final = (
    Dtype("BOOL", 8, "bool", floating=False),
    Dtype("F4", 4, "float4_e2m1fn_x2", floating=True),
    Dtype("F6_E2M3", 6, "float6_e2m3fn", floating=True),
    Dtype("F6_E3M2", 6, "float6_e3m2fn", floating=True),
    Dtype("U8", 8, "uint8", floating=False),
    Dtype("I8", 8, "int8", floating=False),
    Dtype("F8_E5M2", 8, "float8_e5m2", floating=True),
    Dtype("F8_E4M3", 8, "float8_e4m3fn", floating=True),
    Dtype("F8_E8M0", 8, "float8_e8m0fnu", floating=True),
    Dtype("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", floating=True),
    Dtype("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", floating=True),
    Dtype("I16", 16, "int16", floating=False),
    Dtype("U16", 16, "uint16", floating=False),
    Dtype("F16", 16, "float16", floating=True),
    Dtype("BF16", 16, "bfloat16", floating=True),
    Dtype("I32", 32, "int32", floating=False),
    Dtype("U32", 32, "uint32", floating=False),
    Dtype("F32", 32, "float32", floating=True),
    Dtype("C64", 64, "complex64", floating=True),
    Dtype("F64", 64, "float64", floating=True),
    Dtype("I64", 64, "int64", floating=False),
    Dtype("U64", 64, "uint64", floating=False),
)
DTYPES: Final[Mapping[str, Dtype]] = {dtype.tag: dtype for dtype in _DTYPES}
_RANK: Final = {dtype.tag: rank for rank, dtype in enumerate(_DTYPES)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a header describes it. `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements (a sub-byte dtype counts each of its packed values)."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header. `tensors` are in the order of their data; `data_begin` is the first data byte."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    data_begin: int
    file_bytes: int


def read_header(path: Path, *, name: str | None = None, complain: Complain = refuse) -> Header:
    """Read and validate the header of the file at `path`; `name` is what messages call it.

    Raises BadInput when the file is not a whole, well-formed safetensors file; see `parse_header` for `complain`.
    """
    called = name or path.name
    try:
        # Asked before opening: opening a pipe would wait for a writer for ever.
        if not stat.S_ISREG(mode := path.stat().st_mode):
            message = f"`{called}` is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}, not safetensors"
            raise Fault("file.readable", message)
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            length = header_length(file.read(SNIFF_BYTES), file_bytes, name=called)
            file.seek(LENGTH_BYTES)
            return parse_header(file.read(length), file_bytes, name=called, complain=complain)
    except FileNotFoundError:
        message = f"`{called}` does not exist"
        raise Fault("file.readable", message, hint="download the checkpoint again") from None
    except PermissionError:
        message = f"`{called}` cannot be read: permission denied"
        raise Fault("file.readable", message, hint=f"chmod u+r {shlex.quote(str(path))}") from None
    except OSError as problem:
        message = f"`{called}` cannot be read: {problem.strerror or problem}"
        raise Fault("file.readable", message) from problem


def header_length(first: bytes, file_bytes: int, *, name: str) -> int:
    """Return the length of the JSON in bytes, from the first bytes (32 will do) of a file of `file_bytes`.

    Raises BadInput when they cannot begin a safetensors file, saying what the file is if it can be told.
    """
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if file_bytes < LENGTH_BYTES or length > MAX_HEADER_BYTES or length + LENGTH_BYTES > file_bytes:
        refuse_impostor(first, name=name)
    if file_bytes < LENGTH_BYTES or len(first) < LENGTH_BYTES:
        message = f"`{name}` is {file_bytes} bytes long, too short for a safetensors header"
        raise Fault("file.cut_short", message, hint="the download was cut short; fetch that file again")
    if length > MAX_HEADER_BYTES:
        claim = f"claims a header of {length:,} bytes, the limit is {MAX_HEADER_BYTES:,}"
        message = f"`{name}` is not safetensors: it begins with {first!r}, which {claim}"
        raise BadInput(message, hint="fetch that file again")
    if length + LENGTH_BYTES > file_bytes:
        message = (
            f"`{name}` ends inside its header: header promises {length + LENGTH_BYTES:,} bytes, file has {file_bytes:,}"
        )
        raise Fault("file.cut_short", message, hint="the download was cut short; fetch that file again")
    return length


def parse_header(text: bytes, file_bytes: int, *, name: str, complain: Complain = refuse) -> Header:
    """Validate the JSON `text` of a header against a file of `file_bytes` in total.

    `complain` is told of names given twice (the last counts, as for the library) and of tensors that do not cover
    the data exactly; anything else that is wrong raises BadInput.
    """
    data_begin = LENGTH_BYTES + len(text)
    with _collector_paused():
        entries = _parse_json(text, name, complain)
        metadata = _parse_metadata(entries.pop("__metadata__", None), name)
        tensors = [_parse_tensor(tensor, fields, data_begin, name) for tensor, fields in entries.items()]
        tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
        del entries  # before the collector is back: what is freed it need not walk
    _check_coverage(tensors, data_begin, file_bytes, name, complain)
    return Header(tuple(tensors), metadata, data_begin, file_bytes)


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, Header]:
    """Lay out a file for (name, dtype tag, shape) triples; return its first bytes and its header.

    The result is byte for byte what the safetensors library writes: widest dtype first, then by name, so that
    every tensor is aligned to its own element size; JSON without spaces, padded with spaces to 8 bytes.
    Raises BadInput if the header would be longer than any reader accepts, ValueError if a name comes twice.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_RANK[tensor[1]], tensor[0]))
    entries: dict[str, object] = {"__metadata__": dict(metadata or {})}
    offset = 0
    spans = []
    for name, dtype, shape in ordered:
        if name in entries:
            message = f"`{name}` is laid out twice, or is not a name for a tensor"
            raise ValueError(message)
        end = offset + data_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        spans.append((name, dtype, shape, offset, end))
        offset = end
    if metadata is None:
        del entries["__metadata__"]
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        message = f"{len(ordered):,} tensors need a header of {len(text):,} bytes, the limit is {MAX_HEADER_BYTES:,}"
        raise BadInput(message)
    data_begin = LENGTH_BYTES + len(text)
    infos = tuple(TensorInfo(n, d, s, data_begin + begin, data_begin + end) for n, d, s, begin, end in spans)
    header = Header(infos, dict(metadata or {}), data_begin, data_begin + offset)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, header


def data_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of that dtype tag and shape.

    Raises ValueError if its bits do not fill whole bytes, or are more than 64 bits can count.
    """
    size = DTYPES[dtype].bits
    elements = 1
    for dimension in shape:
        elements *= dimension
        # Here and not after the loop: the library refuses [2**63, 4, 0] too, and a shape of a million sizes
        # would otherwise grow a number of megabytes.
        if elements > _U64_MAX:
            break
    bits = elements * size
    if bits > _U64_MAX:
        message = f"{dtype} {list(shape)} is more than 64 bits can count"
        raise ValueError(message)
    if bits % 8:
        message = f"{dtype} {list(shape)} does not fill whole bytes"
        raise ValueError(message)
    return bits // 8


@contextmanager
def _collector_paused() -> Iterator[None]:
    # Nothing here is cyclic, yet the garbage collector would walk all of it again and again while it grows: that
    # is two thirds of the time for a file of 100,000 tensors.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse_json(text: bytes, name: str, complain: Complain) -> dict[str, object]:
    """Return the header as a dict; complain of names given twice, at any level."""

    def complain_of(repeated: str) -> None:
        words = f"`{name}` names `{repeated}` twice in its header"
        hint = "readers disagree on which copy counts; write the file again"
        complain(Complaint(check="header.duplicate", words=words, hint=hint, files=(name,)))

    try:
        top = parse_strictly(text, complain_of)
    except ValueError as problem:
        refuse_impostor(len(text).to_bytes(LENGTH_BYTES, "little") + text[:SNIFF_BYTES], name=name)
        message = f"`{name}` has a broken header: {problem}"
        raise BadInput(message, hint="fetch that file again") from None
    if not isinstance(top, dict):
        message = f"`{name}` has a broken header: it is not a JSON object"
        raise BadInput(message, hint="fetch that file again")
    return top


def _parse_metadata(value: object, name: str) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        message = f"`{name}` has a broken header: `__metadata__` must map text to text"
        raise BadInput(message)
    return value


def _parse_tensor(tensor: str, fields: object, data_begin: int, name: str) -> TensorInfo:
    if type(fields) is not dict:
        message = f"`{name}` describes `{tensor}` by {fields!r}, not by a JSON object"
        raise BadInput(message)
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if type(dtype) is not str or dtype not in DTYPES:
        message = f"`{name}` gives `{tensor}` the unknown dtype {dtype!r}"
        raise BadInput(message)
    if type(shape) is not list or not _are_sizes(shape):
        message = f"`{name}` gives `{tensor}` a shape that is not a list of sizes: {shape!r}"
        raise BadInput(message)
    if type(offsets) is not list or len(offsets) != 2 or not _are_sizes(offsets):
        message = f"`{name}` gives `{tensor}` offsets that are not two sizes: {offsets!r}"
        raise BadInput(message)
    if len(fields) > len(_FIELDS):
        _check_extras(tensor, fields, name)
    begin, end = offsets
    try:
        wanted = data_bytes(dtype, shape)
    except ValueError as problem:
        message = f"`{name}` gives `{tensor}` an impossible shape: {problem}"
        raise BadInput(message) from None
    if end - begin != wanted:
        message = f"`{name}` gives `{tensor}` {end - begin:,} bytes, but {dtype} {shape} needs {wanted:,}"
        raise BadInput(message)
    return TensorInfo(tensor, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _are_sizes(values: list[object]) -> bool:
    # The exact type: `bool` is an `int` in Python, but `true` is no size in JSON. A loop, because `all` with a
    # generator takes twice as long, and this runs twice per tensor.
    for value in values:  # noqa: SIM110
        if type(value) is not int or not 0 <= value <= _U64_MAX:
            return False
    return True


def _check_extras(tensor: str, fields: Mapping[str, object], name: str) -> None:
    # Unknown fields are allowed and ignored, but they must be JSON that the library can parse.
    try:
        refuse_deep_or_huge(value for field, value in fields.items() if field not in _FIELDS)
    except ValueError as problem:
        message = f"`{name}` gives `{tensor}` an extra field that cannot be read: {problem}"
        raise BadInput(message) from None


def _check_coverage(
    tensors: Sequence[TensorInfo], data_begin: int, file_bytes: int, name: str, complain: Complain
) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.begin != position:
            kind = "leaves a hole before" if tensor.begin > position else "overlaps the tensor before"
            words = f"`{name}` {kind} `{tensor.name}`: data begins at byte {tensor.begin:,} instead of {position:,}"
            complain(Complaint(check="file.layout", words=words, files=(name,)))
        position = max(position, tensor.end)
    if position > file_bytes:
        early = f"{position - file_bytes:,} bytes early"
        words = f"`{name}` ends {early}: header promises {position:,}, file has {file_bytes:,}"
        hint = "the download was cut short; fetch that file again"
        complain(Complaint(check="file.cut_short", words=words, hint=hint, files=(name,)))
    if position < file_bytes:
        surplus = f"{file_bytes - position:,} bytes too many"
        words = f"`{name}` has {surplus}: header promises {position:,}, file has {file_bytes:,}"
        hint = "the file was appended to or mixed up; fetch that file again"
        complain(Complaint(check="file.surplus", words=words, hint=hint, files=(name,)))
