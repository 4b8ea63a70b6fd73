"""Interpreters: this one, and the one vLLM lives in, which may be another. Found, asked what they hold, never trusted.

vLLM and llm-compressor pin different versions of one package, so many people keep them in two environments. The
one with vLLM is, in this order: the one the user names (`--python`, else FP8_VLLM_PYTHON), this one if it has
vLLM, the one in the first line of the `vllm` on PATH. Another interpreter is run once, isolated (`-I -c`) and
without the user's tokens, with the text of `core.machine.census`; it has seconds to answer and may say anything.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.machine import census
from fp8cli.core.machine.listening import Silent, listen
from fp8cli.core.machine.probes import TorchBuild, parse_torch_version

VARIABLE: Final = "FP8_VLLM_PYTHON"
"""Names the interpreter that vLLM lives in."""

PROBE_SECONDS: Final = 20.0
"""What an interpreter may take to answer; on a quiet machine it takes a tenth of a second."""

SECRET_NAME: Final = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY", re.IGNORECASE)
"""In the names of environment variables whose values nobody else is to see."""

_SHEBANG_BYTES: Final = 4096
_LONG_SHEBANG: Final = re.compile(r"^'''exec' (\"?)(?P<path>/.+?)\1 \"\$0\"", re.MULTILINE)
"""What pip and uv write where the path of the interpreter is too long, or has a blank, for a first line."""
_RELOCATABLE: Final = re.compile(r"^'''exec' .*dirname .*\$0.*?/'?(?P<name>python[\d.]*)'? ", re.MULTILINE)
"""What uv writes into an environment that may be moved: the interpreter lies beside the script."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One installed distribution, by its metadata."""

    name: str
    version: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """One interpreter and what it has installed."""

    python: Path
    named_by: str
    """How it was found: `this interpreter`, `--python`, FP8_VLLM_PYTHON, or the `vllm` on PATH."""
    version: str | None = None
    """Of Python."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    """By normalized name: lower case, words joined by `-`."""
    markers: Mapping[str, str] = field(default_factory=dict)
    vllm: str | None = None
    """The distribution that the module `vllm` comes from."""
    torch_text: str | None = None
    """Of torch/version.py."""
    unreadable: tuple[str, ...] = ()
    """Distributions whose metadata cannot be read."""
    problem: str | None = None
    """Why nothing is known about it; then all of the above is empty."""

    @property
    def torch(self) -> TorchBuild | None:
        """The build of torch; None without torch. Raises ValueError or SyntaxError if its own file makes no sense."""
        return None if self.torch_text is None else parse_torch_version(self.torch_text)

    def version_of(self, name: str) -> str | None:
        """Return the version of a distribution; None if it is not installed."""
        found = self.distributions.get(normalize(name))
        return None if found is None else found.version


def normalize(name: str) -> str:
    """Return the name of a distribution as all its spellings share it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def this_interpreter() -> Interpreter:
    """Describe the interpreter that runs this. Never raises."""
    python, named_by = Path(sys.executable), "this interpreter"
    try:
        return read_census(census.take_census(), python, named_by)
    except Exception as problem:  # noqa: BLE001 - metadata can be broken in any way; that is what the doctor is for
        return Interpreter(python=python, named_by=named_by, problem=f"{type(problem).__name__}: {problem}")


def find_vllm(
    asked: Path | None,
    here: Interpreter,
    environ: Mapping[str, str] = os.environ,
    *,
    seconds: float = PROBE_SECONDS,
) -> Interpreter | None:
    """Return the interpreter vLLM lives in, or the one the user says it does; None if there is no trace of any."""
    named = environ.get(VARIABLE)
    if asked is not None:
        found, named_by = asked, "--python"
    elif named:
        found, named_by = Path(named), VARIABLE
    elif here.vllm is not None:
        return here
    else:
        script = shutil.which("vllm", path=environ.get("PATH", os.defpath))
        if script is None:
            return None
        named_by = f"`{script}` on PATH"
        interpreter = interpreter_of(Path(script), environ)
        if interpreter is None:
            problem = f"the first line of `{script}` names no interpreter"
            return Interpreter(python=Path(script), named_by=named_by, problem=problem)
        found = interpreter
    python = _in_folder(found.expanduser())
    if python.absolute() == here.python.absolute():
        return here
    return ask(python, named_by, environ, seconds=seconds)


def ask(
    python: Path, named_by: str, environ: Mapping[str, str] = os.environ, *, seconds: float = PROBE_SECONDS
) -> Interpreter:
    """Let another interpreter count what it has installed. Never raises: what went wrong is its `problem`."""
    words = [str(python.absolute()), "-I", "-c", Path(census.__file__).read_text(encoding="utf-8")]
    try:
        heard = listen(words, environ={k: v for k, v in environ.items() if not SECRET_NAME.search(k)}, seconds=seconds)
        if heard.code != 0:
            return Interpreter(python=python, named_by=named_by, problem=f"it ended with exit code {heard.code}")
        # Whatever a site's own start-up code prints comes before.
        return read_census(json.loads(heard.out.splitlines()[-1]), python, named_by)
    except Silent as silence:
        problem = str(silence)
    except OSError as refusal:
        problem = f"it cannot be run: {refusal.strerror or refusal}"
    except (ValueError, LookupError, TypeError, RecursionError):
        problem = "it does not answer as Python does"
    return Interpreter(python=python, named_by=named_by, problem=problem)


def read_census(counted: object, python: Path, named_by: str) -> Interpreter:
    """Take over what an interpreter says of itself. Raises ValueError or TypeError for nonsense."""
    match counted:
        case {
            "python": str(version),
            "markers": dict(markers),
            "distributions": [*rows],
            "vllm": str() | None as vllm,
            "torch": str() | None as torch,
            "unreadable": [*unreadable],
        }:
            pass
        case _:
            raise ValueError("not what core.machine.census writes")
    distributions: dict[str, Distribution] = {}
    for name, release, requires in rows:
        found = Distribution(name=str(name), version=str(release), requires=tuple(map(str, requires)))
        distributions.setdefault(normalize(found.name), found)
    return Interpreter(
        python=python,
        named_by=named_by,
        version=version,
        distributions=distributions,
        markers={str(key): str(value) for key, value in markers.items()},
        vllm=vllm,
        torch_text=torch,
        unreadable=tuple(map(str, unreadable)),
    )


def interpreter_of(script: Path, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the interpreter that runs a script, by its first line or the shell trick below it; None if unclear."""
    try:
        with script.open("rb") as stream:
            start = os.fsdecode(stream.read(_SHEBANG_BYTES))
    except OSError:
        return None
    if not start.startswith("#!"):
        return None
    words = start[2:].partition("\n")[0].split()
    if words and Path(words[0]).name in {"sh", "bash", "dash"}:
        if long := _LONG_SHEBANG.search(start):
            return Path(long["path"])
        beside = _RELOCATABLE.search(start)
        return None if beside is None else script.resolve().with_name(beside["name"])
    if words and Path(words[0]).name == "env":
        name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), None)
        found = None if name is None else shutil.which(name, path=environ.get("PATH", os.defpath))
        return None if found is None else Path(found)
    return Path(words[0]) if words and words[0].startswith("/") else None


def _in_folder(path: Path) -> Path:
    """Accept the folder of an environment for the interpreter in it."""
    return path / "bin" / "python" if path.is_dir() else path
