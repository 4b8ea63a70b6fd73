"""core.machine.interpreters, census and listening: which interpreter vLLM lives in, and what it says when it is asked.

The interpreters are the real one these tests run in, and small programs that stand in for broken ones.
"""

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from fp8cli.core.machine import census
from fp8cli.core.machine.interpreters import (
    Interpreter,
    ask,
    find_vllm,
    interpreter_of,
    normalize,
    read_census,
    this_interpreter,
)
from fp8cli.core.machine.listening import MOST_BYTES, Silent, listen
from fp8cli.core.machine.probes import TorchBuild

NO_VLLM = Interpreter(python=Path("/usr/bin/fp8-python"), named_by="this interpreter", version="3.12.1")
REAL = Path(sys.executable)


def program(file: Path, text: str) -> Path:
    """Write an executable."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    file.chmod(0o755)
    return file


def wrapper(file: Path) -> Path:
    """Write a program that is the real interpreter under another name."""
    return program(file, f'#!/bin/sh\nexec {REAL} "$@"\n')


# --- This interpreter -------------------------------------------------------------------------------------------


def test_this_interpreter_holds_what_importlib_says_it_holds() -> None:
    here = this_interpreter()
    expected: dict[str, str] = {}
    for distribution in metadata.distributions():
        expected.setdefault(normalize(distribution.metadata["Name"]), distribution.version)
    assert {name: found.version for name, found in here.distributions.items()} == expected
    assert here.distributions["fp8cli"].requires == tuple(metadata.requires("fp8cli") or ())
    assert here.version == ".".join(map(str, sys.version_info[:3]))
    assert (here.unreadable, here.problem) == ((), None)


def test_its_markers_are_those_of_packaging() -> None:
    from packaging.markers import default_environment

    assert dict(this_interpreter().markers) == {k: v for k, v in default_environment().items() if k != "extra"}


@pytest.mark.slow
def test_the_distribution_of_vllm_is_found_whatever_its_name() -> None:
    assert this_interpreter().vllm == metadata.packages_distributions()["vllm"][0]


def test_counting_loads_none_of_what_is_counted() -> None:
    code = (
        "import sys; from fp8cli.core.machine.interpreters import this_interpreter; this_interpreter(); "
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'vllm', 'numpy', 'packaging', 'rich'})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"\n"


def test_broken_metadata_is_named_and_the_rest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good-1.0.dist-info").mkdir()
    (tmp_path / "good-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: good\nVersion: 1.0\nRequires-Dist: other (>=2)\n\nRequires-Dist: text\n", "utf-8"
    )
    (tmp_path / "bad-1.0.dist-info").mkdir()
    (tmp_path / "bad-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    (tmp_path / "~leftover-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    # What is imported already would be found wherever the path leads.
    for name in ("torch", "vllm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    counted = census.take_census()
    assert counted["distributions"] == [("good", "1.0", ["other (>=2)"])]
    assert counted["unreadable"] == [str(tmp_path / "bad-1.0.dist-info")]
    assert counted["torch"] is None
    assert counted["vllm"] is None


# --- Another interpreter ----------------------------------------------------------------------------------------


def test_the_same_interpreter_says_the_same_when_it_is_asked_as_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # setuptools, once a test has imported it, adds what it carries along to the path.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "_vendor" not in place])
    here, other = this_interpreter(), ask(wrapper(tmp_path / "python"), "--python")
    assert other.problem is None
    assert (other.version, other.vllm, other.torch, other.markers) == (
        here.version,
        here.vllm,
        here.torch,
        here.markers,
    )
    assert other.distributions == here.distributions


def test_it_is_isolated_from_variables_and_from_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    other = ask(wrapper(tmp_path / "bin" / "python"), "--python", {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert other.problem is None


def test_what_a_site_prints_when_it_starts_is_passed_over(tmp_path: Path) -> None:
    python = program(tmp_path / "python", f'#!/bin/sh\necho "welcome {{}} to $0"\nexec {REAL} "$@"\n')
    assert ask(python, "--python").problem is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("#!/bin/sh\necho no python at all\n", "it does not answer as Python does"),
        ("#!/bin/sh\necho '{\"python\": 3}'\n", "it does not answer as Python does"),
        ("#!/bin/sh\necho '[1, 2'\n", "it does not answer as Python does"),
        ("#!/bin/sh\nprintf '\\377\\376\\0garbage'\n", "it does not answer as Python does"),
        ("#!/bin/sh\n", "it does not answer as Python does"),
        ("#!/bin/sh\necho oops >&2\nexit 7\n", "it ended with exit code 7"),
        ("#!/nowhere/python\n", "it cannot be run: No such file or directory"),
        ("no program\n", "it cannot be run: Exec format error"),
    ],
)
def test_an_interpreter_that_is_none_is_said_to_be_none(tmp_path: Path, text: str, problem: str) -> None:
    found = ask(program(tmp_path / "python", text), "--python")
    assert found == Interpreter(python=tmp_path / "python", named_by="--python", problem=problem)


def test_a_file_that_may_not_be_run_and_one_that_is_missing_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("", "utf-8")
    assert ask(tmp_path / "text", "--python").problem == "it cannot be run: Permission denied"
    assert ask(tmp_path / "gone", "--python").problem == "it cannot be run: No such file or directory"


def test_an_interpreter_that_hangs_is_given_up_with_everything_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    python = program(tmp_path / "python", f"#!/bin/sh\nsleep 60 &\necho $! > {note}\nwait\n")
    begun = time.monotonic()
    found = ask(python, "--python", seconds=0.5)
    assert found.problem == "it did not answer within 0.5 s"
    assert time.monotonic() - begun < 5
    child = Path("/proc") / note.read_text("utf-8").strip()
    while child.exists() and "State:\tZ" not in (child / "status").read_text("utf-8"):
        assert time.monotonic() - begun < 5, "the grandchild lives"
        time.sleep(0.02)


def test_an_interpreter_that_never_stops_talking_is_given_up() -> None:
    with pytest.raises(Silent, match="it wrote more than 16 MiB and no answer"):
        listen(["yes"], environ=os.environ, seconds=20)
    assert MOST_BYTES == 16 * 2**20


def test_no_token_and_no_key_reaches_another_interpreter(tmp_path: Path) -> None:
    seen = tmp_path / "environment"
    python = program(tmp_path / "python", f'#!/bin/sh\nenv > {seen}\nexec {REAL} "$@"\n')
    secrets = {"HF_TOKEN": "hf_abc", "OPENAI_API_KEY": "sk-abc", "MY_PASSWORD": "abc123"}
    assert ask(python, "--python", {**os.environ, **secrets}).problem is None
    assert not any(secret in seen.read_text("utf-8") for secret in (*secrets, *secrets.values()))
    assert "PATH=" in seen.read_text("utf-8")


def test_of_two_distributions_of_one_name_the_first_counts() -> None:
    counted = {
        **census.take_census(),
        "distributions": [["Some_Thing", "2.0", []], ["some.thing", "1.0", []]],
        "torch": "__version__ = '2.13.0+cpu'\ncuda = None\n",
    }
    found = read_census(json.loads(json.dumps(counted)), REAL, "--python")
    assert found.version_of("some-thing") == "2.0"
    assert found.torch == TorchBuild(version="2.13.0+cpu", cuda=None, hip=None)


# --- Which one --------------------------------------------------------------------------------------------------


def test_the_one_the_user_names_comes_first_then_the_variable_then_this_one_then_path(tmp_path: Path) -> None:
    option, variable = wrapper(tmp_path / "option" / "python"), wrapper(tmp_path / "variable" / "python")
    python = wrapper(tmp_path / "path" / "python")
    script = program(tmp_path / "path" / "vllm", f"#!{python}\n")
    environ = {**os.environ, "FP8_VLLM_PYTHON": str(variable), "PATH": str(script.parent)}
    with_vllm = Interpreter(python=REAL, named_by="this interpreter", vllm="vllm")

    def found(asked: Path | None, here: Interpreter, **change: str) -> tuple[Path, str]:
        interpreter = find_vllm(asked, here, {**environ, **change})
        assert interpreter is not None
        return interpreter.python, interpreter.named_by

    assert found(option, with_vllm) == (option, "--python")
    assert found(None, with_vllm) == (variable, "FP8_VLLM_PYTHON")
    assert found(None, with_vllm, FP8_VLLM_PYTHON="") == (REAL, "this interpreter")
    assert found(None, NO_VLLM, FP8_VLLM_PYTHON="") == (python, f"`{script}` on PATH")
    assert find_vllm(None, NO_VLLM, {"PATH": str(tmp_path)}) is None


def test_the_folder_of_an_environment_stands_for_the_interpreter_in_it(tmp_path: Path) -> None:
    python = wrapper(tmp_path / "venv" / "bin" / "python")
    found = find_vllm(tmp_path / "venv", NO_VLLM, os.environ)
    assert found is not None
    assert (found.python, found.problem) == (python, None)


def test_naming_this_interpreter_asks_no_other() -> None:
    here = this_interpreter()
    assert find_vllm(here.python, here, {}) is here


def test_a_named_interpreter_that_is_missing_is_a_problem_and_no_reason_to_look_elsewhere(tmp_path: Path) -> None:
    found = find_vllm(tmp_path / "gone", this_interpreter(), os.environ)
    assert found is not None
    assert (found.python, found.problem) == (tmp_path / "gone", "it cannot be run: No such file or directory")


def test_a_vllm_on_path_that_is_no_script_is_a_problem(tmp_path: Path) -> None:
    script = program(tmp_path / "vllm", "\x7fELF\n")
    found = find_vllm(None, NO_VLLM, {"PATH": str(tmp_path)})
    assert found is not None
    assert found.problem == f"the first line of `{script}` names no interpreter"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/opt/venv/bin/python\nimport vllm\n", "/opt/venv/bin/python"),
        ("#!/opt/venv/bin/python3.12 -I\n", "/opt/venv/bin/python3.12"),
        ("#! /opt/venv/bin/python\n", "/opt/venv/bin/python"),
        ("#!/bin/sh\n'''exec' \"/a folder/bin/python\" \"$0\" \"$@\"\n' '''\n", "/a folder/bin/python"),
        ("#!/bin/sh\n'''exec' /very/long/bin/python \"$0\" \"$@\"\n' '''\n", "/very/long/bin/python"),
        (
            "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python3' \"$0\" \"$@\"\n' '''\n",
            "{folder}/python3",
        ),
        ("#!/bin/sh\nexec something else\n", None),
        ("#!/usr/bin/env fp8-no-such-python\n", None),
        ("#!python\n", None),
        ("#!\n", None),
        ("import vllm\n", None),
        ("", None),
    ],
)
def test_the_interpreter_of_a_script_is_read_from_its_first_lines(
    tmp_path: Path, text: str, expected: str | None
) -> None:
    script = program(tmp_path / "vllm", text)
    found = interpreter_of(script)
    assert found == (None if expected is None else Path(expected.format(folder=tmp_path)))


def test_env_looks_the_interpreter_up_on_path(tmp_path: Path) -> None:
    python = wrapper(tmp_path / "bin" / "python3")
    script = program(tmp_path / "vllm", "#!/usr/bin/env -S python3 -I\n")
    assert interpreter_of(script, {"PATH": str(tmp_path / "bin")}) == python


@pytest.mark.slow
def test_the_script_that_pip_wrote_for_vllm_names_the_interpreter_of_these_tests() -> None:
    assert interpreter_of(REAL.with_name("vllm")) == REAL


@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils:UserWarning")
def test_an_installer_s_script_in_a_folder_with_a_blank_is_understood(tmp_path: Path) -> None:
    from pip._vendor.distlib.scripts import ScriptMaker

    maker = ScriptMaker(None, str(tmp_path))
    maker.executable = "/a folder/with blanks/bin/python"
    maker.variants = {""}
    (written,) = maker.make("vllm = vllm.main:main")
    assert interpreter_of(Path(written)) == Path("/a folder/with blanks/bin/python")
