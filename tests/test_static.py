"""One scale for a whole tensor, and scales from calibration: what the engine does with them, data aside."""

import hashlib
import json
import math
import os
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, GPTNeoXConfig, Phi3Config

from fp8cli.core.quantizing.calibrated_scales import cached_attentions, decode
from fp8cli.core.quantizing.engine import Progress
from fp8cli.errors import BadInput, CannotRun, Interrupted
from fp8cli.formats.staging import partial_folder
from tests.calibrated import made_up, plan_of, scale_bytes, write
from tests.models import ODD, llama_config, qwen2_config, save_model
from tests.test_fp8 import round_to_e4m3

UP = "model.layers.0.mlp.up_proj.weight"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sharded checkpoint with awkward sizes; never written to."""
    return save_model(tmp_path_factory.mktemp("static") / "source", llama_config(**ODD), max_shard_size="300KB")


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}


def change(source: Path, name: str, edit: object) -> None:
    """Edit one tensor of a checkpoint of one file."""
    tensors = load_file(source / "model.safetensors")
    edit(tensors[name])  # type: ignore[operator]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def test_workers_memory_and_piece_size_change_no_byte(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "FP8", "tensor")
    write(source, tmp_path / "wanted", plan, made_up(plan), workers=1)
    # 10 kB hold a tile of a few rows: the maximum of a tensor is then found over a hundred tiles.
    for number, (workers, memory, piece) in enumerate([(5, "50kB", 1), (1, "10kB", 4096), (1, "4GiB", 2**40)]):
        out = tmp_path / str(number)
        write(source, out, plan, made_up(plan), workers=workers, max_memory=memory, piece_bytes=piece)
        assert digest(out) == digest(tmp_path / "wanted"), (workers, memory, piece)


@pytest.mark.parametrize("named", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_checkpoint_has_the_same_bytes_without_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, named: str | None
) -> None:
    model = save_model(tmp_path / "source", llama_config(**ODD), DTYPES[dtype])
    if named is not None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "dtype": named}))
        # What FP16 cannot hold is refused either way.
        for name in (name for name, tensor in stored(model).items() if tensor.dim() == 2):
            change(model, name, lambda tensor: tensor.clamp_(-1000, 1000))
    plan = plan_of(model, "FP8", "head")
    write(model, tmp_path / "kernel", plan, made_up(plan))
    monkeypatch.setenv("FP8_KERNEL", "off")
    write(model, tmp_path / "torch", plan, made_up(plan))
    # 30 kB: five tiles and more for a tensor.
    write(model, tmp_path / "tiles", plan, made_up(plan), workers=1, max_memory="30kB")
    assert digest(tmp_path / "kernel") == digest(tmp_path / "torch") == digest(tmp_path / "tiles")


@pytest.mark.parametrize("switch", ["", "off"])
def test_the_scale_is_the_largest_magnitude_over_448_and_every_code_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    # In float32 nothing is rounded twice: each code is found by a search among all values of E4M3.
    model = save_model(tmp_path / "source", llama_config(), torch.float32)
    monkeypatch.setenv("FP8_KERNEL", switch)
    plan = plan_of(model, "FP8")
    write(model, tmp_path / "out", plan, made_up(plan), workers=1, max_memory="20kB")
    weight, out = stored(model)[UP], stored(tmp_path / "out")
    scale = out[f"{UP}_scale"]
    assert scale.tolist() == [(weight.abs().max() / 448).item()]
    quotients = (weight / scale).flatten()[::37].tolist()
    codes = out[UP].view(torch.uint8).flatten()[::37].tolist()
    assert codes == [round_to_e4m3(value) if value else 0 for value in quotients]


def test_an_interrupted_run_goes_on_where_it_was_and_ends_in_the_same_bytes(source: Path, tmp_path: Path) -> None:
    plan, seen = plan_of(source, "FP8", "head"), 0
    scales = made_up(plan)
    write(source, tmp_path / "wanted", plan, scales)

    def notify(event: Progress) -> None:
        nonlocal seen
        seen += event.tensor.endswith("_proj.weight")
        if seen == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        write(source, tmp_path / "out", plan, scales, workers=1, piece_bytes=4096, notify=notify)
    # As after a power cut that took what was written before the first flush.
    for shard in (partial_folder(tmp_path / "out") / "checkpoint").glob("*.safetensors"):
        with shard.open("r+b") as file:
            for scale in plan.calibrated:
                if scale.shard == shard.name:
                    os.pwrite(file.fileno(), bytes(scale.info.bytes), scale.info.begin)
    assert write(source, tmp_path / "out", plan, scales, piece_bytes=4096).bytes_resumed > 0
    assert digest(tmp_path / "out") == digest(tmp_path / "wanted")


@pytest.mark.parametrize("switch", ["", "off"])
@pytest.mark.parametrize(("value", "name"), [(math.nan, "NaN"), (-math.inf, "Inf")])
def test_nan_or_infinity_in_a_later_tile_is_refused_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, name: str, switch: str
) -> None:
    model = save_model(tmp_path / "source", llama_config(**ODD))

    def damage(weight: torch.Tensor) -> None:
        weight[300, 77] = value

    change(model, UP, damage)
    monkeypatch.setenv("FP8_KERNEL", switch)
    plan = plan_of(model, "FP8")
    with pytest.raises(BadInput) as refused:
        write(model, tmp_path / "out", plan, made_up(plan), workers=1, max_memory="100kB")
    assert refused.value.message == f"`{UP}` holds {name} at row 300, column 77"


@pytest.mark.parametrize("switch", ["", "off"])
def test_a_tensor_of_zeros_and_one_too_small_for_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    model = save_model(tmp_path / "source", llama_config(), torch.float16)
    down = "model.layers.0.mlp.down_proj.weight"
    change(model, UP, lambda weight: weight.zero_())
    change(model, down, lambda weight: weight.fill_(1e-6))
    monkeypatch.setenv("FP8_KERNEL", switch)
    plan = plan_of(model, "FP8")
    written = write(model, tmp_path / "out", plan, made_up(plan))
    out = stored(tmp_path / "out")
    assert out[f"{UP}_scale"].tolist() == [2.0**-10]
    assert out[UP].view(torch.uint8).count_nonzero() == 0
    assert [(harmed.tensor, harmed.count, harmed.first) for harmed in written.harmed] == [(down, 128, 0)]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "calibration left out 1 of 18 scales (first: `{name}`)"),
        ("surplus", "calibration gave 1 of 19 scales for which the output has no place (first: `lm_head.input_scale`)"),
        ("short", "calibration gave `{name}` 1 bytes, where 2 belong"),
        ("long", "calibration gave `{name}` 4 bytes, where 2 belong"),
        (math.nan, "calibration found nan as `{name}`, which scales nothing"),
        (math.inf, "calibration found inf as `{name}`, which scales nothing"),
        (0.0, "calibration found 0.0 as `{name}`, which scales nothing"),
        (-0.5, "calibration found -0.5 as `{name}`, which scales nothing"),
    ],
)
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.input_scale", "model.layers.0.self_attn.v_scale"])
def test_scales_that_are_not_the_plan_s_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, name: str, kind: str | float, words: str
) -> None:
    plan = plan_of(source, "FP8", "tensor")
    scales = made_up(plan)
    match kind:
        case "missing":
            del scales[name]
        case "surplus":
            scales["lm_head.input_scale"] = scales[name]
        case "short":
            scales[name] = scales[name][:1]
        case "long":
            scales[name] *= 2
        case float(value):
            scales[name] = scale_bytes("BF16", [value])
    with pytest.raises(BadInput) as refused:
        write(source, tmp_path / "out", plan, scales)
    assert refused.value.message == words.format(name=name)
    assert refused.value.hint
    assert list((partial_folder(tmp_path / "out") / "checkpoint").iterdir()) == []


def test_a_bad_scale_of_one_head_is_named_with_the_head(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, None, "head")
    scales = {**made_up(plan), "model.layers.1.self_attn.k_scale": scale_bytes("BF16", [1.0, 0.0])}
    with pytest.raises(BadInput, match=r"0\.0 as `model\.layers\.1\.self_attn\.k_scale` for head 1"):
        write(source, tmp_path / "out", plan, scales)


def test_a_plan_without_calibrated_scales_takes_none(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "FP8_DYNAMIC")
    assert plan.calibrated == ()
    with pytest.raises(BadInput, match="has no place"):
        write(source, tmp_path / "out", plan, {f"{UP}_scale": b"\0\0"})


def test_a_plan_of_nothing_is_refused(source: Path) -> None:
    with pytest.raises(CannotRun, match="nothing would be quantized"):
        plan_of(source, None)
    with pytest.raises(CannotRun, match="nothing would be quantized"):
        plan_of(source, "FP8", "tensor", ignore=("re:.*",))


def test_scales_lie_beside_the_weights_they_belong_to(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "FP8", "head", ignore=("re:.*k_proj",))
    scales = made_up(plan)
    write(source, tmp_path / "out", plan, scales)
    home: dict[str, str] = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            home |= dict.fromkeys(file.keys(), shard.name)
    for scale in plan.calibrated:
        beside = f"{scale.module}.weight" if scale.kind == "input" else f"{scale.module}.k_proj.weight"
        assert home[scale.name] == home[beside] == scale.shard, scale.name
    found = stored(tmp_path / "out")
    assert {scale.name: found[scale.name].view(torch.uint8).numpy().tobytes() for scale in plan.calibrated} == scales
    assert found["model.layers.0.self_attn.k_scale"].shape == (2, 1, 1)
    # A projection left in 16 bits takes its input as it is; its layer's cache is quantized all the same.
    assert "model.layers.0.self_attn.k_proj.input_scale" not in found
    index = plan.index
    assert index is not None
    assert index["weight_map"] == home


def test_a_plan_with_another_cache_or_another_scheme_has_another_fingerprint(source: Path) -> None:
    plans = [plan_of(source, scheme, cache) for scheme in ("FP8", "FP8_DYNAMIC") for cache in (None, "tensor", "head")]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)


@pytest.mark.parametrize("default_ignore", [True, False])
def test_with_the_cache_alone_every_weight_stays_as_it_was(tmp_path: Path, default_ignore: bool) -> None:
    # Tied embeddings stay tied: a head is set free only to be quantized.
    model = save_model(tmp_path / "source", qwen2_config(**ODD))
    plan = plan_of(model, None, "tensor", default_ignore=default_ignore)
    assert plan.counts == {"copy": len(plan.tensors)}
    write(model, tmp_path / "out", plan, made_up(plan))
    before, after = stored(model), stored(tmp_path / "out")
    assert set(after) - set(before) == {f"model.layers.{n}.self_attn.{kind}_scale" for n in (0, 1) for kind in "kv"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["quantization_config"]["ignore"] == []


def test_the_cache_alone_of_a_model_in_another_dtype_is_cast_with_its_scales(tmp_path: Path) -> None:
    model = save_model(tmp_path / "source", llama_config(), torch.float32)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    plan = plan_of(model, None, "tensor")
    write(model, tmp_path / "out", plan, made_up(plan))
    after = stored(tmp_path / "out")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert torch.equal(after[UP], stored(model)[UP].to(torch.bfloat16))


def test_keys_in_a_fused_weight_are_found(tmp_path: Path) -> None:
    sizes = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Phi3Config(**sizes, hidden_size=128, intermediate_size=256, pad_token_id=0)
    plan = plan_of(save_model(tmp_path / "source", config), "FP8", "tensor")
    assert [scale.name for scale in plan.calibrated if scale.kind == "k"] == [
        f"model.layers.{layer}.self_attn.k_scale" for layer in (0, 1)
    ]


def test_a_cache_that_the_reference_would_not_calibrate_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = save_model(tmp_path / "source", GPTNeoXConfig(**sizes, hidden_size=128, intermediate_size=256))
    with pytest.raises(CannotRun, match="no attention layer of this model has a KV cache") as refused:
        plan_of(model, "FP8", "tensor")
    assert "--kv-cache-dtype fp8" in str(refused.value.hint)


def test_one_latent_vector_for_all_heads_has_no_scale_for_each(tmp_path: Path) -> None:
    config = DeepseekV3Config(
        vocab_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
    )
    model = save_model(tmp_path / "source", config)
    with pytest.raises(CannotRun, match="one vector for all of them"):
        plan_of(model, "FP8", "head")
    kinds = {scale.module for scale in plan_of(model, None, "tensor").calibrated}
    assert kinds == {"model.layers.0.self_attn", "model.layers.1.self_attn"}


def test_the_modules_with_a_cache_are_those_that_compressed_tensors_and_llm_compressor_agree_on() -> None:
    from compressed_tensors.quantization.utils import KV_CACHE_TARGETS

    # If this changes, so must the names that are looked for.
    assert KV_CACHE_TARGETS == ["re:.*(self_attn|attention)$"]
    names = [
        "layers.0.self_attn.v_proj.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.1.attention.qkv_proj.weight",
        "layers.2.attn.k_proj.weight",
        "layers.3.self_attn.q_proj.weight",
        "self_attn.kv_b_proj.weight",
        "layers.4.self_attn.k_proj.bias",
    ]
    found = cached_attentions((name, f"shard {number}") for number, name in enumerate(names))
    assert found == {"layers.0.self_attn": "shard 1", "layers.1.attention": "shard 2", "self_attn": "shard 5"}


@pytest.mark.parametrize("tag", list(DTYPES))
def test_scales_are_read_as_torch_reads_them(tag: str) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    raw = every.numpy().tobytes() if tag != "F32" else struct.pack("<4f", 1.5, -0.0, math.inf, 1e-40)
    wanted = torch.frombuffer(bytearray(raw), dtype=DTYPES[tag]).double().tolist()
    assert [struct.pack("<d", value) for value in decode(tag, raw) if value == value] == [  # noqa: PLR0124 - not NaN
        struct.pack("<d", value)
        for value in wanted
        if value == value  # noqa: PLR0124
    ]
