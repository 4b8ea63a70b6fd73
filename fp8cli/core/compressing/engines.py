"""Which of two engines makes the weights: the streaming one of this tool, or llm-compressor on the whole model.

The streaming engine writes every scheme and needs little memory; calibration adds nothing but scales to it. What
changes the weights by data, and a recipe, only llm-compressor can do. Where both can, both give the same bytes.
"""

from typing import Final, Literal

from fp8cli.core.quantizing.choices import Choice
from fp8cli.errors import UsageError

Engine = Literal["streaming", "llmcompressor"]

AUTO: Final = "auto"
ENGINES: Final[tuple[Engine, ...]] = ("streaming", "llmcompressor")


def choose_engine(word: str, choice: Choice) -> Engine:
    """Return the engine that --engine names, or that the choice needs. Raises UsageError where the two disagree."""
    named = word.lower().replace("-", "").replace("_", "")
    needs = _what_needs_llmcompressor(choice)
    if named == AUTO:
        return "streaming" if needs is None else "llmcompressor"
    engine = next((engine for engine in ENGINES if engine == named), None)
    if engine is None:
        message = f"`{word}` is no engine"
        raise UsageError(message, hint=f"--engine takes {AUTO}, {' or '.join(ENGINES)}")
    if engine == "streaming" and needs is not None:
        message = f"the streaming engine cannot do {needs}"
        raise UsageError(message, hint="leave --engine out, or say --engine llmcompressor")
    return engine


def _what_needs_llmcompressor(choice: Choice) -> str | None:
    if choice.recipe is not None:
        return "--recipe"
    return " and ".join(choice.modifiers.words) or None
