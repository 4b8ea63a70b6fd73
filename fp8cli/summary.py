"""`checkpoint_summary`: the memory table of a checkpoint as a pandas DataFrame, for notebooks and scripts.

The columns and figures are those of FMS Model Optimizer's function of that name, and a few more. It reads
headers instead of loading tensors, and needs no torch.
"""

from pathlib import Path

import pandas as pd

from fp8cli.commands.inspect import InspectRequest, run
from fp8cli.errors import BadInput

_MB = 1e6
_FILES = ("config.json", "file.", "folder.", "header.", "index.", "weights.")
"""Checks without which nobody knows what the tensors are; what is wrong with them is for `fp8 inspect`."""


def checkpoint_summary(path: str | Path, *, show_details: bool = False) -> pd.DataFrame:
    """Summarize the checkpoint folder, or the .safetensors file, at `path`.

    Returns one row per dtype, indexed by `dtype` (torch's names, sorted): `layer` counts the tensors, `mem (MB)`
    is in 10⁶ bytes, `parameters` leaves scales out, `share` is a part of 1. With `show_details` one row per
    tensor: `layer`, `shape`, `mem (MB)`, `dtype`. Raises fp8cli.errors.Fp8Error if there is no such checkpoint
    or it is broken.
    """
    report = run(InspectRequest(source=Path(path), full=show_details))
    broken = next((each for each in report.findings if each.status == "failed" and each.check.startswith(_FILES)), None)
    if broken is not None:
        raise BadInput(broken.found, hint=broken.remedy)
    if report.tensors is not None:
        return pd.DataFrame(
            {
                "layer": [row.name for row in report.tensors],
                "shape": [row.shape for row in report.tensors],
                "mem (MB)": [row.bytes / _MB for row in report.tensors],
                "dtype": [row.dtype for row in report.tensors],
            }
        )
    return pd.DataFrame(
        {
            "layer": [row.tensors for row in report.dtypes],
            "mem (MB)": [row.bytes / _MB for row in report.dtypes],
            "parameters": [row.parameters for row in report.dtypes],
            "share": [row.share for row in report.dtypes],
        },
        index=pd.Index([row.dtype for row in report.dtypes], name="dtype"),
    )
