"""Models in memory as they would be under a scheme, beside checkpoints that were written and read by transformers."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

# Read when compressed-tensors is imported.
os.environ["CT_ENFORCE_EAGER"] = "1"

from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from fp8cli.schemes import KvCache
from fp8cli.simulator.applying import simulate, simulated
from fp8cli.simulator.finding import model_names
from fp8cli.simulator.observing import Observed, observe
from fp8cli.simulator.scheme import SIMULATED, UNROUNDED, SimulatedScheme, with_kv_cache
from fp8cli.worker.failures import Failure
from tests.calibrated import plan_of, scale_bytes, write
from tests.models import ALIGNED, llama_config, qwen2_config, save_model

SIZES = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
IDS = [[5, 9, 2, 300, 17, 44, 8, 261], [7, 7, 12, 1]]

MIXTURES: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, **ALIGNED, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES,
        **ALIGNED,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    ),
    "deepseek_v3": DeepseekV3Config(
        **SIZES,
        **ALIGNED,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=32,
        n_group=1,
        topk_group=1,
    ),
}


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def logits(model: Any) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids])).logits for ids in IDS]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def linears(model: Any) -> list[str]:
    return [name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear) and name != "lm_head"]


def quantized_weights(source: Path, scheme: str) -> list[str]:
    return [each.name for each in plan_of(source, scheme).tensors if each.action == "quantize"]


def write_real(source: Path, out: Path, scheme: str | None, kv: KvCache | None, observed: Observed | None) -> Path:
    """Write the checkpoint, with the scales that `observed` gives."""
    plan = plan_of(source, scheme, kv)
    scales = {}
    for planned in plan.calibrated:
        assert observed is not None
        seen = {"input": observed.inputs, "k": observed.keys, "v": observed.values}[planned.kind][planned.module]
        amax = seen.amax().view(1) if planned.info.shape == (1,) else seen
        scales[planned.name] = scale_bytes(planned.info.dtype, (amax / 448).float().tolist())
    write(source, out, plan, scales)
    return out


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), llama_config())


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        ("FP8_DYNAMIC", None),
        ("FP8_BLOCK", None),
        ("FP8", None),
        ("FP8", "tensor"),
        ("FP8_DYNAMIC", "head"),
        (None, "tensor"),
    ],
)
def test_a_simulation_is_the_written_checkpoint_to_the_last_bit(
    name: str | None, kv: KvCache | None, llama: Path, tmp_path: Path
) -> None:
    base = load(llama)
    plain = logits(base)
    modules = linears(base) if name is not None else []
    scheme = with_kv_cache(UNROUNDED if name is None else SIMULATED[name], kv)
    observed = observe(base, modules, kv, IDS) if scheme.needs_data else None
    real = load(write_real(llama, tmp_path / "real", name, kv, observed))
    theirs = logits(real)
    assert not same(plain, theirs)
    with simulated(base, scheme, modules, observed):
        assert same(logits(base), theirs)
        weights = dict(real.named_modules())
        assert all(torch.equal(dict(base.named_modules())[each].weight, weights[each].weight) for each in modules)
    assert same(logits(base), plain)


OTHERS: dict[str, PretrainedConfig] = {
    "fused keys": Phi3Config(**SIZES, **ALIGNED, num_key_value_heads=2, pad_token_id=0),
    "normed keys": Qwen3Config(**SIZES, **ALIGNED, num_key_value_heads=2, head_dim=32),
    "a sliding window": Gemma2Config(**SIZES, **ALIGNED, num_key_value_heads=2, head_dim=32, sliding_window=4),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_attention_are_rounded_as_in_the_written_checkpoint(kind: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "base", OTHERS[kind])
    base = load(source)
    modules = model_names(base, quantized_weights(source, "FP8"))
    scheme = with_kv_cache(SIMULATED["FP8"], "tensor")
    observed = observe(base, modules, "tensor", IDS)
    theirs = logits(load(write_real(source, tmp_path / "real", "FP8", "tensor", observed)))
    with simulated(base, scheme, modules, observed):
        assert same(logits(base), theirs)


def test_where_a_model_flattens_its_tokens_each_has_a_scale_of_its_own_all_the_same(tmp_path: Path) -> None:
    sizes = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    config = OPTConfig(**sizes, hidden_size=128, ffn_dim=256, word_embed_proj_dim=128)
    source = save_model(tmp_path / "base", config)
    base, real = load(source), load(write_real(source, tmp_path / "real", "FP8_DYNAMIC", None, None))
    modules = model_names(base, quantized_weights(source, "FP8_DYNAMIC"))
    one, many = torch.tensor([[7]]), torch.tensor([IDS[0]])
    with torch.inference_mode(), simulated(base, SIMULATED["FP8_DYNAMIC"], modules):
        assert torch.equal(base(one).logits, real(one).logits)
        # compressed-tensors takes one scale for all tokens there, and vLLM, like the simulation, one for each.
        assert not torch.equal(base(many).logits, real(many).logits)


def test_generated_tokens_read_the_rounded_cache(llama: Path, tmp_path: Path) -> None:
    base = load(llama)
    scheme = with_kv_cache(SIMULATED["FP8_DYNAMIC"], "tensor")
    observed = observe(base, [], "tensor", IDS)
    real = load(write_real(llama, tmp_path / "real", "FP8_DYNAMIC", "tensor", observed))
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    start = torch.tensor([IDS[0]])
    theirs = real.generate(start, **options)
    with simulated(base, scheme, linears(base), observed):
        ours = base.generate(start, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert same(list(ours.logits), list(theirs.logits))


def test_on_leaving_nothing_of_a_simulation_is_left(llama: Path) -> None:
    base = load(llama)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    parameters = dict(base.named_parameters())
    observed = observe(base, linears(base), "head", IDS)
    for scheme in (*SIMULATED.values(), with_kv_cache(SIMULATED["FP8"], "head")):
        with simulated(base, scheme, linears(base), observed):
            pass
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    assert all(parameters[name] is value for name, value in base.named_parameters())
    assert not any(module._forward_pre_hooks for module in base.modules())
    assert not any("forward" in vars(module) for module in base.modules())


def test_one_module_alone_is_rounded(llama: Path) -> None:
    base = load(llama)
    name, others = linears(base)[3], set(linears(base)) - {linears(base)[3]}
    parameters = dict(base.named_parameters())
    with simulated(base, SIMULATED["MXFP8"], [name]) as simulation:
        changed = [each for each, value in base.named_parameters() if value is not parameters[each]]
        hooked = [each for each, module in base.named_modules() if module._forward_pre_hooks]
    assert changed == [f"{name}.weight"]
    assert hooked == list(simulation.noise) == [name]
    assert name not in others


def test_noise_is_what_rounding_changed(llama: Path) -> None:
    base = load(llama)
    name = linears(base)[0]
    before = dict(base.named_modules())[name].weight.detach().double()
    with simulated(base, SIMULATED["E5M2_DYNAMIC"], [name]) as simulation:
        after = dict(base.named_modules())[name].weight.detach().double()
    signal, error = simulation.noise[name]
    assert signal == pytest.approx(float(before.square().sum()), rel=1e-12)
    assert error == pytest.approx(float((after - before).square().sum()), rel=1e-12)
    assert 0 < error < signal / 100


def test_a_head_that_is_tied_to_the_embedding_leaves_the_embedding_as_it_is(tmp_path: Path) -> None:
    base = load(save_model(tmp_path, qwen2_config()))
    embedding = base.get_input_embeddings().weight
    before = embedding.detach().clone()
    assert base.lm_head.weight is embedding
    with simulated(base, SIMULATED["FP8_DYNAMIC"], ["lm_head"]):
        assert not torch.equal(base.lm_head.weight, before)
        assert torch.equal(base.get_input_embeddings().weight, before)
    assert base.lm_head.weight is embedding


def test_in_a_wider_dtype_a_simulation_is_the_checkpoint_in_that_dtype(llama: Path, tmp_path: Path) -> None:
    base = load(llama)
    observed = observe(base, linears(base), "tensor", IDS)
    real = write_real(llama, tmp_path / "real", "FP8", "tensor", observed)
    theirs = logits(AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32).eval())
    wide = base.float()
    scheme = with_kv_cache(SIMULATED["FP8"], "tensor")
    with simulated(wide, scheme, linears(wide), observed, dtype=torch.bfloat16):
        assert same(logits(wide), theirs)
    with simulated(wide, scheme, linears(wide), observed):
        assert not same(logits(wide), theirs)


def test_a_simulation_for_good_computes_the_same(llama: Path) -> None:
    base, other = load(llama), load(llama)
    with simulated(base, SIMULATED["MXFP8"], linears(base)) as simulation:
        assert simulate(other, SIMULATED["MXFP8"], linears(other)).noise == simulation.noise
        assert same(logits(base), logits(other))


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(MIXTURES[request.param]).to(torch.bfloat16).save_pretrained(folder)
    return folder


def dequantized(source: Path, out: Path, scheme: str) -> Path:
    """Write a checkpoint in FP8, and beside it one in 16 bits with what its codes mean."""
    write(source, out / "fp8", plan_of(source, scheme), {})
    tensors = load_file(out / "fp8" / "model.safetensors")
    plain = {name: value for name, value in tensors.items() if not name.endswith("weight_scale")}
    for name, value in tuple(plain.items()):
        if (scale := tensors.get(f"{name}_scale")) is not None:
            if scale.shape[1] > 1 or len(scale) != len(value):
                scale = scale.repeat_interleave(128, 0)[: len(value)].repeat_interleave(128, 1)[:, : value.shape[1]]
            plain[name] = value.to(scale.dtype) * scale
    (out / "plain").mkdir()
    save_file(plain, out / "plain" / "model.safetensors", metadata={"format": "pt"})
    (out / "plain" / "config.json").write_bytes((source / "config.json").read_bytes())
    return out / "plain"


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_experts_hold_what_the_written_checkpoint_decodes_to(mixture: Path, scheme: str, tmp_path: Path) -> None:
    base = load(mixture)
    real = load(dequantized(mixture, tmp_path, scheme))
    modules = model_names(base, quantized_weights(mixture, scheme))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    assert sum(".experts." in name for name in modules) >= 4 * 3
    with simulated(base, SIMULATED[scheme], modules):
        rounded = base.state_dict()
        assert all(torch.equal(rounded[name], value) for name, value in real.state_dict().items())
        assert not torch.equal(
            rounded[next(n for n in rounded if n.endswith("down_proj"))],
            before[next(n for n in before if n.endswith("down_proj"))],
        )
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


def by_tokens(value: torch.Tensor) -> torch.Tensor:
    """Round an activation as compressed-tensors does, with a scale for each token."""
    args = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"]).input_activations
    scale, zero = calculate_qparams(value.amin(-1, keepdim=True), value.amax(-1, keepdim=True), args)
    return fake_quantize(value, scale, zero, args)


@pytest.fixture
def rounding_linears(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every multiplication of torch but that of the head and of routers rounds its input."""
    plain = torch.nn.functional.linear

    def rounding(value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        keeps = len(weight) in {4, 320}  # routers, the head
        return plain(value if keeps else by_tokens(value), weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", rounding)
    yield
    monkeypatch.undo()


def test_the_inputs_of_experts_are_rounded_as_those_of_linears(
    mixture: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = load(mixture)
    modules = model_names(base, quantized_weights(mixture, "FP8_DYNAMIC"))
    with simulated(base, SIMULATED["FP8_DYNAMIC"], modules):
        ours = logits(base)
    assert not same(ours, logits(base))
    real = load(dequantized(mixture, tmp_path, "FP8_DYNAMIC"))
    # transformers' own loop over experts, one multiplication at a time.
    real.set_experts_implementation("eager")
    request.getfixturevalue("rounding_linears")
    assert same(logits(real), ours)


def test_every_expert_is_observed_on_every_token(mixture: Path) -> None:
    base = load(mixture)
    plain = logits(base)
    modules = model_names(base, quantized_weights(mixture, "FP8"))
    observed = observe(base, modules, None, IDS[:1])
    assert observed.inputs.keys() == set(modules)
    assert base.config._attn_implementation == "sdpa"
    assert same(logits(base), plain)
    name = next(each for each in modules if each.endswith(".experts.0.gate_proj"))
    inputs = {float(observed.inputs[name.replace(".0.gate", f".{n}.{p}")]) for n in range(4) for p in ("gate", "up")}
    assert len(inputs) == 1
    layer = dict(base.named_modules())[name.removesuffix(".0.gate_proj")]
    hidden: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0].clone()))
    logits(base)
    handle.remove()
    assert inputs == {float(hidden[0].abs().max())}
    for expert in range(4):
        gate, up = (hidden[0] @ layer.gate_up_proj[expert].detach().T).chunk(2, dim=-1)
        expected = (layer.act_fn(gate) * up).abs().max().float()
        found = observed.inputs[name.replace(".0.gate", f".{expert}.down")].float()
        assert torch.allclose(found, expected, rtol=0.02)


def test_a_router_that_is_named_is_refused_and_nothing_is_changed(mixture: Path) -> None:
    base = load(mixture)
    plain = logits(base)
    router = next(name for name, _ in base.named_modules() if name.endswith(".gate"))
    with (
        pytest.raises(Failure, match=f"`{router}` is a .*, and no nn.Linear"),
        simulated(base, SIMULATED["FP8_DYNAMIC"], [linears(base)[0], router]),
    ):
        raise AssertionError
    assert same(logits(base), plain)


def test_half_of_a_fused_input_is_refused(mixture: Path) -> None:
    base = load(mixture)
    names = model_names(base, quantized_weights(mixture, "FP8_DYNAMIC"))
    up = next(name for name in names if name.endswith("experts.1.up_proj"))
    with pytest.raises(Failure, match="only one of gate_proj and up_proj"), simulated(base, SIMULATED["FP8"], [up]):
        raise AssertionError
    wrong = up.replace(".1.up_proj", ".9.up_proj")
    with pytest.raises(Failure, match=r"4 experts of `.*` have no `9.up_proj`"):
        observe(base, [wrong], None, IDS)


def test_experts_of_another_kind_are_refused(mixture: Path) -> None:
    base = copy.deepcopy(load(mixture))
    names = model_names(base, quantized_weights(mixture, "FP8_DYNAMIC"))
    for module in base.modules():
        if hasattr(module, "gate_up_proj") and hasattr(module, "has_bias"):
            module.has_bias = True
    with pytest.raises(Failure, match="which cannot be simulated yet") as refused:
        simulate(base, SIMULATED["FP8_DYNAMIC"], names)
    assert "fp8 quantize" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("scheme", "modules", "message"),
    [
        (SIMULATED["FP8"], ["model.layers.0.self_attn.q_proj"], "FP8 needs the inputs of `model.layers.0.self_attn.q_"),
        (with_kv_cache(UNROUNDED, "tensor"), [], r"NONE\+KV needs the keys and values of `model.layers.0.self_attn`"),
        (SIMULATED["FP8_DYNAMIC"], ["model.layers.7.mlp.up_proj"], "the model has no module `model.layers.7.mlp.up_"),
        (SIMULATED["FP8_DYNAMIC"], ["model.norm"], "`model.norm` is a LlamaRMSNorm, and no nn.Linear"),
    ],
)
def test_what_cannot_be_simulated_is_named(
    scheme: SimulatedScheme, modules: list[str], message: str, llama: Path
) -> None:
    base = load(llama)
    plain = logits(base)
    with pytest.raises(Failure, match=message), simulated(base, scheme, modules):
        raise AssertionError
    assert same(logits(base), plain)


def test_a_weight_that_is_not_finite_is_named_and_the_others_are_put_back(llama: Path) -> None:
    base = load(llama)
    names = linears(base)[:2]
    with torch.no_grad():
        dict(base.named_modules())[names[1]].weight[0, 0] = float("inf")
    before = dict(base.named_parameters())
    with (
        pytest.raises(Failure, match=f"the weight of `{names[1]}` has a number that is not finite"),
        simulated(base, SIMULATED["FP8_DYNAMIC"], names),
    ):
        raise AssertionError
    assert all(before[name] is value for name, value in base.named_parameters())


def test_a_module_that_no_sample_reached_is_named(llama: Path) -> None:
    base = load(llama)
    with pytest.raises(Failure, match=r"no sample reached `.*` and 13 more"):
        observe(base, linears(base), None, [])


def test_names_without_the_prefix_of_the_bare_model_are_found(llama: Path) -> None:
    base = load(llama)
    weights = [f"{name}.weight" for name in linears(base)]
    assert list(model_names(base, weights)) == linears(base)
    assert list(model_names(base, [name.removeprefix("model.") for name in weights])) == linears(base)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int8), "is int8, so it is quantized already"),
        (torch.zeros(2, 2, dtype=torch.float8_e4m3fn), "is float8_e4m3fn, so it is quantized already"),
        (torch.zeros(2, 2, device="meta"), "is not in memory"),
    ],
)
def test_weights_that_cannot_be_rounded_are_named(weight: torch.Tensor, message: str) -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(Failure, match=f"the weight of `0` {message}"):
        simulate(torch.nn.Sequential(layer), SIMULATED["FP8_DYNAMIC"], ["0"])
