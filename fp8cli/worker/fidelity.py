"""The next-token distributions of a run, kept so that another run's can be set beside them.

After the tasks, in the same loaded model, so that nothing of it can change their results. In the folder `fidelity`,
for P positions in all documents, V tokens of the vocabulary, and the K likeliest of them:

    meta.json      kind: "all" or "top", positions: P, documents, vocabulary: V, tokens_sha256, of: `tasks` or a file
    doc.npy        int32[P]       document of each position
    token.npy      int32[P]       token that comes next
    chosen.npy     float32[P]     its log-probability
    logprobs.npy   float32[P, V]  kind "all"
    ids.npy        int32[P, K]    kind "top": the likeliest tokens, the first one most likely
    top.npy        float32[P, K]  kind "top": their log-probabilities
"""

import json
import shutil
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8cli.worker import facts
from fp8cli.worker.distributions import BYTES_PER_VALUE, Rows, Server, Transformers, Vllm
from fp8cli.worker.failures import describe
from fp8cli.worker.progress import Progress
from fp8cli.worker.protocol import FIDELITY, FidelityJob, Job
from fp8cli.worker.tasks import LoadedTasks
from fp8cli.worker.texts import Documents, encode_documents, hash_documents, take_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

Source = Transformers | Vllm | Server


def keep_distributions(
    job: Job, lm: Any, loaded: LoadedTasks, folder: Path, progress: Progress
) -> dict[str, Any] | None:
    """Keep what the job asks for, and say what was kept, or why nothing was: results are not lost over this."""
    if job.fidelity is None:
        return None
    started = time.perf_counter()
    try:
        source = _source(job, job.fidelity, lm)
        # vLLM and servers answer a prompt with one token at least, which has to fit as well.
        longest = facts.max_length(job.backend, lm) - 1
        file = None if job.fidelity.texts is None else Path(job.fidelity.texts)
        encoded = encode_documents(lm, loaded.tasks, file, longest)
        documents = take_positions(encoded, _affordable(job.fidelity, source))
        if not documents:
            return {"missing": "no text has two tokens"}
        kept = _keep(source, documents, "tasks" if file is None else file.name, folder, progress)
    except Exception as error:  # noqa: BLE001 - the results of the tasks are there, and are worth more
        traceback.print_exc()
        return {"missing": describe(error).message}
    return {**kept, "seconds": time.perf_counter() - started}


def _source(job: Job, wanted: FidelityJob, lm: Any) -> Source:
    match job.backend:
        case "hf":
            return Transformers(lm)
        case "vllm":
            return Vllm(lm, wanted.top_k)
        case "server":
            return Server(lm, wanted.top_k)


def _affordable(wanted: FidelityJob, source: Source) -> int:
    values = source.columns * (1 if source.kind == "all" else 2)
    return max(1, min(wanted.positions, wanted.budget_bytes // (BYTES_PER_VALUE * values)))


def _keep(source: Source, documents: Documents, of: str, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the distributions, and give the folder its name when it is whole."""
    positions = sum(len(tokens) - 1 for tokens in documents)
    meta = {
        "kind": source.kind,
        "positions": positions,
        "documents": len(documents),
        "vocabulary": source.vocabulary,
        "tokens_sha256": hash_documents(documents),
        "of": of,
    }
    new = folder / f"{FIDELITY}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    (new / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
    arrays = _arrays(source, new, positions)
    done = 0
    for number, tokens in enumerate(documents):
        span = slice(done, done + len(tokens) - 1)
        arrays["doc"][span] = number
        arrays["token"][span] = tokens[1:]
        _fill(arrays, span, source.rows(tokens))
        done = span.stop
        progress.tell("fidelity", done=done, total=positions)
    for array in arrays.values():
        array.flush()
    shutil.rmtree(folder / FIDELITY, ignore_errors=True)
    new.rename(folder / FIDELITY)
    return meta


def _arrays(source: Source, folder: Path, positions: int) -> "dict[str, np.memmap[Any, Any]]":
    wide = (positions, source.columns)
    shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "doc": (np.int32, (positions,)),
        "token": (np.int32, (positions,)),
        "chosen": (np.float32, (positions,)),
    }
    if source.kind == "all":
        shapes["logprobs"] = (np.float32, wide)
    else:
        shapes |= {"ids": (np.int32, wide), "top": (np.float32, wide)}
    return {name: _open(folder / f"{name}.npy", dtype, shape) for name, (dtype, shape) in shapes.items()}


def _open(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)  # type: ignore[no-any-return, no-untyped-call]


def _fill(arrays: "dict[str, np.memmap[Any, Any]]", span: slice, rows: Rows) -> None:
    parts: dict[str, NDArray[Any] | None] = {
        "chosen": rows.chosen,
        "logprobs": rows.logprobs,
        "ids": rows.ids,
        "top": rows.top,
    }
    for name, part in parts.items():
        if part is not None:
            arrays[name][span] = part
