"""core.processes.root_cause: the one sentence of a log. The excerpts are what the libraries really printed."""

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from fp8cli.core.processes.failures_input import INPUT_FAILURES
from fp8cli.core.processes.failures_machine import CRASHES, MACHINE_FAILURES
from fp8cli.core.processes.root_cause import MAX_MESSAGE, Cause, explain

# vLLM 0.32 on a processor, `gpu_memory_utilization=0.999`, its engine in a process of its own.
LITTLE_MEMORY = """\
(VllmWorker-0 pid=16572) ERROR 11-24 19:51:52 [multiproc_executor.py:953] WorkerProc failed to start.
(VllmWorker-0 pid=16572) ERROR 11-24 19:51:52 [multiproc_executor.py:953] Traceback (most recent call last):
(VllmWorker-0 pid=16572) ERROR 11-24 19:51:52 [multiproc_executor.py:953]   File "cpu_worker.py", line 84, in __init__
(VllmWorker-0 pid=16572) ERROR 11-24 19:51:52 [multiproc_executor.py:953]     raise ValueError(
(VllmWorker-0 pid=16572) ERROR 11-24 19:51:52 [multiproc_executor.py:953] ValueError: Available memory on node 0 \
(21.71/23.54 GiB) on startup is less than desired CPU memory utilization (0.999, 23.52 GiB). On the CPU backend, the \
`--gpu-memory-utilization` flag controls the fraction of CPU memory reserved (despite its name). To resolve: decrease \
`--gpu-memory-utilization` (e.g. `--gpu-memory-utilization 0.5`) or reduce CPU memory used by other processes.
(EngineCore pid=16550) INFO 11-24 19:51:52 [multiproc_executor.py:479] [shutdown] Executor: waiting for worker exit
(EngineCore pid=16550) Traceback (most recent call last):
(EngineCore pid=16550)   File "multiproc_executor.py", line 789, in wait_for_ready
(EngineCore pid=16550)     raise e from None
(EngineCore pid=16550) Exception: WorkerProc initialization failed due to an exception in a background process. See \
stack trace for root cause.
Traceback (most recent call last):
  File "utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

# The same, of an FP8_BLOCK checkpoint on a processor without AMX.
NO_KERNEL = """\
(Worker pid=17585) ERROR 11-24 19:52:44 [multiproc_executor.py:953]   File "__init__.py", line 720, in choose_kernel
(Worker pid=17585) ERROR 11-24 19:52:44 [multiproc_executor.py:953]     raise ValueError(
(Worker pid=17585) ERROR 11-24 19:52:44 [multiproc_executor.py:953] ValueError: Failed to find a kernel that can \
implement the ScaledMM linear layer. Reasons:\x20
(Worker pid=17585) ERROR 11-24 19:52:44 [multiproc_executor.py:953] CPUFp8W8A8BlockScaledMMKernel requires AMX tile \
support (Sapphire Rapids or newer)..
(EngineCore pid=17571) INFO 11-24 19:52:44 [multiproc_executor.py:479] [shutdown] Executor: waiting for worker exit
(Worker pid=17585) ERROR 11-24 19:52:44 [multiproc_executor.py:953] CPUFp8BlockScaledMMKernel requires AMX tile \
support (Sapphire Rapids or newer)..
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""

KV_TOO_SMALL = (
    "[rank0]: ValueError: To serve at least one request with the model's max seq len (131072), (2.0 GiB KV cache is "
    "needed, which is larger than the available KV cache memory (1.0 GiB). {}Try increasing `gpu_memory_utilization` "
    "(which also controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine."
)

CUSTOM_CODE = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, The repository custom contains custom code which must be executed to correctly load the model. You can \
inspect the repository content at /tmp/custom .
 You can inspect the repository content at https://hf.co/custom.
Please pass the argument `trust_remote_code=True` to allow custom code to be run. [type=value_error, \
input_value=ArgsKwargs((), {'model': ...nderer_num_workers': 1}), input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""

GATED = """\
Traceback (most recent call last):
  File "hub.py", line 511, in cached_files
    raise OSError(
OSError: You are trying to access a gated repo.
Make sure to have access to it at https://huggingface.co/meta-llama/Llama-3.1-8B.
401 Client Error. (Request ID: Root=1-6)
"""

MISMATCH = """\
[transformers] \x1b[1mLlamaForCausalLM LOAD REPORT\x1b[0m from: mismatch
model.layers.{0, 1, 2}.mlp.up_proj.weight   | MISMATCH | Reinit due to size mismatch - ckpt: torch.Size([256, 128])
Traceback (most recent call last):
  File "loading_report.py", line 316, in log_state_dict_report
    raise RuntimeError(
RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising an error. For details look at the above report!
"""

REFUSED = (
    "requests.exceptions.ConnectionError: HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with url: "
    "/v1/completions (Caused by NewConnectionError(\"HTTPConnection(host='127.0.0.1', port=9): Failed to establish a "
    'new connection: [Errno 111] Connection refused"))'
)

NOT_SERVED = """\
2026-11-24:19:51:52 WARNING  [models.api_models:522] API request failed! Status code: 404, Response text: The model \
`x` does not exist. Retrying...
Traceback (most recent call last):
  File "api_models.py", line 526, in amodel_call
aiohttp.client_exceptions.ClientResponseError: 404, message='Not Found', url='http://127.0.0.1:8000/v1/completions'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "__init__.py", line 118, in __call__
tenacity.RetryError: RetryError[<Future at 0x7f state=finished raised ClientResponseError>]
"""


@pytest.mark.parametrize(
    ("log", "kind", "message", "hint"),
    [
        (
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
                "79.11 GiB of which 1.19 GiB is free. Process 1 has 77.91 GiB memory in use."
            ),
            "memory",
            "GPU 0 ran out of memory: 2.00 GiB more was wanted, 1.19 GiB of 79.11 GiB were free",
            "--batch-size",
        ),
        ("torch.AcceleratorError: CUDA error: out of memory", "memory", "the GPU ran out of memory", "--batch-size"),
        (
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: "
                "you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "memory",
            "the machine ran out of memory: 4398046511104 bytes more were wanted in one piece",
            "--batch-size",
        ),
        ("  File x\nMemoryError\n", "memory", "the machine ran out of memory", "--batch-size"),
        (
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n",
            "memory",
            "the machine ran out of memory",
            "--batch-size",
        ),
        (
            (
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
                "{'EngineCore': -9}"
            ),
            "memory",
            "the system killed a process of vLLM, most often for memory",
            "--batch-size",
        ),
        (
            LITTLE_MEMORY,
            "memory",
            "vLLM wants 23.52 GiB, a share of 0.999, and 21.71 of 23.54 GiB are free",
            "--gpu-memory 0.5",
        ),
        (
            (
                "ValueError: Free memory on device cuda:0 (9.51/79.11 GiB) on startup is less than desired GPU memory "
                "utilization (0.8, 63.29 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
                "processes."
            ),
            "memory",
            "vLLM wants 63.29 GiB, a share of 0.8, and 9.51 of 79.11 GiB are free",
            "--gpu-memory 0.5",
        ),
        (
            (
                "[rank0]: ValueError: Available memory on node 0 (22.23/23.54 GiB) on kv cache allocation is less than "
                "requested memory for kv (100000.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or "
                "reduce CPU memory used by other processes."
            ),
            "memory",
            "vLLM was to take 100000.0 GiB for the KV cache, and 22.23 of 23.54 GiB are free",
            "VLLM_CPU_KVCACHE_SPACE",
        ),
        (
            (
                "[rank0]: ValueError: No available memory for the cache blocks. Try increasing "
                "`gpu_memory_utilization` "
                "when initializing the engine (this flag also controls CPU memory reservation on the CPU "
                "backend, despite "
                "its name)."
            ),
            "kv-cache",
            "with the weights loaded, vLLM has no memory left for the KV cache",
            "--gpu-memory",
        ),
        (
            KV_TOO_SMALL.format("Based on the available memory, the estimated maximum model length is 65536. "),
            "kv-cache",
            "a text of 131072 tokens takes 2.0 GiB of KV cache, and vLLM has 1.0 GiB for it",
            "--max-length 65536 fits",
        ),
        (
            KV_TOO_SMALL.format(""),
            "kv-cache",
            "a text of 131072 tokens takes 2.0 GiB of KV cache, and vLLM has 1.0 GiB for it",
            "--max-length",
        ),
        (
            NO_KERNEL,
            "scheme",
            (
                "vLLM has no kernel for this kind of quantization here: CPUFp8W8A8BlockScaledMMKernel requires "
                "AMX tile "
                "support (Sapphire Rapids or newer); CPUFp8BlockScaledMMKernel requires AMX tile support "
                "(Sapphire Rapids "
                "or newer)"
            ),
            "fp8 doctor --python /envs/a/python",
        ),
        (
            (
                "RuntimeError: Quantization scheme is not supported for the current GPU. Min capability: 89. Current "
                "capability: 80."
            ),
            "scheme",
            "vLLM runs this kind of quantization from compute capability 89 on, and this GPU has 80",
            "fp8 doctor",
        ),
        (
            (
                "ValueError: The quantization method compressed-tensors is not supported for the current GPU. Minimum "
                "capability: 75. Current capability: 70."
            ),
            "scheme",
            "vLLM runs this kind of quantization from compute capability 75 on, and this GPU has 70",
            "fp8 doctor",
        ),
        (
            (
                "  Value error, gguf quantization is currently not supported in cpu. [type=value_error]\n"
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
                "  Value error, gguf quantization is currently not supported in cpu. [type=value_error]"
            ),
            "scheme",
            "vLLM does not run `gguf` on cpu",
            "fp8 doctor",
        ),
        (
            (
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
                "  Value error, Unknown quantization method: nosuchmethod. Must be one of ['awq', 'fp8']."
            ),
            "scheme",
            "the library does not know the quantization `nosuchmethod` that the checkpoint declares",
            "fp8 doctor",
        ),
        (
            "ValueError: Unknown quantization type, got nosuchmethod - supported types are: ['awq', 'fp8']",
            "scheme",
            "the library does not know the quantization `nosuchmethod` that the checkpoint declares",
            "fp8 doctor",
        ),
        (
            "NotImplementedError: \"addmm_impl_cpu_\" not implemented for 'Float8_e4m3fn'",
            "scheme",
            "this processor cannot compute in FP8, and the kernel that was chosen does not do without",
            "--backend hf",
        ),
        (
            "importlib.metadata.PackageNotFoundError: No package metadata was found for vllm",
            "packages",
            "the package `vllm` is not installed where the worker runs",
            "fp8 doctor --python /envs/a/python",
        ),
        (
            (
                "ModuleNotFoundError: Attempted to use an API model, but the required packages ['tenacity'] are not "
                "installed. Please install these via `pip install lm-eval[api]`"
            ),
            "packages",
            "packages that lm-eval needs for this backend are not installed: ['tenacity']",
            "fp8 doctor",
        ),
        (
            "ImportError: /envs/a/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEa",
            "packages",
            (
                "`/envs/a/vllm/_C.abi3.so` was built for another version of a library: it looks for "
                "`_ZN3c104cuda9SetDeviceEa`"
            ),
            "fp8 doctor",
        ),
        (
            "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory",
            "packages",
            "the library `libcudart.so.13` is missing: a package was built for other hardware or another CUDA",
            "fp8 doctor",
        ),
        (
            "ImportError: cannot import name 'AutoConfig' from 'transformers' (unknown location)",
            "packages",
            "`transformers` has no `AutoConfig`: two packages of versions that do not fit together",
            "fp8 doctor",
        ),
        (
            "ConnectionError: Couldn't reach 'EleutherAI/lambada_openai' on the Hub (OfflineModeIsEnabled)",
            "data",
            "the data set `EleutherAI/lambada_openai` is not in the cache, and HF_HUB_OFFLINE is set",
            "hf download --repo-type dataset EleutherAI/lambada_openai",
        ),
        (
            "ConnectionError: Couldn't reach 'EleutherAI/lambada_openai' on the Hub (LocalEntryNotFoundError)",
            "data",
            "the data set `EleutherAI/lambada_openai` is not in the cache, and the Hub cannot be reached",
            "HF_ENDPOINT",
        ),
        (
            "datasets.exceptions.DatasetNotFoundError: Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.",
            "data",
            "there is no data set `a/b` on the Hub, or it is not shown to you",
            "hf auth login",
        ),
        (
            (
                "datasets.exceptions.DatasetNotFoundError: Dataset 'Idavidrein/gpqa' is a gated dataset on the "
                "Hub. You "
                "must be authenticated to access it."
            ),
            "data",
            "the data set `Idavidrein/gpqa` is gated: its authors let in only those who accept its terms",
            "hf auth login",
        ),
        (
            "FileNotFoundError: Unable to find '/data/nope.jsonl'",
            "data",
            "the data file `/data/nope.jsonl` is not there",
            "absolute paths",
        ),
        (
            CUSTOM_CODE,
            "model",
            "the checkpoint brings code of its own, which is run only when you say so",
            "--model-arg trust_remote_code=true",
        ),
        (
            (
                "ValueError: The checkpoint you are trying to load has model type `nobodyknows` but Transformers "
                "does not "
                "recognize this architecture. This could be because of an issue with the checkpoint, or because your "
                "version of Transformers is out of date.\n\nYou can update Transformers with the command `pip install "
                "--upgrade transformers`."
            ),
            "model",
            "transformers does not know the architecture `nobodyknows`",
            "fp8 doctor",
        ),
        (
            (
                "  Value error, Model architectures ['AForCausalLM'] are not supported for now. Supported "
                "architectures: "
                "dict_keys([...])\nValueError: Model architectures ['AForCausalLM'] are not supported for now. "
                "Supported "
                "architectures: dict_keys([...])"
            ),
            "model",
            "vLLM does not know the architecture ['AForCausalLM']",
            "--backend hf",
        ),
        (
            GATED,
            "model",
            "`meta-llama/Llama-3.1-8B` is gated: its authors let in only those who accept its terms",
            "hf auth login",
        ),
        (
            (
                "[rank0]: safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete "
                "metadata, file not fully covered"
            ),
            "model",
            (
                "a file of weights is broken: Error while deserializing header: incomplete metadata, file not fully "
                "covered"
            ),
            "fp8 inspect",
        ),
        (
            "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory /m/noweights.",
            "model",
            "`/m/noweights` has no weights: no file `model.safetensors`",
            "fp8 inspect",
        ),
        (MISMATCH, "model", "tensors of the checkpoint have other shapes than its config.json says", "fp8 inspect"),
        (
            (
                "ValueError: Couldn't instantiate the backend tokenizer from one of: \n"
                "(1) a `tokenizers` library serialization file, \n"
            ),
            "model",
            "the checkpoint has no tokenizer that can be loaded",
            "tokenizer.json",
        ),
        (
            (
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, "
                "User-specified max_model_len (1000000) is greater than the derived max_model_len "
                "(max_position_embeddings=512.0 or model_max_length=None in model's config.json)."
            ),
            "model",
            "texts of 1000000 tokens are longer than the 512 that the model is made for",
            "--max-length 512",
        ),
        (
            (
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, Total "
                "number of attention heads (4) must be divisible by tensor parallel size (3). [type=value_error]"
            ),
            "model",
            "4 attention heads cannot be shared out among 3 GPUs",
            "--tensor-parallel",
        ),
        (REFUSED, "server", "no server answers at 127.0.0.1 9", "--server URL"),
        (
            (
                "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host 127.0.0.1:9 ssl:default "
                "[Connect "
                "call failed ('127.0.0.1', 9)]"
            ),
            "server",
            "no server answers at 127.0.0.1:9",
            "--server URL",
        ),
        (NOT_SERVED, "server", "the server answers with HTTP 404: The model `x` does not exist", "/v1/models"),
        ("OSError: [Errno 28] No space left on device", "other", "the disk is full", "HF_HOME"),
        (
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error",
            "other",
            "the GPUs do not reach each other (NCCL)",
            "NCCL_DEBUG",
        ),
        (
            'Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call first):\n  File "x"\n',
            "packages",
            "compiled code crashed, most often that of packages that do not fit together",
            "fp8 doctor",
        ),
    ],
)
def test_a_log_of_a_library_becomes_one_sentence_with_a_way_on(log: str, kind: str, message: str, hint: str) -> None:
    cause = explain(log, exit_code=1, signal=None, python=Path("/envs/a/python"))
    assert (cause.kind, cause.message) == (kind, message)
    assert cause.hint is not None
    assert hint in cause.hint


def test_the_root_is_found_above_the_error_about_the_error_and_not_where_nothing_leads() -> None:
    handled = "Traceback (most recent call last):\n  File x\nMemoryError\n\n"
    unknown = "Traceback (most recent call last):\n  File y\nsomething.Odd: 7 apples\n"
    alone = explain(handled + unknown, exit_code=1, signal=None)
    assert (alone.kind, alone.message) == ("other", "something.Odd: 7 apples")
    chained = f"{handled}During handling of the above exception, another exception occurred:\n\n{unknown}"
    assert explain(chained, exit_code=1, signal=None).kind == "memory"


def test_words_of_a_known_failure_in_a_warning_or_a_document_are_no_cause() -> None:
    log = (
        "(EngineCore pid=7) WARNING 11-24 19:51:52 [x.py:1] ImportError: no flashinfer, falling back\n"
        "prompt: CUDA out of memory. Tried to allocate\n"
        "Traceback (most recent call last):\n  File x\nKeyError: 'acc'\n"
    )
    assert explain(log, exit_code=1, signal=None) == Cause(kind="other", message="KeyError: 'acc'", hint=None)


def test_an_unknown_validation_error_is_told_without_the_frame_around_it() -> None:
    log = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
        "  Value error, Cannot find the config file for modelopt [type=value_error, input_value=ArgsKwargs((), ...)]\n"
    )
    assert explain(log, exit_code=1, signal=None).message == "Cannot find the config file for modelopt"


@pytest.mark.parametrize(
    ("exit_code", "number", "kind", "message"),
    [
        (None, signal.SIGKILL, "memory", "the system killed the worker, most often for memory (SIGKILL)"),
        (None, signal.SIGILL, "packages", "a package was built for another processor than this one (SIGILL)"),
        (None, signal.SIGTERM, "other", "the worker was ended by SIGTERM"),
        (None, 40, "other", "the worker was ended by signal 40"),
        (3, None, "other", "the worker ended with exit code 3 before its work was done, and said nothing"),
        (None, None, "other", "the worker ended before its work was done, and said nothing"),
    ],
)
def test_a_log_that_says_nothing_leaves_the_way_the_process_ended(
    exit_code: int | None, number: int | None, kind: str, message: str
) -> None:
    cause = explain("INFO 11-24 19:51:52 [x.py:1] all is well\n", exit_code=exit_code, signal=number)
    assert (cause.kind, cause.message) == (kind, message)


def test_a_kill_by_the_system_is_not_blamed_on_what_the_log_says() -> None:
    log = "ValueError: Unknown quantization type, got x - supported\n"
    assert explain(log, exit_code=None, signal=signal.SIGKILL).kind == "memory"


def test_a_sentence_is_short_on_one_line_and_holds_no_token() -> None:
    token = "hf_" + "a" * 34
    cause = explain(f"ValueError: {token} refused\n  {'x' * 10_000}\n", exit_code=1, signal=None)
    assert cause.message.startswith("ValueError: *** refused xxx")
    assert len(cause.message) <= MAX_MESSAGE
    assert "\n" not in cause.message
    server = explain(f"aiohttp.Error: Cannot connect to host http://me:{token}@h:1/v1 ", exit_code=1, signal=None)
    assert token not in server.message


def test_no_log_however_odd_makes_it_fail() -> None:
    for log in ("", "\0\x1b[31m", "(", "Traceback (most recent call last):", "Error: {0} {name} %s", "\ud800Error: x"):
        assert explain(log, exit_code=1, signal=None).message


SOURCES = [
    ("vllm", "v1/worker/cpu_worker.py", "is less than desired CPU memory utilization "),
    ("vllm", "v1/worker/cpu_worker.py", "requested memory for kv"),
    ("vllm", "v1/worker/utils.py", "is less than desired GPU memory utilization "),
    ("vllm", "v1/core/kv_cache_utils.py", "No available memory for the cache blocks"),
    ("vllm", "v1/core/kv_cache_utils.py", "cache is needed, which is larger than the available KV cache "),
    ("vllm", "v1/core/kv_cache_utils.py", "the estimated maximum model length is "),
    ("vllm", "v1/engine/utils.py", "Failed core proc(s): "),
    ("vllm", "model_executor/kernels/linear/__init__.py", "Failed to find a kernel that can implement the "),
    ("vllm", "config/vllm.py", "is not supported for the current GPU. Minimum "),
    ("vllm", "config/vllm.py", "is not supported for quantization "),
    ("vllm", "config/model.py", "Unknown quantization method: "),
    ("vllm", "config/model.py", "must be divisible by tensor parallel size "),
    ("vllm", "config/model.py", "than the derived max_model_len ("),
    ("vllm", "platforms/interface.py", "quantization is currently not supported in "),
    ("vllm", "model_executor/models/registry.py", "are not supported for now. "),
    ("vllm", "v1/executor/multiproc_executor.py", "died unexpectedly (exit code: "),
    ("vllm", "model_executor/layers/fused_moe/oracle/fp8.py", "does not support the "),
    (
        "vllm",
        "model_executor/layers/quantization/compressed_tensors/compressed_tensors.py",
        "Quantization scheme is not supported for the current GPU. ",
    ),
    ("transformers", "dynamic_module_utils.py", "contains custom code which must be executed"),
    ("transformers", "models/auto/configuration_auto.py", "but Transformers does not recognize this architecture"),
    ("transformers", "utils/hub.py", "You are trying to access a gated repo."),
    ("transformers", "utils/hub.py", "is not a local folder and is not a valid model identifier"),
    ("transformers", "modeling_utils.py", "Error no file named "),
    ("transformers", "quantizers/auto.py", "Unknown quantization type, got "),
    ("datasets", "load.py", "is a gated dataset on the Hub"),
    ("datasets", "load.py", "doesn't exist on the Hub or cannot be accessed"),
    ("datasets", "load.py", "Dataset scripts are no longer supported, but found "),
    ("lm_eval", "models/api_models.py", "API request failed! Status code: "),
]


@pytest.mark.parametrize(("package", "file", "words"), SOURCES)
def test_the_words_looked_for_are_still_those_of_the_library(package: str, file: str, words: str) -> None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    assert words in (Path(spec.origin).parent / file).read_text("utf-8")


def test_every_row_of_the_tables_can_be_told() -> None:
    """Each hint and sentence takes its own groups, whichever of them are there, and leaves no brace."""
    for row in (*INPUT_FAILURES, *MACHINE_FAILURES):
        values = dict.fromkeys(row.words.groupindex, "")
        for text in (row.message.format(**values), row.hint.format(**values, doctor="fp8 doctor")):
            assert "{" not in text
            assert not text.endswith(".")
    for number in CRASHES:
        cause = explain("", exit_code=None, signal=number)
        assert cause.hint is not None
        assert "{" not in cause.hint
