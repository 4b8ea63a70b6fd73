"""`fp8.json` and `fp8 verify`: written down is what `sha256sum` says, and whatever is changed later is found."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fp8cli.commands.convert import ConvertRequest, Options
from fp8cli.commands.convert import run as convert
from fp8cli.commands.dequantize import DequantizeRequest
from fp8cli.commands.dequantize import run as dequantize
from fp8cli.commands.inspect import InspectRequest
from fp8cli.commands.inspect import run as inspect
from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.commands.verify import VerifyReport, VerifyRequest
from fp8cli.commands.verify import run as verify
from fp8cli.errors import BadInput, CannotRun, ExitCode, Fp8Error
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.provenance import read_provenance
from tests.models import ODD, llama_config, save_model
from tests.starting import fp8, words_of

SHARD = "model-00002-of-00006.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of several shards with side files below and beside; never written to."""
    folder = save_model(tmp_path_factory.mktemp("verify") / "source", llama_config(**ODD), max_shard_size="300KB")
    (folder / "LICENSE").write_text("do what you like")
    (folder / "templates").mkdir()
    (folder / "templates" / "chat.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what was made of it; never written to."""
    return quantize(QuantizeRequest(model=str(source), out=tmp_path_factory.mktemp("made") / "out")).out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def sha256sum(folder: Path, *, without: str = "") -> dict[str, tuple[int, str]]:
    """Ask coreutils about every file: name → (bytes, digest)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != without)
    lines = subprocess.run(["sha256sum", "-z", *files], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    digests = [line.split(b"  ")[0].lstrip(b"\\").decode() for line in lines]
    return {
        str(path.relative_to(folder)): (path.stat().st_size, digest)
        for path, digest in zip(files, digests, strict=True)
    }


def document_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "fp8.json").read_text())
    return document


def told(files: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[object, object]]:
    return {name: (facts["bytes"], facts["sha256"]) for name, facts in files.items()}


def check(checkpoint: Path, **more: str) -> VerifyReport:
    return verify(VerifyRequest(checkpoint=str(checkpoint), **more))


def differences(report: VerifyReport) -> dict[str, str]:
    return {verdict.name: verdict.status for verdict in report.files if verdict.status != "matches"}


# What is written down


def test_every_file_of_source_and_output_is_named_with_the_hash_that_sha256sum_gives(source: Path, made: Path) -> None:
    document = document_of(made)
    assert told(document["files"]) == sha256sum(made, without="fp8.json")
    assert told(document["source"]["files"]) == sha256sum(source)
    assert "templates/chat.jinja" in document["files"]
    assert document["source"]["name"] == "source"
    assert (document["source"]["commit"], document["source"]["hub_says"]) == (None, [])


def test_the_same_inputs_give_the_same_text_whatever_the_workers_and_no_path_is_in_it(
    source: Path, made: Path, tmp_path: Path
) -> None:
    options = {"workers": 5, "piece_bytes": 4096, "max_memory": "1100kB"}
    again = quantize(QuantizeRequest(model=f"{source}/", out=tmp_path / "out", **options)).out
    text = (made / "fp8.json").read_text()
    assert (again / "fp8.json").read_text() == text
    assert str(source.parent) not in text
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_the_plan_stands_in_it_as_recipe_and_card_have_it(source: Path, tmp_path: Path) -> None:
    request = QuantizeRequest(model=str(source), out=tmp_path / "out", scheme="FP8_BLOCK", ignore=("re:.*down_proj",))
    plan = document_of(quantize(request).out)["plan"]
    assert (plan["command"], plan["made"], plan["scheme"], plan["kv_cache"]) == (
        "quantize",
        "FP8_BLOCK",
        "FP8_BLOCK",
        None,
    )
    assert (plan["targets"], plan["ignore"], plan["engine"]) == (["Linear"], ["lm_head", "re:.*down_proj"], "streaming")
    assert plan["counts"]["quantize"] == 12


def test_what_is_converted_has_one_of_its_own_and_names_that_of_its_source(source: Path, tmp_path: Path) -> None:
    block = quantize(QuantizeRequest(model=str(source), out=tmp_path / "block", scheme="FP8_BLOCK")).out
    convert(ConvertRequest(options=Options(model=str(block), out=tmp_path / "deepseek"), to="deepseek"))
    dequantize(DequantizeRequest(options=Options(model=str(block), out=tmp_path / "plain")))
    for name, command in (("deepseek", "convert"), ("plain", "dequantize")):
        document = document_of(tmp_path / name)
        assert document["plan"]["command"] == command
        assert told(document["files"]) == sha256sum(tmp_path / name, without="fp8.json")
        assert told(document["source"]["files"]) == sha256sum(block)
        assert "fp8.json" in document["source"]["files"]
        assert check(tmp_path / name, source=str(block)).verdict == "matches"


def test_without_hashes_there_are_sizes_and_verify_does_not_call_that_a_match(source: Path, tmp_path: Path) -> None:
    out = quantize(QuantizeRequest(model=str(source), out=tmp_path / "out", hashed=False)).out
    sizes = {name: (size, None) for name, (size, _) in sha256sum(out, without="fp8.json").items()}
    assert told(document_of(out)["files"]) == sizes
    report = check(out)
    assert (report.verdict, report.exit_code) == ("not known", ExitCode.COULD_NOT_RUN)
    assert set(differences(report).values()) == {"not recorded"}
    (out / "LICENSE").unlink()
    assert check(out).exit_code == ExitCode.NEGATIVE


# What is found


def test_untouched_every_file_matches_and_so_does_the_source(source: Path, made: Path) -> None:
    report = check(made, source=str(source))
    assert (report.verdict, report.exit_code, differences(report)) == ("matches", ExitCode.DONE, {})
    assert report.source is not None
    assert report.source.verdict == "matches"
    hashed = {**sha256sum(made, without="fp8.json")}, sha256sum(source)
    assert report.bytes_read == sum(size for files in hashed for size, _ in files.values())
    assert report.provenance_sha256 == sha256sum(made)["fp8.json"][1]


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def link_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("name", "spoil", "status", "code"),
    [
        (SHARD, flip, "other bytes", ExitCode.NEGATIVE),
        (SHARD, lambda path: os.truncate(path, path.stat().st_size - 1), "other size", ExitCode.NEGATIVE),
        (SHARD, lambda path: path.unlink(), "missing", ExitCode.NEGATIVE),
        ("config.json", lambda path: path.write_text(path.read_text() + " "), "other size", ExitCode.NEGATIVE),
        ("modeling_evil.py", lambda path: path.write_text("import os"), "extra", ExitCode.NEGATIVE),
        ("templates/more.jinja", lambda path: path.write_text(""), "extra", ExitCode.NEGATIVE),
        ("LICENSE", link_away, "unreadable", ExitCode.COULD_NOT_RUN),
    ],
)
def test_one_changed_file_is_found_and_no_other_is_accused(
    copy: Path, name: str, spoil: Callable[[Path], object], status: str, code: ExitCode
) -> None:
    spoil(copy / name)
    report = check(copy)
    assert (differences(report), report.exit_code) == ({name: status}, code)


def test_signatures_and_what_the_hub_adds_are_no_difference(copy: Path) -> None:
    for name in ("fp8.json.minisig", "fp8.json.sigstore", ".gitattributes"):
        (copy / name).write_text("signed")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "note").write_text("")
    assert check(copy).verdict == "matches"


def test_a_source_that_has_changed_is_found_and_what_it_has_besides_is_its_own(
    source: Path, made: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    (other / "notes.txt").write_text("")
    assert check(made, source=str(other)).verdict == "matches"
    flip(other / SHARD)
    report = check(made, source=str(other))
    assert (report.verdict, report.exit_code, differences(report)) == ("differs", ExitCode.NEGATIVE, {})
    assert report.source is not None
    assert [file.name for file in report.source.files if file.status != "matches"] == [SHARD]


def test_a_file_by_itself_is_checked_against_what_lies_beside_it(copy: Path) -> None:
    (copy / "extra.txt").write_text("")
    (verdict,) = check(copy / SHARD).files
    assert (verdict.name, verdict.status) == (SHARD, "matches")
    assert differences(check(copy / "fp8.json")) == {"extra.txt": "extra"}
    with pytest.raises(CannotRun, match="does not name `extra"):
        check(copy / "extra.txt")


# Documents of strangers


def test_without_fp8_json_there_is_one_sentence_that_says_what_to_do(source: Path) -> None:
    with pytest.raises(CannotRun) as refused:
        check(source)
    assert refused.value.message == f"`{source}` has no `fp8.json`, which says what its files must be"
    assert "fp8 inspect CKPT --verify" in str(refused.value.hint)


def test_a_later_version_is_not_guessed_at(copy: Path) -> None:
    document = document_of(copy) | {"schema_version": 2}
    (copy / "fp8.json").write_text(json.dumps(document | {"files": "of a form that nobody knows yet"}))
    with pytest.raises(CannotRun, match="has schema version 2; this fp8 reads 1"):
        check(copy)


FINE = {"bytes": 1, "sha256": "0" * 64}


def with_file(name: str, facts: object = FINE) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["files"].update({name: facts})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_file("/etc/passwd"), "names `/etc/passwd`, which is no file in its folder"),
        (with_file("../secret"), "names `../secret`, which is no file in its folder"),
        (with_file("a/../../secret"), "no file in its folder"),
        (with_file("a//b"), "no file in its folder"),
        (with_file("./a"), "no file in its folder"),
        (with_file("a/"), "no file in its folder"),
        (with_file(""), "no file in its folder"),
        (with_file("."), "no file in its folder"),
        (with_file("a\0b"), "no file in its folder"),
        (with_file("x" * 10_000), "no file in its folder"),
        (with_file("\x1b[31mred", "no object"), "is not a JSON object"),
        (with_file("fp8.json"), "it has a hash of itself"),
        (with_file("a", FINE | {"bytes": -1}), "says that `a` has -1 bytes"),
        (with_file("a", FINE | {"bytes": True}), "`files.a.bytes` is True"),
        (with_file("a", FINE | {"bytes": 1.5}), "`files.a.bytes` is 1.5"),
        (with_file("a", FINE | {"sha256": "0" * 63}), "the SHA-256 of `a` is no 64 hexadecimal digits"),
        (with_file("a", {"bytes": 1}), "`files.a.sha256` is missing"),
        (lambda document: document.update(files=[]), "`files` is []"),
        (lambda document: document["source"]["files"].update({"/x": FINE}), "`source.files` names `/x`"),
        (lambda document: document.update(schema_version=0), "`schema_version` is 0"),
        (lambda document: document.pop("plan"), "`plan` is missing"),
    ],
)
def test_a_document_that_cannot_be_is_refused_in_one_sentence(
    copy: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    document = document_of(copy)
    change(document)
    (copy / "fp8.json").write_text(json.dumps(document))
    with pytest.raises(BadInput) as refused:
        check(copy)
    message = refused.value.message
    assert reason in message
    assert message.isprintable()
    assert len(message) < 2_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"[]", "it is not a JSON object"),
        (b'{"files": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "codec can't decode"),
        (b'{"files": 1, "files": 2}', "a name stands in it twice"),
        (b'{"schema_version": ' + b"9" * 5_000 + b"}", "digits"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_text_that_is_no_document_is_refused_in_one_sentence(copy: Path, text: bytes, reason: str) -> None:
    (copy / "fp8.json").write_bytes(text)
    with pytest.raises(BadInput) as refused:
        check(copy)
    assert reason in refused.value.message


def test_a_document_of_gigabytes_is_not_read(copy: Path) -> None:
    os.truncate(copy / "fp8.json", 2**33)
    with pytest.raises(BadInput, match="is 8,589,934,592 bytes long, and none has more than 50,000,000"):
        check(copy)


# On the screen, and elsewhere


def test_hostile_names_are_shown_and_never_obeyed(source: Path, tmp_path: Path) -> None:
    model = shutil.copytree(source, tmp_path / "model")
    names = ("\x1b[31mred\n.txt", "[bold]loud", os.fsdecode(b"not \xff utf-8"), "long" + "x" * 200)
    for name in names:
        (model / name).write_text("as it was")
    out = quantize(QuantizeRequest(model=str(model), out=tmp_path / "out")).out
    assert set(names) <= set(read_provenance(LocalFolder(out)).files)
    for name in names:
        (out / name).write_text("changed")
    run = fp8(tmp_path, "verify", out)
    assert (run.code, run.err, run.loaded) == (1, "", [])
    assert {character for character in run.out if not character.isprintable()} == {"\n"}
    assert "[bold]loud" in run.out
    assert "\\x1b[31mred\\n.txt" in run.out


def test_the_screen_has_a_row_for_every_file_and_json_has_the_same(copy: Path, tmp_path: Path) -> None:
    flip(copy / SHARD)
    run = fp8(tmp_path, "verify", copy)
    files = sha256sum(copy, without="fp8.json")
    recorded = document_of(copy)["files"][SHARD]["sha256"]
    lines = run.out.splitlines()
    assert lines[:3] == [
        str(copy),
        "FP8_DYNAMIC: E4M3 weights per channel, activations per token at run time",
        lines[2],
    ]
    assert lines[2].startswith("made from source by fp8 quantize, with fp8cli ")
    table = [line.split() for line in lines[5 : 5 + len(files)]]
    assert {(row[0], row[-2], row[-1]) for row in table} == {
        (name, f"{size:,}", f"{digest[:12]}…") for name, (size, digest) in files.items()
    }
    assert f"✗ failed       other bytes  {SHARD}: its SHA-256 is {files[SHARD][1][:12]}…" in run.out
    assert f"and fp8.json says {recorded[:12]}…" in run.out
    assert lines[-2] == f"{sha256sum(copy)['fp8.json'][1]}  fp8.json"
    assert lines[-1].startswith(f"✗ differs  {len(files) - 1} of {len(files)} files as fp8.json says; ")
    report = fp8(tmp_path, "verify", copy, "--json")
    assert (run.code, report.code, report.loaded) == (1, 1, [])
    assert (report.report["verdict"], json.loads(report.out)["exit_code"]) == ("differs", 1)
    assert {file["name"]: (file["bytes"], file["sha256"]) for file in report.report["files"]} == files


def test_ctrl_c_ends_it_in_the_middle_of_a_file(copy: Path, tmp_path: Path) -> None:
    document = document_of(copy)
    document["files"][SHARD]["bytes"] = 2**42
    (copy / "fp8.json").write_text(json.dumps(document))
    os.truncate(copy / SHARD, 2**42)
    words = words_of(tmp_path, "verify", copy)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")


# Beside fp8 inspect


def finding(folder: Path, name: str, **more: bool) -> tuple[str, str]:
    report = inspect(InspectRequest(source=folder, **more))
    (found,) = [finding for finding in report.findings if finding.check == name]
    return found.status, found.found


def test_inspect_says_that_it_is_there_and_what_it_names(copy: Path, source: Path) -> None:
    files = len(sha256sum(copy, without="fp8.json"))
    wanted = f"`fp8.json`: made from `source` by fp8 quantize, with the SHA-256 of {files} files"
    assert finding(copy, "provenance") == ("passed", f"{wanted}; fp8 verify compares them")
    assert not [each for each in inspect(InspectRequest(source=source)).findings if each.check == "provenance"]
    (copy / "fp8.json").write_text("{}")
    assert finding(copy, "provenance")[0] == "warning"
    (copy / "fp8.json").write_text('{"schema_version": 99}')
    assert finding(copy, "provenance")[0] == "not checked"


def test_inspect_verify_takes_its_hashes_for_stored_ones(copy: Path) -> None:
    assert finding(copy, "hash.sha256", verify=True)[0] == "passed"
    flip(copy / SHARD)
    status, found = finding(copy, "hash.sha256", verify=True)
    assert status == "failed"
    assert "but `fp8.json` has" in found


def test_one_that_the_source_has_is_not_carried_over(made: Path, tmp_path: Path) -> None:
    plain = dequantize(DequantizeRequest(options=Options(model=str(made), out=tmp_path / "plain"))).out
    again = quantize(QuantizeRequest(model=str(plain), out=tmp_path / "again")).out
    assert document_of(again)["source"]["name"] == "plain"
    assert check(again, source=str(plain)).verdict == "matches"
    # Nor a broken one, which the gate would refuse as it does any other.
    (plain / "fp8.json").write_text("{")
    with pytest.raises(Fp8Error, match=r"`fp8\.json` is not valid JSON"):
        quantize(QuantizeRequest(model=str(plain), out=tmp_path / "broken"))
