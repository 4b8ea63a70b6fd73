"""Keep README.md true: write its generated parts anew, or check that they are what they would be.

    python scripts/readme.py --write
    python scripts/readme.py --check

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. NAME is `help` and a command,
`screen inspect`, `screen explore`, `screen compare`, `exit codes`, `schemes`, `measured schemes`, `families` or
`files`.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Final

import record_comparison
import record_exploration
import record_schemes
from family_table import family_table
from recording import where_and_when

from fp8cli.commands.compare import CompareReport
from fp8cli.commands.explore import ExploreReport
from fp8cli.core.comparing.comparison import Comparison
from fp8cli.errors import ExitCode
from fp8cli.formats.typed_json import from_json
from fp8cli.render import comparison as comparison_screen
from fp8cli.render import exploration as exploration_screen
from fp8cli.render.console import Channel, Output
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES

ROOT: Final = Path(__file__).parent.parent
README: Final = ROOT / "README.md"
MODEL: Final = ROOT / "fp8cli" / "bundled" / "stories-llama"
_PART: Final = re.compile(r"(<!-- generated: (?P<name>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def generate(name: str) -> str:
    """Return the text of one generated part."""
    match name.split():
        case ["help", *words]:
            return f"```text\n{_help(words)}```\n"
        case ["screen", "inspect"]:
            return f"```text\n{_inspection()}```\n"
        case ["screen", "compare"]:
            return _comparison()
        case ["screen", "explore"]:
            return _exploration()
        case ["exit", "codes"]:
            rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
            return "\n".join(["| code | meaning |", "|---:|---|", *rows, ""])
        case ["schemes"]:
            return _schemes()
        case ["measured", "schemes"]:
            return _measured_schemes()
        case ["families"]:
            return family_table()
        case ["files"]:
            return f"```text\n{_files()}```\n"
        case _:
            raise ValueError(f"README.md wants a generated part `{name}`, which no one knows")


def _help(words: list[str]) -> str:
    # Typer reads the width when it is imported, and colours by itself under some CI services.
    environment = {key: value for key, value in os.environ.items() if key not in {"GITHUB_ACTIONS", "FORCE_COLOR"}}
    environment |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "fp8cli", *words, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT).stdout
    return "\n".join(line.rstrip() for line in shown.replace("python -m fp8cli", "fp8").splitlines()) + "\n"


def _inspection() -> str:
    """Quantize the bundled model and inspect it, as on a terminal's pipe, for GPUs that are named."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{MODEL.name}-FP8-dynamic"
        _run(["quantize", str(MODEL), "-o", out, "--quiet"], cwd=folder)
        words = ["inspect", out, "--gpu", "H100", "--gpu", "A100", "--against", "stories-llama"]
        (Path(folder) / "stories-llama").symlink_to(MODEL)
        return f"$ fp8 {' '.join(words)}\n" + _run(words, cwd=folder)


def _comparison() -> str:
    """Draw the recorded comparison as on a terminal's pipe, and say where and when it was made."""
    recorded = json.loads(record_comparison.RECORDED.read_text("utf-8"))
    report = recorded["report"]
    comparison = from_json(Comparison, report["comparison"])
    drawn = CompareReport(comparison=comparison, command=report["command"], exit_code=ExitCode.DONE)
    return _screen(
        report["command"],
        lambda output: comparison_screen.show(drawn, output),
        where_and_when(recorded, "record_comparison.py"),
    )


def _exploration() -> str:
    """Draw the recorded exploration in the same way."""
    recorded = json.loads(record_exploration.RECORDED.read_text("utf-8"))
    report = from_json(ExploreReport, recorded["report"])
    return _screen(
        f"fp8 explore {report.model}",
        lambda output: exploration_screen.show(report, output),
        where_and_when(recorded, "record_exploration.py"),
    )


def _screen(command: str, draw: Callable[[Output], None], made: str) -> str:
    """Draw a report as on a terminal's pipe. made: the sentence that says how it came to be."""
    paper = StringIO()
    draw(Output(out=Channel.of(paper), err=Channel.of(paper)))
    screen = "\n".join(line.rstrip() for line in paper.getvalue().splitlines())
    return f"```text\n$ {command}\n{screen}\n```\n\n{fill(made, 120)}\n"


def _run(words: list[str], *, cwd: str | Path) -> str:
    command = [sys.executable, "-m", "fp8cli", *words]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=cwd).stdout


def _schemes() -> str:
    lines = ["| scheme | what it is | output folder | native FP8 on | calibration |", "|---|---|---|---|---|"]
    for scheme in SCHEMES.values():
        name = f"`{scheme.name}`" + (" (default)" if scheme.name == DEFAULT_SCHEME else "")
        capability = "compute capability {}.{} and later".format(*scheme.native_capability)
        calibration = "needed: texts" if scheme.needs_calibration else "none"
        lines.append(f"| {name} | {scheme.summary} | `NAME-{scheme.suffix}` | {capability} | {calibration} |")
    return "\n".join([*lines, ""])


def _measured_schemes() -> str:
    """Make a table of the recorded measurements of every scheme."""
    recorded = json.loads(record_schemes.RECORDED.read_text("utf-8"))
    rows = recorded["rows"]
    lines = [
        "| what is FP8 | MB | SQNR of the weights | KL divergence (nats) | same top token | accuracy | verdict |",
        "|---|---:|---:|---:|---:|---:|---|",
        f"| nothing (BF16) | {recorded['base_bytes'] / 10**6:.2f} | | | | {rows[0]['base']:.2%} | |",
    ]
    for row in rows:
        sqnr = "not quantized" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        low, high = (f"{100 * end:+.2f}".replace("-", "−") for end in row["interval"])
        accuracy = f"{row['accuracy']:.2%} ({low} to {high} pp)"
        kl = f"{row['kl']:.1e} ± {row['kl_stderr']:.0e}"
        cells = [f"{row['bytes'] / 10**6:.2f}", sqnr, kl, f"{row['same_top']:.1%}", accuracy, row["verdict"].upper()]
        lines.append(f"| {row['choice']} | {' | '.join(cells)} |")
    of = f"Of {rows[0]['items']:,} items, with 95 % intervals of the change."
    made = f"{of} {where_and_when(recorded, 'record_schemes.py')}"
    return "\n".join([*lines, "", fill(made, 120), ""])


def _files() -> str:
    """List every module with the first sentence of its docstring, folder by folder: the house, as it stands."""
    lines: list[str] = []
    room = None
    for path in sorted(ROOT.glob("fp8cli/**/*.py"), key=lambda path: (path.parent, path.name)):
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        if docstring is None:
            continue  # An empty __init__.py.
        if path.parent != room:
            room = path.parent
            lines.append(f"{room.relative_to(ROOT).as_posix()}/")
        first = docstring.split("\n\n")[0].replace("\n", " ")
        lines.append(f"  {path.name:24} {first}")
    return "\n".join([*lines, ""])


def regenerate(text: str) -> str:
    """Return the README with every generated part made anew."""
    return _PART.sub(lambda part: f"{part[1]}{generate(part['name'])}{part[3]}", text)


def main(arguments: list[str]) -> int:
    """Write or check; return the exit code."""
    before = README.read_text("utf-8")
    after = regenerate(before)
    match arguments:
        case ["--write"]:
            README.write_text(after, "utf-8")
            return 0
        case ["--check"]:
            if before != after:
                print("README.md is out of date: python scripts/readme.py --write", file=sys.stderr)
            return int(before != after)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
