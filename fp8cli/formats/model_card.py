"""The README.md of a quantized checkpoint: what was done, from what, with which tools; the source's licence.

Only facts of this run, and nothing that differs between two runs of the same thing: no date, no machine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fp8cli.formats.budget_note import BudgetNote
from fp8cli.formats.calibration_note import CalibrationNote

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_LICENCE_KEYS = ("license", "license_name", "license_link")
_MB = 10**6


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything the card says."""

    name: str
    source: str
    source_is_hub_id: bool
    source_version: str
    """Commit of a Hub repository, or the fingerprint of a local folder."""
    scheme: str
    scheme_summary: str
    ignored_modules: Sequence[str]
    bytes_before: int
    bytes_after: int
    tools: Mapping[str, str]
    serve_command: str
    serve_note: str
    weights_quantized: bool = True
    """Whether more than the KV cache is."""
    calibration: CalibrationNote | None = None
    budget: BudgetNote | None = None
    fallback: str | None = None
    """Why another scheme was taken than the one that was asked for."""


def write_card(facts: CardFacts, source_card: str | None) -> str:
    """Return the card. `source_card` is the README.md of the source, whose licence is carried over."""
    licence = licence_lines(source_card) if source_card else ()
    front = ["---", *licence, "library_name: transformers", "tags:", "- fp8", "- vllm", "- compressed-tensors"]
    if facts.source_is_hub_id:
        front += [f"base_model: {facts.source}", "base_model_relation: quantized"]
    percent = 100 * facts.bytes_after / facts.bytes_before
    what = "quantized to FP8 (`torch.float8_e4m3fn`)" if facts.weights_quantized else "with scales for an FP8 KV cache"
    version = "commit" if facts.source_is_hub_id else "fingerprint of the headers"
    rows = [
        ("Source", f"`{facts.source}`, {version} `{facts.source_version}`"),
        ("Scheme", f"`{facts.scheme}`: {facts.scheme_summary}"),
        *([("Chosen", facts.fallback)] if facts.fallback else []),
        *([("Calibrated on", facts.calibration.for_card())] if facts.calibration else []),
        *([("Mixed", facts.budget.for_card())] if facts.budget else []),
        ("Left unquantized", _left(facts)),
        (
            "Size",
            f"{facts.bytes_after / _MB:,.1f} MB, {percent:.1f} % of the source's {facts.bytes_before / _MB:,.1f} MB",
        ),
        ("Made with", ", ".join(f"{name} {version}" for name, version in facts.tools.items())),
    ]
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# {facts.name}",
            "",
            f"`{facts.source}` {what}, {'with' if facts.calibration else 'without'} calibration data.",
            "",
            *table,
            "",
            "## Serve it",
            "",
            "```bash",
            facts.serve_command,
            "```",
            "",
            facts.serve_note,
            "",
        ]
    )


def licence_lines(card: str) -> tuple[str, ...]:
    """Return the licence lines of a model card's front matter, as they stand there."""
    front = _FRONT_MATTER.match(card)
    if front is None:
        return ()
    lines = front.group(1).splitlines()
    kept: list[str] = []
    inside = False
    for line in lines:
        # A list value goes on in indented or dashed lines.
        inside = (inside and line.startswith((" ", "\t", "-"))) or line.split(":")[0].strip() in _LICENCE_KEYS
        if inside:
            kept.append(line.rstrip())
    return tuple(kept)


def _left(facts: CardFacts) -> str:
    if not facts.weights_quantized:
        return "all weights"
    ignored = ", ".join(f"`{name}`" for name in facts.ignored_modules) or "none"
    if len(ignored) < 400:
        return f"embeddings, norms, biases and {ignored}"
    return f"embeddings, norms, biases and {len(facts.ignored_modules)} modules named in `config.json`"
