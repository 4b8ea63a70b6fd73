"""What every process with llm-compressor in it is told, and what its result depends on besides the job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

GENTLE: Final[Mapping[str, str]] = {"TOKENIZERS_PARALLELISM": "false"}
"""Its environment, unless the user has set it."""

_EAGER: Final[Mapping[str, str]] = {"CT_ENFORCE_EAGER": "1"}
"""Always: on newer GPUs compressed-tensors would round with another kernel."""

_OF_MODEL: Final = frozenset({".safetensors", ".json", ".jinja"})


def forced_environment(device: Literal["auto", "cpu", "cuda"]) -> Mapping[str, str]:
    """Return the part of its environment that the user has no say in. On a processor it sees no GPU."""
    return {**_EAGER, "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else _EAGER


def state_of(model: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of a checkpoint's files: one that was changed in its place is another."""
    files = sorted((each.name, each.stat()) for each in model.iterdir() if each.suffix in _OF_MODEL)
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
