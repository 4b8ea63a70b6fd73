"""A mixture of experts that is worth as much as its router: the bundled model with a second expert in each layer.

The first expert of a layer is the bundled model's MLP, the second the same with its sign changed, and the router must
choose the first for every token. What one cannot choose freely is a bias, for routers have none, so the router is the
plane that has the MLP's inputs on one side, as well as a plane can. Both of its rows also get the same large vector,
which the inputs hardly excite: the difference of the two logits, all that counts, knows nothing of it, until the rows
are rounded each for itself. BF16 keeps enough of them, and E4M3, 16 times as coarse, does not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from tests.loopback_datasets import bundled_stories
from tests.planting import STORIES, Tensors

FIRST_ROUTED: Final = 1
"""In the layer before, the inputs lie on all sides, and both of its experts are the bundled MLP."""
COMMON: Final = 128.0
"""Length of the vector in both rows, in lengths of the plane's normal."""
QUIET: Final = 32
"""Of the directions of a router's inputs, those with the least in them."""


def write_mixture(folder: Path) -> Path:
    """Write the mixture as a BF16 checkpoint."""
    dense = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    stories = [tokenizer(text)["input_ids"] for text in bundled_stories(64)]
    inputs = _inputs_of_mlps(dense, stories)
    known = dense.state_dict()
    generator = torch.Generator().manual_seed(0)
    mixture = MixtralForCausalLM(_config(dense)).to(torch.bfloat16)
    weights = {name: known[name] for name in mixture.state_dict() if name in known}
    for layer, rows in enumerate(inputs):
        mlp = f"model.layers.{layer}.mlp"
        gate, up, down = (known[f"{mlp}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        other = -down if layer >= FIRST_ROUTED else down
        weights[f"{mlp}.experts.gate_up_proj"] = torch.cat([gate, up]).expand(2, -1, -1).contiguous()
        weights[f"{mlp}.experts.down_proj"] = torch.stack([down, other])
        weights[f"{mlp}.gate.weight"] = _router(rows, generator)
    mixture.load_state_dict(weights)
    mixture.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantize_router(tensors: Tensors) -> None:
    """Round every router to E4M3 with one scale for all of it, and write what is left in its own dtype."""
    for name in tensors:
        if name.endswith(".gate.weight"):
            weight = tensors[name].float()
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            tensors[name] = ((weight / scale).to(torch.float8_e4m3fn).float() * scale).to(tensors[name].dtype)


@torch.inference_mode()
def _inputs_of_mlps(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return what goes into the MLP of each layer, a row per token: [tokens, hidden] float64."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for layer, rows in zip(model.model.layers, seen, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, taken, rows=rows: rows.append(taken[0][0].double()))
    for ids in texts:
        model(torch.tensor([ids]))
    return [torch.cat(rows) for rows in seen]


def _router(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the two rows of a router that chooses the first expert: [2, hidden] bfloat16."""
    # Least squares with 1 as the wanted logit of every row.
    normal = torch.linalg.lstsq(inputs, torch.ones(len(inputs), dtype=inputs.dtype)).solution
    quiet = torch.linalg.svd(inputs, full_matrices=False).Vh[-QUIET:]
    common = torch.randn(QUIET, generator=generator, dtype=inputs.dtype) @ quiet
    common *= COMMON * normal.norm() / common.norm()
    return torch.stack([common + normal, common - normal]).bfloat16()


def _config(dense: PreTrainedModel) -> MixtralConfig:
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
        " max_position_embeddings rms_norm_eps bos_token_id eos_token_id pad_token_id rope_parameters dtype"
    ).split()
    shared = {name: getattr(dense.config, name) for name in kept}
    return MixtralConfig(**shared, num_local_experts=2, num_experts_per_tok=1, sliding_window=None)
