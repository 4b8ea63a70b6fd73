"""Data sets for the loopback Hub, laid out as the real ones that lm-eval's tasks load.

`EleutherAI/lambada_openai` is a folder of Parquet files per configuration and a card that tells which is which, with
one column, `text`. These have the same form, and hold stories that the bundled model knows how to end.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import fp8cli
from tests.loopback_hub import Repo

LAMBADA: Final = "EleutherAI/lambada_openai"
"""As lm-eval's task names it."""

STORIES: Final = Path(fp8cli.__file__).parent / "bundled/stories-llama/heldout.jsonl"

_CARD = """---
language: en
dataset_info:
- config_name: default
  features:
  - name: text
    dtype: string
  splits:
  - name: test
    num_bytes: {size}
    num_examples: {items}
configs:
- config_name: default
  data_files:
  - split: test
    path: default/test-*
- config_name: en
  data_files:
  - split: test
    path: en/test-*
---

Stories whose last word is to be told.
"""


def bundled_stories(count: int) -> tuple[str, ...]:
    """Return the first of the held-out stories."""
    lines = STORIES.read_text("utf-8").splitlines()[:count]
    return tuple(json.loads(line)["text"] for line in lines)


def lambada_repo(texts: Sequence[str]) -> Repo:
    """Make a repository of the form of LAMBADA's; its second configuration holds the texts in reverse order."""
    size = sum(len(text.encode()) for text in texts)
    repo = Repo()
    repo.push(
        {
            "README.md": _CARD.format(items=len(texts), size=size).encode(),
            "default/test-00000-of-00001.parquet": _parquet(texts),
            "en/test-00000-of-00001.parquet": _parquet(texts[::-1]),
        }
    )
    return repo


def _parquet(texts: Sequence[str]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pa.table({"text": list(texts)}), buffer)
    return buffer.getvalue()
