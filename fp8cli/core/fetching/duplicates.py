"""Tied tensors that are stored twice, compared where they lie, a few megabytes at a time."""

from concurrent.futures import ThreadPoolExecutor

from fp8cli.core.fetching.blocks import REQUEST_BYTES
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.errors import BadInput
from fp8cli.formats.patience import Patience
from fp8cli.formats.sources import Elsewhere


def check_duplicates_elsewhere(plan: Plan, place: Elsewhere, connections: int) -> None:
    """Do what core.quantizing.engine.check_duplicates does, of a source that is not here."""
    by_name = {tensor.source.name: tensor for tensor in plan.tensors}
    for dropped, kept in plan.duplicates:
        if not _are_same(by_name[dropped], by_name[kept], place, connections):
            message = f"config.json ties `{dropped}` to `{kept}`, but the checkpoint holds different values for the two"
            raise BadInput(message, hint='if both are meant, set "tie_word_embeddings": false in config.json')


def _are_same(one: PlannedTensor, other: PlannedTensor, place: Elsewhere, connections: int) -> bool:
    if one.source.bytes != other.source.bytes:
        return False
    patience = Patience(place)

    def part(tensor: PlannedTensor, at: int) -> bytes:
        shard, size = tensor.source_shard, min(REQUEST_BYTES, tensor.source.bytes - at)
        begin, data = tensor.source.begin + at, bytearray()
        patience.read(
            lambda reached: place.stream(shard, reached, begin + size),
            begin,
            begin + size,
            lambda _, chunk: data.extend(chunk),
        )
        return bytes(data)

    def is_same(at: int) -> bool:
        return part(one, at) == part(other, at)

    with ThreadPoolExecutor(connections) as pool:
        return all(pool.map(is_same, range(0, one.source.bytes, REQUEST_BYTES)))
