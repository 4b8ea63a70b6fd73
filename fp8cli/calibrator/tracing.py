"""What llm-compressor's tracing loses of a model, given back.

Its sequential pipeline runs a model from a traced graph. A config that a traced function is called with stands in the
graph as a new one made of the old one's `to_dict()`, which leaves out how attention is computed. transformers 5 makes
no mask for attention of an unknown kind, so that in Mistral, Mixtral, Phi-3, Qwen3-MoE and others, which choose the
function that makes the mask by a variable, every token saw what comes after it: scales of the inputs of `o_proj` were
wrong by a factor of up to 5 (seen with llm-compressor 0.14.0.1 and transformers 5.17).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def configs_kept_whole() -> Iterator[None]:
    """Let a config in a traced graph say how attention is computed."""
    from llmcompressor.pipelines.sequential.helpers import SequentialTracer
    from transformers import PreTrainedConfig

    original = SequentialTracer.create_arg

    def create_arg(self: Any, value: Any) -> Any:
        made = original(self, value)
        if isinstance(value, PreTrainedConfig):
            kind = value._attn_implementation  # noqa: SLF001 - it has no other name
            made.kwargs = {**made.kwargs, "attn_implementation": kind}
        return made

    SequentialTracer.create_arg = create_arg
    try:
        yield
    finally:
        SequentialTracer.create_arg = original
