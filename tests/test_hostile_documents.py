"""Whatever stands in a checkpoint's JSON, the commands answer in words and with an exit code, never with a traceback.

Random places of `config.json`, of the index and of a safetensors header get random values of every type. Nothing
is asked of the answer but that it is one: what it says of each known fault is held in other files of tests.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from fp8cli.cli.app import app
from fp8cli.core.model.architectures import architecture_name
from fp8cli.errors import UsageError
from fp8cli.formats.staging import check_output
from tests.checkpoints import quantize_bundled
from tests.malformed import INDEX, SHARDS, pack, shard, single
from tests.starting import fp8

BUNDLED: Final = Path("fp8cli/bundled/stories-llama").resolve()
VALUES: Final = (
    *(None, True, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), 1.5, "", "x", "F8_E4M3", "a" * 10_000),
    *("\x1b[31m\u202e", "[bold]", "\ud800", [], [1], ["x"], [None], [[]], [-1, 2], [2**40, 2**40]),
    *({}, {"a": 1}, {"": None}, [{}]),
)
ROUNDS: Final = 100
GONE: Final = object()


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*way, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 2)):
            yield from places(value[number], (*way, number))


def changed(document: Any, chance: random.Random) -> Any:
    """Return a copy with one place taken away, or put to a value of any type."""
    document = json.loads(json.dumps(document))
    *way, last = chance.choice(list(places(document))[1:])
    holder = document
    for step in way:
        holder = holder[step]
    value = chance.choice((*VALUES, GONE))
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    return document


def answer(*words: str | Path) -> int:
    """Run a command in this process and return its exit code. What is no answer gets out, as what it is."""
    code: int = app([*map(str, words)], standalone_mode=False)
    return code


@pytest.fixture(scope="module")
def fp8_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_bundled(tmp_path_factory.mktemp("fp8") / "model", "FP8_DYNAMIC")


@pytest.mark.parametrize("what", ["config of the source", "config of the result", "header", "index"])
def test_any_value_anywhere_is_answered_in_words(
    what: str, tmp_path: Path, fp8_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fp8_checkpoint if what == "config of the result" else BUNDLED
    weights = (source / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(weights[:8], "little")
    config, header = json.loads((source / "config.json").read_text("utf-8")), json.loads(weights[8:size])
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    folder, out, chance = tmp_path / "model", tmp_path / "out", random.Random(what)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if what == "index":
        for name, tensor in zip(SHARDS, "ab", strict=True):
            (folder / name).write_bytes(shard(tensor))
    else:
        (folder / "model.safetensors").write_bytes(weights)
    for _ in range(ROUNDS):
        match what:
            case "header":
                (folder / "model.safetensors").write_bytes(pack(changed(header, chance), weights[size:]))
            case "index":
                (folder / INDEX).write_text(json.dumps(changed(index, chance)), "utf-8")
            case _:
                (folder / "config.json").write_text(json.dumps(changed(config, chance)), "utf-8")
        assert answer("inspect", folder, "-q") in {0, 1, 3}
        assert answer("quantize", folder, "--dry-run", "-o", out) in {0, 2, 3}
        assert answer("dequantize", folder, "--dry-run", "-o", out) in {0, 2, 3}
        printed = capsys.readouterr()
        assert all(sign.isprintable() or sign == "\n" for sign in printed.out + printed.err)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("named", [5, 1.5, "LlamaForCausalLM", [], [5], [None], {}, {"a": 1}, None])
def test_architectures_of_any_type_leave_the_model_type_to_go_by(named: object) -> None:
    assert architecture_name({"architectures": named, "model_type": "llama"}) == "llama"
    assert architecture_name({"architectures": named, "model_type": 7}) == "unknown"


def test_an_output_inside_its_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(UsageError, match="would lie inside its own source, and be taken for a part of it") as refused:
        check_output(source / "deep" / "out", overwrite=True, source=source)
    assert refused.value.hint == f"choose a place beside it: -o {tmp_path / 'out'}"
    check_output(tmp_path / "model-FP8", overwrite=False, source=source)


@pytest.mark.parametrize("options", [(), ("--details",)])
def test_what_cannot_be_read_is_not_said_to_fit(options: tuple[str, ...], tmp_path: Path) -> None:
    single(b"")(tmp_path / "model")
    run = fp8(tmp_path, "inspect", tmp_path / "model", *options)
    assert run.code == 1
    assert "is 0 bytes long" in run.out
    assert run.out.endswith("passed\n")
    assert not any(word in run.out for word in ("will it run", "GPU", "vLLM makes", "0.000000"))


def test_a_weight_file_in_a_subfolder_is_not_said_to_be_loaded(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path / "model" / "consolidated")
    run = fp8(tmp_path, "inspect", tmp_path / "model")
    assert run.code == 1
    assert "vLLM loads it" not in run.out
    assert "holds no weights" in run.out


def test_the_list_of_commands_has_whole_sentences_at_80_columns(tmp_path: Path) -> None:
    shown = fp8(tmp_path, "--help", COLUMNS="80").out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert len(shown) == len(app.registered_commands)
    assert all(line.endswith(".") and not line.endswith("...") and len(line) <= 80 for line in shown)
