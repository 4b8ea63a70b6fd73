"""One tiny llama in every dialect of FP8, made by hand from random weights: sources of conversions, and oracles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.checkpoints import FLOAT8, Tensors, write
from tests.test_selection import LLAMA

WIDTH, MIDDLE, VOCABULARY, HEADS = 256, 384, 64, 4
CONFIG = LLAMA | {
    "hidden_size": WIDTH,
    "intermediate_size": MIDDLE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
    "torch_dtype": "bfloat16",
}
E4M3 = torch.float8_e4m3fn
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (MIDDLE, WIDTH),
    "mlp.up_proj": (MIDDLE, WIDTH),
    "mlp.down_proj": (WIDTH, MIDDLE),
}

Encode = Callable[[torch.Tensor], Tensors]


def encoded(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).clamp(-448, 448).to(E4M3)


def per_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and a scale of no dimension."""
    scale = weight.abs().amax() / 448
    return encoded(weight, scale), scale


def per_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and a scale [rows, 1]."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return encoded(weight, scale), scale


def per_block(weight: torch.Tensor, *, powers: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and a scale [⌈rows/128⌉, ⌈columns/128⌉]; `powers`: powers of two, in the dtype made for them."""
    rows, columns = (-(-size // 128) for size in weight.shape)
    scale = torch.empty(rows, columns)
    codes = torch.empty_like(weight, dtype=E4M3)
    for row in range(rows):
        for column in range(columns):
            place = slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128)
            one = weight[place].abs().amax() / 448
            one = torch.exp2(torch.ceil(torch.log2(one))) if powers else one
            scale[row, column] = one
            codes[place] = encoded(weight[place], one)
    return codes, scale.to(torch.float8_e8m0fnu) if powers else scale


def as_bf16(quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], weight: torch.Tensor) -> Tensors:
    """As compressed-tensors: the scale has the dtype of the model, and the codes are of that scale."""
    _, scale = quantize(weight)
    scale = scale.to(torch.bfloat16)
    wide = scale.float()
    if wide.dim() == 2 and wide.shape[1] > 1:
        wide = wide.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    elif wide.dim() == 2 and wide.shape[0] != weight.shape[0]:
        wide = wide.repeat_interleave(128, 0)[: weight.shape[0]]
    return {"weight": encoded(weight, wide), "weight_scale": scale.reshape(1) if scale.dim() == 0 else scale}


def compressed(strategy: str, activations: dict[str, object] | None, **more: object) -> dict[str, object]:
    blocks = {"block_structure": [128, 128]} if strategy == "block" else {}
    group = {
        "targets": ["Linear"],
        "weights": FLOAT8 | {"dynamic": False, "strategy": strategy} | blocks,
        "input_activations": None if activations is None else FLOAT8 | activations,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **more,
    }


TOKEN: dict[str, object] = {"strategy": "token", "dynamic": True}
GROUP: dict[str, object] = {"strategy": "group", "group_size": 128, "dynamic": True}
STATIC: dict[str, object] = {"strategy": "tensor", "dynamic": False}
KV = {"kv_cache_scheme": FLOAT8 | {"strategy": "tensor", "dynamic": False}}
NATIVE = {"quant_method": "fp8", "ignored_layers": ["lm_head"]}
DEEPSEEK = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
INPUT, INPUT_1 = torch.tensor(0.03), torch.tensor([0.03125], dtype=torch.bfloat16)


def _native(weight: torch.Tensor) -> Tensors:
    return dict(zip(("weight", "weight_scale"), per_tensor(weight), strict=True))


def _deepseek(weight: torch.Tensor) -> Tensors:
    return dict(zip(("weight", "weight_scale_inv"), per_block(weight), strict=True))


def _powers(weight: torch.Tensor) -> Tensors:
    return dict(zip(("weight", "weight_scale_inv"), per_block(weight, powers=True), strict=True))


def _modelopt_channels(weight: torch.Tensor) -> Tensors:
    codes, scale = per_channel(weight)
    return {"weight": codes, "weight_scale": scale.reshape(-1)}


def _modelopt_blocks(weight: torch.Tensor) -> Tensors:
    codes, scale = per_block(weight)
    return {"weight": codes, "weight_scale": scale[:, None, :, None]}


def _fbgemm(weight: torch.Tensor) -> Tensors:
    return dict(zip(("weight", "weight_scale"), per_channel(weight), strict=True))


def _modelopt(algorithm: str) -> dict[str, object]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]}


# name → what an nn.Linear becomes, and quantization_config
SOURCES: dict[str, tuple[Encode, dict[str, Any]]] = {
    "compressed-tensors, channels": (lambda w: as_bf16(per_channel, w), compressed("channel", TOKEN)),
    "compressed-tensors, blocks": (lambda w: as_bf16(per_block, w), compressed("block", GROUP)),
    "compressed-tensors, static": (
        lambda w: as_bf16(per_tensor, w) | {"input_scale": INPUT_1.clone()},
        compressed("tensor", STATIC),
    ),
    "compressed-tensors, tensors": (lambda w: as_bf16(per_tensor, w), compressed("tensor", TOKEN)),
    "fp8, dynamic": (_native, NATIVE | {"activation_scheme": "dynamic"}),
    "fp8, static": (lambda w: _native(w) | {"input_scale": INPUT.clone()}, NATIVE | {"activation_scheme": "static"}),
    "deepseek": (_deepseek, DEEPSEEK),
    "deepseek, powers of two": (_powers, DEEPSEEK | {"scale_fmt": "ue8m0"}),
    "modelopt, static": (lambda w: _native(w) | {"input_scale": INPUT.clone()}, _modelopt("FP8")),
    "modelopt, channels": (_modelopt_channels, _modelopt("FP8_PER_CHANNEL_PER_TOKEN")),
    "modelopt, blocks": (_modelopt_blocks, _modelopt("FP8_PB_WO")),
    "fbgemm": (
        _fbgemm,
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
    ),
}


def model_tensors(encode: Encode, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """All tensors of the model; the Linears of the layers by `encode`, from weights in float32."""
    torch.manual_seed(3)
    tensors: Tensors = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, WIDTH).to(dtype),
        "model.norm.weight": torch.ones(WIDTH, dtype=dtype),
        "lm_head.weight": torch.randn(VOCABULARY, WIDTH).to(dtype),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(WIDTH, dtype=dtype)
        for module, shape in SHAPES.items():
            weight = torch.randn(shape) * 0.05
            for ending, part in encode(weight).items():
                tensors[f"{prefix}.{module}.{ending}"] = part
    return tensors


def make(folder: Path, name: str, extra: Tensors | None = None, **quantization: object) -> Path:
    """Write one of SOURCES. extra: further tensors; quantization: further keys of its block."""
    encode, block = SOURCES[name]
    return write(folder, model_tensors(encode) | (extra or {}), CONFIG | {"quantization_config": block | quantization})


def load(folder: Path) -> Tensors:
    """Every tensor of a checkpoint, whichever file it lies in."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def decoded(tensors: Tensors, module: str) -> torch.Tensor:
    """What the codes of a module stand for, in float64: an oracle that shares nothing with the tool."""
    codes = tensors[f"{module}.weight"].double()
    scale = next(
        tensors[f"{module}.{name}"] for name in ("weight_scale", "weight_scale_inv") if f"{module}.{name}" in tensors
    )
    scale = scale.double()
    if scale.numel() == 1:
        return codes * scale.reshape(())
    if scale.numel() == codes.shape[0]:
        return codes * scale.reshape(-1, 1)
    rows, columns = (-(-size // 128) for size in codes.shape)
    grid = torch.zeros(rows * 128, columns * 128, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            grid[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128] = scale.reshape(rows, columns)[
                row, column
            ]
    return codes * grid[: codes.shape[0], : codes.shape[1]]


def same(left: Tensors, right: Tensors) -> None:
    """Assert that two checkpoints hold the same tensors, to the byte."""
    assert sorted(left) == sorted(right)
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), name


MODULES = tuple(f"model.layers.{layer}.{module}" for layer in range(2) for module in SHAPES)
