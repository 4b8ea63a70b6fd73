"""Whether it fits, and the line that serves it: worked out by hand, and against vLLM's own defaults and parser."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8cli.core.machine.gpus import Gpu
from fp8cli.core.serving.fit import LEAST_RESERVE, UTILIZATION, batched_tokens, judge_serving, reserve_of
from fp8cli.core.serving.gpu_models import (
    DEFAULTS,
    GIB,
    GpuModel,
    default_gpus,
    find_gpu_model,
    known_gpus,
    models_found,
)
from fp8cli.core.serving.gpu_needs import _NO_FP16
from fp8cli.core.serving.serving_report import Context, Fit, GpuFit, Served
from fp8cli.errors import UsageError

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = LLAMA_8B | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
# What their FP8 forms weigh: 1 byte per weight of a Linear, 2 for embeddings, output head and scales.
BYTES_8B = 9_080_000_000
BYTES_70B = 72_700_000_000

QUANTIZED = (
    ("model.layers.0.self_attn.q_proj.weight", (8192, 8192)),
    ("model.layers.0.self_attn.k_proj.weight", (1024, 8192)),
    ("model.layers.0.self_attn.v_proj.weight", (1024, 8192)),
    ("model.layers.0.self_attn.o_proj.weight", (8192, 8192)),
    ("model.layers.0.mlp.gate_proj.weight", (28672, 8192)),
    ("model.layers.0.mlp.up_proj.weight", (28672, 8192)),
    ("model.layers.0.mlp.down_proj.weight", (8192, 28672)),
)
SERVED_8B = Served(
    path="models/L 8B",
    config=LLAMA_8B,
    weight_bytes=BYTES_8B,
    quantized=QUANTIZED,
    kind="dynamic",
)
SERVED_70B = replace(SERVED_8B, path="L70", config=LLAMA_70B, weight_bytes=BYTES_70B)


def on(name: str, served: Served, *contexts: int) -> GpuFit:
    (judged,) = judge_serving(served, contexts=contexts, gpus=[find_gpu_model(name)]).gpus
    return judged


def command(name: str, served: Served, *contexts: int) -> str | None:
    best = on(name, served, *contexts).best
    return None if best is None else best.command


def test_an_8b_model_on_an_h100_worked_out_by_hand() -> None:
    memory = 81_559 * 2**20
    room = int(0.92 * memory) - BYTES_8B - int(0.04 * memory)
    # 128 KiB a token, 16 tokens at a time.
    tokens = room // (2**17 * 16) * 16
    judged = on("H100", SERVED_8B, 8192, 32768)
    assert judged.reserve_bytes == int(0.04 * memory)
    assert judged.fits[0] == Fit(
        gpus=1,
        verdict="fits",
        reason=None,
        weight_bytes=BYTES_8B,
        room_bytes=room,
        tokens=tokens,
        context=131072,
        sequences=(room // 2**30, room // 2**32),
        command="vllm serve 'models/L 8B' --max-model-len 32768",
    )
    assert judged.best == judged.fits[0]
    assert 500_000 < tokens < 560_000


def test_kv_cache_of_a_gibibyte_holds_as_many_tokens_as_vllm_logged() -> None:
    """4 layers of 2 heads of 64: vLLM 0.32 wrote "GPU KV cache size: 524,288 tokens" about 1 GiB of it."""
    config = {"model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    served = Served(path="x", config=config | {"head_dim": 64}, weight_bytes=0)
    gpu = GpuModel(name="made up", memory_bytes=int((GIB + LEAST_RESERVE) / UTILIZATION) + 1, capability=(9, 0))
    report = judge_serving(served, contexts=[4096], gpus=[gpu])
    assert report.gpus[0].fits[0].tokens == 524_288


@pytest.mark.parametrize(
    ("name", "gpus", "verdict"),
    [
        ("H200", 1, "fits"),
        ("B200", 1, "fits"),
        ("MI300X", 1, "fits"),
        ("H100", 2, "fits"),
        ("A100-80GB", 2, "fits"),
        ("RTX PRO 6000", 2, "fits"),
        ("L40S", 4, "fits"),
        ("RTX 4090", 8, "fits"),
        ("T4", 16, "fits"),
        ("RTX 2080 Ti", 8, "fits with a shorter context"),
    ],
)
def test_a_70b_model_needs_as_many_gpus_as_its_memory_says(name: str, gpus: int, verdict: str) -> None:
    best = on(name, SERVED_70B).best
    assert best is not None
    assert (best.gpus, best.verdict) == (gpus, verdict)


def test_a_context_that_does_not_fit_is_shortened_and_said() -> None:
    judged = on("RTX 4090", SERVED_70B)
    four = judged.fits[2]
    assert four.verdict == "fits with a shorter context"
    assert four.tokens is not None
    assert four.reason == f"there is room for {four.tokens:,} tokens, not 131,072"
    length = four.tokens // 1024 * 1024
    assert four.command == f"vllm serve L70 --tensor-parallel-size 4 --max-model-len {length}"
    assert [fit.verdict for fit in judged.fits[:2]] == ["too large", "too large"]
    assert judged.fits[0].reason is not None
    assert judged.fits[0].reason.startswith("the weights leave -")


def test_a_machine_is_asked_for_no_more_gpus_than_it_has() -> None:
    for count, here in ((None, None), (1, 1), (2, 2), (4, 2)):
        (judged,) = judge_serving(SERVED_70B, contexts=(), gpus=[replace(find_gpu_model("H100"), count=count)]).gpus
        assert judged.best is not None
        assert judged.best.gpus == 2
        assert (None if judged.here is None else judged.here.gpus) == here
        if count == 1:
            assert judged.here is not None
            assert judged.here.verdict == "fits with a shorter context"


def test_the_whole_context_needs_no_option() -> None:
    assert command("H200", SERVED_70B) == "vllm serve L70"
    assert command("H100", SERVED_70B) == "vllm serve L70 --tensor-parallel-size 2"
    assert command("H200", SERVED_70B, 131072) == "vllm serve L70"


def test_a_context_beyond_the_models_is_refused() -> None:
    report = judge_serving(SERVED_8B, contexts=[4096, 200_000], gpus=[find_gpu_model("B200")])
    assert report.contexts == (
        Context(tokens=4096, sequence_bytes=2**29, allowed=True),
        Context(tokens=200_000, sequence_bytes=200_000 * 2**17, allowed=False),
    )
    assert report.gpus[0].best is None
    assert report.gpus[0].fits[0].reason == "the model goes as far as 131,072 tokens, not 200,000"


@pytest.mark.parametrize(
    ("name", "kind", "words", "refusal"),
    [
        ("V100", "dynamic", "cannot load it", "vLLM 0.32 has no kernel for this kind of FP8 on compute capability 7.0"),
        ("T4", "static", "keeps weights in FP8 and computes in 16 bits", None),
        ("A100", "dynamic", "keeps weights in FP8 and computes in 16 bits", None),
        ("L40S", "dynamic", "computes in FP8 (W8A8)", None),
        ("L40S", "block", "keeps weights in FP8 and computes in 16 bits", None),
        ("H100", "block", "computes in FP8 (W8A8)", None),
        ("H100", "weights", "keeps weights in FP8 and computes in 16 bits", None),
        ("H100", "mx", "keeps weights in FP8 and computes in 16 bits", None),
        ("B200", "mx", "computes in FP8 (W8A8)", None),
        ("RTX PRO 6000", "block", "computes in FP8 (W8A8)", None),
        ("MI300X", "dynamic", "computes in FP8 (W8A8)", None),
        ("MI300X", "weights", "cannot load it", "vLLM 0.32 has no kernel for this kind of FP8 on gfx942"),
        ("MI250X", "dynamic", "cannot load it", "vLLM 0.32 has no kernel for this kind of FP8 on gfx90a"),
        ("MI300X", "mx", "unknown", None),
        ("H100", None, "unknown", None),
    ],
)
def test_each_generation_says_how_it_runs_each_kind(name: str, kind: Any, words: str, refusal: str | None) -> None:
    judged = on(name, replace(SERVED_8B, kind=kind), 4096)
    assert (judged.needs.words, judged.needs.refusal) == (words, refusal)
    if words == "unknown":
        reason = "the weights fit, but how vLLM runs this kind of FP8 there is not known"
        assert {(fit.verdict, fit.reason) for fit in judged.fits} == {("unknown", reason)}
    if refusal is not None:
        assert {(fit.verdict, fit.reason) for fit in judged.fits} == {("refused", refusal)}
        assert judged.best is None


def test_experts_are_judged_apart_from_linear_layers() -> None:
    experts = tuple(
        (f"model.layers.0.mlp.experts.0.{name}.weight", shape)
        for name, shape in (("gate_proj", (1024, 2048)), ("up_proj", (1024, 2048)), ("down_proj", (2048, 1024)))
    )
    served = replace(SERVED_8B, quantized=(*QUANTIZED, *experts), kind="block", block=(128, 128))
    assert on("L40S", served, 4096).needs.words == (
        "keeps weights in FP8 and computes in 16 bits; its experts: computes in FP8 (W8A8)"
    )
    weights = replace(served, kind="weights", block=None)
    refusal = "vLLM 0.32 has no kernel for experts with weights alone in FP8 on compute capability 9.0"
    assert on("H100", weights, 4096).needs.refusal == refusal


def test_an_unquantized_model_is_judged_too() -> None:
    served = replace(SERVED_8B, weight_bytes=16_060_000_000, quantized=(), kind=None)
    judged = on("H100", served)
    assert judged.needs.words == "nothing of it is in FP8"
    assert judged.best is not None
    assert judged.best.command == "vllm serve 'models/L 8B'"


def test_a_gpu_without_bf16_computes_in_half_and_gemma_in_float32() -> None:
    assert command("T4", SERVED_8B, 4096) == "vllm serve 'models/L 8B' --max-model-len 4096 --dtype half"
    gemma = SERVED_8B.config | {"model_type": "gemma2", "head_dim": 256}  # type: ignore[operator]
    judged = on("T4", replace(SERVED_8B, config=gemma), 4096)
    assert judged.needs.options == ("--dtype", "float32")
    assert judged.needs.notes == ("has no BF16, and vLLM refuses gemma2 in float16",)


def test_an_fp8_kv_cache_takes_what_the_generation_takes() -> None:
    served = replace(SERVED_8B, kv_cache_fp8=True)
    halved, same = on("H100", served, 8192), on("H100", SERVED_8B, 8192)
    assert halved.fits[0].tokens is not None
    assert same.fits[0].tokens is not None
    assert halved.fits[0].tokens // 2 // 16 == same.fits[0].tokens // 16
    assert halved.needs.options == ()
    ampere = on("A100", served, 8192)
    assert ampere.needs.options == ("--attention-backend", "FLASHINFER")
    assert ampere.needs.notes == ("only FlashInfer takes an FP8 KV cache there",)
    turing = on("T4", served, 4096)
    assert turing.needs.options == ("--dtype", "half", "--kv-cache-dtype", "float16")
    assert turing.fits[0].tokens == on("T4", SERVED_8B, 4096).fits[0].tokens


def test_a_cache_scale_for_each_head_runs_where_flash_attention_3_or_4_does() -> None:
    served = replace(SERVED_8B, kv_cache_fp8=True, head_scales=True)
    for gpu in ("H100", "H200", "B200"):
        assert on(gpu, served, 8192).needs.refusal is None, gpu
    for gpu, name in {
        "T4": "compute capability 7.5",
        "A100": "compute capability 8.0",
        "L40S": "compute capability 8.9",
        "RTX PRO 6000": "compute capability 12.0",
        "MI300X": "gfx942",
    }.items():
        refusal = on(gpu, served, 8192).needs.refusal
        assert refusal == f"vLLM 0.32 has no attention with a KV-cache scale for each head on {name}"
        assert on(gpu, served, 8192).fits[0].verdict == "refused"
    # A scale for each head of a cache that vLLM would not quantize is never looked at.
    assert on("L40S", replace(served, kv_cache_fp8=False), 8192).needs.refusal is None


def test_fnuz_gpus_say_that_codes_are_converted() -> None:
    note = "its FP8 is E4M3FNUZ: vLLM converts the codes and doubles the scales when it loads them"
    assert on("MI300X", SERVED_8B).needs.notes == (note,)
    assert on("MI300X", replace(SERVED_8B, quantized=(), kind=None)).needs.notes == ()


def test_blocks_that_cannot_be_cut_rule_out_numbers_of_gpus() -> None:
    shapes = (("model.layers.0.mlp.down_proj.weight", (4096, 128 * 6)),)
    judged = on("RTX 4090", replace(SERVED_70B, quantized=shapes, kind="block", block=(128, 128)), 8192)
    assert [fit.verdict for fit in judged.fits] == ["too large", "too large", "refused", "refused", "refused"]
    assert judged.fits[2].reason == (
        "`model.layers.0.mlp.down_proj.weight` [4096, 768]: "
        "the part of each of 4 GPUs is 192, no multiple of its blocks of 128"
    )
    assert judged.best is None


@pytest.mark.parametrize(
    ("config", "contexts", "verdict", "reason"),
    [
        (
            None,
            (4096,),
            "unknown",
            "the weights fit, but the KV cache is unknown: there is no config.json to tell",
        ),
        (
            {key: value for key, value in LLAMA_8B.items() if key != "max_position_embeddings"},
            (),
            "unknown",
            "its config.json does not say how long its context is; name one with --context",
        ),
    ],
)
def test_what_cannot_be_known_is_unknown(
    config: dict[str, Any] | None, contexts: tuple[int, ...], verdict: str, reason: str
) -> None:
    fit = on("H100", replace(SERVED_8B, config=config), *contexts).fits[0]
    assert (fit.verdict, fit.reason, fit.command) == (verdict, reason, None)


def test_other_formats_are_judged_on_one_gpu_and_doubted_on_more() -> None:
    reason = "how vLLM splits the weights of GPTQ is not known here"
    judged = on("H100", replace(SERVED_8B, quantized=(), kind=None, split_unknown=reason))
    assert [fit.verdict for fit in judged.fits] == ["fits", *["unknown"] * 4]
    assert judged.fits[1].reason == reason


def test_weights_that_do_not_fit_are_too_large_whatever_else_is_unknown() -> None:
    assert on("T4", replace(SERVED_70B, config=None)).fits[0].verdict == "too large"


def test_a_gpu_that_does_not_tell_its_memory_is_unknown() -> None:
    gpu = GpuModel(name="NVIDIA GB10", memory_bytes=None, capability=(12, 1))
    (judged,) = judge_serving(SERVED_8B, contexts=(), gpus=[gpu]).gpus
    assert judged.reserve_bytes is None
    assert {(fit.verdict, fit.reason) for fit in judged.fits} == {("unknown", "how much memory it has is not known")}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("H100", "H100"),
        ("h100-80gb", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("H100 NVL", "H100 NVL"),
        ("A100", "A100-80GB"),
        ("A100-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("l40s", "L40S"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("RTX PRO 6000", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("A6000", "RTX A6000"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("AMD Instinct MI300X OAM", "MI300X"),
        ("mi300x", "MI300X"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_a_gpu_is_found_by_the_names_people_type_and_drivers_write(typed: str, name: str) -> None:
    assert find_gpu_model(typed).name == name


def test_a_name_that_is_no_gpu_gets_the_nearest_ones() -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu_model("RTX 6000")
    assert caught.value.message == "--gpu `RTX 6000` is no GPU of this tool's catalogue"
    assert caught.value.hint == (
        "it knows RTX A6000, RTX PRO 6000, RTX 6000 Ada and others, by such names as --gpu 'RTX A6000'"
    )
    with pytest.raises(UsageError, match=r"`\\x1b\[31m` is no GPU"):
        find_gpu_model("\x1b[31m")
    with pytest.raises(UsageError):
        find_gpu_model("")


def test_every_gpu_of_the_catalogue_is_found_by_its_own_name_and_is_of_one_maker() -> None:
    names = [gpu.name for gpu in known_gpus()]
    assert len(set(names)) == len(names)
    for gpu in known_gpus():
        assert find_gpu_model(gpu.name) == gpu
        assert (gpu.capability is None) != (gpu.gfx is None)
    assert tuple(gpu.name for gpu in default_gpus()) == DEFAULTS


def test_equal_gpus_of_a_machine_are_one_model_with_its_number() -> None:
    def found(index: int, name: str) -> Gpu:
        memory = 2**36 if name == "H100" else None
        return Gpu(
            index=index,
            name=name,
            uuid=f"GPU-{index}",
            capability=(9, 0),
            memory_bytes=memory,
            free_bytes=memory,
            mig=False,
        )

    assert models_found([found(0, "H100"), found(1, "GH200"), found(2, "H100")]) == (
        GpuModel(name="H100", memory_bytes=2**36, capability=(9, 0), count=2),
        GpuModel(name="GH200", memory_bytes=None, capability=(9, 0), count=1),
    )


def test_the_reserve_grows_with_the_gpu_and_has_a_floor() -> None:
    assert reserve_of(16 * GIB) == LEAST_RESERVE
    assert reserve_of(100 * GIB) == 4 * GIB


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = """
    num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_size sliding_window layer_types
    max_position_embeddings rope_scaling kv_lora_rank qk_rope_head_dim attn_config multi_query num_kv_heads
    hybrid_override_pattern per_layer_config num_kv_shared_layers attn_layer_period attn_layer_offset text_config
    sliding_window_pattern torch_dtype linear_attn_config global_head_dim attention_k_eq_v no_rope_layers
""".split()
TYPES = (
    "llama mpt falcon gemma3_text gemma4_text jamba deepseek_v3 kimi_linear nemotron_h llama4_text qwen2 lfm2".split()
)


@given(
    config=st.dictionaries(
        st.sampled_from(KEYS),
        VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "kv_n_heads", "0"]), VALUES),
    ),
    model_type=st.sampled_from(TYPES),
    shapes=st.lists(
        st.tuples(
            st.sampled_from([name for name, _ in QUANTIZED] + ["x", "", "a.experts.0.w1.weight", "qkv_proj.weight"]),
            st.lists(st.integers(min_value=0, max_value=2**40), max_size=3).map(tuple),
        ),
        max_size=5,
    ),
)
def test_no_config_and_no_shape_raises(
    config: dict[str, Any], model_type: str, shapes: list[tuple[str, tuple[int, ...]]]
) -> None:
    served = Served(
        path="x",
        config=config | {"model_type": model_type},
        weight_bytes=1,
        quantized=shapes,
        kind="block",
        block=(128, 128),
    )
    report = judge_serving(served, contexts=[0, 4096], gpus=[find_gpu_model("H100")])
    assert len(report.gpus[0].fits) == len(report.parallel)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllms_parser_and_defaults_agree() -> None:
    from vllm.config.cache import CacheConfig
    from vllm.config.model import _FLOAT16_NOT_SUPPORTED_MODELS
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    assert CacheConfig.__dataclass_fields__["gpu_memory_utilization"].default.default == UTILIZATION  # type: ignore[union-attr]
    assert set(_FLOAT16_NOT_SUPPORTED_MODELS) == _NO_FP16
    parser = make_arg_parser(FlexibleArgumentParser())
    experts = tuple(
        (f"model.layers.0.mlp.experts.0.{name}.weight", shape)
        for name, shape in (("gate_proj", (768, 2048)), ("up_proj", (768, 2048)), ("down_proj", (2048, 768)))
    )
    lines: set[str] = set()
    for served in (SERVED_8B, SERVED_70B, replace(SERVED_8B, quantized=experts, kind="block", block=(128, 128))):
        for cached in (False, True):
            report = judge_serving(replace(served, kv_cache_fp8=cached), contexts=(), gpus=known_gpus())
            lines |= {fit.command for gpu in report.gpus for fit in gpu.fits if fit.command is not None}
            lines |= {
                f"vllm serve x {split.remedy.split()[1].rstrip(':')}" for split in report.parallel if split.remedy
            }
    assert len(lines) > 40
    assert any("--enable-expert-parallel" in line for line in lines)
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["vllm", "serve"]
        parsed = parser.parse_args(words[2:])
        assert parsed.model_tag in {"models/L 8B", "L70", "x"}


def test_vllms_default_batch_depends_on_memory_and_name() -> None:
    """Of vLLM 0.32, vllm/engine/arg_utils.py `get_batch_defaults`."""
    sizes = {gpu.name: batched_tokens(gpu) for gpu in default_gpus()}
    assert sizes == {
        "T4": 2048,
        "A100-80GB": 2048,
        "L40S": 2048,
        "RTX 4090": 2048,
        "H100": 8192,
        "H200": 8192,
        "B200": 16384,
        "RTX PRO 6000": 8192,
        "MI300X": 16384,
    }
