"""Tied tensors that are stored twice, compared where they lie, a few megabytes at a time."""

from concurrent.futures import ThreadPoolExecutor

from fp8cli.core.fetching.blocks import REQUEST_BYTES
from fp8cli.core.quantizing.plan import PlannedTensor
from fp8cli.formats.patience import Patience
from fp8cli.formats.sources import Elsewhere


def same_elsewhere(one: PlannedTensor, other: PlannedTensor, *, place: Elsewhere, connections: int) -> bool:
    """Whether two tensors of a source that is not here, of as many bytes, hold the same ones."""
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
