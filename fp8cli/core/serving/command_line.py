"""What a result needs to be served: vLLM's command line and what each GPU generation does with the scheme."""

import shlex
from pathlib import Path
from typing import Final

from fp8cli.core.serving.modes import HEAD_SCALES_ON
from fp8cli.formats.addresses import HUB, parse_address
from fp8cli.schemes import KvCache, Scheme

DEPRECATED: Final = frozenset({"fbgemm_fp8", "fp_quant"})
"""Methods that vLLM 0.32 loads on request alone (vllm/model_executor/layers/quantization/__init__.py
`DEPRECATED_QUANTIZATION_METHODS`). No other method takes an option."""


def serve_command(path: str, *options: str) -> str:
    """Return the line that serves a checkpoint with vLLM, with further words of the command line."""
    return shlex.join(["vllm", "serve", path, *options])


def load_options(method: str | None) -> tuple[str, ...]:
    """Return what `vllm serve` must be told to load a checkpoint whose config names this `quant_method`, if any."""
    return ("--allow-deprecated-quantization",) if method in DEPRECATED else ()


def served_as(out: Path | str) -> str:
    """Return what a server is told of an output. One that lies in no folder and on no Hub has to be fetched first."""
    address = parse_address(out) if isinstance(out, str) else None
    if address is None:
        return str(out)
    return address.path if address.scheme == HUB else address.name


def serve_note(scheme: Scheme | None, kv_cache: KvCache | None = None, *, lowest: tuple[int, int] = (7, 5)) -> str:
    """Say which GPUs run the scheme natively, what the others do, and what an FP8 KV cache asks for.

    lowest: compute capability from which vLLM loads the dialect at all.
    """
    notes = ["The weights stay in 16 bits." if scheme is None else _weights_note(scheme, lowest)]
    match kv_cache:
        case "tensor":
            where = "from compute capability 8.9, or from 8.0 with FlashInfer"
        case "head":
            majors = " and ".join(f"{major}.x" for major in HEAD_SCALES_ON)
            where = f"a scale for each head loads on compute capability {majors} alone, one for a layer from 8.0 on"
        case None:
            return notes[0]
    notes.append(f"Keys and values are kept in FP8, as vLLM reads in config.json: {where}.")
    return " ".join(notes)


def _weights_note(scheme: Scheme, lowest: tuple[int, int]) -> str:
    native, least = (f"{major}.{minor}" for major, minor in (scheme.native_capability, lowest))
    return (
        f"GPUs of compute capability {native} and later compute in FP8; those from {least} keep the weights in FP8 "
        "and compute in 16 bits; older ones cannot load it (vLLM 0.32)."
    )
