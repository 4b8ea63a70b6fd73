"""One side as a report shows it: which model, how it was run, and what it cost in bytes, memory and seconds."""

import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from fp8cli.core.comparing.comparability import KEYS, VERSIONS, facts_of
from fp8cli.core.comparing.comparison import Side
from fp8cli.core.comparing.sides import ReadySide
from fp8cli.core.evaluating.simulation import modules_of
from fp8cli.formats.run_record import RunRecord, Settings, SimulationFacts

_SHOWN: Final = (
    *"backend dtype batch-size max-length bos chat-template system-instruction gen-kwargs".split(),
    *"seeds model-args environment".split(),
    *VERSIONS,
)


def describe_side(side: ReadySide) -> Side:
    """Describe a side by its records; of plain lm-eval, and of a table, much stays unknown."""
    records, evidence = side.records, side.evidence
    newest = max(records, key=lambda record: record.created, default=None)
    results = evidence[0].results
    simulated = None if newest is None else newest.simulated
    real = tuple(record for record in records if record.simulated is None)
    backend = results.backend if newest is None else newest.settings.backend
    return Side(
        label=side.label,
        model=_model(results.model) if newest is None else newest.model.name,
        sources=tuple(str(each.source) for each in evidence),
        quantization=None if newest is None else _form(newest),
        executed_as=_one(record.executed_as for record in records),
        backend=backend,
        hardware=_one(", ".join(record.gpus) or record.hardware for record in records),
        created=results.date if newest is None else newest.created,
        bytes_on_disk=None if newest is None or simulated is not None else newest.model.bytes_on_disk,
        # Those of a simulation are of the unquantized checkpoint and of the rounding.
        peak_memory_bytes=_largest(record.speed.peak_memory_bytes for record in real),
        peak_gpu_memory_bytes=_largest(record.speed.peak_gpu_memory_bytes for record in real),
        tokens_per_second=_rate(real),
        seconds=_seconds(side),
        settings=_settings(side),
        simulated=None if simulated is None else simulated.scheme,
        predicted_bytes=None if simulated is None else simulated.predicted_bytes,
        notes=tuple(dict.fromkeys((*side.notes, *(note for record in records for note in record.notes)))),
    )


def _form(record: RunRecord) -> str | None:
    return record.model.quantization if record.simulated is None else f"{record.simulated.scheme}, simulated"


def _model(name: str | None) -> str | None:
    """Last part of a folder's path; a Hub id as it is."""
    return Path(name).name if name is not None and name.startswith(("/", ".", "~")) else name


def _one(texts: Iterable[str]) -> str | None:
    return " and ".join(dict.fromkeys(texts)) or None


def _largest(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def _rate(records: tuple[RunRecord, ...]) -> float | None:
    """Tokens per second over all evaluations; None if one of them does not know."""
    if len(records) == 1:
        return records[0].speed.tokens_per_second
    seconds = math.fsum(record.speed.scoring_seconds for record in records)
    tokens = sum(record.speed.tokens for record in records)
    return tokens / seconds if records and seconds > 0 and tokens else None


def _seconds(side: ReadySide) -> float | None:
    known = [each.results.seconds if each.record is None else each.record.speed.seconds for each in side.evidence]
    seconds = [each for each in known if each is not None]
    return math.fsum(seconds) if seconds and len(seconds) == len(known) else None


def _settings(side: ReadySide) -> Mapping[str, str]:
    """What is known of how it was run, in words; where tasks were run differently, both ways."""
    facts = [facts_of(each, task) for task, each in side.tasks.items()]
    shown = {KEYS[key]: _said(fact[key] for fact in facts) for key in _SHOWN}
    shots = {task: each.results.tasks[task].num_fewshot for task, each in side.tasks.items()}
    shown["examples in the prompt"] = (
        _one(str(number) for number in shots.values() if number is not None)
        if len(set(shots.values())) == 1
        else ", ".join(f"{number} (`{task}`)" for task, number in shots.items() if number is not None)
    )
    shown["items"] = _one(_items(record.settings) for record in side.records)
    shown["executed by"] = _one(record.executed_by for record in side.records if record.executed_by is not None)
    shown["rounded"] = _one(filter(None, (_modules(record.simulated) for record in side.records)))
    shown["data of the scales"] = _one(filter(None, (_data(record.simulated) for record in side.records)))
    shown["fp8"] = _one(record.fp8_version for record in side.records if record.fp8_version)
    return {what: text for what, text in shown.items() if text is not None}


def _modules(simulated: SimulationFacts | None) -> str | None:
    """Which weights a simulation rounds; None where that is what `fp8 quantize` would by default."""
    if simulated is None or not (words := modules_of(simulated).words):
        return None
    number = "" if simulated.weights is None else f"{simulated.weights:,} weights, "
    return f"{number}{shlex.join(words)}"


def _data(simulated: SimulationFacts | None) -> str | None:
    """What the scales of a simulation were found with; None where it needed nothing."""
    if simulated is None or simulated.source is None or simulated.samples is None:
        return None
    return f"{simulated.samples:,} samples of {simulated.source}"


def _said(texts: Iterable[str | None]) -> str | None:
    """All that is said, once; `none` only where nothing else is."""
    known = [text for text in texts if text is not None]
    return _one(text for text in known if text != "none") or _one(known)


def _items(settings: Settings) -> str:
    if settings.sample is not None:
        return f"{settings.sample:,} of each task, drawn with seed {settings.sample_seed}"
    if settings.limit is None:
        return "all"
    return f"the first {settings.limit:g}" if settings.limit >= 1 else f"the first {settings.limit:.1%}"
