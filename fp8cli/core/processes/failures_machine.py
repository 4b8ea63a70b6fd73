"""How an evaluation fails on a machine: memory, the KV cache, FP8 that it cannot run, packages that do not fit.

The patterns are the words of vLLM 0.32, torch 2.13, CUDA and Python.
"""

import signal
from collections.abc import Mapping
from typing import Final

from fp8cli.core.processes.failure_pattern import pattern
from fp8cli.worker.protocol import FailureKind

_SMALLER: Final = "try a smaller --batch-size or --max-length, or more GPUs: --tensor-parallel N"
_LENGTH: Final = "give vLLM more with --gpu-memory, or shorten the texts: --max-length"
_SCHEME: Final = "{doctor} says which FP8 this machine runs; --backend hf runs every scheme, though not in FP8"
_PACKAGES: Final = "{doctor} names what is missing or does not fit, and the command that mends it"
_DISK: Final = "make room, or choose another disk: --runs DIR for results, HF_HOME for downloads"

_MEMORY: Final = (
    pattern(
        r"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<more>[\d.]+ \w+)\. GPU (?P<gpu>\d+) has a total capacity "
        r"of (?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free",
        "memory",
        "GPU {gpu} ran out of memory: {more} more was wanted, {free} of {total} were free",
        _SMALLER,
    ),
    pattern(
        r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED",
        "memory",
        "the GPU ran out of memory",
        _SMALLER,
    ),
    pattern(
        r"DefaultCPUAllocator: can't allocate memory: you tried to allocate (?P<more>\d+) bytes",
        "memory",
        "the machine ran out of memory: {more} bytes more were wanted in one piece",
        _SMALLER,
    ),
    pattern(
        r"^MemoryError|std::bad_alloc|\[Errno 12\] Cannot allocate memory|Unable to allocate (?P<more>[\d.]+ \w+) for",
        "memory",
        "the machine ran out of memory",
        _SMALLER,
    ),
    pattern(
        r"Failed (?:core|frontend) proc\(s\): \{[^}]*: -9\b|died unexpectedly \(exit code: -9\)",
        "memory",
        "the system killed a process of vLLM, most often for memory",
        _SMALLER,
    ),
    pattern(
        r"(?P<which>(?:Free|Available) memory on (?:device|node) \S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on "
        r"startup is less than desired (?:GPU|CPU) memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "memory",
        "vLLM wants {wanted} GiB, a share of {share}, and {free} of {total} GiB are free",
        "give it a smaller share: --gpu-memory 0.5, or end what else takes memory",
    ),
    pattern(
        r"Available memory on node \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than "
        r"requested memory for kv \((?P<wanted>[\d.]+) GiB\)",
        "memory",
        "vLLM was to take {wanted} GiB for the KV cache, and {free} of {total} GiB are free",
        "set VLLM_CPU_KVCACHE_SPACE to fewer GiB",
    ),
)

_KV_CACHE: Final = (
    pattern(
        r"No available memory for the cache blocks",
        "kv-cache",
        "with the weights loaded, vLLM has no memory left for the KV cache",
        _LENGTH,
    ),
    pattern(
        r"max seq len \((?P<length>\d+)\), \(?(?P<wanted>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<free>[\d.]+) GiB\)\..*?estimated maximum model length is (?P<most>\d+)",
        "kv-cache",
        "a text of {length} tokens takes {wanted} GiB of KV cache, and vLLM has {free} GiB for it",
        "--max-length {most} fits; --gpu-memory gives vLLM more",
    ),
    pattern(
        r"max seq len \((?P<length>\d+)\), \(?(?P<wanted>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<free>[\d.]+) GiB\)",
        "kv-cache",
        "a text of {length} tokens takes {wanted} GiB of KV cache, and vLLM has {free} GiB for it",
        _LENGTH,
    ),
    pattern(
        r"max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens that can be stored in KV cache "
        r"\((?P<most>\d+)\)",
        "kv-cache",
        "a text may have {length} tokens, and vLLM's KV cache holds {most}",
        "--max-length {most} fits; --gpu-memory gives vLLM more",
    ),
)

_SCHEMES: Final = (
    pattern(
        r"Failed to find a kernel that can implement the (?P<layer>\w+) linear layer\. Reasons:\s*(?P<reasons>.+)",
        "scheme",
        "vLLM has no kernel for this kind of quantization here: {reasons}",
        _SCHEME,
    ),
    pattern(
        r"(?P<what>[Qq]uantization (?:scheme|method)(?: (?!is)\S+)?) is not supported for the current GPU\. "
        r"Min(?:imum)? capability: (?P<wanted>\d+)\. Current capability: (?P<found>\d+)",
        "scheme",
        "vLLM runs this kind of quantization from compute capability {wanted} on, and this GPU has {found}",
        _SCHEME,
    ),
    pattern(
        r"(?<!\S)(?P<method>\S+) quantization is currently not supported in (?P<where>[\w -]+)",
        "scheme",
        "vLLM does not run `{method}` on {where}",
        _SCHEME,
    ),
    pattern(
        r"Unknown quantization (?:method: |type, got )(?P<method>[^\s.]+)",
        "scheme",
        "the library does not know the quantization `{method}` that the checkpoint declares",
        "a newer version may; {doctor} shows which one is there",
    ),
    pattern(
        r"(?<!\S)(?P<dtype>\S+) is not supported for quantization method (?P<method>[\w-]+)\. Supported dtypes: "
        r"(?P<those>.+)",
        "scheme",
        "vLLM does not run `{method}` with {dtype}, but with {those}",
        "choose another --dtype",
    ),
    pattern(
        r"MoE backend '?(?P<backend>[\w.]+)'? does not support the deployment configuration(?: since (?P<why>.+))?",
        "scheme",
        "vLLM's kernel {backend} for mixtures of experts does not run this kind of quantization here: {why}",
        _SCHEME,
    ),
    pattern(
        r"torch\._scaled_mm is only supported on|type fp8e4nv not supported in this architecture"
        r"|not implemented for 'Float8_e4m3fn'",
        "scheme",
        "this processor cannot compute in FP8, and the kernel that was chosen does not do without",
        _SCHEME,
    ),
)

_OTHERS: Final = (
    pattern(r"No space left on device|Disk quota exceeded", "other", "the disk is full", _DISK),
    pattern(
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError",
        "other",
        "the GPUs do not reach each other (NCCL)",
        "try --tensor-parallel 1; NCCL_DEBUG=INFO writes more to the log",
    ),
    pattern(
        r"Fatal Python error: Segmentation fault|Segmentation fault",
        "packages",
        "compiled code crashed, most often that of packages that do not fit together",
        _PACKAGES,
    ),
    pattern(
        r"Fatal Python error: Bus error|Bus error|unable to open shared memory object",
        "memory",
        "a shared file or memory ended too early: /dev/shm or the disk is full",
        "a container needs more shared memory: docker run --shm-size 8g",
    ),
)

_PACKAGE: Final = (
    pattern(
        r"PackageNotFoundError: No package metadata was found for (?P<name>\S+)",
        "packages",
        "the package `{name}` is not installed where the worker runs",
        _PACKAGES,
    ),
    pattern(
        r"ModuleNotFoundError: Attempted to use .*the required packages (?P<names>\[.*?\]) are not installed",
        "packages",
        "packages that lm-eval needs for this backend are not installed: {names}",
        _PACKAGES,
    ),
    pattern(
        r"ModuleNotFoundError: No module named '(?P<name>[^']+)'",
        "packages",
        "the module `{name}` is not installed where the worker runs",
        _PACKAGES,
    ),
    pattern(
        r"(?:ImportError|OSError): (?P<file>\S+): undefined symbol: (?P<symbol>\S+)",
        "packages",
        "`{file}` was built for another version of a library: it looks for `{symbol}`",
        _PACKAGES,
    ),
    pattern(
        r"(?:ImportError|OSError): (?P<file>lib\S+): cannot open shared object file",
        "packages",
        "the library `{file}` is missing: a package was built for other hardware or another CUDA",
        _PACKAGES,
    ),
    pattern(
        r"ImportError: cannot import name '(?P<name>[^']+)' from '(?P<module>[^']+)'",
        "packages",
        "`{module}` has no `{name}`: two packages of versions that do not fit together",
        _PACKAGES,
    ),
    pattern(
        r"(?P<text>The NVIDIA driver on your system is too old[^.]*)",
        "packages",
        "the NVIDIA driver is too old for this torch",
        "{doctor} says which one it needs",
    ),
    pattern(
        r"Torch not compiled with CUDA enabled|no kernel image is available for execution on the device",
        "packages",
        "this torch was not built for the GPU here",
        _PACKAGES,
    ),
    pattern(
        r"(?:Import|ModuleNotFound)Error: (?P<text>.+)", "packages", "a package cannot be loaded: {text}", _PACKAGES
    ),
)

MACHINE_FAILURES: Final = (*_MEMORY, *_KV_CACHE, *_SCHEMES, *_OTHERS, *_PACKAGE)
"""The first that fits a statement counts; what any import error says comes last."""

CRASHES: Final[Mapping[int, tuple[FailureKind, str, str]]] = {
    signal.SIGKILL: ("memory", "the system killed the worker, most often for memory (SIGKILL)", _SMALLER),
    signal.SIGSEGV: (
        "packages",
        "compiled code crashed, most often that of packages that do not fit together (SIGSEGV)",
        _PACKAGES,
    ),
    signal.SIGILL: ("packages", "a package was built for another processor than this one (SIGILL)", _PACKAGES),
    signal.SIGBUS: (
        "memory",
        "a shared file or memory ended too early: /dev/shm or the disk is full (SIGBUS)",
        "a container needs more shared memory: docker run --shm-size 8g",
    ),
}
"""What it means when the kernel ended a worker: kind, sentence, hint."""
