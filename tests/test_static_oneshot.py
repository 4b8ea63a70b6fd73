"""Calibrated schemes: with the scales that llm-compressor's `oneshot` finds, the whole checkpoint is `oneshot`'s."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    Gemma3TextConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from fp8cli.errors import BadInput
from fp8cli.schemes import KvCache
from tests.calibrated import MODEL, plan_of, write
from tests.models import ALIGNED, ODD, llama_config, qwen2_config, save_model
from tests.test_oneshot_equality import DTYPES, assert_same, tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]

ROWS = 4


def rows_of(source: Path) -> Dataset:
    """Return a few rows of tokens: stories for the model that knows them, else any numbers below its vocabulary."""
    if source.name.startswith("stories"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
        ids = [tokenizer(json.loads(line)["text"])["input_ids"] for line in lines]
    else:
        ids = torch.randint(0, 320, (ROWS, 48), generator=torch.Generator().manual_seed(3)).tolist()
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})


def reference(source: Path, out: Path, scheme: str | None, kv_cache: KvCache | None, ignore: list[str]) -> Path:
    cache = None
    if kv_cache is not None:
        strategy = {"tensor": "tensor", "head": "attn_head"}[kv_cache]
        cache = {"num_bits": 8, "type": "float", "strategy": strategy, "dynamic": False, "symmetric": True}
        # The default is a moving average that clips; this program never uses it.
        cache["observer"] = "static_minmax"
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    weights = {} if scheme is None else {"scheme": scheme}
    recipe = QuantizationModifier(targets="Linear", ignore=ignore, kv_cache_scheme=cache, **weights)
    oneshot(
        model=model,
        # Calibration will not begin without a tokenizer, though it has nothing to do.
        tokenizer=AutoTokenizer.from_pretrained(MODEL),
        dataset=rows_of(source),
        recipe=recipe,
        num_calibration_samples=ROWS,
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True)
    return out


def scales_of(folder: Path) -> dict[str, bytes]:
    """Return what calibration found, of a checkpoint that was calibrated."""
    kinds = (".input_scale", ".k_scale", ".v_scale")
    return {name: raw for name, (_, _, raw) in tensors(folder).items() if name.endswith(kinds)}


def assert_equal(tmp_path: Path, source: Path, scheme: str | None, kv_cache: KvCache | None, *more: str) -> Path:
    """Take the scales that the reference found for calibration's, and compare everything else it wrote."""
    theirs = reference(source, tmp_path / "theirs", scheme, kv_cache, ["lm_head", *more])
    plan = plan_of(source, scheme, kv_cache, ignore=more)
    ours = tmp_path / "ours"
    write(source, ours, plan, scales_of(theirs), ignore=["lm_head", *more])
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert (ours / "recipe.yaml").read_bytes() == (theirs / "recipe.yaml").read_bytes()
    return ours


@pytest.fixture(scope="module", params=list(DTYPES))
def stories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundled model in one dtype."""
    folder = tmp_path_factory.mktemp(request.param) / "stories"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("heldout.jsonl"))
    if request.param != "bf16":
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=DTYPES[request.param]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("scheme", "kv_cache"),
    [("FP8", None), ("FP8", "tensor"), (None, "tensor"), ("FP8", "head")],
    ids=["static", "static with a cache", "the cache alone", "a scale for each head"],
)
def test_every_byte_of_the_bundled_model_is_the_reference_s(
    tmp_path: Path, stories: Path, scheme: str | None, kv_cache: KvCache | None
) -> None:
    ours = assert_equal(tmp_path, stories, scheme, kv_cache)
    names = set(load_file(ours / "model.safetensors"))
    assert ("model.layers.2.mlp.down_proj.input_scale" in names) == (scheme == "FP8")
    assert ("model.layers.2.self_attn.v_scale" in names) == (kv_cache is not None)


@pytest.mark.parametrize(("scheme", "kv_cache"), [("FP8_DYNAMIC", "head"), ("FP8_BLOCK", "tensor"), (None, "head")])
def test_any_scheme_of_weights_goes_with_a_quantized_cache(
    tmp_path: Path, scheme: str | None, kv_cache: KvCache
) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="200KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    ours = assert_equal(tmp_path, source, scheme, kv_cache)
    assert tensors(ours)["model.layers.1.self_attn.k_scale"][1] == ((2, 1, 1) if kv_cache == "head" else (1,))


MOE = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (Phi3Config, {"pad_token_id": 0}),
        (Gemma3TextConfig, {"head_dim": 32, "sliding_window": 16}),
        (Qwen3MoeConfig, {**MOE, "head_dim": 32, "num_experts": 4}),
        (
            DeepseekV3Config,
            {**MOE, **LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
            | {"first_k_dense_replace": 1},
        ),
    ],
    ids=["fused keys", "two kinds of attention", "experts", "a latent vector and experts"],
)
def test_other_architectures_too(tmp_path: Path, config: type[PretrainedConfig], changes: dict[str, int]) -> None:
    sizes = {"vocab_size": 320, "num_hidden_layers": 2, "max_position_embeddings": 64, **ALIGNED}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    source = save_model(tmp_path / "source", config(**{**sizes, **heads, **changes}))
    assert_equal(tmp_path, source, "FP8", "tensor")


def test_awkward_weights_biases_and_tied_embeddings_under_one_scale(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", qwen2_config(**ODD))
    ours = assert_equal(tmp_path, source, "FP8", "tensor")
    assert "lm_head.weight" not in tensors(ours)


def test_the_nan_that_the_reference_writes_for_activations_beyond_fp16_is_refused(tmp_path: Path) -> None:
    # Rows a thousand times too large overflow on their way through the first layer.
    source = save_model(tmp_path / "source", qwen2_config(**ODD), torch.float16)
    where = "model.layers.0.mlp.down_proj.input_scale"
    with pytest.raises(BadInput, match=rf"^calibration found (nan|inf) as `{where}`") as refused:
        assert_equal(tmp_path, source, "FP8", None)
    assert "--dtype bfloat16" in str(refused.value.hint)
    found = load_file(tmp_path / "theirs" / "model.safetensors")[where]
    assert not torch.isfinite(found).all()
    assert not (tmp_path / "ours").exists()


def test_layers_left_alone_have_no_input_scale_and_keep_their_cache(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), torch.float32)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    ours = assert_equal(tmp_path, source, "FP8", "tensor", r"re:.*layers\.0\..*_proj$")
    names = set(tensors(ours))
    assert "model.layers.0.self_attn.q_proj.input_scale" not in names
    assert {"model.layers.0.self_attn.k_scale", "model.layers.1.self_attn.q_proj.input_scale"} <= names
