"""`fp8 inspect ORG/NAME`: config, index, headers and scales travel from the Hub, by ranges, and no weight does."""

import re
from http import HTTPStatus
from pathlib import Path

import pytest
from safetensors import safe_open

from fp8cli.formats.remote_headers import FIRST_BYTES
from tests.inspecting import Run, fp8_inspect
from tests.loopback_hub import Break, File, LoopbackHub, Request
from tests.planting import LAYER, STORIES, change, quantize_stories, set_scale
from tests.sparse import llama, llama_config, write_checkpoint
from tests.test_hub import ID, TOKEN, publish, server

__all__ = ["server"]  # a fixture

LARGE = {"layers": 4, "vocabulary": 320, "hidden": 1024, "intermediate": 2048, "kv": 512}
"""A Llama whose weights are far larger than what is read to see them: 53 MB."""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_stories(tmp_path_factory.mktemp("healthy") / "stories-FP8-dynamic")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("large") / "large", llama(**LARGE), llama_config(**LARGE))


def files_of(folder: Path) -> dict[str, bytes | File]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def verdicts(run: Run) -> dict[str, set[str]]:
    """Return check → statuses, without the two that a listing cannot answer."""
    checks = {finding["check"] for finding in run.report["findings"]} - {"file.mode", "file.side"}
    return {check: run.status_of(check) for check in checks}


def ranges_of_weights(running: LoopbackHub) -> list[tuple[int, int]]:
    """Return what was asked of weight files, as (first byte, one past the last); a GET of a whole file fails here."""
    found = []
    for request in running.requests:
        if request.method == "GET" and request.path.partition("?")[0].endswith(".safetensors"):
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
            assert match is not None, request
            found.append((int(match[1]), int(match[2]) + 1))
    return found


def test_headers_and_scales_travel_and_no_weight(server: LoopbackHub, large: Path) -> None:
    files = files_of(large)
    publish(server, files)
    run = fp8_inspect(ID, "--json", "--details")
    assert (run.code, run.err, run.report["verdict"]) == (0, "", "no fault found")

    weights = files["model.safetensors"]
    assert isinstance(weights, bytes)
    begin = int.from_bytes(weights[:8], "little") + 8
    with safe_open(large / "model.safetensors", framework="numpy") as file:
        scales = sum(2 * file.get_slice(name).get_shape()[0] for name in file.keys() if name.endswith("_scale"))  # noqa: SIM118
    first, *others = ranges_of_weights(server)
    assert first == (0, FIRST_BYTES)
    # The scales, each by itself or with a gap that costs less than a request.
    assert scales <= sum(end - start for start, end in others) < 0.05 * len(weights)
    assert all(start >= begin for start, _ in others)
    assert server.bytes_sent < 0.06 * len(weights)
    assert len(others) <= 4

    here = fp8_inspect(large, "--json", "--details")
    assert verdicts(run) == verdicts(here)
    for part in ("roles", "dtypes", "total", "tensors", "scales", "quantization"):
        assert run.report[part] == here.report[part]


def test_a_real_checkpoint_looks_the_same_from_afar(server: LoopbackHub, healthy: Path) -> None:
    publish(server, files_of(healthy))
    there, here = fp8_inspect(ID), fp8_inspect(healthy)
    first, *rest = there.out.split("\n\n")
    assert first.splitlines()[0] == "tiny · LlamaForCausalLM · FP8_DYNAMIC"
    assert first.splitlines()[1:] == here.out.split("\n\n")[0].splitlines()[1:]
    assert rest[:2] == here.out.split("\n\n")[1:3]
    assert f"\n  vllm serve {ID}\n" in there.out
    assert rest[-2] == (
        """\
checks
- not checked  file.side  side files are not fetched from the Hub
- not checked  file.mode  files on the Hub have no modes
17 checks passed; --details lists them"""
    )
    assert (rest[-1], here.out.splitlines()[-1]) == ("no fault found: 2 not checked, 17 passed\n", "healthy: 19 passed")
    assert (there.code, here.code) == (0, 0)


def test_a_damaged_scale_on_the_hub_is_found(server: LoopbackHub, healthy: Path, tmp_path: Path) -> None:
    folder = change(healthy, tmp_path / "copy", lambda t: set_scale(t, f"{LAYER}.weight_scale", 7, float("nan")))
    publish(server, files_of(folder))
    run = fp8_inspect(ID, "--json")
    assert (run.code, run.report["verdict"], run.failed()) == (1, "damaged", {"scale.nan"})


def test_a_revision_stands_behind_the_id_or_the_option(server: LoopbackHub, healthy: Path) -> None:
    repo = publish(server, files_of(STORIES))
    repo.push(files_of(healthy), branch="fp8")
    assert fp8_inspect(ID, "--json").report["quantization"]["dialect"] == "unquantized BF16"
    for words in ((f"{ID}@fp8",), (ID, "--revision", "fp8"), (f"{ID}@{repo.branches['fp8']}",)):
        assert fp8_inspect(*words, "--json").report["quantization"]["scheme"] == "FP8_DYNAMIC"
    unknown = fp8_inspect(f"{ID}@nowhere")
    assert (unknown.code, unknown.out, unknown.err.count("error: ")) == (3, "", 1)


def test_verifying_from_afar_is_refused_with_the_way_to_do_it(server: LoopbackHub, healthy: Path) -> None:
    publish(server, files_of(healthy))
    run = fp8_inspect(ID, "--verify")
    assert (run.code, run.out, run.err) == (
        2,
        "",
        (
            f"error: --verify reads every weight, and `{ID}` lies on the Hub\n\n"
            f"hint: fetch it first: hf download {ID} --local-dir DIR\n"
        ),
    )
    assert ranges_of_weights(server) == []


def test_a_checkpoint_on_the_hub_is_compared_with_a_source_here(server: LoopbackHub, healthy: Path) -> None:
    publish(server, files_of(healthy))
    run = fp8_inspect(ID, "--against", str(STORIES), "--json")
    here = fp8_inspect(healthy, "--against", str(STORIES), "--json")
    assert (run.code, run.report["against"]) == (0, here.report["against"])
    assert max(end - start for start, end in ranges_of_weights(server)) < (healthy / "model.safetensors").stat().st_size


def test_a_checkpoint_here_is_compared_with_a_source_on_the_hub(
    server: LoopbackHub, healthy: Path, tmp_path: Path
) -> None:
    publish(server, files_of(STORIES))
    here = fp8_inspect(healthy, "--against", str(STORIES), "--json")
    run = fp8_inspect(healthy, "--against", ID, "--json")
    assert run.code == 0
    assert run.report["against"] == here.report["against"] | {"base": ID}
    swapped = change(healthy, tmp_path / "copy", lambda t: set_scale(t, f"{LAYER}.weight_scale", 7, 100.0))
    assert fp8_inspect(swapped, "--against", ID, "--json").failed() == {"against.sqnr"}
    ranges_of_weights(server)


def test_what_the_hub_does_not_have_is_one_sentence_and_no_token(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens.add(TOKEN)
    run = fp8_inspect("acme/nothing")
    assert (run.code, run.out, run.err.count("\n\n")) == (3, "", 1)
    assert run.err.startswith("error: `acme/nothing` is neither a folder here nor a model that ")
    assert TOKEN not in run.err


def test_scales_that_the_network_keeps_back_are_not_checked(
    server: LoopbackHub, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, files_of(large))
    note = LoopbackHub._note

    def lose_what_is_not_the_header(self: LoopbackHub, request: Request) -> int | Break | None:
        asked = request.headers.get("range", "bytes=0-")
        return note(self, request) if asked.startswith("bytes=0-") else HTTPStatus.SERVICE_UNAVAILABLE.value

    monkeypatch.setattr(LoopbackHub, "_note", lose_what_is_not_the_header)
    run = fp8_inspect(ID, "--json")
    assert (run.code, run.failed(), run.status_of("scale.values")) == (0, set(), {"not checked"})
    (finding,) = (finding for finding in run.report["findings"] if finding["check"] == "scale.values")
    assert finding["found"] == (
        f"28 scale tensors cannot be read: {server.url} answers with HTTP 503 Service Unavailable"
    )
