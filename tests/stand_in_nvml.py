"""A stand-in for pynvml, over GPUs that are not there: the functions that are used, and the real errors.

The models are named as the driver names them; memory is what it reports for them, in bytes.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import pynvml

GIB = 2**30
Model = tuple[str, tuple[int, int], int]

V100: Model = ("Tesla V100-SXM2-16GB", (7, 0), 17_179_869_184)
T4: Model = ("Tesla T4", (7, 5), 16_106_127_360)
A100: Model = ("NVIDIA A100-SXM4-40GB", (8, 0), 42_949_672_960)
L4: Model = ("NVIDIA L4", (8, 9), 24_152_899_584)
L40S: Model = ("NVIDIA L40S", (8, 9), 48_305_799_168)
RTX_4090: Model = ("NVIDIA GeForce RTX 4090", (8, 9), 25_757_220_864)
H100: Model = ("NVIDIA H100 80GB HBM3", (9, 0), 85_520_809_984)
H200: Model = ("NVIDIA H200", (9, 0), 150_754_820_096)
B200: Model = ("NVIDIA B200", (10, 0), 192_265_846_784)


class Nvml:
    """The functions of pynvml that are used; every GPU has 1 GiB in use."""

    NVMLError = pynvml.NVMLError
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded

    def __init__(
        self, *models: Model, slices: Sequence[int] | None = None, shared_memory: bool = False, cuda: int = 13010
    ) -> None:
        """Slices: GiB of each slice that every GPU is cut into; None for whole GPUs."""
        self.models = models
        self.slices = slices
        self.shared_memory = shared_memory
        self.cuda = cuda
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's name
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.95.05"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.models)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int, None]:  # noqa: N802
        return index, None

    def nvmlDeviceGetName(self, handle: tuple[int, int | None]) -> str:  # noqa: N802
        gpu, part = handle
        name = self.models[gpu][0]
        return name if part is None or self.slices is None else f"{name} MIG 3g.{self.slices[part]}gb"

    def nvmlDeviceGetUUID(self, handle: tuple[int, int | None]) -> str:  # noqa: N802
        gpu, part = handle
        return f"GPU-{gpu}{gpu}aa5-0000" if part is None else f"MIG-{gpu}{part}c5e-0000"

    def nvmlDeviceGetCudaComputeCapability(self, handle: tuple[int, int | None]) -> tuple[int, int]:  # noqa: N802
        return self.models[handle[0]][1]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[int, int | None]) -> SimpleNamespace:  # noqa: N802
        if self.shared_memory:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        gpu, part = handle
        total = self.models[gpu][2] if part is None or self.slices is None else self.slices[part] * GIB
        return SimpleNamespace(total=total, free=total - GIB, used=GIB)

    def nvmlDeviceGetMigMode(self, handle: tuple[int, int | None]) -> list[int]:  # noqa: N802
        if self.models[handle[0]][1] < (8, 0):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(self.slices is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle: tuple[int, int | None]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(  # noqa: N802
        self, handle: tuple[int, int | None], index: int
    ) -> tuple[int, int]:
        if self.slices is None or index >= len(self.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle[0], index


class BrokenNvml(Nvml):
    """A driver that fails when it is opened."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def nvmlInit(self) -> None:  # noqa: N802
        raise pynvml.NVMLError(self.code)
