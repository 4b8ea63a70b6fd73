"""A checkpoint larger than a few requests, and what is watched while it is streamed."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fp8cli.formats.staging import partial_folder
from tests.models import llama_config, save_model

WIDE = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 8192, "num_hidden_layers": 4}
WINDOW = "20MiB"
WINDOW_BYTES = 20 * 2**20


def save_wide_model(folder: Path) -> Path:
    """Save some 50 MB of random weights in several shards."""
    save_model(folder, llama_config(**WIDE), max_shard_size="20MB")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of an output but its card and fp8.json, which name the source."""
    names_it = {"README.md", "fp8.json"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in names_it}


@dataclass
class Seen:
    peak_bytes: int = 0


@contextmanager
def watched_window(out: Path) -> Iterator[Seen]:
    """Look, all the time, at what the window of an output takes of the disk."""
    seen, done = Seen(), threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            taken = 0
            for file in (partial_folder(out) / "window").glob("*"):
                try:
                    # Not every file system counts blocks, and a file here takes no less than it is long.
                    taken += max(file.stat().st_blocks * 512, file.stat().st_size)
                except FileNotFoundError:
                    continue
            seen.peak_bytes = max(seen.peak_bytes, taken)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
