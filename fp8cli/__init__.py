"""fp8: take a Hugging Face checkpoint to FP8, ready for vLLM, and prove that nothing was lost."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

__all__ = ["__version__", "checkpoint_summary"]

__version__ = "0.1.0"


def checkpoint_summary(path: "str | Path", *, show_details: bool = False) -> "DataFrame":
    """Return the memory table of a checkpoint as a DataFrame; see fp8cli.summary."""
    # Here, because `import fp8cli` must not cost the seconds that pandas takes.
    from fp8cli.summary import checkpoint_summary as summarize  # noqa: PLC0415

    return summarize(path, show_details=show_details)
