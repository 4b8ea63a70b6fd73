"""The next-token distributions that an evaluation kept, read where they lie: a fidelity folder, opened and checked.

The layout is that of `worker.fidelity`: meta.json, and numpy arrays with one row for each of P positions. The arrays
are mapped, not read, so that only the rows in work take memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One side's distributions; logarithms are natural."""

    kind: Literal["all", "top"]
    positions: int
    vocabulary: int
    tokens_sha256: str
    of: str
    document: "NDArray[np.int32]"
    """[P]"""
    token: "NDArray[np.int32]"
    """[P], the token that comes next."""
    chosen: "NDArray[np.float32]"
    """[P], its log-probability."""
    logprobs: "NDArray[np.float32]"
    """[P, V] of kind `all`, [P, K] of kind `top`."""
    ids: "NDArray[np.int32] | None"
    """[P, K] of kind `top`: which tokens, the most likely one first."""


def open_kept(folder: Path) -> Kept:
    """Open a fidelity folder. Raises ValueError with the reason if it is not whole or not what it must be."""
    meta = _read_meta(folder / "meta.json")
    kind = meta["kind"]
    if kind not in {"all", "top"}:
        raise ValueError(f"`{folder}` holds distributions of the unknown kind `{kind}`")
    positions, vocabulary = _counted(meta, "positions"), _counted(meta, "vocabulary")
    column = _open_array(folder / "chosen.npy", "float32", positions)
    if kind == "all":
        ids, logprobs = None, _open_array(folder / "logprobs.npy", "float32", positions, vocabulary)
    else:
        ids = _open_array(folder / "ids.npy", "int32", positions, None)
        logprobs = _open_array(folder / "top.npy", "float32", positions, ids.shape[1])
    return Kept(
        kind=kind,
        positions=positions,
        vocabulary=vocabulary,
        tokens_sha256=str(meta["tokens_sha256"]),
        of=str(meta["of"]),
        document=_open_array(folder / "doc.npy", "int32", positions),
        token=_open_array(folder / "token.npy", "int32", positions),
        chosen=column,
        logprobs=logprobs,
        ids=ids,
    )


def check_same_tokens(base: Kept, other: Kept) -> None:
    """Raise ValueError with the reason if the two are not distributions over the same tokens at the same positions."""
    import numpy as np

    if base.vocabulary != other.vocabulary:
        raise ValueError(f"the vocabularies differ: {base.vocabulary:,} tokens on the base, {other.vocabulary:,} here")
    if base.positions != other.positions:
        raise ValueError(f"{base.positions:,} positions were kept of the base, {other.positions:,} here")
    same = base.tokens_sha256 == other.tokens_sha256
    if not same or not np.array_equal(base.token, other.token) or not np.array_equal(base.document, other.document):
        raise ValueError("the two sides read different tokens")


def _read_meta(path: Path) -> Mapping[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise ValueError(f"`{path}` cannot be read: {problem}") from None
    wanted = {"kind", "positions", "vocabulary", "tokens_sha256", "of"}
    if not isinstance(meta, dict) or not wanted <= meta.keys():
        raise ValueError(f"`{path}` does not describe distributions")
    return meta


def _counted(meta: Mapping[str, Any], key: str) -> int:
    value = meta[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} must be a number above 0, not {value!r}")
    return value


def _open_array(path: Path, dtype: str, rows: int, columns: int | None = 0) -> "NDArray[Any]":
    """Map an array of [rows] if columns is 0, else [rows, columns], any number of them if it is None."""
    import numpy as np

    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise ValueError(f"`{path}` cannot be read: {problem}") from None
    wanted = (rows,) if columns == 0 else (rows, array.shape[-1] if columns is None and array.ndim else columns)
    if array.dtype != np.dtype(dtype) or array.shape != wanted or array.size == 0:
        raise ValueError(f"`{path}` is {array.dtype} of shape {array.shape}, not {dtype} of {wanted}")
    return array
