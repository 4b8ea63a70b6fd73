"""Keep README.md true: write its generated parts anew, or check that they are what they would be.

    python scripts/readme.py --write
    python scripts/readme.py --check

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. NAME is `help` and a command,
`screen inspect`, `screen compare`, `exit codes`, `schemes` or `files`.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Final

from record_comparison import RECORDED

from fp8cli.commands.compare import CompareReport
from fp8cli.core.comparing.comparison import Comparison
from fp8cli.errors import ExitCode
from fp8cli.formats.typed_json import from_json
from fp8cli.render.comparison import show
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
        case ["exit", "codes"]:
            rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
            return "\n".join(["| code | meaning |", "|---:|---|", *rows, ""])
        case ["schemes"]:
            return _schemes()
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
    recorded = json.loads(RECORDED.read_text("utf-8"))
    report = recorded["report"]
    comparison = from_json(Comparison, report["comparison"])
    paper = StringIO()
    show(
        CompareReport(comparison=comparison, command=report["command"], exit_code=ExitCode.DONE),
        Output(out=Channel.of(paper), err=Channel.of(paper)),
    )
    machine, versions = recorded["machine"], recorded["versions"]
    with_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    made = (
        f"Recorded on {recorded['date']} by `scripts/record_comparison.py`, on {machine['cores']} cores of "
        f"{machine['processor']}, GPU: {machine['gpu']}; {with_versions}."
    )
    screen = "\n".join(line.rstrip() for line in paper.getvalue().splitlines())
    return f"```text\n$ {report['command']}\n{screen}\n```\n\n{fill(made, 120)}\n"


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
