"""`s3://` as a source: from a real S3 server on the loopback device, which stumbles, to the same bytes."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from fp8cli.commands import convert, doctor, inspect
from fp8cli.commands.quantize import QuantizeReport, QuantizeRequest, StreamOptions, run
from fp8cli.core.evaluating.subject import open_subject
from fp8cli.errors import BadInput, CannotRun, Fp8Error, UsageError
from fp8cli.formats import patience, remote_folder
from fp8cli.formats.staging import partial_folder
from tests.dialects import make
from tests.loopback_hub import Break, Busy, Stall
from tests.starting import fp8
from tests.streamed import WINDOW, WINDOW_BYTES, contents, save_wide_model, watched_window
from tests.stumbling_proxy import Stumble, StumblingProxy

MODEL = "s3://models/some/wide"
SECRET = "wJalrXUtnFEMI"  # noqa: S105 - of a server that accepts any


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_model(tmp_path_factory.mktemp("s3") / "wide")


@pytest.fixture(scope="module")
def wanted(local: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = run(QuantizeRequest(model=str(local), out=tmp_path_factory.mktemp("wanted") / "out")).out
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def store(local: Path) -> Iterator[str]:
    """A server with the checkpoint in it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    system = system_at(url)
    system.mkdir("models")
    for path in local.iterdir():
        system.pipe_file(f"models/some/wide/{path.name}", path.read_bytes())
    yield url
    server.stop()


def system_at(url: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(endpoint_url=url, key="key", secret=SECRET, skip_instance_cache=True)


@pytest.fixture
def proxy(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StumblingProxy]:
    monkeypatch.setattr(patience, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(patience, "FEW", (0.01,) * 2)
    monkeypatch.setattr(remote_folder, "READ_TIMEOUT", 1)
    with StumblingProxy(store) as running:
        for name, value in environment(running.url, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield running


def environment(url: str, home: Path) -> dict[str, str]:
    """Where the store is, and with what it is read: all of it in the variables that boto3 knows."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(home / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def stream(out: Path, model: str = MODEL, **more: object) -> QuantizeReport:
    options = StreamOptions(window=WINDOW, connections=4)
    wish: dict[str, object] = {"piece_bytes": 2**20, **more}
    return run(QuantizeRequest(model=model, out=out, streaming=options, **wish))  # type: ignore[arg-type]


def hide_gcsfs(patch: pytest.MonkeyPatch) -> None:
    """Let it look as if gcsfs were not installed."""
    patch.setitem(sys.modules, "gcsfs", None)


def everything(path: str, span: str) -> bool:
    del path, span
    return True


def is_listing(path: str, span: str) -> bool:
    return "list-type" in path and not span


def is_config(path: str, span: str) -> bool:
    return path.endswith("/config.json") and bool(span)


def is_header(path: str, span: str) -> bool:
    return "model-00002" in path and span.startswith("bytes=0-")


def is_weights(path: str, span: str) -> bool:
    return "model-00002" in path and not span.startswith("bytes=0-")


def test_the_result_is_that_of_the_folder_card_included(
    proxy: StumblingProxy, wanted: dict[str, bytes], local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with watched_window(out) as seen:
        report = stream(out)
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    noted, noted_here = (json.loads(files["fp8.json"]) for files in (written, wanted))
    assert written == wanted | {"fp8.json": written["fp8.json"]}
    # The SHA-256 of the weights too, which were hashed as they streamed by.
    assert noted == noted_here
    assert all(facts["sha256"] for facts in noted["source"]["files"].values())
    assert 0 < seen.peak_bytes <= WINDOW_BYTES
    assert report.revision is None
    assert report.streamed is not None
    assert report.streamed.source == MODEL
    assert report.streamed.facts is not None
    assert report.streamed.facts.bytes_fetched == report.bytes_read
    # No byte of the weights travelled twice for the hash: headers alone.
    shards = local.glob("*.safetensors")
    heads = (8 + int.from_bytes(shard.read_bytes()[:8], "little") for shard in shards)
    assert report.streamed.facts.bytes_for_hashes == sum(heads)
    assert all("IfMatch" not in path for _, path, _ in proxy.requests)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        (is_listing, Break(20)),
        (is_config, Break(0)),
        (is_header, Break(20)),
        (is_weights, Break(0)),
        (is_weights, 503),
        (is_weights, Busy(429, "0.05")),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_a_stumble_in_any_phase_is_survived(
    proxy: StumblingProxy, wanted: dict[str, bytes], tmp_path: Path, phase: object, how: Stumble
) -> None:
    proxy.stumble(phase, how)  # type: ignore[arg-type]
    if phase in {is_listing, is_config, is_header}:
        assert stream(tmp_path / "out", dry_run=True).bytes_written > 0
    else:
        assert contents(stream(tmp_path / "out").out).items() <= wanted.items()
    assert proxy.left == 0


def test_a_connection_that_falls_silent_or_breaks_is_taken_up_where_it_broke(
    proxy: StumblingProxy, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.stumble(is_weights, Break(3_000_000), Stall(2_000_000))
    report = stream(tmp_path / "out")
    assert contents(report.out).items() <= wanted.items()
    assert report.streamed is not None
    assert report.streamed.facts is not None
    assert report.streamed.facts.asked_again == 2
    spans = [tuple(map(int, span[6:].split("-"))) for _, path, span in proxy.requests if is_weights(path, span)]
    ends = [end for _, end in spans]
    begins = sorted(begin for begin, end in spans if ends.count(end) > 1)
    # What had come before it broke was not asked for again, but for less than one read of the client.
    assert begins[-1] > begins[0]


def test_a_file_that_changes_while_it_is_read_is_refused(proxy: StumblingProxy, store: str, tmp_path: Path) -> None:
    system = system_at(store)
    path = "models/some/wide/model-00003-of-00003.safetensors"
    data = system.cat_file(path)

    def change(event: object) -> None:
        if type(event).__name__ == "Started":
            system.pipe_file(path, data[:-2] + b"\1\1")

    options = StreamOptions(window=WINDOW)
    try:
        with pytest.raises(BadInput) as refused:
            run(QuantizeRequest(model=MODEL, out=tmp_path / "out", streaming=options), change)
    finally:
        system.pipe_file(path, data)
    assert "was changed while it was being read" in refused.value.message
    assert proxy.requests
    assert not partial_folder(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        (MODEL, 403, f"`{MODEL}` does not let you read it: Forbidden"),
        ("s3://models/nothing", None, "`s3://models/nothing` is not there"),
        ("s3://nowhere/nothing", None, "`s3://nowhere/nothing` is not there"),
        ("gs://models/some", None, "`gs://models/some` needs a package that is not installed"),
        ("abc://key:" + SECRET + "@x/y", None, "`abc://` is no kind of address that fsspec knows"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    proxy: StumblingProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    how: int | None,
    words: str,
) -> None:
    hide_gcsfs(monkeypatch)
    if how is not None:
        proxy.stumble(everything, how)
    with pytest.raises(Fp8Error) as refused:
        stream(tmp_path / "out", model=model)
    assert refused.value.message == words
    assert refused.value.hint
    assert SECRET not in refused.value.message + refused.value.hint
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named_with_its_command(
    proxy: StumblingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proxy.url
    hide_gcsfs(monkeypatch)
    with pytest.raises(CannotRun) as refused:
        stream(tmp_path / "out", model="gcs://models/some")
    assert refused.value.hint == 'pip install "fp8cli[gcs]"'


def test_without_credentials_it_says_where_they_are_looked_for(
    proxy: StumblingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proxy.url
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CannotRun, match=r"^no credentials for `s3://models/some/wide` were found$") as refused:
        stream(tmp_path / "out")
    assert "AWS_ACCESS_KEY_ID" in str(refused.value.hint)


def test_what_needs_files_names_the_command_that_fetches_them(proxy: StumblingProxy, tmp_path: Path) -> None:
    assert proxy.url
    with pytest.raises(CannotRun, match=r"^evaluating needs the files of `s3://models/some/wide` here$") as refused:
        open_subject(MODEL, None, served=False, full_hash=False, download_bars=False)
    assert refused.value.hint == f"fetch them first: aws s3 sync {MODEL} DIR"
    with pytest.raises(UsageError, match=r"--verify reads every weight, and `s3://models/some/wide` lies in a store"):
        inspect.run(inspect.InspectRequest(source=MODEL, verify=True))
    with pytest.raises(UsageError, match=r"lies in a store, and what lies there has no revisions"):
        stream(tmp_path / "out", revision="main")


def test_inspect_sees_what_it_sees_in_the_folder(proxy: StumblingProxy, local: Path) -> None:
    there, here = (inspect.run(inspect.InspectRequest(source=place)) for place in (MODEL, local))
    assert there.dtypes == here.dtypes
    assert there.total == here.total
    assert there.roles == here.roles
    assert there.name == here.name == "wide"
    unknown = [finding.found for finding in there.findings if finding.status == "not checked"]
    assert unknown == [f"side files are not fetched from {MODEL}", "files there have no modes"]
    # Headers alone: of every shard no more than a first request for it.
    spans = {span for _, path, span in proxy.requests if path.endswith(".safetensors")}
    assert spans == {"bytes=0-262143"}


def test_an_fp8_checkpoint_in_a_store_is_examined_compared_and_converted(
    proxy: StumblingProxy, store: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "deepseek", "deepseek")
    system = system_at(store)
    for path in folder.iterdir():
        system.pipe_file(f"models/deepseek/{path.name}", path.read_bytes())
    there, here = (inspect.run(inspect.InspectRequest(source=place)) for place in ("s3://models/deepseek", folder))
    assert there.quantization == here.quantization
    assert there.scales == here.scales
    checked = doctor.run(doctor.DoctorRequest(checkpoint="s3://models/deepseek", checks=("checkpoint",)))
    assert [row.status for row in checked.checks] == ["not checked"]
    assert "side files are not fetched from s3://models/deepseek" in checked.checks[0].found
    outs = []
    for number, place in enumerate(("s3://models/deepseek", str(folder))):
        options = convert.Options(model=place, out=tmp_path / str(number) / "out")
        outs.append(convert.run(convert.ConvertRequest(options=options, to="compressed-tensors")))
    assert outs[0].streamed is not None
    assert outs[1].streamed is None
    ours, theirs = ({path.name: path.read_bytes() for path in each.out.iterdir()} for each in outs)
    # fp8.json too, for what streams by is hashed.
    assert ours == theirs
    assert proxy.requests


def test_the_real_command_leaves_no_trace_of_secrets_or_connections(
    proxy: StumblingProxy, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.stumble(is_weights, 503)
    done = fp8(tmp_path, "quantize", MODEL, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert contents(tmp_path / "out").items() <= wanted.items()
    assert SECRET not in done.out + done.err
    assert "Unclosed" not in done.err
    assert json.loads(done.out)["result"]["streamed"]["facts"]["asked_again"] == 1


def test_a_folder_and_a_help_page_load_no_library_of_stores() -> None:
    program = (
        "import sys; from fp8cli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('fsspec', 's3fs', 'gcsfs', 'aiohttp') if name in sys.modules])"
    )
    for words in (["quantize", "--help"], ["inspect", "fp8cli/bundled/stories-llama"]):
        told = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        assert told.stdout.endswith("[]\n")
