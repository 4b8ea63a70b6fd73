"""What pickles would call, found without loading them. What is harmless is what torch itself loads as weights only."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8cli.formats.pickles import UNKNOWN, PickleCalls, read_calls
from tests.malformed import RunsACommand

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.bool)
OLD_STATE = OrderedDict((f"layers.{number}.weight", torch.zeros(3, dtype=dtype)) for number, dtype in enumerate(DTYPES))
OLD_STATE["a.parameter"] = torch.nn.Parameter(torch.zeros(2))
# torch itself cannot read this dtype back from a file without a zip archive.
STATE = OLD_STATE | {"fp8": torch.zeros(3, dtype=torch.float8_e4m3fn)}

SAFE = PickleCalls(dangerous=(), other=())
RUNS = PickleCalls(dangerous=("os.system",), other=())


def calls_of(folder: Path, content: bytes) -> PickleCalls:
    (folder / "x").write_bytes(content)
    return read_calls(folder / "x")


@pytest.mark.parametrize(("as_zip", "state"), [(True, STATE), (False, OLD_STATE)])
def test_a_state_dict_calls_nothing_but_what_rebuilds_it(
    tmp_path: Path, as_zip: bool, state: dict[str, torch.Tensor]
) -> None:
    torch.save(state, tmp_path / "x", _use_new_zipfile_serialization=as_zip)
    assert torch.load(tmp_path / "x", weights_only=True).keys() == state.keys()
    assert read_calls(tmp_path / "x") == SAFE


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_command_in_a_state_dict_is_named_and_torch_refuses_it_too(tmp_path: Path, as_zip: bool) -> None:
    torch.save({**OLD_STATE, "evil": RunsACommand()}, tmp_path / "x", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x", weights_only=True)
    assert read_calls(tmp_path / "x") == RUNS


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    assert calls_of(tmp_path, pickle.dumps(RunsACommand(), protocol)) == RUNS
    plain = {"a": [1, 2.5, "text", b"bytes", (None, True), {3}]}
    assert calls_of(tmp_path, pickle.dumps(plain, protocol)) == SAFE
    (other,) = calls_of(tmp_path, pickle.dumps(Path("x"), protocol)).other
    assert other.startswith("pathlib.")


def test_what_a_broken_off_pickle_would_still_call_counts(tmp_path: Path) -> None:
    assert calls_of(tmp_path, pickle.dumps(RunsACommand())[:-1] + b"\xff\xff") == RUNS


@pytest.mark.parametrize(
    "program",
    [
        # The name of the function comes out of a dict, so no opcode holds it as the text before.
        b"\x80\x04\x8c\x05posix}\x8c\x01a\x8c\x06systems\x8c\x01aN\x86\x93.",
        b"\x80\x04\x8c\x05posix\x8c\x06system20\x93.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["out_of_a_dict", "after_a_duplicate_was_dropped", "extension_code"],
)
def test_a_name_that_cannot_be_told_is_not_harmless(tmp_path: Path, program: bytes) -> None:
    assert calls_of(tmp_path, program).dangerous == (UNKNOWN,)


def test_a_name_fetched_from_the_memo_is_told(tmp_path: Path) -> None:
    program = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93."
    assert calls_of(tmp_path, program) == RUNS
    assert pickle.loads(program) is os.system  # noqa: S301 -- looked up, not called


def test_what_is_no_pickle_says_why(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("readme.txt", "hello")
    for content in (b"", b"hello", b"PK\x03\x04", archive.getvalue(), b"\x80\x04"):
        with pytest.raises(ValueError, match="it is no whole pickle: "):
            calls_of(tmp_path, content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"PK\x03\x04" + tail))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    try:
        read_calls(path)
    except ValueError:
        return


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_pickle_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"a": RunsACommand(), "b": [1, "x"]}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    try:
        read_calls(path)
    except ValueError:
        return
