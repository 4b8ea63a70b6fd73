"""What measurements amount to: medians, ratios of paired runs, goals, and the Markdown that says so.

A ratio compares two runs of the same round, so that a machine that is slow for a minute is slow for both; what is
reported is the median of the rounds' ratios, never the ratio of two medians.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

GIB: Final = 2**30
YARDSTICK: Final = "cp"
FLUSHED_YARDSTICK: Final = "cp-sync"
OURS: Final = "quantize"
UNHASHED: Final = "unhashed"
BLOCKS: Final = "block"
MEMORY: Final = "memory"
"""The row with a sparse source, run once: reading holes is no measure of time, so only its memory is told."""
REFERENCES: Final = ("model-free", "oneshot")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One whole process, seen from outside."""

    wall_seconds: float
    cpu_seconds: float
    """User and system, of the process and all it waited for."""
    peak_bytes: int
    """Peak resident memory, mapped files included."""


Quantity = Callable[[Measurement], float]


def wall(run: Measurement) -> float:
    """Seconds from start to exit."""
    return run.wall_seconds


def cpu(run: Measurement) -> float:
    """Seconds of processor time."""
    return run.cpu_seconds


def peak(run: Measurement) -> float:
    """Bytes of resident memory at the highest point."""
    return float(run.peak_bytes)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a number. `relation` is `≤` or `≥`."""

    relation: str
    bound: float

    def is_met_by(self, value: float) -> bool:
        """Whether a value is on the right side of the bound, or on it."""
        match self.relation:
            case "≤":
                return value <= self.bound
            case "≥":
                return value >= self.bound
            case _:
                raise ValueError(f"a goal cannot be {self.relation} something")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One number made of several measurements, with its goal if it has one."""

    what: str
    value: float
    unit: str = ""
    goal: Goal | None = None


NO_SLOWER_THAN_A_COPY: Final = Goal(relation="≤", bound=0.8)
TIMES_FASTER: Final = Goal(relation="≥", bound=5)
SHARE_OF_CPU: Final = Goal(relation="≤", bound=1 / 8)
PEAK_GIB: Final = Goal(relation="≤", bound=1)

Runs = Mapping[str, Sequence[Measurement]]
"""By the name of a row: its runs, one a round."""


def paired_ratio(quantity: Quantity, over: Sequence[Measurement], under: Sequence[Measurement]) -> float:
    """Median of the rounds' ratios of one quantity. Both must have the same rounds, at least one."""
    return median(quantity(one) / quantity(other) for one, other in zip(over, under, strict=True))


def compare(runs: Runs, titles: Mapping[str, str]) -> Iterator[Comparison]:
    """Compare our rows with the yardstick, with llm-compressor, and with an interpreter that has torch.

    runs: measured rows only; what is missing is left out. titles: what to call each row.
    """
    for name in (OURS, UNHASHED, BLOCKS, f"{OURS}-cuda", f"{BLOCKS}-cuda"):
        if name not in runs:
            continue
        ours = runs[name]
        if YARDSTICK in runs:
            ratio = paired_ratio(wall, ours, runs[YARDSTICK])
            what = f"{titles[name]}: wall time ÷ {titles[YARDSTICK]}"
            yield Comparison(what=what, value=ratio, goal=NO_SLOWER_THAN_A_COPY)
        if FLUSHED_YARDSTICK in runs:
            ratio = paired_ratio(wall, ours, runs[FLUSHED_YARDSTICK])
            yield Comparison(what=f"{titles[name]}: wall time ÷ {titles[FLUSHED_YARDSTICK]}", value=ratio)
        for reference in (reference for reference in REFERENCES if reference in runs and name == OURS):
            faster = paired_ratio(wall, runs[reference], ours)
            what = f"{titles[reference]}: wall time ÷ {titles[name]}"
            yield Comparison(what=what, value=faster, goal=TIMES_FASTER)
            share = paired_ratio(cpu, ours, runs[reference])
            what = f"{titles[name]}: CPU time ÷ {titles[reference]}"
            yield Comparison(what=what, value=share, goal=SHARE_OF_CPU)
    for name in (OURS, BLOCKS, MEMORY):
        if name in runs:
            highest = max(peak(run) for run in runs[name])
            what = f"{titles[name]}: highest peak memory"
            yield Comparison(what=what, value=highest / GIB, unit=" GiB", goal=PEAK_GIB)
            if "torch" in runs:
                over = highest - median(peak(run) for run in runs["torch"])
                yield Comparison(what=f"the same, over {titles['torch']}", value=over / GIB, unit=" GiB")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; every column but the first is aligned right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def measurement_table(
    names: Sequence[str],
    titles: Mapping[str, str],
    runs: Runs,
    reasons: Mapping[str, str],
    yardstick: str = YARDSTICK,
) -> str:
    """Table of medians, with the range of the wall times; a row that was not measured says why.

    yardstick: the row that the others' wall times are divided by.
    """
    rows = []
    for name in names:
        if name in reasons:
            rows.append([titles[name], f"not measured ({reasons[name]})", "", "", ""])
            continue
        measured = runs[name]
        walls = sorted(run.wall_seconds for run in measured)
        peak_gib = f"{median(run.peak_bytes for run in measured) / GIB:.2f} GiB"
        if name == MEMORY:
            rows.append([titles[name], "–", "–", peak_gib, "–"])
            continue
        ratio = f"{paired_ratio(wall, measured, runs[yardstick]):.2f}" if yardstick in runs else "–"
        range_of_wall = f"{median(walls):.2f} ({walls[0]:.2f} – {walls[-1]:.2f})"
        cpu_seconds = f"{median(run.cpu_seconds for run in measured):.2f}"
        rows.append([titles[name], range_of_wall, cpu_seconds, peak_gib, ratio])
    return table(["run", "wall s (range)", "CPU s", "peak memory", f"wall ÷ {titles.get(yardstick, yardstick)}"], rows)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Table of comparisons, each with its goal and whether it is met."""
    rows = []
    for one in comparisons:
        goal = f"{one.goal.relation} {one.goal.bound:g}{one.unit}" if one.goal else "–"
        met = {None: "–", True: "yes", False: "**no**"}[one.goal.is_met_by(one.value) if one.goal else None]
        rows.append([one.what, f"{one.value:.3g}{one.unit}", goal, met])
    return table(["ratio", "measured", "goal", "met"], rows)


def startup_table(names: Sequence[str], titles: Mapping[str, str], runs: Runs, reasons: Mapping[str, str]) -> str:
    """Table of starts: median wall time and its ratio to the first row, the bare interpreter."""
    rows = []
    for name in names:
        if name in reasons:
            rows.append([titles[name], f"not measured ({reasons[name]})", ""])
            continue
        ratio = paired_ratio(wall, runs[name], runs[names[0]])
        rows.append([titles[name], f"{median(run.wall_seconds for run in runs[name]):.3f}", f"{ratio:.1f}"])
    return table(["start", "wall s", f"÷ {titles[names[0]]}"], rows)
