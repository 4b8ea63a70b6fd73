"""The documents say what the tool does: generated parts are up to date, commands and figures are real."""

import re
import subprocess
from pathlib import Path

import pytest
from readme import README, ROOT, regenerate

from fp8cli import __version__
from fp8cli.cli.app import app
from fp8cli.errors import ExitCode


def test_the_generated_parts_are_up_to_date() -> None:
    assert regenerate(README.read_text("utf-8")) == README.read_text("utf-8"), "python scripts/readme.py --write"


def test_it_opens_with_what_the_tool_does_and_the_two_commands() -> None:
    opening = README.read_text("utf-8").split("```")
    assert opening[0].startswith("# fp8\n\nTakes a Hugging Face checkpoint to FP8")
    commands = re.findall(r"^scripts/\w+", opening[1], re.MULTILINE)
    assert commands == ["scripts/demo", "scripts/test"]
    for command in commands:
        assert (ROOT / command).stat().st_mode & 0o111, f"{command} can be run"


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1].split()[:2] == ["exec", "scripts/test"]


@pytest.mark.parametrize("command", [str(command.name) for command in app.registered_commands])
def test_every_command_has_its_help_in_the_readme(command: str) -> None:
    assert f"<!-- generated: help {command} -->" in README.read_text("utf-8")


def test_the_screen_of_an_inspection_is_made_anew_and_healthy() -> None:
    text = README.read_text("utf-8")
    shown = re.search(r"<!-- generated: screen inspect -->\n```text\n(.*?)```", text, re.DOTALL)
    assert shown is not None
    assert re.search(r"^healthy: \d+ passed\n\Z", shown[1], re.MULTILINE)


def test_exit_codes_are_all_different() -> None:
    assert len({int(code) for code in ExitCode}) == len(list(ExitCode)) == len({code.meaning for code in ExitCode})


def test_the_changelog_s_newest_version_is_the_package_s() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == __version__


def test_no_document_or_program_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    for name in listed:
        text = (ROOT / name).read_text("utf-8", errors="replace")
        found = re.search(r"(?<![\w.])/(work|home|root|opt)/\w+", text)
        assert found is None or Path(name).parent.name == "tests", f"{name}: {found}"
