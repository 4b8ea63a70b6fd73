"""An OpenAI-compatible server, asked once which model it has, before anything else is done."""

import json
import os
from dataclasses import dataclass
from typing import Final

from fp8cli.errors import CannotRun

ANSWER_SECONDS: Final = 20.0
_MOST_BYTES: Final = 1_000_000
_COMPLETIONS: Final = "/completions"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What a server says it serves."""

    completions: str
    """Address that completions are asked of."""
    name: str
    max_length: int | None
    """Tokens; vLLM tells, others may not."""


def ask_server(address: str, *, seconds: float = ANSWER_SECONDS) -> ServedModel:
    """Return the first model of the server. Raises CannotRun, in one sentence, if it does not say."""
    # Here, because HTTP takes longer to load than a known result takes to find, and only servers need it.
    from urllib import error, request  # noqa: PLC0415

    root = address.rstrip("/").removesuffix(_COMPLETIONS)
    if not root.endswith(f"/v{root[-1]}"):
        root = f"{root}/v1"
    hint = f"start one, as in: vllm serve CKPT, and look at {root}/models"
    question = request.Request(f"{root}/models")  # noqa: S310 - http or https, which the request is checked for
    if key := os.environ.get("OPENAI_API_KEY"):
        question.add_header("Authorization", f"Bearer {key}")
    try:
        with request.urlopen(question, timeout=seconds) as answer:  # noqa: S310 - as above
            said = json.loads(answer.read(_MOST_BYTES))
    except error.HTTPError as refusal:
        raise CannotRun(f"the server at `{address}` answers {refusal.code} {refusal.reason}", hint=hint) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        raise CannotRun(f"the server at `{address}` does not answer as one: {reason}", hint=hint) from None
    match said:
        case {"data": [{"id": str(name), **rest}, *_]}:
            length = rest.get("max_model_len")
            return ServedModel(
                completions=f"{root}{_COMPLETIONS}", name=name, max_length=length if isinstance(length, int) else None
            )
        case _:
            raise CannotRun(f"the server at `{address}` names no model", hint=hint)
