"""The gate of `fp8 quantize`: what is not sound gets no name, and what the user chose is told."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.inspection.gate import pass_gate
from fp8cli.core.making import production
from fp8cli.errors import BadInput
from fp8cli.formats import ranges
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.staging import Staging, partial_folder
from tests.models import llama_config, save_model

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("gate") / "tiny-llama", llama_config())


def overwrite(name: str, content: bytes) -> Damage:
    """Damage one tensor: its first bytes become `content`."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        length = struct.unpack("<Q", data[:8])[0]
        begin = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
        data[begin : begin + len(content)] = content
        path.write_bytes(data)

    return damage


def change_config(**keys: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"] |= keys
        path.write_text(json.dumps(config))

    return damage


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


SCALE = "model.layers.1.mlp.up_proj.weight_scale"
UNSOUND: dict[str, tuple[Damage, str]] = {
    "a_scale_that_is_nan": (overwrite(SCALE, b"\xc0\x7f"), f"NaN, .*`?{SCALE}|NaN"),
    "a_scale_that_is_zero": (overwrite(SCALE, b"\x00\x00"), "zero"),
    "a_format_that_the_tensors_have_not": (change_config(format="dense"), "`format` is `dense`"),
    "a_quantized_module_listed_as_ignored": (
        change_config(ignore=["lm_head", "model.layers.0.mlp.up_proj"]),
        "lists it as ignored",
    ),
    "a_promise_of_a_kv_cache_without_scales": (
        change_config(kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}),
        "k_scale",
    ),
    "a_shard_cut_short": (cut_short, "model.safetensors"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_a_result_that_is_not_sound_is_not_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """No fault of the tool's own is known, so the damage is done between the last write and the gate."""
    damage, words = UNSOUND[case]
    whole = production.describe

    def describe(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        staging = arguments[3]
        assert isinstance(staging, Staging)
        damage(staging.checkpoint)

    monkeypatch.setattr(production, "describe", describe)
    with pytest.raises(BadInput, match=words) as caught:
        run(QuantizeRequest(model=str(source), out=tmp_path / "out"))
    assert "is not published" in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_old_output_outlives_a_new_one_that_is_not_sound(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = QuantizeRequest(model=str(source), out=tmp_path / "out", overwrite=True)
    run(request)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    whole = production.execute

    def execute(plan: object, sources: object, staging: Staging, *rest: object, **options: object) -> object:
        written = whole(plan, sources, staging, *rest, **options)  # type: ignore[arg-type]
        overwrite(SCALE, b"\xc0\x7f")(staging.checkpoint)
        return written

    monkeypatch.setattr(production, "execute", execute)
    with pytest.raises(BadInput, match="is not published"):
        run(request)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_passed_is_in_the_report(source: Path, tmp_path: Path) -> None:
    report = run(QuantizeRequest(model=str(source), out=tmp_path / "out"))
    assert {finding.status for finding in report.findings} == {"passed"}
    checks = {finding.check for finding in report.findings}
    assert {"config.modules", "file.size", "scale.missing", "scale.shape", "scale.values", "tensor.missing"} <= checks
    planned = run(QuantizeRequest(model=str(source), out=tmp_path / "other", dry_run=True))
    assert planned.findings == ()


def test_what_the_user_chose_is_told_and_not_refused(source: Path, tmp_path: Path) -> None:
    report = run(QuantizeRequest(model=str(source), out=tmp_path / "out", default_ignore=False))
    failed = [finding for finding in report.findings if finding.status == "failed"]
    assert [(finding.check, finding.subject) for finding in failed] == [("module.head", "lm_head.weight")]
    torn = ("model.layers.0.self_attn.q_proj",)
    report = run(QuantizeRequest(model=str(source), out=tmp_path / "torn", ignore=torn))
    failed = [finding for finding in report.findings if finding.status == "failed"]
    assert [finding.check for finding in failed] == ["config.shards"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "", "`tokenizer.json` is empty"),
        ("tokenizer_config.json", '{"a": ', "`tokenizer_config.json` is not valid JSON"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "tokenizer.json"),
    ],
    ids=["empty", "broken JSON", "a pointer"],
)
def test_a_broken_file_beside_the_weights_stops_before_the_work(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    model = save_model(tmp_path / "source", llama_config())
    (model / name).write_text(content)
    with pytest.raises(BadInput, match=words) as caught:
        run(QuantizeRequest(model=str(model), out=tmp_path / "out"), _never)
    assert "cannot be carried over" in caught.value.message
    assert not partial_folder(tmp_path / "out").exists()


def _never(event: object) -> None:
    message = f"the work began: {event}"
    raise AssertionError(message)


def test_the_gate_reads_headers_and_scales_and_no_weight(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(QuantizeRequest(model=str(source), out=tmp_path / "out")).out
    with safe_open(out / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith("_scale")]  # noqa: SIM118 - not a mapping
        scales = sum(file.get_tensor(name).nbytes for name in names)
    asked: list[tuple[str, int, int]] = []

    class Counting:
        def __init__(self, reader: ranges.RangeReader) -> None:
            self.reader = reader

        def read_many(self, wanted: list[tuple[str, int, int]]) -> Iterator[bytes]:
            asked.extend(wanted)
            return iter(self.reader.read_many(wanted))

    original = ranges.open_ranges
    monkeypatch.setattr("fp8cli.core.inspection.survey.open_ranges", lambda source: Counting(original(source)))
    pass_gate(LocalFolder(out))
    assert sum(end - begin for _, begin, end in asked) == scales
