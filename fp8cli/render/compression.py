"""What llm-compressor's engine did, or would do, in words."""

from fp8cli.core.compressing.outlook import CompressionReport
from fp8cli.render.units import count, gib


def sentence(report: CompressionReport) -> str:
    """Say what is done, on what data, and what it takes or took."""
    facts = report.facts
    if facts is None:
        place = "with its weights on disk" if report.offload else "in memory"
        what = f"the whole model {place}" if report.recipe is None else f"{', '.join(report.modifiers)}"
        memory = f"up to {gib(report.memory_bytes)} of memory (an estimate; no model was loaded)"
        return f"by llm-compressor: {what}{_foreseen(report)} · {memory}"
    by = ", ".join(report.modifiers)
    on = "without data"
    if facts.data is not None:
        on = f"on {count(facts.data.samples)} samples of {facts.data.source} ({count(facts.data.tokens)} tokens)"
    if report.known:
        return f"by llm-compressor's {by}, {on}, in an earlier run"
    return f"by llm-compressor's {by}, {on}, in {facts.seconds:.1f} s, with {gib(facts.peak_memory_bytes)} of memory"


def notes(report: CompressionReport) -> tuple[str, ...]:
    """Return what is to be said of the data."""
    used = report.data is not None and (report.facts is None or report.facts.data is not None)
    return report.data.notes if used and report.data is not None else ()


def _foreseen(report: CompressionReport) -> str:
    if report.data is None:
        return ", without data" if report.recipe is None else ", without data unless it needs some"
    data = report.data
    maybe = "" if report.recipe is None else ", if it needs data,"
    return f"{maybe} on {count(data.samples)} samples of up to {count(data.max_seq_length)} tokens of {data.source}"
