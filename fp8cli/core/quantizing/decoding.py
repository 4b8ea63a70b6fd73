"""How codes that are quantized already become numbers again: which scale, and what of the weight shares one.

    weight[r, c] = codes[r, c] × scale[r // high, c // wide]

The scale multiplies, under whatever name it lies (DeepSeek's `weight_scale_inv` too). One layout stands for every
granularity: one scale per tensor is a block of all rows and columns, one per channel a block of one row.
"""

import math
from dataclasses import dataclass

from fp8cli.formats.safetensors import DTYPES, TensorInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """The scale of a tensor of codes [rows, columns]."""

    scale: TensorInfo
    """Its values, in the order of the blocks, whatever its shape says."""
    shard: str
    """The source shard that holds it."""
    block: tuple[int, int]
    """Rows and columns that share one value, 1 at least."""

    def across(self, columns: int) -> int:
        """Values of one band of blocks."""
        return math.ceil(columns / self.block[1])

    def fits(self, rows: int, columns: int) -> bool:
        """Whether there is exactly one value for each block of codes [rows, columns]."""
        return self.scale.elements == math.ceil(rows / self.block[0]) * self.across(columns)

    def bands(self, rows: range) -> range:
        """Bands of blocks in which some rows lie."""
        return range(rows.start // self.block[0], -(-rows.stop // self.block[0]))

    def place(self, rows: range, columns: int) -> tuple[int, int]:
        """Offset in the file of the values for some rows, and how many bytes they take."""
        bands = self.bands(rows)
        band_bytes = self.across(columns) * DTYPES[self.scale.dtype].bits // 8
        return self.scale.begin + bands.start * band_bytes, len(bands) * band_bytes
