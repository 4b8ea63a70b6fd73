"""core.machine.pins: broken pins planted in environments made by hand, and packaging's own word on the real one."""

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fp8cli.core.machine import census
from fp8cli.core.machine.interpreters import Interpreter, read_census, this_interpreter
from fp8cli.core.machine.pins import BrokenPin, broken_pins, mend, requirements_of

LLMCOMPRESSOR = "llmcompressor 0.14.0.1"
VLLM = "vllm 0.33.0"


def plant(folder: Path, *distributions: tuple[str, Sequence[str]]) -> None:
    """Write the metadata of distributions, each named `NAME VERSION`, as an installer leaves it."""
    for name_and_version, requires in distributions:
        name, version = name_and_version.split()
        home = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        home.mkdir(parents=True)
        lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (home / "METADATA").write_text("\n".join([*lines, "", "A description: with a colon", ""]), "utf-8")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an interpreter find only what is planted in a folder."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def held(folder: Path, *distributions: tuple[str, Sequence[str]]) -> Interpreter:
    plant(folder, *distributions)
    return read_census(census.take_census(), Path("/venv/bin/python"), "this interpreter")


def words(interpreter: Interpreter, *roots: str) -> list[str]:
    return [pin.words for pin in broken_pins(interpreter, roots)]


def test_the_conflict_of_every_release_is_found(environment: Path) -> None:
    there = held(
        environment,
        (LLMCOMPRESSOR, ["compressed-tensors==0.19.0", "torch<=2.14.0,>=2.10"]),
        (VLLM, ["compressed-tensors == 0.17.0", "torch==2.14.0"]),
        ("compressed-tensors 0.19.0", []),
        ("torch 2.14.0+cu130", []),
    )
    assert broken_pins(there, ("llmcompressor", "vllm")) == (
        BrokenPin(
            by="vllm",
            version="0.33.0",
            package="compressed-tensors",
            wanted="compressed-tensors==0.17.0",
            found="0.19.0",
            newer=True,
        ),
    )
    assert words(there, "vllm") == ["vllm 0.33.0 wants compressed-tensors==0.17.0, found 0.19.0"]
    assert words(there, "llmcompressor") == []
    assert mend(there, broken_pins(there, ("vllm",)), ("llmcompressor", "vllm")) is None


def test_a_pin_that_everyone_can_agree_on_is_mended_by_one_command(environment: Path) -> None:
    there = held(
        environment,
        (LLMCOMPRESSOR, ["compressed-tensors==0.19.0"]),
        ("transformers 5.17.0", ["compressed-tensors>=0.15", "safetensors>=0.6"]),
        ("compressed-tensors 0.17.0", []),
    )
    roots = ("llmcompressor", "transformers")
    assert words(there, *roots) == [
        "llmcompressor 0.14.0.1 wants compressed-tensors==0.19.0, found 0.17.0",
        "transformers 5.17.0 wants safetensors>=0.6, it is not installed",
    ]
    assert [pin.newer for pin in broken_pins(there, roots)] == [False, False]
    assert mend(there, broken_pins(there, roots), roots) == (
        "uv pip install --python /venv/bin/python compressed-tensors==0.19.0 'safetensors>=0.6'"
    )


def test_what_is_needed_only_by_what_is_needed_is_looked_at_and_strangers_are_not(environment: Path) -> None:
    there = held(
        environment,
        ("root 1.0", ["middle"]),
        ("middle 1.0", ["leaf>=2", "root"]),
        ("leaf 1.0", []),
        ("stranger 1.0", ["leaf>=3"]),
    )
    assert words(there, "root") == ["middle 1.0 wants leaf>=2, found 1.0"]
    assert words(there, "nothing-of-that-name") == []


def test_markers_extras_and_spellings_are_obeyed(environment: Path) -> None:
    there = held(
        environment,
        (
            "root 1.0",
            [
                "old-python; python_version < '3'",
                "elsewhere; sys_platform == 'win32'",
                "unwanted; extra == 'more'",
                "Some.Package[speed]>=1",
            ],
        ),
        ("some_package 1.0", ["fast-thing; extra == 'speed'", "slow-thing; extra == 'slow'"]),
    )
    assert words(there, "root") == ["some_package 1.0 wants fast-thing, it is not installed"]
    assert words(there, "root[more]") == [
        "root 1.0 wants unwanted, it is not installed",
        "some_package 1.0 wants fast-thing, it is not installed",
    ]


@pytest.mark.parametrize(
    ("requirement", "version", "holds"),
    [
        ("leaf==2.13.0", "2.13.0+cpu", True),
        ("leaf>=2.0", "2.1rc1", True),
        ("leaf!=2.0.*", "2.0.3", False),
        ("leaf~=1.4", "2.0", False),
        ("leaf @ https://example.org/leaf.whl", "0.1", True),
        ("leaf (>=1.0)", "0.9", False),
        ("leaf is no requirement", "1.0", True),
        ("leaf>=1", "no-version", False),
    ],
)
def test_a_requirement_holds_as_an_installer_reads_it(
    environment: Path, requirement: str, version: str, holds: bool
) -> None:
    there = held(environment, ("root 1.0", [requirement]), (f"leaf {version}", []))
    assert (broken_pins(there, ("root",)) == ()) is holds


def test_what_an_extra_brings_is_read_from_the_metadata_of_this_tool() -> None:
    here = this_interpreter()
    expected = [
        Requirement(text)
        for text in metadata.requires("fp8cli") or ()
        if "extra == 'eval'" in text or 'extra == "eval"' in text
    ]
    found = [Requirement(text) for text in requirements_of(here, "fp8cli", "eval")]
    assert [(one.extras, one.specifier) for one in found] == [(one.extras, one.specifier) for one in expected]
    assert len(found) == 1
    assert requirements_of(here, "fp8cli", "no-such-extra") == requirements_of(here, "no-such-package", "eval") == ()


def test_in_the_real_environment_exactly_what_packaging_refuses_is_found() -> None:
    here = this_interpreter()
    installed: Mapping[str, str] = {name: found.version for name, found in here.distributions.items()}
    root = "transformers"
    expected = set()
    for text in metadata.requires(root) or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(wanted.name.lower().replace("_", "-"))
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            expected.add(wanted.name)
    assert {pin.package for pin in broken_pins(here, (root,)) if pin.by == root} == expected
    assert broken_pins(here, ("fp8cli", "llmcompressor")) == ()


@pytest.mark.slow
def test_the_override_of_this_repository_is_seen_as_the_broken_pin_it_is() -> None:
    here = this_interpreter()
    assert here.vllm is not None
    found = {pin.package: pin for pin in broken_pins(here, (here.vllm,))}
    assert found["compressed-tensors"].newer
    assert found["compressed-tensors"].found == metadata.version("compressed-tensors")
