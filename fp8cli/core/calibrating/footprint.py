"""What a calibration takes of main memory, in bytes, from headers and config alone.

The samples go through the model part by part: the embedding, each layer, and the head. What a part hands on is kept for
every sample until the last part is done, which is the floor that no place of the weights can lower:

    kept      samples · (length · (width + 2 · head size) + length²) · bytes per number
    passing   heads · length² · 10 + length · vocabulary · 4

`kept`: hidden states, cosines and sines, and a mask that llm-compressor 0.14 makes for every sample (seen with traced
models of transformers 5.17). `passing`: of one sample at a time, the scores of one layer (in 16 bits before and after,
and in 32 within softmax) and the logits. Both are upper bounds, for texts may be shorter than `length`.

With all weights in memory they are added to that; with the weights on disk, those of one part are. Shards that are
mapped while weights are cast into memory are resident too, but the kernel takes them back, so they are not counted. The
rest is Python with torch, transformers and llm-compressor, 1 GB for each process (0.7 GB measured with 16 samples,
1.0 GB with 512, of a model of 2 MB; llm-compressor 0.14, CPU build of torch 2.13).
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from fp8cli.core.model.attention import read_attention
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES

PROGRAM_BYTES: Final = 10**9
_SCORE_BYTES: Final = 10
_LOGIT_BYTES: Final = 4
_TABLES: Final = frozenset({"embedding", "output head"})

_EXPERTS: Final = ".experts."
_EXPERT_COPIES: Final = 2
"""transformers fuses the experts of a layer and llm-compressor splits them again: with the weights on disk, the fused
ones and the single ones are files of their own."""

# At most 18 digits: names come from strangers, and Python refuses to read numbers of thousands of digits.
_LAYER: Final = re.compile(r"^.*?\.\d{1,18}(?=\.)")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory of a calibration, estimated in bytes."""

    least: int
    """Without the samples: less cannot do."""
    most: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The terms of the estimate."""

    weights: int
    """All of them, in the dtype that they have at work."""
    part: int
    """Weights of the largest part; with experts, they and the copies that are made of them."""
    kept: int
    passing: int
    files: int
    """New files, where the weights stay on disk: copies of experts."""

    def loaded(self) -> Memory:
        """Return the memory of one process with all weights in it."""
        least = PROGRAM_BYTES + self.weights
        return Memory(least=least, most=least + self.kept + self.passing)

    def offloaded(self, processes: int = 1) -> Memory:
        """Return the memory of that many processes together, whose weights stay on disk."""
        least = processes * (PROGRAM_BYTES + self.part)
        return Memory(least=least, most=least + self.kept + processes * self.passing)


def read_footprint(plan: Plan, checkpoint: Checkpoint, *, samples: int, length: int) -> Footprint:
    """Add up what a plan's calibration takes. length: tokens of a sample, at most."""
    parts: Counter[str] = Counter()
    experts: Counter[str] = Counter()
    vocabulary = width = 0
    for tensor in plan.tensors:
        if tensor.action == "drop":
            continue
        size = tensor.source.elements * DTYPES[tensor.compute_dtype].bits // 8
        layer = _LAYER.match(tensor.name)
        part = tensor.name if layer is None else layer.group()
        parts[part] += size
        if _EXPERTS in tensor.name:
            experts[part] += size
        if tensor.role in _TABLES:
            vocabulary, width = max(vocabulary, tensor.source.shape[0]), max(width, tensor.source.shape[-1])
    attention = read_attention(checkpoint.config)
    heads, head_size = attention.heads or 0, attention.head_size or 0
    number = DTYPES[plan.dtype].bits // 8
    return Footprint(
        weights=parts.total(),
        part=max((size + _EXPERT_COPIES * experts[part] for part, size in parts.items()), default=0),
        kept=samples * (length * (width + 2 * head_size) + length**2) * number,
        passing=heads * length**2 * _SCORE_BYTES + length * vocabulary * _LOGIT_BYTES,
        files=_EXPERT_COPIES * experts.total(),
    )
