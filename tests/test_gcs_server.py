"""Google's own client talks to the loopback store: what tests/test_gcs.py relies on is not this project's word."""

from pathlib import Path

import pytest

from tests.loopback_gcs import BUCKET, LoopbackGcs

storage = pytest.importorskip("google.cloud.storage", reason='pip install "fp8cli[gcs]"')


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_googles_client_uploads_in_parts_lists_reads_and_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed
    from google.cloud.storage import transfer_manager

    data = bytes(range(256)) * 4096 * 11  # 11 MiB: three parts, the last of them smaller.
    (tmp_path / "file").write_bytes(data)
    with LoopbackGcs() as server:
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        client = storage.Client.from_service_account_json(tmp_path / "key.json")
        bucket = client.bucket(BUCKET)
        blob = bucket.blob("some/large file")
        threads = transfer_manager.THREAD
        transfer_manager.upload_chunks_concurrently(
            str(tmp_path / "file"), blob, chunk_size=5 * 2**20, worker_type=threads, checksum=None
        )
        assert server.contents("some") == {"large file": data}
        assert len(server.parts()) == 3
        assert server.uploads == {}
        for number in range(6):
            server.put(f"some/{number}", b"%d" % number)
        assert [each.name for each in bucket.list_blobs(prefix="some/")] == [
            *(f"some/{number}" for number in range(6)),
            "some/large file",
        ]
        blob.reload()
        assert blob.size == len(data)
        # Its end is inclusive.
        assert blob.download_as_bytes(start=1000, end=1999, checksum=None) == data[1000:2000]
        with pytest.raises(PreconditionFailed):
            blob.download_as_bytes(if_generation_match=blob.generation - 1)
        with pytest.raises(NotFound):
            bucket.blob("some/nothing").reload()
        with pytest.raises(NotFound):
            list(client.bucket("nowhere").list_blobs())
        blob.delete()
        assert "large file" not in server.contents("some")
        assert server.tokens_given > 0
