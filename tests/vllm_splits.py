"""Over how many GPUs vLLM's own model classes can be built: python -m tests.vllm_splits OUT.json JOBS.json.

JOBS.json: [[name, folder, [sizes]], …]. For each size vLLM checks the config and builds its model as the first of so
many ranks would, whose group is told its size and has no other member; no weight is loaded. Found is, by name and
size, what vLLM raised, or None. The choice of a kernel, which the CPU build refuses to make for blocks and for experts,
is left out: it comes after the shapes are checked.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.vllm_families import registry  # Sets vLLM up for a process of its own.

# isort: split
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
    parallel_state,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_w8a8_fp8
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

assert registry is not None
find_kernel = compressed_tensors_w8a8_fp8.init_fp8_linear_kernel


def any_kernel(**wanted: Any) -> object:
    """Return vLLM's kernel, or where it has none for this machine something that is never called."""
    try:
        return find_kernel(**wanted)
    except ValueError:
        return SimpleNamespace(input_quant_key=lambda: None)


compressed_tensors_w8a8_fp8.init_fp8_linear_kernel = any_kernel


def main(out: str, jobs: str) -> None:
    """Try every size of every folder and write down what was raised."""
    with tempfile.TemporaryDirectory() as meeting:
        found = {name: try_sizes(folder, sizes, meeting) for name, folder, sizes in json.loads(Path(jobs).read_text())}
    Path(out).write_text(json.dumps(found, indent=1))


def try_sizes(folder: str, sizes: list[int], meeting: str) -> dict[str, str | None]:
    """Say of each size what vLLM raises."""
    arguments = EngineArgs(
        model=folder, enforce_eager=True, max_model_len=32, skip_tokenizer_init=True, dtype="bfloat16"
    )
    config = arguments.create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            place = f"file://{meeting}/meeting"
            init_distributed_environment(
                world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=place
            )
        destroy_model_parallel()
        initialize_model_parallel(1, 1)
        return {str(size): raised(config, size) for size in sizes}


def raised(config: VllmConfig, size: int) -> str | None:
    """Build the model as one rank of `size` would; return what vLLM raises."""
    group = parallel_state.get_tp_group()
    group.world_size = size
    config.parallel_config.tensor_parallel_size = size
    config.compilation_config.static_forward_context.clear()
    try:
        config.model_config.verify_with_parallel_config(config.parallel_config)
        with set_default_torch_dtype(torch.bfloat16), torch.device("meta"):
            initialize_model(vllm_config=config)
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its refusal
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        group.world_size = config.parallel_config.tensor_parallel_size = 1
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
