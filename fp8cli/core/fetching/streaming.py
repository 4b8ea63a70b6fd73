"""Whether a source is streamed, with how many connections and how large a window, and what came of it."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from fp8cli.core.fetching.blocks import Blocks
from fp8cli.core.quantizing.pieces import cut, source_ranges
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import parse_size
from fp8cli.errors import CannotRun, UsageError
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.sources import Elsewhere, fetch_command

DEFAULT_CONNECTIONS: Final = 8
DEFAULT_WINDOW: Final = "2GiB"
MAX_CONNECTIONS: Final = 64

Bound = Literal["network", "machine"]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What the user asked for."""

    stream: bool = False
    connections: int | None = None
    window: str | None = None
    """Bytes of the source that may lie on the disk at a time, as a size with a unit."""


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """A source that is read as it is needed, and never stored."""

    connections: int
    window_bytes: int


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """What was measured. Seconds of workers are summed over all of them."""

    bytes_fetched: int
    requests: int
    asked_again: int
    """Requests that broke off or were refused for the moment, and were asked again."""
    seconds: float
    """From the first request to the last byte of the output."""
    bytes_per_second: float
    waiting_seconds: float
    """In which workers had nothing to do, because the bytes were not there yet."""
    working_seconds: float
    """In which they read the window, computed and wrote."""
    processor_seconds: float
    """Of that, in which they computed; the rest went into reading, writing and waiting for a processor."""
    window_peak_bytes: int
    bound: Bound | None
    """What it waited for more; None where nothing was fetched."""
    bytes_for_hashes: int = 0
    """Fetched besides, for the SHA-256 of the source alone: headers, and what was not, or no more, in the window."""


@dataclass(frozen=True, kw_only=True)
class StreamReport:
    """How a source was streamed, or would be."""

    source: str
    connections: int
    window_bytes: int
    window_wanted_bytes: int
    """What was asked for: the window is larger where the largest piece of work would not fit."""
    facts: StreamFacts | None
    """None with a dry run."""


def order_streaming(options: StreamOptions, place: LocalFolder | Elsewhere) -> Streaming | None:
    """Say how a source is streamed; None: it is here, or will be downloaded. Raises UsageError, CannotRun."""
    said = {"--connections": options.connections is not None, "--window": options.window is not None}
    words = [word for word, is_said in said.items() if is_said]
    if isinstance(place, LocalFolder):
        if options.stream or words:
            word = "--stream" if options.stream else " and ".join(words)
            message = f"{word} would have no effect: `{place.label}` is here"
            raise UsageError(message, hint="leave it out")
        return None
    if isinstance(place, HubRepo):
        if not options.stream:
            if words:
                message = f"{' and '.join(words)} would have no effect: the source is downloaded before it is read"
                raise UsageError(message, hint="add --stream, which never stores it")
            return None
        if place.cached is not None:
            message = f"HF_HUB_OFFLINE is set, and `{place.label}` can be streamed from the Hub alone"
            raise CannotRun(message, hint="leave --stream out to use the cache")
    connections = DEFAULT_CONNECTIONS if options.connections is None else options.connections
    if not 1 <= connections <= MAX_CONNECTIONS:
        message = f"--connections {connections} is not between 1 and {MAX_CONNECTIONS}"
        raise UsageError(message, hint=f"the default is {DEFAULT_CONNECTIONS}")
    return Streaming(
        connections=connections, window_bytes=parse_size(options.window or DEFAULT_WINDOW, option="--window")
    )


def refuse_without_files(place: LocalFolder | Elsewhere, who: str) -> None:
    """Refuse a source that is streamed for work that loads a model from files. who: says whose work it is."""
    if isinstance(place, LocalFolder):
        return
    message = f"{who} needs the files of `{place.label}` here, and streaming never stores them"
    hint = f"fetch them first: {fetch_command(place)}"
    raise CannotRun(message, hint=f"leave --stream out, or {hint}" if isinstance(place, HubRepo) else hint)


def foresee_streaming(
    streaming: Streaming | None, plan: Plan, place: LocalFolder | Elsewhere, piece_bytes: int
) -> tuple[Streaming | None, StreamReport | None]:
    """Settle how large the window is, and say so: no larger than the source, and the largest piece of work fits."""
    if streaming is None:
        return None, None
    pieces = cut(plan, piece_bytes)
    blocks = Blocks(plan, pieces)
    least = max((blocks.size_of(source_ranges(plan.tensors[piece[0]], piece)) for piece in pieces), default=0)
    whole = sum(map(blocks.size, blocks.users))
    settled = replace(streaming, window_bytes=max(min(streaming.window_bytes, whole), least))
    report = StreamReport(
        source=place.label,
        connections=settled.connections,
        window_bytes=settled.window_bytes,
        window_wanted_bytes=streaming.window_bytes,
        facts=None,
    )
    return settled, report


def bound_of(waiting_seconds: float, working_seconds: float, fetched: int) -> Bound | None:
    """Return what workers waited for more."""
    if not fetched:
        return None
    return "network" if waiting_seconds > working_seconds else "machine"
