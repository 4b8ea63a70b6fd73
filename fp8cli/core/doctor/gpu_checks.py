"""Verdicts on what FP8 does on the processors of this machine: NVIDIA GPUs, AMD GPUs, or none of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.doctor.environment import Check, dotted
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpu, Gpus
from fp8cli.core.machine.interpreters import Interpreter
from fp8cli.core.machine.probes import ROOT, has_amx
from fp8cli.core.serving.modes import (
    WEIGHT_ONLY_CAPABILITY,
    Kind,
    Mode,
    amd_note,
    kind_of,
    kv_cache_words,
    mode_of,
    mode_on_amd,
    mode_on_cpu,
    note_on,
)
from fp8cli.schemes import FP8_DYNAMIC, SCHEMES

KIND_NAMES: Final[Mapping[Kind, str]] = {
    "dynamic": "FP8_DYNAMIC",
    "static": "FP8",
    "block": "FP8_BLOCK",
    "weights": "FP8 weights alone",
    "mx": "MXFP8",
}
"""What users call each kind."""

MODE_NAMES: Final[Mapping[Mode | None, str]] = {
    "native": "in FP8",
    "weight-only": "in 16 bits",
    "unsupported": "not at all",
    None: "unknown",
}
"""How each mode computes, in two words; the weights are in FP8 wherever it runs."""

_WRITTEN: Final = tuple(scheme for scheme in SCHEMES.values() if not scheme.needs_calibration)
_WANTED: Final = (
    f"compute capability {dotted(WEIGHT_ONLY_CAPABILITY)} to load FP8, "
    f"{dotted(FP8_DYNAMIC.native_capability)} to compute in it"
)


@dataclass(frozen=True, kw_only=True)
class ProcessorModes:
    """How vLLM runs each kind of FP8 on one kind of processor."""

    processor: str
    """`NVIDIA L4 (8.9)`, `AMD Instinct MI300X (gfx942)`, or the processors of the machine."""
    linear: Mapping[Kind, Mode | None]
    """None: not known."""
    experts: Mode | None
    """Of a mixture with activations in FP8 too."""
    kv_cache: str
    note: str | None = None


def list_modes(gpus: Gpus, amd: Sequence[AmdGpu], root: Path = ROOT) -> tuple[ProcessorModes, ...]:
    """Return a row for each kind of GPU here, or one for the processors if there is none.

    Raises OSError where there is no GPU and the kernel does not say what the processors are.
    """
    rows = [*map(_nvidia, _distinct(gpus.visible)), *map(_amd, dict.fromkeys((gpu.name, gpu.gfx) for gpu in amd))]
    return tuple(rows) if rows or gpus.unknown else (_cpu(amx=has_amx(root)),)


def check_fp8(gpus: Gpus, amd: Sequence[AmdGpu], vllm: Interpreter | None, root: Path = ROOT) -> Check:
    """Say what FP8 does here in general; with a checkpoint there is a verdict on its own kind."""
    if gpus.unknown is not None:
        return Check(name="fp8", status="not checked", found=gpus.unknown, wanted=_WANTED)
    rows = list_modes(gpus, amd, root)
    found = "; ".join(map(words_of, rows))
    if not gpus.visible and not amd:
        return _check_cpu(found, vllm)
    if all(set(row.linear.values()) <= {"unsupported", None} for row in rows):
        fix = f"serve on a GPU of compute capability {dotted(WEIGHT_ONLY_CAPABILITY)} or later"
        return Check(name="fp8", status="failed", found=found, wanted=_WANTED, fix=fix)
    if len(rows) > 1:
        fix = "serve on GPUs of one kind: name them in CUDA_VISIBLE_DEVICES"
        return Check(name="fp8", status="warning", found=f"unlike GPUs: {found}", wanted=_WANTED, fix=fix)
    return Check(name="fp8", status="passed", found=found, wanted=_WANTED)


def words_of(row: ProcessorModes) -> str:
    """Say in a line how the schemes that need no calibration run on a processor; the rows have the other kinds too."""
    modes = (f"{KIND_NAMES[kind]} {MODE_NAMES[row.linear[kind]]}" for kind in map(kind_of, _WRITTEN))
    note = "" if row.note is None else f" ({row.note})"
    return f"{row.processor}: {', '.join(modes)}{note}"


def _check_cpu(found: str, vllm: Interpreter | None) -> Check:
    if vllm is None or vllm.torch is None or vllm.torch.cuda is None:
        # Slow, but the same answers: good enough to try a checkpoint.
        fix = "serve on a GPU; vLLM's CPU build is for trying things out"
        return Check(
            name="fp8", status="warning", found=f"no GPU; {found}, under vLLM's CPU build", wanted=_WANTED, fix=fix
        )
    fix = "serve on a machine with a GPU, or install vLLM's CPU build in an environment of its own"
    return Check(name="fp8", status="failed", found="no GPU, and vLLM is a CUDA build", wanted=_WANTED, fix=fix)


def _distinct(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    return tuple({(gpu.name, gpu.capability): gpu for gpu in gpus}.values())


def _nvidia(gpu: Gpu) -> ProcessorModes:
    return ProcessorModes(
        processor=f"{gpu.name} ({dotted(gpu.capability)})",
        linear={kind: mode_of(kind, gpu.capability) for kind in KIND_NAMES},
        experts=mode_of("dynamic", gpu.capability, experts=True),
        kv_cache=kv_cache_words(gpu.capability),
        note=note_on(mode_of("dynamic", gpu.capability), gpu.capability),
    )


def _amd(name_and_gfx: tuple[str, str]) -> ProcessorModes:
    name, gfx = name_and_gfx
    native = mode_on_amd("dynamic", gfx)
    return ProcessorModes(
        processor=f"{name} ({gfx})",
        linear={kind: mode_on_amd(kind, gfx) for kind in KIND_NAMES},
        experts=native,
        kv_cache="runs" if native == "native" else "unknown",
        note=amd_note(gfx),
    )


def _cpu(*, amx: bool) -> ProcessorModes:
    return ProcessorModes(
        processor=f"CPU {'with' if amx else 'without'} AMX",
        # FP8 has one scale for a whole weight.
        linear={kind: mode_on_cpu(kind, amx=amx) for kind in KIND_NAMES},
        experts=mode_on_cpu("dynamic", amx=amx, experts=True),
        kv_cache="unknown",
    )
