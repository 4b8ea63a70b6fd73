"""How fast is `fp8`? Ratios of whole processes, measured side by side in one run, as Markdown for the README.

    python scripts/bench.py --on /tmp --on /dev/shm    # 8 layers of Llama-3-8B; half an hour a folder, 12 GB of room
    python scripts/bench.py --small --only cp quantize startup
    python scripts/bench.py --device cuda --only cp quantize block

Each row is a process of its own, seen from outside: wall time, processor time, peak memory. Rows alternate, round
by round, and a ratio compares runs of one round. Before each run the source is copied once, unmeasured, and all
disks are flushed, so that every run finds the same page cache and nobody waits for what another wrote; outputs are
removed at once. A first round with a toy checkpoint leaves Python's byte code behind. Goals stand beside the
ratios; missing one fails nothing, for a busy or unusual machine proves nothing.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import bench_machine
from bench_checkpoint import Llama, Made, Mixture, write_checkpoint
from bench_report import (
    Comparison,
    compare,
    comparison_table,
    measurement_table,
    startup_table,
)
from bench_rows import (
    CUDA_ROWS,
    MEMORY_ROW,
    REPORT_ROWS,
    ROWS,
    START_ROWS,
    Results,
    Row,
    measure_rounds,
    quantize_once,
)

FULL: Final = Llama()
SMALL: Final = Llama(layers=2, hidden=1024, intermediate=3584, heads=8, kv_heads=2, vocab=32000)
TOY: Final = Llama(layers=1, hidden=256, intermediate=512, heads=2, kv_heads=1, vocab=512)
MANY_TENSORS: Final = replace(SMALL, layers=222)
START_ROUNDS: Final = 10
LARGE_SHARD_BYTES: Final = 5_000_000_000
GB: Final = 10**9

METHOD: Final = (
    "Wall time: median of the rounds, with their range; ratios: median of each round's ratio. CPU: user and system."
    " Peak memory: resident, mapped files included. Before each run one unmeasured copy, removed again, then `sync`:"
    " source in the page cache, nothing left to write; Python's byte code is there. `fp8 quantize` ends with everything"
    " flushed to the disk, `cp -r` does not. llm-compressor runs on the CPU with its own settings."
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What was measured in one folder."""

    folder: str
    file_system: str
    source: str
    titles: Mapping[str, str]
    results: Results
    comparisons: Sequence[Comparison]
    same_bytes: Mapping[str, bool]
    """By row on the GPU: whether every shard is what the CPU writes."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """How long the first answer takes."""

    titles: Mapping[str, str]
    results: Results


def main() -> int:
    """Measure, print Markdown on stdout; progress goes to stderr."""
    options = _parse(sys.argv[1:])
    print(f"bench: 1-minute load {os.getloadavg()[0]:.2f}", file=sys.stderr)
    facts = {
        "command": shlex.join(["python", "scripts/bench.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "load": f"{os.getloadavg()[0]:.1f}",
        **bench_machine.hardware(),
        "versions": ", ".join(f"{name} {version}" for name, version in bench_machine.versions().items()),
    }
    folders = [Path(folder) for folder in options.on or [tempfile.gettempdir()]]
    places = [_measure_place(folder, options, first=folder == folders[0]) for folder in folders]
    start = _measure_start(folders[0], small=options.small) if "startup" in options.only else None
    if options.json:
        document = {"facts": facts, "places": [asdict(place) for place in places], "start": start and asdict(start)}
        Path(options.json).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(_markdown(facts, [place for place in places if place.results.names], start))
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    names = [*ROWS, *REPORT_ROWS, *CUDA_ROWS, "memory", "startup"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--on", "--work", action="append", metavar="DIR", help="measure in this folder, again for each file system"
    )
    parser.add_argument("--layers", type=int, default=8, help="layers of Llama-3-8B; 32 is all of it (default: 8)")
    parser.add_argument("--small", action="store_true", help="a model of 0.2 GB and fewer starts, to try things out")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"some of: {' '.join(names)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: GPU rows too, bytes compared")
    parser.add_argument("--json", metavar="FILE", help="write everything measured as JSON")
    options = parser.parse_args(words)
    if options.repeats < 1 or options.layers < 1:
        parser.error("--repeats and --layers must be at least 1")
    options.only = options.only or [*ROWS, *REPORT_ROWS, "memory", "startup"]
    if options.device == "cuda":
        options.only += [name for name in CUDA_ROWS if name.removesuffix("-cuda") in options.only]
    return options


def _measure_place(folder: Path, options: argparse.Namespace, *, first: bool) -> Place:
    """Measure the chosen rows in a new folder inside `folder`, and leave nothing there."""
    rows = {name: row for name, row in {**ROWS, **REPORT_ROWS, **CUDA_ROWS}.items() if name in options.only}
    model = SMALL if options.small else replace(FULL, layers=options.layers)
    with tempfile.TemporaryDirectory(prefix="fp8-bench-", dir=folder) as name:
        here = Path(name)
        results, described = Results(names=()), ""
        if rows:
            toy = write_checkpoint(here / "toy", TOY)
            measure_rounds(rows, _sources(rows, toy), here, rounds=1, heavy=False)
            source = write_checkpoint(here / "source", model)
            described = f"{source.bytes / GB:.2f} GB, {source.tensors} tensors, shards: {source.shards}"
            results = measure_rounds(rows, _sources(rows, source), here, rounds=options.repeats)
        titles = {name: row.title for name, row in rows.items()}
        if first and "memory" in options.only:
            titles["memory"] = _measure_memory(here, SMALL if options.small else FULL, results)
    return Place(
        folder=str(folder),
        file_system=bench_machine.file_system(folder),
        source=described,
        titles=titles,
        results=results,
        comparisons=tuple(compare(results.runs, titles)),
        same_bytes={
            name: results.digests[name] == results.digests.get(name.removesuffix("-cuda"))
            for name in CUDA_ROWS
            if name in results.digests
        },
    )


def _sources(rows: Mapping[str, Row], source: Made) -> Mapping[str, Made]:
    """The source of each row: the checkpoint itself, or what quantizing makes of it."""
    quantized = quantize_once(source) if not REPORT_ROWS.keys().isdisjoint(rows) else source
    return {name: quantized if name in REPORT_ROWS else source for name in rows}


def _measure_memory(here: Path, model: Llama, results: Results) -> str:
    """Add the run with a large source to the results; return its title."""
    source = write_checkpoint(here / "sparse", model, sparse=True)
    row = replace(MEMORY_ROW, title=f"`fp8 quantize` of {source.bytes / GB:.2g} GB (sparse source, for its memory)")
    once = measure_rounds({"memory": row}, {"memory": source}, here, rounds=1, heavy=False)
    results.names = (*results.names, "memory")
    results.runs |= once.runs
    results.reasons |= once.reasons
    return row.title


def _measure_start(folder: Path, *, small: bool) -> Start:
    """Measure commands that read headers only."""
    with tempfile.TemporaryDirectory(prefix="fp8-bench-", dir=folder) as name:
        here = Path(name)
        many = write_checkpoint(here / "many", MANY_TENSORS, sparse=True)
        experts = Mixture(experts=32 if small else 352)
        huge = write_checkpoint(here / "huge", experts, shard_bytes=LARGE_SHARD_BYTES, sparse=True)
        fp8 = quantize_once(many)
        sources = dict.fromkeys(START_ROWS, many) | {"inspect-fp8": fp8, "inspect-huge": huge, "dry-run": huge}
        rows = {name: _with_size(row, name, sources[name]) for name, row in START_ROWS.items()}
        measure_rounds(rows, sources, here, rounds=1, heavy=False)
        rounds = 3 if small else START_ROUNDS
        results = measure_rounds(rows, sources, here, rounds=rounds, heavy=False)
    return Start(titles={name: row.title for name, row in rows.items()}, results=results)


def _with_size(row: Row, name: str, source: Made) -> Row:
    if name in {"pass", "help"}:
        return row
    size = f"{source.bytes / 1000 / GB:.2f} TB" if source.bytes > 1000 * GB else f"{source.bytes / GB:.1f} GB"
    return replace(row, title=f"{row.title} of {source.tensors:,} tensors, {size}")


def _markdown(facts: Mapping[str, str], places: Sequence[Place], start: Start | None) -> str:
    processor = f"{facts['cores']} cores of {facts['processor']}, {facts['memory']} memory, GPU: {facts['gpu']}"
    machine = f"{processor}, {facts['system']}; load at the start {facts['load']}; {facts['versions']}"
    parts = [f"Measured {facts['date']} with `{facts['command']}` on {machine}."]
    if places:
        parts.append(METHOD)
    for place in places:
        results = place.results
        where = f"{place.file_system} (`{place.folder}`)"
        parts.append(f"**{where}**" + (f", source of {place.source}" if place.source else ""))
        parts.append(measurement_table(results.names, place.titles, results.runs, results.reasons))
        if place.comparisons:
            parts.append(comparison_table(place.comparisons))
        for name, same in place.same_bytes.items():
            verdict = "the same bytes as on the CPU, by the SHA-256 of every shard" if same else "**other bytes**"
            parts.append(f"{place.titles[name]}: {verdict}.")
    if start is not None:
        first = next(iter(start.results.runs.values()), ())
        parts.append(f"Starts, median of {len(first)}:")
        parts.append(startup_table(start.results.names, start.titles, start.results.runs, start.results.reasons))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
