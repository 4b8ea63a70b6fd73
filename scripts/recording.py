"""What recorded measurements have in common: the command run for real, and where and when that was."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench_machine import hardware, version_of

ROOT: Final = Path(__file__).parent.parent
MODEL: Final = ROOT / "fp8cli" / "bundled" / "stories-llama"


def run_command(*words: str, cwd: str, accept: Sequence[int] = (0,)) -> str:
    """Run `fp8` and return what it printed. accept: exit codes that are results, too."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fp8cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment, cwd=cwd)
    if done.returncode not in accept:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    return done.stdout


def keep(path: Path, distributions: Sequence[str], **found: object) -> None:
    """Write a record: what was found, with the date, the machine and the versions of the distributions."""
    versions = {name: version_of(name) for name in distributions}
    document = {"date": datetime.now(UTC).date().isoformat(), "machine": hardware(), "versions": versions, **found}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def where_and_when(recorded: dict[str, dict[str, str]], script: str) -> str:
    """Return the sentence that says how a record came to be."""
    machine, versions = recorded["machine"], recorded["versions"]
    with_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Recorded on {recorded['date']} by `scripts/{script}`, on {machine['cores']} cores of "
        f"{machine['processor']}, GPU: {machine['gpu']}; {with_versions}."
    )
