"""What does `fp8 eval` cost over lm-eval by itself? Ratios of whole processes, side by side, as Markdown.

    python scripts/bench_eval.py                      # the bundled model on all of its 2,500 stories, three rounds
    python scripts/bench_eval.py --limit 50 --repeats 1 --only lm-eval eval

Each row is a process of its own, seen from outside: wall time, processor time, peak memory. Rows alternate, round by
round, and a ratio compares runs of one round. All evaluate with transformers on the CPU, with the same settings. A
first round on a few items, unmeasured, leaves Python's byte code and the prepared data set behind. Goals stand beside
the ratios; missing one fails nothing, for a busy or unusual machine proves nothing.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import bench_machine
from bench_checkpoint import Made
from bench_eval_rows import TASK, YARDSTICK, Plan, compare_evaluations, evaluation_rows, named
from bench_report import comparison_table, measurement_table
from bench_rows import NotMeasuredError, Results, Row, measure, measure_rounds, quantize_once

import fp8cli
from fp8cli.core.evaluating.task_sources import write_bundled
from fp8cli.formats.safetensors import read_header

MODEL: Final = Path(fp8cli.__file__).parent / "bundled/stories-llama"
DISTRIBUTIONS: Final = ("fp8cli", "lm_eval", "transformers", "torch", "compressed-tensors", "datasets")
BATCH_SIZE: Final = 16
WARM_UP_ITEMS: Final = 8
METHOD: Final = (
    "Wall time: median of the rounds, with their range; ratios: median of each round's ratio. CPU: user and system, of"
    " all processes of a run. Peak memory: of the largest of them. `lm_eval` is its own command as a user starts it,"
    " which also indexes all of its tasks and estimates an error by bootstrap; the row of its API does neither."
    " `fp8 eval` keeps next-token distributions for a comparison unless told not to."
)


def main() -> int:
    """Measure, print Markdown on stdout; progress goes to stderr."""
    options = _parse(sys.argv[1:])
    print(f"bench: 1-minute load {os.getloadavg()[0]:.2f}", file=sys.stderr)
    versions = {name: bench_machine.version_of(name) for name in DISTRIBUTIONS}
    facts = {
        "command": shlex.join(["python", "scripts/bench_eval.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "load": f"{os.getloadavg()[0]:.1f}",
        **bench_machine.hardware(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "items": "all" if options.limit is None else f"{options.limit}",
    }
    with tempfile.TemporaryDirectory(prefix="fp8-bench-eval-", dir=options.on) as name:
        titles, results = _measure_all(Path(name), options)
    comparisons = tuple(compare_evaluations(results.runs, titles))
    if options.json:
        document = {
            "facts": facts,
            "titles": titles,
            "results": asdict(results),
            "comparisons": [asdict(one) for one in comparisons],
        }
        Path(options.json).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    machine = (
        f"{facts['cores']} cores of {facts['processor']}, {facts['memory']} memory, {facts['system']}; load at the"
        f" start {facts['load']}; {facts['versions']}"
    )
    print(f"Measured {facts['date']} with `{facts['command']}` on {machine}. `{TASK}`, items: {facts['items']}.\n")
    print(f"{METHOD}\n")
    print(measurement_table(results.names, titles, results.runs, results.reasons, YARDSTICK))
    if comparisons:
        print(f"\n{comparison_table(comparisons)}")
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    plan = Plan(tasks=Path(), quantized=Path(), records=Path(), batch_size=1, limit=None)
    names = list(evaluation_rows(plan))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", "--work", metavar="DIR", help="work in this folder (default: that of the system)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N stories (default: all)")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"requests at a time (default: {BATCH_SIZE})"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"some of: {' '.join(names)}")
    parser.add_argument("--json", metavar="FILE", help="write everything measured as JSON")
    options = parser.parse_args(words)
    if min(options.repeats, options.batch_size, options.limit or 1) < 1 or options.limit == 0:
        parser.error("--repeats, --batch-size and --limit must be at least 1")
    options.only = options.only or names
    return options


def _measure_all(here: Path, options: argparse.Namespace) -> tuple[Mapping[str, str], Results]:
    """Measure the chosen rows in an empty folder; return what they are called and what came of them."""
    # Byte code of Python's is kept by the user's interpreter, the data set by this folder.
    os.environ["HF_HOME"] = str(here / "huggingface")
    base = _copy_model(here / "base")
    quantized = quantize_once(base)
    write_bundled(here / "tasks")
    plan = Plan(
        tasks=here / "tasks",
        quantized=quantized.folder,
        records=here / "records",
        batch_size=options.batch_size,
        limit=options.limit,
    )
    every = evaluation_rows(plan)
    rows = named(options.only, every)
    titles = {name: row.title for name, row in every.items()}
    warm = named(options.only, evaluation_rows(replace(plan, limit=WARM_UP_ITEMS)))
    measure_rounds(warm, dict.fromkeys(warm, base), here, rounds=1, heavy=False)
    results = Results(names=tuple(rows))
    if "again" in rows and (reason := _record(rows["again"], base, here)) is not None:
        results.reasons["again"] = reason
    possible = {name: row for name, row in rows.items() if name not in results.reasons}
    measured = measure_rounds(possible, dict.fromkeys(possible, base), here, rounds=options.repeats, heavy=False)
    results.runs |= measured.runs
    results.reasons |= measured.reasons
    return titles, results


def _record(row: Row, base: Made, here: Path) -> str | None:
    """Evaluate once, unmeasured, what a repeat is to find; return why that failed, or None."""
    try:
        measure(row, base, here / "out")
    except NotMeasuredError as problem:
        return str(problem)
    return None


def _copy_model(folder: Path) -> Made:
    shutil.copytree(MODEL, folder)
    header = read_header(folder / "model.safetensors")
    return Made(folder=folder, tensors=len(header.tensors), bytes=header.file_bytes, shards=1)


if __name__ == "__main__":
    sys.exit(main())
