"""Whether transformers undoes a dialect of FP8 on this machine: scales that it does not look for, it leaves out.

Read from transformers 5.17 (quantizers/quantizer_finegrained_fp8.py, integrations/finegrained_fp8.py,
quantizers/quantizer_fbgemm_fp8.py) and tried without a GPU:

    compressed-tensors         read everywhere, with the package of that name
    fp8, `weight_scale_inv`    layers of FP8 on GPUs from compute capability 8.9 on; elsewhere unpacked while loading
    fp8, `weight_scale`        the codes are taken for the weights
    fbgemm_fp8                 GPUs of 9.0 and later, with fbgemm-gpu
    modelopt, modelopt_mixed   no such method is known: the codes are taken for the weights, or it is refused
    experts one by one         of families whose experts it knows in one tensor: left out, and started at random

Unpacking lays the blocks evenly over a weight. Where the last one is not whole, as in 576 rows, that is refused deep in
the log or, where the numbers happen to divide, wrong.
"""

import re
from collections.abc import Sequence
from shlex import quote
from typing import Final

from fp8cli.core.doctor.candidate import Candidate
from fp8cli.core.doctor.environment import Check, dotted
from fp8cli.core.inspection.dialect import QuantizedWeight
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpus
from fp8cli.core.model.fused import FUSED_IN_TRANSFORMERS

TRANSFORMERS: Final = "transformers 5"

_LAYERS_FROM: Final = (8, 9)
"""Compute capability from which it keeps DeepSeek's FP8 as it is."""
_FBGEMM_FROM: Final = (9, 0)
_EXPERT: Final = re.compile(r"\.experts\.\d+\.")
_WANTED: Final = "scales that it reads"


def check_reader(candidate: Candidate, gpus: Gpus, amd: Sequence[AmdGpu]) -> Check:
    """Say whether transformers reads codes and scales of the checkpoint, and what it makes of them here."""
    dialect, label = candidate.dialect, quote(candidate.survey.label)
    fix = f"fp8 convert {label} --to compressed-tensors, and evaluate that"
    method = None if dialect.declaration is None else dialect.declaration.method
    if not dialect.weights:
        return Check(name="dialect", status="passed", found=f"nothing is in FP8: {dialect.name}", wanted="nothing")
    if method is None:
        found = f"{TRANSFORMERS} takes the codes for the weights, because config.json does not say that they are codes"
        return Check(name="dialect", status="failed", found=found, wanted=_WANTED, fix=f"fp8 inspect {label}")
    unread = _experts_at_random(candidate)
    if unread is not None:
        found = f"{TRANSFORMERS} knows these experts in one tensor alone, and starts those at random: `{unread}`"
        return Check(name="dialect", status="failed", found=found, wanted=_WANTED, fix="evaluate it on vLLM")
    if method == "compressed-tensors":
        found = f"{TRANSFORMERS} reads {dialect.name}"
        return Check(name="dialect", status="passed", found=found, wanted=_WANTED)
    if method.startswith("modelopt"):
        found = f"{TRANSFORMERS} knows no `{method}`"
        return Check(name="dialect", status="failed", found=found, wanted=_WANTED, fix=fix)
    if method == "fp8":
        return _check_fine_grained(candidate, gpus, amd, fix)
    if method == "fbgemm_fp8" and gpus.unknown is None and not amd:
        here = [gpu.capability for gpu in gpus.visible]
        if not here or min(here) < _FBGEMM_FROM:
            gpu = f"a GPU of {dotted(min(here))}" if here else "no GPU"
            found = f"{gpu}, and {TRANSFORMERS} reads {dialect.name} on GPUs of {dotted(_FBGEMM_FROM)} and later alone"
            return Check(name="dialect", status="failed", found=found, wanted="such a GPU", fix=fix)
    found = f"what {TRANSFORMERS} makes of {dialect.name} here is not known"
    return Check(name="dialect", status="not checked", found=found, wanted=_WANTED)


def _check_fine_grained(candidate: Candidate, gpus: Gpus, amd: Sequence[AmdGpu], fix: str) -> Check:
    """Judge what config.json calls `fp8`: DeepSeek's, which transformers reads, and AutoFP8's, which it does not."""
    dialect = candidate.dialect
    unread = next((weight.scale for weight in dialect.weights if (weight.scale or "").endswith(".weight_scale")), None)
    if unread is not None:
        found = f"{TRANSFORMERS} takes codes of {dialect.name} for weights and leaves out scales such as `{unread}`"
        return Check(name="dialect", status="failed", found=found, wanted="scales named `weight_scale_inv`", fix=fix)
    if gpus.unknown is not None:
        return Check(name="dialect", status="not checked", found=gpus.unknown, wanted=_WANTED)
    if amd or (gpus.visible and gpus.visible[0].capability >= _LAYERS_FROM):
        found = f"{TRANSFORMERS} has layers for {dialect.name}, whose kernels it fetches from the Hub"
        return Check(name="dialect", status="not checked", found=f"{found}: not tried here", wanted=_WANTED)
    uneven = next((weight for weight in dialect.weights if _has_part_of_a_block(weight, candidate)), None)
    if uneven is not None:
        shape = list(candidate.survey.tensors[uneven.name].info.shape)
        found = f"{TRANSFORMERS} unpacks whole blocks alone, and `{uneven.name}` {shape} ends in a part of one"
        wanted = f"multiples of {' and '.join(map(str, uneven.block or ()))}, or a GPU of {dotted(_LAYERS_FROM)}"
        return Check(name="dialect", status="failed", found=found, wanted=wanted, fix=fix)
    found = f"{TRANSFORMERS} unpacks {dialect.name} here while loading, and does not round activations"
    wanted = "activations rounded to FP8 too, as after fp8 convert --to compressed-tensors"
    return Check(name="dialect", status="warning", found=found, wanted=wanted, fix=fix)


def _experts_at_random(candidate: Candidate) -> str | None:
    """Name an expert of a family that transformers reads nothing of where each has a weight of its own."""
    named = (candidate.survey.config or {}).get("architectures")
    if not isinstance(named, list) or not named or named[0] not in FUSED_IN_TRANSFORMERS:
        return None
    return next((weight.name for weight in candidate.dialect.weights if _EXPERT.search(weight.name)), None)


def _has_part_of_a_block(weight: QuantizedWeight, candidate: Candidate) -> bool:
    if weight.block is None:
        return False
    sizes = zip(candidate.survey.tensors[weight.name].info.shape[-2:], weight.block, strict=False)
    return any(size > block and size % block for size, block in sizes)
