"""The README's table of model families: what is recorded of each, beside what the matrix says of it."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from family_matrix import FAMILIES, RECORDED, Family

_LAYER: Final = re.compile(r"^.*?\.(layers|h)\.\*\.")
_SHORT: Final = {
    "part of a router, which chooses the experts and is not an nn.Linear": "router",
    "a router, kept by default: vLLM holds it unquantized": "router",
    "a Mamba layer, kept by default: vLLM holds it unquantized": "vLLM holds the mixer unquantized",
    "a convolution, not an nn.Linear": "convolution",
    "part of the indexer of sparse attention, kept by default: vLLM holds it unquantized": "indexer",
    "not the weight of an nn.Linear": "no nn.Linear",
}
_TOWER: Final = re.compile(r"^part of the ([\w ]+), which stays")


def family_table() -> str:
    """Return the table, and a footnote for everything that is not as usual."""
    recorded = json.loads(RECORDED.read_text("utf-8"))
    lines = [
        "| family | quantized in each layer | stays | as `oneshot` | transformers | vLLM 0.32 |",
        "|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for each in FAMILIES:
        found = recorded[each.name]
        name = f"{each.name} (`{each.architecture}`)"
        if each.refused is not None:
            lines.append(f"| {name} | nothing: refused{_note(found['refused'], notes)} | | | | |")
            continue
        answers = [_answer(word, notes) for word in (each.oneshot, each.transformers)]
        cells = [_quantized(found["quantized"]), _kept(found["kept"]), *answers, _served(each, notes)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""])


def _answer(reason: str | None, notes: list[str]) -> str:
    return "yes" if reason is None else f"no{_note(reason, notes)}"


def _served(each: Family, notes: list[str]) -> str:
    """Say how far vLLM takes the output: its CPU build runs it, its model classes load it, or neither."""
    if each.vllm is not None:
        return _answer(each.vllm, notes)
    if each.vllm_run is not None:
        return f"loads{_note(each.vllm_run, notes)}"
    return "runs, on text" if "vision_config" in each.config else "runs"


def _note(words: str, notes: list[str]) -> str:
    """Give the number of a footnote."""
    if words not in notes:
        notes.append(words)
    return f" ({notes.index(words) + 1})"


def _quantized(found: Mapping[str, str]) -> str:
    modules = (module for names in found for module in re.split(r", (?![^{]*})", names))
    return ", ".join(f"`{_LAYER.sub('', module)}`" for module in modules)


def _kept(found: Mapping[str, str]) -> str:
    """Name what stays for a reason of its own; heads, embeddings, norms and biases stay everywhere."""
    words = []
    for names, reason in found.items():
        if reason.startswith("the output head"):
            continue
        tower = _TOWER.match(reason)
        if tower is not None:
            words.append(tower[1])
            continue
        modules = (_LAYER.sub("", module) for module in re.split(r", (?![^{]*})", names))
        words.append(f"{', '.join(f'`{module}`' for module in modules)} ({_SHORT.get(reason, reason)})")
    return "; ".join(_unique(words))


def _unique(words: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(words)
