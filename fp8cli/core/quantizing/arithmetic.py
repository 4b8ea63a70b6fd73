"""Who computes: the compiled kernel wherever it can, torch for the rest and for GPUs.

torch takes a second or more to import, as long as the kernel takes for 8 GB. So it is imported only when a piece
of the plan needs it, and while the others are worked on; who meets such a piece before waits for it.
"""

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from fp8cli.core import kernel
from fp8cli.core.quantizing import kernel_decoding, kernel_tiles
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.core.quantizing.resources import Resources
from fp8cli.errors import CannotRun
from fp8cli.formats.staging import Harm
from fp8cli.formats.weight_files import Readable


class Quantizing(Protocol):
    """Quantizes tiles, one at a time, in buffers of its own. For use by a single thread."""

    def quantize(
        self, tensor: PlannedTensor, rows: range, source: Readable, target: int, scales: Readable | None = None
    ) -> Harm:
        """Quantize some rows; return how many scales do harm, and the row of the first.

        `scales`: the open file with the scale of what is codes already.
        """


class Decoding(Protocol):
    """Undoes codes and changes dtypes, likewise."""

    def dequantize(self, tensor: PlannedTensor, rows: range, source: Readable, target: int, scales: Readable) -> None:
        """Turn the codes of some rows into numbers."""

    def cast(self, tensor: PlannedTensor, elements: range, source: Readable, target: int) -> None:
        """Convert some elements to the dtype they are stored in."""


class TorchHands(Quantizing, Decoding, Protocol):
    """Can do all of it."""


class Arithmetic:
    """What the workers of one run compute with. Every thread asks for its own `Worker`."""

    def __init__(self, plan: Plan, resources: Resources) -> None:
        """Look for the kernel; a GPU that was asked for by name is torch's."""
        self._plan = plan
        self._resources = resources
        self._kernel = None if resources.device.startswith("cuda") else kernel.load()
        self._torch_is_loaded = threading.Event()
        self._new_torch_hands: Callable[[], TorchHands] | None = None

    def needs_torch(self, tensor: PlannedTensor) -> bool:
        """Whether a tensor is work for torch; what is only copied is work for no one here."""
        if tensor.action in {"copy", "drop"}:
            return False
        if self._kernel is None:
            return True
        match tensor.action:
            case "dequantize":
                return not kernel_decoding.can_decode(tensor)
            case "cast":
                return not kernel_decoding.can_cast(tensor)
            case _:
                return not kernel_tiles.can_quantize(tensor)

    def load_torch(self) -> None:
        """Import torch. Raises CannotRun if it or the device is not there; `stop` then frees who waits for it."""
        try:
            tiles = import_module("fp8cli.core.quantizing.tiles")
        except ImportError as problem:
            message = f"torch cannot be imported: {problem}"
            raise CannotRun(message, hint="install it anew: pip install --force-reinstall torch") from problem
        # Beside the kernel there is little to do, and waking a GPU takes longer than doing it.
        device = tiles.check_device("cpu" if self._kernel is not None else self._resources.device)
        elements = tiles.tile_elements(device, self._resources.memory_per_worker, self._plan.widest_tile_elements)
        # Without a scheme nothing is quantized; torch may still have dtypes to change.
        granularity = "channel" if self._plan.scheme is None else self._plan.scheme.weights
        self._new_torch_hands = lambda: tiles.TileWorker(granularity=granularity, device=device, tile_elements=elements)
        self._torch_is_loaded.set()

    def stop(self) -> None:
        """Let nobody wait for torch any more."""
        self._torch_is_loaded.set()

    def worker(self) -> "Worker":
        """Return a pair of hands for one thread."""
        return Worker(self)

    def kernel_decoder(self) -> Decoding:
        """Return new hands that undo codes with the kernel, which must be there."""
        assert self._kernel is not None  # noqa: S101 - `needs_torch` was asked before
        elements = kernel_decoding.tile_elements(self._resources.memory_per_worker, self._plan.widest_tile_elements)
        return kernel_decoding.Decoder(self._kernel, tile_elements=elements)

    def kernel_hands(self) -> Quantizing:
        """Return new hands that quantize with the kernel, which must be there."""
        assert self._kernel is not None  # noqa: S101 - `needs_torch` was asked before
        assert self._plan.scheme is not None  # noqa: S101 - without one there is nothing for the kernel
        elements = kernel_tiles.tile_elements(self._resources.memory_per_worker, self._plan.widest_tile_elements)
        return kernel_tiles.KernelWorker(self._kernel, scheme=self._plan.scheme, tile_elements=elements)

    def torch_hands(self) -> TorchHands | None:
        """Return new hands that use torch once it is loaded; None if the run stops before."""
        self._torch_is_loaded.wait()
        return None if self._new_torch_hands is None else self._new_torch_hands()


class Worker:
    """One thread's hands, made when they are first needed."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        """Take what the run computes with."""
        self._arithmetic = arithmetic
        self._kernel: Quantizing | None = None
        self._decoder: Decoding | None = None
        self._torch: TorchHands | None = None

    def convert(
        self, tensor: PlannedTensor, part: range, source: Readable, target: int, scales: Readable | None
    ) -> Harm | None:
        """Quantize, dequantize or cast a part of a tensor: rows, or elements. None: the run stops, nothing was done.

        scales: the open file with the scale of what is codes in the source.
        """
        if tensor.action in {"quantize", "requantize"}:
            quantizing = self._quantizing(tensor)
            return None if quantizing is None else quantizing.quantize(tensor, part, source, target, scales)
        decoding = self._decoding(tensor)
        if decoding is None:
            return None
        if tensor.action == "dequantize":
            assert scales is not None  # noqa: S101 - the plan gives codes their scale
            decoding.dequantize(tensor, part, source, target, scales)
        else:
            decoding.cast(tensor, part, source, target)
        return (0, -1)

    def _quantizing(self, tensor: PlannedTensor) -> Quantizing | None:
        if self._arithmetic.needs_torch(tensor):
            return self._with_torch()
        self._kernel = self._kernel or self._arithmetic.kernel_hands()
        return self._kernel

    def _decoding(self, tensor: PlannedTensor) -> Decoding | None:
        if self._arithmetic.needs_torch(tensor):
            return self._with_torch()
        self._decoder = self._decoder or self._arithmetic.kernel_decoder()
        return self._decoder

    def _with_torch(self) -> TorchHands | None:
        self._torch = self._torch or self._arithmetic.torch_hands()
        return self._torch
