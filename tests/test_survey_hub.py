"""A checkpoint on the Hub, looked at from afar: only headers, small files and the ranges asked for may travel."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.ranges import HUB_GAP_BYTES, FetchedRanges, LocalRanges
from fp8cli.formats.remote_headers import FIRST_BYTES
from tests.loopback_hub import Break, File, LoopbackHub
from tests.malformed import BROKEN_FOLDERS, CHECKS, INDEX, SHARDS, Malformed
from tests.test_hub import CONFIG, ID, SHARDED, index_of, publish, server, shard, single

__all__ = ["server"]  # a fixture

ON_DISK_ONLY = {"file.mode", "file.side"}
"""Checks that a listing does not answer."""


def said(result: Survey) -> list[tuple[str, str, str]]:
    return [(each.check, each.status, each.found) for each in result.findings if each.check not in ON_DISK_ONLY]


def write(files: Mapping[str, bytes | File], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        file = content if isinstance(content, File) else File(content)
        (folder / name).write_bytes(file.slice(0, file.size))


def ranges_sent(running: LoopbackHub, containing: str = ".safetensors") -> list[tuple[str, int, int]]:
    """What was asked of weight files, each as (file, first byte, one past the last)."""
    found = []
    for request in running.requests:
        path = request.path.partition("?")[0]
        if request.method == "GET" and path.endswith(containing):
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"])
            assert match is not None
            found.append((path.rpartition("/")[2], int(match[1]), int(match[2]) + 1))
    return sorted(found)


def test_of_the_weights_only_headers_travel(server: LoopbackHub, tmp_path: Path) -> None:
    files = {name: content for name, content in SHARDED.items() if not name.endswith((".bin", ".gguf", ".onnx"))}
    publish(server, files)
    result = survey(hub.HubRepo(ID))
    assert ranges_sent(server) == [
        ("consolidated.safetensors", 0, FIRST_BYTES),
        ("model-00001-of-00002.safetensors", 0, FIRST_BYTES),
        ("model-00002-of-00002.safetensors", 0, FIRST_BYTES),
    ]
    assert server.paths("GET", "tokenizer.json") == []
    assert server.bytes_sent < 3 * FIRST_BYTES + 10_000

    write(files, tmp_path)
    local = survey(LocalFolder(tmp_path))
    assert said(result) == [(check, status, found.replace(str(tmp_path), ID)) for check, status, found in said(local)]
    assert result.tensors == local.tensors
    assert result.headers == local.headers
    assert result.config == local.config
    assert {each.check: each.status for each in result.findings if each.check in ON_DISK_ONLY} == dict.fromkeys(
        ON_DISK_ONLY, "not checked"
    )


def test_of_the_data_only_the_ranges_asked_for_travel(server: LoopbackHub) -> None:
    sizes = {"a": 1_000_000, "a_scale": 40, "b": 100_000, "b_scale": 50, "c": 3_000_000}
    publish(server, single(shard(sizes)))
    result = survey(hub.HubRepo(ID))
    server.forget()
    scales = [result.tensors[name] for name in ("b_scale", "a_scale")]
    asked = [(tensor.file, tensor.info.begin, tensor.info.end) for tensor in scales]
    assert [*result.reader.read_many(asked)] == [bytes(50), bytes(40)]
    assert ranges_sent(server) == sorted(asked)


def test_near_ranges_are_one_request(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 10, "b": HUB_GAP_BYTES, "c": 10, "d": HUB_GAP_BYTES + 1, "e": 10})))
    result = survey(hub.HubRepo(ID))
    server.forget()
    places = {name: tensor.info for name, tensor in result.tensors.items()}
    asked = [("model.safetensors", places[name].begin, places[name].end) for name in "eca"]
    assert [*result.reader.read_many(asked)] == [bytes(10)] * 3
    assert ranges_sent(server) == [
        ("model.safetensors", places["a"].begin, places["c"].end),
        ("model.safetensors", places["e"].begin, places["e"].end),
    ]


def test_a_range_is_asked_for_again_when_the_connection_breaks_off(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 500_000})))
    result = survey(hub.HubRepo(ID))
    server.fail("model.safetensors", Break(after=1000), 503)
    info = result.tensors["a"].info
    assert [*result.reader.read_many([("model.safetensors", info.begin, info.end)])] == [bytes(500_000)]
    server.fail("model.safetensors", 503, 503, 503)
    with pytest.raises(CannotRun, match="HTTP 503"):
        [*result.reader.read_many([("model.safetensors", info.begin, info.end)])]


def test_a_header_that_the_network_keeps_back_is_not_checked_and_hides_no_other(server: LoopbackHub) -> None:
    publish(server, {**single(shard({"a": 1})), **{name: SHARDED[name] for name in (*SHARDS, INDEX)}})
    server.fail(SHARDS[1], 500, 500, 500)
    result = survey(hub.HubRepo(ID))
    assert [*result.tensors] == ["a"]
    unknown = [each for each in result.findings if each.check == "file.header"]
    assert [(each.status, each.subject, each.found) for each in unknown] == [
        ("not checked", SHARDS[1], f"{server.url} answers with HTTP 500 Internal Server Error")
    ]


def test_a_config_that_the_network_keeps_back_is_not_checked(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 1})))
    server.fail("config.json", *[403] * 3)
    result = survey(hub.HubRepo(ID))
    assert result.config is None
    assert [each.status for each in result.findings if each.check == "config.json"] == ["not checked"]


def test_a_shard_cut_short_on_the_hub_is_not_asked_for_beyond_its_end(server: LoopbackHub) -> None:
    whole = shard({"a": 100_000, "b": 400_000})
    publish(server, single(File(whole.head, zeros=whole.zeros - 450_000)))
    result = survey(hub.HubRepo(ID))
    assert [each.check for each in result.findings if each.status == "failed"] == ["file.cut_short"]
    assert result.holds(result.tensors["a"]) is False
    server.forget()
    asked = [(tensor.file, tensor.info.begin, tensor.info.end) for tensor in result.tensors.values()]
    assert [*result.reader.read_many(asked)] == [bytes(50_000), b""]
    assert max(end for _, _, end in ranges_sent(server)) == whole.size - 450_000


SMALL_FOLDERS = [case for case in BROKEN_FOLDERS if not re.search("link|folder|config|empty_folder", case.name)]


@pytest.mark.parametrize("case", SMALL_FOLDERS, ids=lambda case: case.name)
def test_a_checkpoint_broken_on_the_hub_fails_as_it_does_here(
    case: Malformed, server: LoopbackHub, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    case.build(folder)
    publish(server, {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
    here = [(each.check, each.found.replace(str(folder), ID)) for each in survey(LocalFolder(folder)).findings]
    there = [(each.check, each.found) for each in survey(hub.HubRepo(ID)).findings]
    check = CHECKS[case.name]
    assert [pair for pair in there if pair[0] == check] == [pair for pair in here if pair[0] == check]


def test_offline_the_cache_is_looked_at(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, SHARDED)
    folder = hub.download(hub.HubRepo(ID))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.forget()
    result = survey(hub.HubRepo(ID))
    assert isinstance(result.reader, LocalRanges)
    assert result.tensors == survey(folder).tensors
    assert server.requests == []


def test_a_model_that_is_not_there_raises(server: LoopbackHub) -> None:
    with pytest.raises(BadInput, match=f"is neither a folder here nor a model that {re.escape(server.url)} shows"):
        survey(hub.HubRepo("acme/nothing"))


def test_empty_files_and_pickles_show_in_the_listing(server: LoopbackHub) -> None:
    publish(
        server,
        {"config.json": CONFIG, SHARDS[0]: shard({"a": 1}), INDEX: index_of({"a": SHARDS[0]})}
        | {"tokenizer.json": b"", "pytorch_model.bin": b"PK"},
    )
    result = survey(hub.HubRepo(ID))
    assert isinstance(result.reader, FetchedRanges)
    found = {each.check: (each.status, each.found) for each in result.findings}
    assert found["file.empty"] == ("failed", "`tokenizer.json` is empty")
    assert found["file.pickle"] == ("not checked", "1 pickle not fetched from the Hub")
    assert json.loads(CONFIG) == result.config


def test_a_broken_side_config_on_the_hub_is_said(server: LoopbackHub) -> None:
    publish(server, {**single(shard({"a": 1})), "hf_quant_config.json": b"[]", "generation_config.json": b'{"a": 1}'})
    result = survey(hub.HubRepo(ID))
    assert result.side_configs == {"generation_config.json": {"a": 1}}
    assert [(each.check, each.found) for each in result.findings if each.status == "failed"] == [
        ("file.json", f"`hf_quant_config.json` in `{ID}` is not a JSON object")
    ]
