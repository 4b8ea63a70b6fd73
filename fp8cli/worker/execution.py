"""How the linear layers of a loaded model are multiplied: read from the model that was built, not from its config."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Execution = Literal[
    "fp8-kernel", "weight-only", "fake-quant", "dequantized", "unquantized", "emulated", "simulated", "unknown"
]
"""As `formats.run_record` has it, which a worker in another interpreter cannot import."""

FP8_LAYERS: Final = ("CompressedTensorsFP8Linear", "FP8Linear", "FbgemmFp8Linear")
"""Classes of transformers that multiply in FP8."""

WEIGHT_ONLY_WORDS: Final = ("marlin", "w8a16", "weightonly")
"""In the names of vLLM's classes that unpack FP8 weights inside a kernel of 16 bits."""

EMULATED_WORDS: Final = ("emulation", "reference")

ARITHMETIC_OF_PROCESSORS: Final = "amx_fp8"
"""The flag of a processor that multiplies in FP8; on others vLLM's kernels for processors unpack and multiply wider."""

SELECTED: Final = re.compile(r"Selected (\w+) for (\w+)")
"""vLLM's line about a kernel, where the model is in another process; of ModelOpt it names the layer."""

MARLIN_LINE: Final = "Weight-only FP8 compression will be used leveraging the Marlin kernel"


@dataclass(frozen=True, kw_only=True)
class Executed:
    """The way most quantized layers of a model go."""

    way: Execution
    by: str | None
    """The classes or the line of the log that say so."""


def executed_by_transformers(model: Any, config: Any) -> Executed:
    """Return how a model of transformers multiplies. config: what it was loaded by.

    Where transformers unpacks DeepSeek's FP8 while loading, the model's own config says nothing of FP8 any more.
    """
    ways: Counter[tuple[Execution, str]] = Counter()
    for module in model.modules():
        name = type(module).__name__
        scheme = getattr(module, "quantization_scheme", None)
        if name in FP8_LAYERS:
            ways["fp8-kernel", name] += 1
        elif scheme is not None and getattr(scheme, "weights", None) is not None:
            rounds = getattr(scheme, "input_activations", None) is not None
            enabled = getattr(module, "quantization_enabled", True)
            way: Execution = "fake-quant" if rounds and enabled else "dequantized"
            ways[way, f"compressed-tensors' forward of {name}"] += 1
    if ways:
        return _most(ways)
    if getattr(config, "quantization_config", None) is None:
        return Executed(way="unquantized", by=None)
    left = getattr(model.config, "quantization_config", None)
    if left is None or getattr(left, "dequantize", False):
        return Executed(way="dequantized", by="transformers, when loading")
    return Executed(way="unknown", by=None)


def executed_by_vllm(llm: Any, log: Path) -> Executed:
    """Return how a model in vLLM multiplies, from its layers or, where they are in other processes, from the log."""
    if llm.llm_engine.model_config.quantization is None:
        return Executed(way="unquantized", by=None)
    if hasattr(llm.llm_engine, "model_executor"):
        (layers,) = llm.apply_model(describe_layers)
        executed = _of_classes(layers)
    else:
        executed = _of_log(log)
    on_processor = llm.llm_engine.vllm_config.device_config.device_type == "cpu"
    if executed.way == "fp8-kernel" and on_processor and not _multiplies_in_fp8():
        return Executed(way="emulated", by=f"{executed.by}, on a processor without FP8 arithmetic")
    return executed


def describe_layers(model: Any) -> list[str]:
    """Return, for each layer that vLLM quantized, its scheme or method and its kernel."""
    found = []
    for module in model.modules():
        method = getattr(module, "scheme", None) or getattr(module, "quant_method", None)
        name = type(method).__name__
        if method is None or name.startswith("Unquantized"):
            continue
        # ModelOpt's methods call it otherwise.
        kernel = getattr(method, "fp8_linear", None) or getattr(method, "kernel", None)
        backend = getattr(method, "fp8_backend", None)
        by = type(kernel).__name__ if kernel is not None else str(backend) if backend is not None else ""
        if "fp8" in f"{name}{by}".lower():
            found.append(f"{name}, {by}" if by else name)
    return found


def _of_classes(layers: Iterable[str]) -> Executed:
    ways: Counter[tuple[Execution, str]] = Counter()
    for layer in layers:
        lowered = layer.lower().replace("_", "")
        way: Execution = "fp8-kernel"
        if any(word in lowered for word in WEIGHT_ONLY_WORDS):
            way = "weight-only"
        elif any(word in lowered for word in EMULATED_WORDS):
            way = "emulated"
        elif "," not in layer:
            way = "unknown"
        ways[way, layer] += 1
    return _most(ways) if ways else Executed(way="unknown", by=None)


def _of_log(log: Path) -> Executed:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if MARLIN_LINE in text:
        return Executed(way="weight-only", by="vLLM's log: Marlin")
    selected = (f"{what}, {kernel}" for kernel, what in SELECTED.findall(text))
    return _of_classes(each for each in selected if "fp8" in each.lower())


def _multiplies_in_fp8(described: Path = Path("/proc/cpuinfo")) -> bool:
    return described.exists() and ARITHMETIC_OF_PROCESSORS in described.read_text(encoding="utf-8", errors="replace")


def _most(ways: Counter[tuple[Execution, str]]) -> Executed:
    (way, by), _ = ways.most_common(1)[0]
    return Executed(way=way, by=f"{by} ({ways[way, by]} of {ways.total()} quantized layers)")
