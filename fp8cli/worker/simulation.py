"""The model of a job as it would be under a scheme, where the job says so: rounded before it is asked anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8cli.samples.encoding import Encoded, encode_samples, load_tokenizer, positions_of
from fp8cli.samples.rows import UnfitData
from fp8cli.simulator.applying import simulate
from fp8cli.simulator.finding import find_attentions, model_names, refuse_unfit
from fp8cli.simulator.job import SimulationJob
from fp8cli.simulator.observing import Observed, observe
from fp8cli.simulator.scheme import SimulatedScheme, scheme_named
from fp8cli.worker.execution import Executed
from fp8cli.worker.failures import Failure
from fp8cli.worker.model_class import outline
from fp8cli.worker.progress import Progress
from fp8cli.worker.protocol import Job


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What was done to a model."""

    executed: Executed
    facts: dict[str, Any]
    """For the result: what was rounded, and what the model was shown for it."""


def refuse_early(job: Job) -> None:
    """Raise Failure for what cannot be simulated, before a model is loaded."""
    wanted = job.simulation
    if wanted is not None:
        cache = scheme_of(wanted).kv_cache is not None
        refuse_unfit(outline(str(job.model_args["pretrained"])), wanted.weights, cache=cache)


def read_samples(job: Job, folder: Path) -> Encoded | None:
    """Read and encode the texts that a simulation needs, before a model is loaded; None where it needs none.

    Raises Failure with what is wrong with the data.
    """
    if job.simulation is None or job.simulation.samples is None:
        return None
    checkpoint = str(job.model_args["pretrained"])
    tokenizer = load_tokenizer(checkpoint)
    try:
        return encode_samples(job.simulation.samples, folder, tokenizer, positions_of(checkpoint))
    except UnfitData as unfit:
        raise Failure(kind="data", message=unfit.message, hint=unfit.hint) from unfit


def simulate_job(job: Job, model: Any, encoded: Encoded | None, progress: Progress) -> Simulated | None:
    """Round a loaded model as the job says, for good; None where it says nothing.

    Raises Failure for what cannot be simulated.
    """
    wanted = job.simulation
    if wanted is None:
        return None
    scheme = scheme_of(wanted)
    modules = model_names(model, wanted.weights)
    caches = len(find_attentions(model)) if scheme.kv_cache is not None else 0
    by = ""
    if scheme.modified:
        by = f", by llm-compressor {_modify(job, wanted, model, modules, encoded, progress)}"
    else:
        observed = None if encoded is None else _observe(model, modules, scheme, encoded, progress)
        simulate(model, scheme, modules, observed, dtype=_dtype(wanted))
    parts = [f"{len(modules):,} Linears"] if modules else []
    parts += [f"the KV caches of {caches:,} layers"] if caches else []
    return Simulated(
        executed=Executed(way="simulated", by=f"{scheme.name} in {' and '.join(parts)}{by}"),
        facts={
            "samples": None if encoded is None else len(encoded.ids),
            "tokens": None if encoded is None else encoded.tokens,
            "token_ids_sha256": None if encoded is None else encoded.sha256(),
        },
    )


def scheme_of(wanted: SimulationJob) -> SimulatedScheme:
    """Return the scheme of a job. Raises ValueError for one that this version did not write."""
    scheme = scheme_named(wanted.scheme)
    if scheme is None:
        raise ValueError(f"`{wanted.scheme}` is no scheme that this version knows")
    return scheme


def _dtype(wanted: SimulationJob) -> Any:
    import torch

    return getattr(torch, wanted.dtype)


def _modify(
    job: Job, wanted: SimulationJob, model: Any, modules: tuple[str, ...], encoded: Encoded | None, progress: Progress
) -> str:
    """Let llm-compressor do it, and return its version."""
    from fp8cli.simulator.modifying import modify, need_llm_compressor

    version = need_llm_compressor()
    if encoded is None or wanted.samples is None:
        raise ValueError("a job with modifiers has samples")
    modify(
        model,
        scheme_of(wanted),
        modules,
        tokenizer=load_tokenizer(str(job.model_args["pretrained"])),
        encoded=encoded,
        seed=wanted.samples.seed,
        notify=lambda done, total: progress.tell("modifying", done=done, total=total),
    )
    return version


def _observe(
    model: Any, modules: tuple[str, ...], scheme: SimulatedScheme, encoded: Encoded, progress: Progress
) -> Observed:
    static = scheme.activations is not None and not scheme.activations.dynamic
    done, total = 0, len(encoded.ids)

    def count() -> None:
        nonlocal done
        done += 1
        progress.tell("observing", done=done, total=total)

    progress.tell("observing", done=done, total=total)
    return observe(model, modules if static else (), scheme.kv_cache, encoded.ids, notify=count)
