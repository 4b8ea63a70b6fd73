"""The documents say what the tool does: generated parts are up to date, commands and figures are real."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from family_matrix import FAMILIES
from readme import README, ROOT, regenerate

from fp8cli import __version__
from fp8cli.cli.app import app
from fp8cli.core.model.architectures import known_architectures
from fp8cli.errors import ExitCode

OF_THE_BENCH = {"--on", "--only", "--repeats"}
COMMANDS: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})


def prose() -> str:
    """Return the README without its generated parts."""
    return re.sub(r"<!-- generated: .*?<!-- end -->", "", README.read_text("utf-8"), flags=re.DOTALL)


def typed_lines() -> Iterator[str]:
    """Yield every line of `fp8` that a reader is told to type, without its comment."""
    for block in re.findall(r"^```bash\n(.*?)^```", prose(), re.DOTALL | re.MULTILINE):
        yield from (line.split(" # ")[0].strip() for line in block.splitlines() if line.startswith("fp8 "))


def options_of(name: str) -> set[str]:
    return {word for option in COMMANDS[name].params for word in (*option.opts, *option.secondary_opts)} | {"--help"}


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


def test_every_line_to_type_is_taken_by_its_command() -> None:
    lines = list(typed_lines())
    assert len(lines) >= 4
    for line in lines:
        _, name, *words = shlex.split(line)
        COMMANDS[name].make_context(name, words)


def test_every_command_and_option_that_is_named_exists() -> None:
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", prose(), flags=re.DOTALL | re.MULTILINE))
    everyone = set().union(*map(options_of, COMMANDS))
    named = [span.replace("\n", " ").split() for span in spans if span.startswith(("fp8 ", "--"))]
    assert len(named) > 50
    for first, *rest in named:
        options = {word.split("=")[0] for word in (first, *rest) if word.startswith("--") and len(word) > 2}
        known = options_of(rest[0]) if first == "fp8" and rest[0] in COMMANDS else everyone | OF_THE_BENCH
        assert first != "fp8" or rest[0] in {*COMMANDS, "--help", "…"}, (first, rest)
        assert options <= known, (first, rest)


def test_links_inside_lead_to_headings_and_folded_parts_are_whole() -> None:
    text = README.read_text("utf-8")
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 10
    assert set(links) <= anchors
    opened = re.findall(r"^<details>\n<summary>.+</summary>\n\n", text, re.MULTILINE)
    assert len(opened) == text.count("<details>") == text.count("\n\n</details>\n")


def test_families_and_architectures_are_as_many_as_it_says() -> None:
    told = prose()
    assert f"{len(FAMILIES)} families are tried" in told
    assert f"The {len(FAMILIES)} families" in told
    assert f"built-in table of {len(known_architectures())}," in told
