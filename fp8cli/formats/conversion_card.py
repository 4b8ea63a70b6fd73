"""The README.md of a converted or dequantized checkpoint: what it was, what it is, and what did not change.

Only facts of this run, and nothing that differs between two runs of the same thing: no date, no machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fp8cli import __version__
from fp8cli.formats.model_card import licence_lines

_MB = 10**6


@dataclass(frozen=True, kw_only=True)
class ConversionFacts:
    """Everything the card says."""

    name: str
    source: str
    source_is_hub_id: bool
    source_version: str
    """Commit of a Hub repository, or the fingerprint of a local folder."""
    before: str
    """Dialect and scheme of the source."""
    after: str
    weights: str
    """What became of the weights, in a sentence."""
    tags: Sequence[str]
    kept: Sequence[str] | None
    """Modules that are not quantized; None where nothing is any more."""
    bytes_before: int
    bytes_after: int
    notes: Sequence[str]
    serve_command: str


def write_conversion_card(facts: ConversionFacts, source_card: str | None) -> str:
    """Return the card. `source_card` is the README.md of the source, whose licence is carried over."""
    licence = licence_lines(source_card) if source_card else ()
    tags = ["tags:", *(f"- {tag}" for tag in facts.tags)] if facts.tags else []
    base = [f"base_model: {facts.source}"] if facts.source_is_hub_id else []
    version = "commit" if facts.source_is_hub_id else "fingerprint of the headers"
    before, after = facts.bytes_before / _MB, facts.bytes_after / _MB
    rows = [
        ("Source", f"`{facts.source}`, {version} `{facts.source_version}`"),
        ("Before", facts.before),
        ("Now", facts.after),
        ("Weights", facts.weights),
        *([] if facts.kept is None else [("Left unquantized", _named(facts.kept))]),
        ("Size", f"{after:,.1f} MB, {100 * after / max(before, 1e-9):.1f} % of the source's {before:,.1f} MB"),
        ("Made with", f"fp8cli {__version__}"),
    ]
    return "\n".join(
        [
            "---",
            *licence,
            "library_name: transformers",
            *tags,
            *base,
            "---",
            "",
            f"# {facts.name}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows),
            "",
            *(f"- {note}" for note in facts.notes),
            *([""] if facts.notes else []),
            "## Serve it",
            "",
            "```bash",
            facts.serve_command,
            "```",
            "",
        ]
    )


def _named(modules: Sequence[str]) -> str:
    named = ", ".join(f"`{name}`" for name in modules) or "none"
    if len(named) >= 400:
        named = f"{len(modules)} modules named in `config.json`"
    return f"embeddings, norms, biases and {named}"
