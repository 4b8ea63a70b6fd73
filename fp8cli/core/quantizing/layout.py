"""Where every tensor goes: the headers of the output's shards, complete before the first byte is written.

The shards follow the source: a tensor stays in the shard it came from, its scale lies beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import Header, TensorInfo, lay_out

METADATA: Final = {"format": "pt"}
"""What transformers and llm-compressor write into every shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """One file of the output: the bytes before its data, and where every tensor goes."""

    name: str
    head: bytes
    header: Header


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A tensor that the output is to hold; its offsets are relative to nothing yet."""

    owner: str
    """What it is there for, as a message calls it."""
    shard: str
    info: TensorInfo


def lay_out_shards(checkpoint: Checkpoint, parts: Iterable[Placed]) -> tuple[PlannedShard, ...]:
    """Return the output's shards. Raises BadInput for a name that would be there twice."""
    contents: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {shard.name: [] for shard in checkpoint.shards}
    seen: set[str] = set()
    for part in parts:
        info = part.info
        if info.name in seen:
            message = f"`{info.name}` exists in the checkpoint already, so `{part.owner}` cannot be given a scale"
            raise BadInput(message, hint="the checkpoint looks quantized already: fp8 inspect shows what it is")
        seen.add(info.name)
        contents[part.shard].append((info.name, info.dtype, info.shape))
    shards = []
    for name, content in contents.items():
        if content:  # A shard whose only tensor was dropped has nothing left to hold.
            head, header = lay_out(content, METADATA)
            shards.append(PlannedShard(name=name, head=head, header=header))
    return tuple(shards)
