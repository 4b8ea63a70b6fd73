"""The direction of imports: cli → render → commands → core → formats → schemes, errors; each library in one room.

Inside the core: comparing, exploring → evaluating → making → converting, compressing, budgeting, clustering →
calibrating, measuring, delivering → simulating, sampling, processes → fetching, doctor → quantizing → serving →
inspection → model; machine, which is facts alone, needs none of them. `worker`, `calibrator` and `measurer` run in
processes of their own, perhaps under another interpreter, and share nothing with the rest but their protocols and the
judgement of rows of calibration data; `samples` and `simulator` are rooms that those processes share; two files of the
simulator let llm-compressor do its work on a model in memory, by the calibrator's own way, and are imported for schemes
with modifiers alone.

The table below is the architecture. A file is judged by the row with the longest path that it starts with; its
imports, at the top or inside a function, must all stand in that row (or in Python's standard library).
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = 350

VOCABULARY = ("fp8cli.errors", "fp8cli.schemes")
BELOW_CORE = (
    "fp8cli.core.findings",
    "fp8cli.core.folding",
    "fp8cli.core.hashing",
    "fp8cli.core.kernel",
    "fp8cli.core.unfolding",
    "fp8cli.formats",
    *VOCABULARY,
)
# The rooms of the core, each above the ones before it.
MODEL = ("fp8cli.core.model", *BELOW_CORE)
INSPECTION = ("fp8cli.core.inspection", *MODEL)
SERVING = ("fp8cli.core.serving", "fp8cli.core.machine", *INSPECTION)
QUANTIZING = ("fp8cli.core.quantizing", *SERVING)
BELOW_COMMANDS = ("fp8cli.core", "fp8cli.formats", *VOCABULARY)

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "fp8cli/__init__.py": ("fp8cli.summary", "pandas"),
    "fp8cli/__main__.py": ("fp8cli.cli",),
    "fp8cli/cli/": ("typer", "fp8cli.cli", "fp8cli.render", "fp8cli.commands", *VOCABULARY),
    "fp8cli/render/": ("rich", "fp8cli.render", "fp8cli.commands", "fp8cli.core", *VOCABULARY),
    "fp8cli/render/canvas.py": ("matplotlib", "fp8cli.render", "fp8cli.core", *VOCABULARY),
    "fp8cli/commands/": BELOW_COMMANDS,
    "fp8cli/worker/": (
        "fp8cli.worker",
        "fp8cli.simulator",
        "fp8cli.samples",
        "lm_eval",
        "torch",
        "transformers",
        "vllm",
        "numpy",
        "datasets",
    ),
    "fp8cli/worker/bootstrap.py": (),
    "fp8cli/worker/protocol.py": ("fp8cli.simulator.job",),
    "fp8cli/samples/": ("fp8cli.samples", "fp8cli.worker.failures", "transformers", "datasets", "pyarrow", "jinja2"),
    "fp8cli/samples/request.py": (),
    "fp8cli/samples/rows.py": (),
    "fp8cli/calibrator/": (
        "fp8cli.calibrator",
        "fp8cli.samples",
        "fp8cli.worker",
        "torch",
        "transformers",
        "llmcompressor",
        "compressed_tensors",
        "datasets",
        "safetensors",
        "numpy",
        "pydantic",
    ),
    "fp8cli/calibrator/compressing_protocol.py": ("fp8cli.samples.request",),
    "fp8cli/calibrator/protocol.py": ("fp8cli.samples.request",),
    "fp8cli/measurer/": (
        "fp8cli.measurer",
        "fp8cli.simulator",
        "fp8cli.samples",
        "fp8cli.worker",
        "fp8cli.calibrator.loading",
        "torch",
        "transformers",
        "lm_eval",
        "numpy",
    ),
    "fp8cli/measurer/protocol.py": (
        "fp8cli.measurer.explore_protocol",
        "fp8cli.measurer.budget_protocol",
        "fp8cli.samples.request",
    ),
    "fp8cli/measurer/explore_protocol.py": ("fp8cli.simulator.scheme", "fp8cli.worker.protocol"),
    "fp8cli/measurer/budget_protocol.py": ("fp8cli.measurer.explore_protocol", "fp8cli.simulator.scheme"),
    "fp8cli/measurer/budget_choosing.py": (),
    "fp8cli/measurer/budget_settling.py": ("fp8cli.measurer.budget_choosing",),
    "fp8cli/simulator/": ("fp8cli.simulator", "fp8cli.worker.failures", "torch", "transformers"),
    "fp8cli/simulator/modifying.py": (
        "fp8cli.simulator",
        "fp8cli.calibrator",
        "fp8cli.samples",
        "fp8cli.worker.failures",
        "torch",
        "compressed_tensors",
    ),
    "fp8cli/simulator/preparing.py": ("fp8cli.simulator", "fp8cli.samples", "torch"),
    "fp8cli/simulator/scheme.py": (),
    "fp8cli/simulator/job.py": ("fp8cli.samples.request",),
    "fp8cli/core/simulating/": ("fp8cli.core.simulating", "fp8cli.simulator.scheme", *QUANTIZING),
    "fp8cli/summary.py": ("pandas", "fp8cli.commands", *VOCABULARY),
    "fp8cli/core/": BELOW_CORE,
    "fp8cli/core/machine/": ("fp8cli.core.machine", *BELOW_CORE),
    "fp8cli/core/machine/gpus.py": ("pynvml", "fp8cli.core.machine", *BELOW_CORE),
    "fp8cli/core/machine/pins.py": ("packaging", "fp8cli.core.machine", *BELOW_CORE),
    "fp8cli/core/model/": MODEL,
    "fp8cli/core/model/modeling.py": ("torch", "transformers", *MODEL),
    "fp8cli/core/inspection/": INSPECTION,
    "fp8cli/core/inspection/fidelity.py": ("torch", *INSPECTION),
    "fp8cli/core/inspection/scale_sweep.py": ("numpy", *INSPECTION),
    "fp8cli/core/serving/": SERVING,
    "fp8cli/core/verifying/": ("fp8cli.core.verifying", *INSPECTION),
    "fp8cli/core/quantizing/": QUANTIZING,
    "fp8cli/core/quantizing/fp8.py": ("torch", *VOCABULARY),
    "fp8cli/core/quantizing/tiles.py": ("torch", *QUANTIZING),
    "fp8cli/core/doctor/": ("fp8cli.core.doctor", *QUANTIZING),
    "fp8cli/core/fetching/": ("fp8cli.core.fetching", *QUANTIZING),
    "fp8cli/core/processes/": (
        "fp8cli.core.processes",
        "fp8cli.core.machine",
        "fp8cli.worker.bootstrap",
        "fp8cli.worker.protocol",
        *BELOW_CORE,
    ),
    "fp8cli/core/evaluating/": (
        "fp8cli.core.evaluating",
        "fp8cli.core.calibrating",
        "fp8cli.core.clustering.choice",
        "fp8cli.core.simulating",
        "fp8cli.core.processes",
        "fp8cli.core.doctor",
        "fp8cli.simulator.job",
        "fp8cli.simulator.scheme",
        "fp8cli.worker.protocol",
        *QUANTIZING,
    ),
    "fp8cli/core/clustering/": (
        "fp8cli.core.clustering",
        "fp8cli.core.fetching",
        "fp8cli.core.processes",
        "fp8cli.core.doctor",
        *QUANTIZING,
    ),
    "fp8cli/core/clustering/foreman.py": ("ray", "fp8cli.core.clustering", "fp8cli.worker.parent_watch", *QUANTIZING),
    "fp8cli/core/clustering/attendance.py": ("ray", "fp8cli.core.clustering", *QUANTIZING),
    "fp8cli/core/clustering/roll.py": ("ray", "fp8cli.core.clustering", *QUANTIZING),
    "fp8cli/core/clustering/site.py": ("ray", "fp8cli.core.clustering", *QUANTIZING),
    "fp8cli/core/clustering/tasks.py": ("ray", "fp8cli.core.clustering", *QUANTIZING),
    "fp8cli/core/clustering/labour.py": ("ray", "fp8cli.core.clustering", "fp8cli.core.fetching", *QUANTIZING),
    "fp8cli/core/clustering/rank_host.py": (
        "ray",
        "fp8cli.core.clustering",
        "fp8cli.core.processes",
        *QUANTIZING,
    ),
    "fp8cli/core/clustering/ranks_at_work.py": ("ray", "fp8cli.core.clustering", *QUANTIZING),
    "fp8cli/core/clustering/ranks.py": (
        "fp8cli.core.clustering",
        "fp8cli.core.processes",
        "fp8cli.worker.protocol",
        *QUANTIZING,
    ),
    "fp8cli/core/sampling/": ("fp8cli.core.sampling", "fp8cli.samples.request", "fp8cli.samples.rows", *BELOW_CORE),
    "fp8cli/core/making/": (
        "fp8cli.core.making",
        "fp8cli.core.fetching",
        "fp8cli.core.budgeting",
        "fp8cli.core.clustering",
        "fp8cli.core.compressing",
        "fp8cli.core.calibrating",
        "fp8cli.core.delivering",
        "fp8cli.core.doctor",
        *QUANTIZING,
    ),
    "fp8cli/core/delivering/": ("fp8cli.core.delivering", *QUANTIZING),
    "fp8cli/core/compressing/": (
        "fp8cli.core.compressing",
        "fp8cli.core.calibrating",
        "fp8cli.core.processes",
        "fp8cli.core.sampling",
        "fp8cli.core.doctor",
        "fp8cli.calibrator.compressing_protocol",
        *QUANTIZING,
    ),
    "fp8cli/core/calibrating/": (
        "fp8cli.core.calibrating",
        "fp8cli.core.doctor",
        "fp8cli.core.processes",
        "fp8cli.calibrator.protocol",
        "fp8cli.core.sampling",
        "fp8cli.worker.protocol",
        *QUANTIZING,
    ),
    "fp8cli/core/measuring/": (
        "fp8cli.core.measuring",
        "fp8cli.core.calibrating.llm_compressor",
        "fp8cli.core.doctor",
        "fp8cli.core.processes",
        "fp8cli.core.sampling",
        "fp8cli.measurer.protocol",
        "fp8cli.measurer.explore_protocol",
        "fp8cli.worker.protocol",
        *QUANTIZING,
    ),
    "fp8cli/core/budgeting/": (
        "fp8cli.core.budgeting",
        "fp8cli.core.calibrating",
        "fp8cli.core.measuring",
        "fp8cli.core.sampling",
        "fp8cli.core.simulating",
        "fp8cli.core.doctor",
        "fp8cli.measurer.budget_choosing",
        "fp8cli.measurer.budget_protocol",
        "fp8cli.measurer.protocol",
        "fp8cli.simulator.scheme",
        *QUANTIZING,
    ),
    "fp8cli/core/exploring/": (
        "fp8cli.core.exploring",
        "fp8cli.core.comparing",
        "fp8cli.core.evaluating",
        "fp8cli.core.calibrating",
        "fp8cli.core.measuring",
        "fp8cli.core.simulating",
        "fp8cli.core.sampling",
        "fp8cli.core.doctor",
        "fp8cli.measurer.protocol",
        "fp8cli.measurer.explore_protocol",
        "fp8cli.simulator.scheme",
        "fp8cli.worker.protocol",
        *QUANTIZING,
    ),
    "fp8cli/core/comparing/": (
        "fp8cli.core.comparing",
        "fp8cli.core.evaluating",
        "fp8cli.core.calibrating",
        "fp8cli.core.simulating",
        "fp8cli.simulator.scheme",
        *BELOW_CORE,
    ),
    "fp8cli/core/comparing/distributions.py": (),
    "fp8cli/core/comparing/divergence.py": ("numpy", "fp8cli.core.comparing", *BELOW_CORE),
    "fp8cli/core/comparing/kept_distributions.py": ("numpy", "fp8cli.core.comparing", *BELOW_CORE),
    "fp8cli/core/converting/": (
        "fp8cli.core.converting",
        "fp8cli.core.making",
        "fp8cli.core.delivering",
        "fp8cli.core.fetching",
        "fp8cli.core.doctor",
        *QUANTIZING,
    ),
    "fp8cli/formats/": ("fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/recipe_file.py": ("yaml", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/bucket_s3.py": ("s3fs", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/gcs_requests.py": ("gcsfs", "httpx", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/hub_uploads.py": ("huggingface_hub", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/moved_files.py": ("fsspec", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/hub.py": ("huggingface_hub", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/hub_transfer.py": ("huggingface_hub", "httpx", "fp8cli.formats", *VOCABULARY),
    "fp8cli/formats/remote_folder.py": ("fsspec", "fp8cli.formats", *VOCABULARY),
    "fp8cli/errors.py": (),
    "fp8cli/schemes.py": ("fp8cli.errors",),
}

QUICK = ("fp8cli/cli/", "fp8cli/render/", "fp8cli/core/", "fp8cli/formats/")
"""Rooms that must not load torch even through another module, unless their own row allows it."""

HEAVY = ("torch", "transformers", "pandas", "numpy")


def row_of(path: str) -> tuple[str, ...]:
    """What a file may import: the row with the longest matching path."""
    rows = [prefix for prefix in ALLOWED if path.startswith(prefix)]
    assert rows, f"{path} is in no room; give it a row in this table"
    return ALLOWED[max(rows, key=len)]


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is named in an import, wherever it stands, `import_module("…")` too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=level) if level:
                yield "a relative import"
            case ast.ImportFrom(module=str(module), names=names):
                # `from fp8cli.core import fp8` names a room and then the module in it.
                is_room = (ROOT / module.replace(".", "/")).is_dir() and module.startswith("fp8cli")
                yield from (f"{module}.{alias.name}" if is_room else module for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def is_allowed(path: str, module: str) -> bool:
    if module == "fp8cli.__version__" or module.split(".", maxsplit=1)[0] in sys.stdlib_module_names:
        return True
    if path.startswith("fp8cli/commands/") and module.startswith("fp8cli.commands."):
        return False
    return is_within(module, row_of(path))


def complaints(path: str, source: str) -> list[str]:
    """Judge one file: imports that its room may not have, and its length."""
    found = [
        f"{path} imports {module}"
        for module in sorted(set(imports_of(ast.parse(source))))
        if not is_allowed(path, module)
    ]
    lines = source.count("\n")
    if lines > LINES:
        found.append(f"{path} has {lines} lines, more than {LINES}")
    if path.endswith("/__init__.py") and path != "fp8cli/__init__.py" and source:
        found.append(f"{path} is not empty")
    return found


@cache
def imports_at_load(source: str) -> set[str]:
    """Modules that a file loads when it is imported: not those in functions, nor those for the type checker."""
    at_load: set[str] = set()
    waiting: list[ast.stmt] = list(ast.parse(source).body)
    while waiting:
        statement = waiting.pop()
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=orelse):
                waiting.extend(orelse)
            case ast.Import() | ast.ImportFrom():
                at_load.update(imports_of(statement))
            case _:
                waiting.extend(child for child in ast.walk(statement) if isinstance(child, ast.Import | ast.ImportFrom))
    return at_load


def heavy_chains(sources: Mapping[str, str]) -> list[str]:
    """Find files of quick rooms that load a heavy library through other files; name the way they do."""
    found = []
    for start in sources:
        if not start.startswith(QUICK) or is_within("torch", row_of(start)):
            continue
        ways, seen = [(start,)], {start}
        while ways:
            way = ways.pop()
            for module in sorted(imports_at_load(sources[way[-1]])):
                if is_within(module, HEAVY) and not is_within(module, row_of(start)):
                    found.append(" → ".join((*way, module)))
                file = f"{module.replace('.', '/')}.py"
                if file in sources and file not in seen:
                    seen.add(file)
                    ways.append((*way, file))
    return found


def sources_of_the_package() -> dict[str, str]:
    files = sorted((ROOT / "fp8cli").rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def test_every_file_imports_only_what_its_room_may_have() -> None:
    found = [text for path, source in sources_of_the_package().items() for text in complaints(path, source)]
    assert not found, "\n".join(found)


def test_quick_rooms_load_no_heavy_library_through_another_room() -> None:
    found = heavy_chains(sources_of_the_package())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("fp8cli/core/quantizing/plan.py", "import torch\n", "imports torch"),
        ("fp8cli/core/quantizing/plan.py", "def f():\n    from torch import nn\n", "imports torch"),
        ("fp8cli/core/quantizing/plan.py", "import importlib\nimportlib.import_module('torch')\n", "imports torch"),
        ("fp8cli/core/model/selection.py", "from transformers import AutoConfig\n", "imports transformers"),
        ("fp8cli/core/quantizing/engine.py", "import transformers\n", "imports transformers"),
        ("fp8cli/core/quantizing/engine.py", "from rich.console import Console\n", "imports rich.console"),
        (
            "fp8cli/core/model/roster.py",
            "from fp8cli.core.inspection import survey\n",
            "imports fp8cli.core.inspection.survey",
        ),
        (
            "fp8cli/core/inspection/served.py",
            "from fp8cli.core.serving.fit import judge_serving\n",
            "imports fp8cli.core.serving.fit",
        ),
        (
            "fp8cli/core/machine/probes.py",
            "from fp8cli.core.doctor import environment\n",
            "imports fp8cli.core.doctor.environment",
        ),
        (
            "fp8cli/core/quantizing/plan.py",
            "from fp8cli.commands import quantize\n",
            "imports fp8cli.commands.quantize",
        ),
        (
            "fp8cli/core/quantizing/fp8.py",
            "from fp8cli.formats import safetensors\n",
            "imports fp8cli.formats.safetensors",
        ),
        ("fp8cli/commands/inspect.py", "import rich\n", "imports rich"),
        ("fp8cli/commands/inspect.py", "import torch\n", "imports torch"),
        (
            "fp8cli/commands/inspect.py",
            "from fp8cli.commands.quantize import run\n",
            "imports fp8cli.commands.quantize",
        ),
        ("fp8cli/commands/inspect.py", "import pandas as pd\n", "imports pandas"),
        (
            "fp8cli/formats/checkpoint.py",
            "from fp8cli.core.quantizing.plan import Plan\n",
            "imports fp8cli.core.quantizing.plan",
        ),
        ("fp8cli/formats/checkpoint.py", "import huggingface_hub\n", "imports huggingface_hub"),
        ("fp8cli/formats/safetensors.py", "import numpy as np\n", "imports numpy"),
        ("fp8cli/render/reports.py", "import typer\n", "imports typer"),
        ("fp8cli/render/reports.py", "from fp8cli.formats import safetensors\n", "imports fp8cli.formats.safetensors"),
        ("fp8cli/cli/app.py", "from fp8cli.core.quantizing.plan import Plan\n", "imports fp8cli.core.quantizing.plan"),
        ("fp8cli/cli/app.py", "import rich\n", "imports rich"),
        ("fp8cli/schemes.py", "import torch\n", "imports torch"),
        ("fp8cli/errors.py", "from fp8cli import schemes\n", "imports fp8cli.schemes"),
        ("fp8cli/core/quantizing/plan.py", "from . import tiles\n", "imports a relative import"),
        ("fp8cli/core/quantizing/plan.py", "x = 1\n" * (LINES + 1), f"has {LINES + 1} lines, more than {LINES}"),
        ("fp8cli/core/__init__.py", "from fp8cli.errors import BadInput\n", "is not empty"),
    ],
)
def test_a_deliberate_break_is_caught(path: str, source: str, complaint: str) -> None:
    assert complaints(path, source) == [f"{path} {complaint}"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fp8cli/cli/app.py", "import typer\nfrom fp8cli import __version__\nfrom fp8cli.errors import Fp8Error\n"),
        ("fp8cli/core/quantizing/tiles.py", "import torch.cuda\nfrom fp8cli.core.quantizing import fp8\n"),
        ("fp8cli/core/model/modeling.py", "def f():\n    from transformers import AutoConfig\n"),
        ("fp8cli/formats/hub.py", "from huggingface_hub.errors import HfHubHTTPError\n"),
        ("fp8cli/commands/__init__.py", ""),
    ],
)
def test_what_the_table_allows_passes(path: str, source: str) -> None:
    assert complaints(path, source) == []


def test_a_file_outside_every_room_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"fp8cli/utils\.py is in no room"):
        complaints("fp8cli/utils.py", "import torch\n")


def test_torch_through_another_module_is_caught_with_the_way_it_came() -> None:
    sources = {
        "fp8cli/core/quantizing/plan.py": "from fp8cli.core.model.selection import keep\n",
        "fp8cli/core/model/selection.py": (
            "try:\n    from fp8cli.core.quantizing import tiles\nexcept ImportError:\n    tiles = None\n"
        ),
        "fp8cli/core/quantizing/tiles.py": "import torch\n",
    }
    assert heavy_chains(sources) == [
        "fp8cli/core/quantizing/plan.py → fp8cli/core/model/selection.py → fp8cli/core/quantizing/tiles.py → torch",
        "fp8cli/core/model/selection.py → fp8cli/core/quantizing/tiles.py → torch",
    ]


def test_an_import_inside_a_function_or_for_the_type_checker_loads_nothing() -> None:
    sources = {
        "fp8cli/core/quantizing/plan.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from fp8cli.core.quantizing import tiles\n"
            "def encode():\n    from fp8cli.core.quantizing import tiles\n"
        ),
        "fp8cli/core/quantizing/tiles.py": "import torch\n",
    }
    assert heavy_chains(sources) == []
