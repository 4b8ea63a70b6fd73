"""Whether BOS, the token that begins a text, stands in front of every prompt: decided from the tokenizer's files.

Backends of lm-eval have defaults of their own, which differ, so it is always said. The answer is what transformers
would do with the checkpoint, in this order: `add_bos_token` of tokenizer_config.json, what tokenizer.json itself puts
in front (its post-processor), and where neither is known, whether there is a BOS at all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.formats.checkpoint import Folder, read_json_object

_CONFIG: Final = "tokenizer_config.json"
_FAST: Final = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Bos:
    """The decision and its reason."""

    wanted: bool
    reason: str


def decide_bos(folder: Folder) -> Bos:
    """Decide whether prompts begin with BOS. Raises BadInput for a tokenizer whose files are no JSON."""
    files = folder.files()
    config = read_json_object(folder, _CONFIG) if _CONFIG in files else {}
    asked = config.get("add_bos_token")
    if isinstance(asked, bool):
        return Bos(wanted=asked, reason=f"{_CONFIG} says add_bos_token {str(asked).lower()}")
    token = _content(config.get("bos_token"))
    if _FAST in files:
        first = next(_first_tokens(read_json_object(folder, _FAST).get("post_processor")), None)
        if first is not None:
            return Bos(wanted=True, reason=f"the tokenizer puts `{first}` in front by itself")
        return Bos(wanted=False, reason="the tokenizer puts nothing in front by itself")
    if token is not None:
        return Bos(wanted=True, reason=f"it has the BOS `{token}`, and its files do not say whether it is put in front")
    return Bos(wanted=False, reason="its tokenizer names no BOS")


def _first_tokens(processor: object) -> Iterator[str]:
    """Yield the token that a post-processor of the tokenizers library puts first, if it does."""
    match processor:
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(token)}}, *_]}:
            yield token
        case {"type": "RobertaProcessing" | "BertProcessing", "cls": [str(token), *_]}:
            yield token
        case {"type": "Sequence", "processors": [*processors]}:
            for each in processors:
                yield from _first_tokens(each)


def _content(token: object) -> str | None:
    """Return a special token's text, which is written bare or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
