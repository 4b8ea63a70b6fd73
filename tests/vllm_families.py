"""What vLLM's own model classes make of checkpoints: python -m tests.vllm_families OUT.json PAIRS.json.

PAIRS.json: [[name, source folder, quantized folder], …]. For each pair vLLM builds its model twice on the CPU, from
each folder's own config.json, and loads the weights with its own `load_weights`. What it makes of the *source* is the
measure: every parameter of the quantized model, times its scale, must be the parameter of the other within the error
of FP8. So a name that is skipped in silence, a scale that is missing, and halves, columns or experts that are in the
wrong place all show up as a parameter that differs. Found are, by name: `error`, the refusal of either; `differ`,
the parameters that differ or were never given a value; `fp8`, the layers that vLLM holds in FP8.

Four things stand in for what this machine has not got. torchvision, which vLLM's and transformers' image processors
import: no picture is processed here. The choice of a kernel for FP8 experts, which the CPU build refuses to make, and
AMX, without which it has none for blocks: kernels are chosen before the weights are created, change neither their
names nor their shapes, and are not run. Sparse attention, for which there is none on a CPU: the dense one takes its
place behind the same weights.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="CRITICAL", HF_HUB_OFFLINE="1")

from tests import absent_torchvision  # noqa: F401 - before whatever would import the real one

# isort: split
import torch
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import destroy_model_parallel, init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention.mla_attention import MLACommonImpl
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w8a8_fp8,
)
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.torch_utils import set_default_torch_dtype

# It would start a process for every model class to look at it; here one process is all there is.
registry._run_in_subprocess = lambda look: look()
torch.cpu._is_amx_tile_supported = lambda: True
compressed_tensors_moe_w8a8_fp8.select_fp8_moe_backend = lambda **_: (None, None)
choose_backend, start_attention = CpuPlatform.get_attn_backend_cls, MLACommonImpl.__init__


def _choose_dense(selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None) -> str:
    return choose_backend(selected_backend, attn_selector_config._replace(use_sparse=False), num_heads)


def _start_dense(self: Any, *words: Any, **options: Any) -> None:
    sparse = ("topk_indices_buffer", "indexer", "index_group_builder")
    start_attention(self, *words, **{name: value for name, value in options.items() if name not in sparse})


CpuPlatform.get_attn_backend_cls = staticmethod(_choose_dense)
MLACommonImpl.__init__ = _start_dense

FP8 = torch.float8_e4m3fn
ROUNDING = 0.08
"""Largest error of one FP8 code, relative to its value (2⁻⁴), and that of its scale in BF16."""
FLUSHED = 0.003
"""What a small value may lose, relative to the largest of its tensor: half of the smallest code, and BF16."""


def main(out: str, pairs: str) -> None:
    """Load every pair and write down what differs."""
    jobs = json.loads(Path(pairs).read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = {name: compare(source, quantized, folder) for name, source, quantized in jobs}
    Path(out).write_text(json.dumps(found, indent=1))


def compare(source: str, quantized: str, folder: str) -> dict[str, Any]:
    """Say what the two models do not have in common."""
    try:
        reference = dict(values(load(source, folder)))
        model = load(quantized, folder)
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its refusal
        if os.environ.get("TRACEBACK"):
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:600], "differ": [], "fp8": []}
    found = dict(values(model))
    names = sorted(reference.keys() | found.keys())
    differ = [name for name in names if not same(reference.get(name), found.get(name))]
    fp8 = [name for name, value in model.named_parameters() if value.dtype == FP8]
    return {"error": None, "differ": differ, "fp8": sorted(fp8)}


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two parameters are equal within the error of FP8. NaN, the mark of no value, equals nothing."""
    if one is None or other is None or one.shape != other.shape:
        return False
    allowed = ROUNDING * one.abs() + FLUSHED * one.abs().max()
    return bool(((one - other).abs() <= allowed).all())


def load(folder: str, meeting: str) -> torch.nn.Module:
    """Build vLLM's model and load the folder into it; parameters that are given no value stay NaN."""
    arguments = EngineArgs(
        model=folder,
        enforce_eager=True,
        max_model_len=32,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        trust_remote_code=True,
    )
    config = arguments.create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            place = f"file://{meeting}/meeting"
            init_distributed_environment(
                world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=place
            )
        # Anew for each model: there is a group for experts only where the model has them.
        destroy_model_parallel()
        initialize_model_parallel(1, 1)
        with set_default_torch_dtype(torch.bfloat16):
            model = initialize_model(vllm_config=config)
        for parameter in model.parameters():
            if parameter.dtype == FP8:
                parameter.data.view(torch.uint8).fill_(0x7F)
            elif parameter.is_floating_point():
                parameter.data.fill_(float("nan"))
        weights: dict[str, torch.Tensor] = {}
        for shard in sorted(Path(folder).glob("*.safetensors")):
            weights |= load_file(shard)
        model.load_weights(iter(weights.items()))
    return model


def values(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Give every parameter as float32, those in FP8 times their scale. Scales of the KV cache are nobody's weights."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith("_scale") and name.removesuffix("_scale") in parameters:
            continue
        if name.rpartition(".")[2].removesuffix("_scale").removesuffix("_zero_point") in ("q", "k", "v", "prob"):
            continue
        value = parameter.detach().float()
        if parameter.dtype == FP8:
            value = value * spread(parameters[f"{name}_scale"].detach().float(), value.shape)
        yield name, value


def spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Give a scale per block of 128×128 the shape of its weight, [rows, columns] or [experts, rows, columns]."""
    if all(size in (1, whole) for size, whole in zip(scale.shape, shape, strict=True)):
        return scale
    return scale.repeat_interleave(128, -2).repeat_interleave(128, -1)[..., : shape[-2], : shape[-1]]


if __name__ == "__main__":
    main(*sys.argv[1:])
