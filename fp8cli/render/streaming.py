"""How a source was streamed, or would be, in a sentence or two."""

from fp8cli.core.fetching.streaming import StreamFacts, StreamReport
from fp8cli.render.units import count, percent, size


def sentences(report: StreamReport) -> tuple[str, ...]:
    """Say how it is read, and what the run waited for."""
    window = f"window of at most {size(report.window_bytes)}"
    if report.window_bytes > report.window_wanted_bytes:
        window += f" ({size(report.window_wanted_bytes)} were asked for, but the largest piece of work needs it)"
    if report.facts is None:
        connections = _counted(report.connections, "connection")
        return (f"to be streamed over {connections}, {window}; how fast the bytes come is not known",)
    return _measured(report.facts, report)


def _measured(facts: StreamFacts, report: StreamReport) -> tuple[str, ...]:
    if facts.bound is None:
        return (f"nothing was left to fetch from {report.source}",)
    busy = facts.waiting_seconds + facts.working_seconds
    waited = facts.waiting_seconds / busy if busy else 0.0
    again = f", {count(facts.asked_again)} asked again" if facts.asked_again else ""
    computed = facts.processor_seconds / facts.working_seconds if facts.working_seconds else 0.0
    bound = "the network bounds" if facts.bound == "network" else "this machine bounds"
    came = (
        f"streamed {size(facts.bytes_fetched)} in {facts.seconds:.1f} s ({size(int(facts.bytes_per_second))}/s) over "
        f"{_counted(report.connections, 'connection')}, {_counted(facts.requests, 'request')}{again}, at most "
        f"{size(facts.window_peak_bytes)} of it on the disk at a time"
    )
    rest = (
        f"workers waited for bytes {percent(waited)} of their time, and computed {percent(min(1.0, computed))} of the"
    )
    return came, f"{bound}: {rest} rest"


def _counted(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"
