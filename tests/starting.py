"""The real `fp8` in a process of its own, which tells at its end what heavy libraries it had loaded."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAVY = (
    "compressed_tensors",
    "datasets",
    "llmcompressor",
    "lm_eval",
    "numpy",
    "pandas",
    "pydantic",
    "torch",
    "transformers",
    "vllm",
)

PROGRAM = """
import atexit, json, pathlib, sys
report, heavy, sys.argv = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), ["fp8", *sys.argv[3:]]
atexit.register(lambda: report.write_text(json.dumps([name for name in heavy if name in sys.modules])))
from fp8cli.cli.app import main
sys.exit(main())
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    code: int
    out: str
    err: str
    loaded: list[str]
    """Heavy libraries that the process itself had loaded at its end."""

    @property
    def report(self) -> dict[str, Any]:
        """What `--json` printed."""
        result: dict[str, Any] = json.loads(self.out)["result"]
        return result


def words_of(folder: Path, *words: str | Path) -> list[str]:
    """Return what to start for `fp8 WORDS`; `folder` gets a file of it."""
    return [sys.executable, "-c", PROGRAM, str(folder / "loaded.json"), ",".join(HEAVY), *map(str, words)]


def fp8(folder: Path, *words: str | Path, **environment: str) -> Run:
    """Run `fp8 WORDS`; `folder` is for a file of this function."""
    finished = subprocess.run(
        words_of(folder, *words),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    return Run(
        code=finished.returncode,
        out=finished.stdout,
        err=finished.stderr,
        loaded=json.loads((folder / "loaded.json").read_text("utf-8")),
    )
