"""Tensor-parallel sizes: vLLM's own checks, run over a grid of shapes, must say the same."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from fp8cli.core.model.attention import Attention
from fp8cli.core.serving.tensor_parallel import SIZES, TensorParallel, judge_sizes
from tests.costs import growth

BLOCK = (128, 128)
LLAMA = Attention(heads=32, kv_heads=8, head_size=128)

Shapes = list[tuple[str, tuple[int, ...]]]


def layer(number: int = 0, *, hidden: int = 4096, inner: int = 14336, heads: int = 32, kv: int = 8) -> Shapes:
    """The seven weights of a Llama layer."""
    start = f"model.layers.{number}"
    return [
        (f"{start}.self_attn.q_proj.weight", (heads * 128, hidden)),
        (f"{start}.self_attn.k_proj.weight", (kv * 128, hidden)),
        (f"{start}.self_attn.v_proj.weight", (kv * 128, hidden)),
        (f"{start}.self_attn.o_proj.weight", (hidden, heads * 128)),
        (f"{start}.mlp.gate_proj.weight", (inner, hidden)),
        (f"{start}.mlp.up_proj.weight", (inner, hidden)),
        (f"{start}.mlp.down_proj.weight", (hidden, inner)),
    ]


def working(attention: Attention, shapes: Shapes, block: tuple[int, int] | None = BLOCK) -> list[int]:
    verdicts, unknown = judge_sizes(attention, shapes, block)
    assert not unknown
    return [verdict.size for verdict in verdicts if verdict.verdict == "works"]


def only(attention: Attention, shapes: Shapes, size: int, block: tuple[int, int] | None = BLOCK) -> TensorParallel:
    ((verdict,), _) = judge_sizes(attention, shapes, block, sizes=(size,))
    return verdict


def test_llama_3_8b_in_blocks_runs_on_up_to_sixteen_gpus() -> None:
    # 14336 / 16 is 896, seven blocks; one more halving would cut a block.
    assert working(LLAMA, layer(0) + layer(1)) == [1, 2, 4, 8, 16]
    assert only(LLAMA, layer(), 32).verdict == "refused"


def test_qwen_25_7b_cannot_be_split_in_blocks_and_says_which_weights_are_cut() -> None:
    # 28 heads; 18944 = 148 blocks, which 8 does not divide; 3584 = 28 blocks.
    attention = Attention(heads=28, kv_heads=4, head_size=128)
    shapes = [*layer(0, hidden=3584, inner=18944, heads=28, kv=4), *layer(1, hidden=3584, inner=18944, heads=28, kv=4)]
    assert working(attention, shapes) == [1, 2, 4]
    assert only(attention, shapes, 8) == TensorParallel(
        size=8,
        verdict="refused",
        reasons=(
            "28 attention heads cannot be dealt out to 8 GPUs",
            (
                "`model.layers.{0,1}.self_attn.q_proj.weight` [3584, 3584]: "
                "the part of each of 8 GPUs is 448, no multiple of its blocks of 128"
            ),
            (
                "`model.layers.{0,1}.self_attn.o_proj.weight` [3584, 3584]: "
                "the part of each of 8 GPUs is 448, no multiple of its blocks of 128"
            ),
            (
                "`model.layers.{0,1}.mlp.gate_proj.weight` [18944, 3584]: "
                "the part of each of 8 GPUs is 2368, no multiple of its blocks of 128"
            ),
            (
                "`model.layers.{0,1}.mlp.up_proj.weight` [18944, 3584]: "
                "the part of each of 8 GPUs is 2368, no multiple of its blocks of 128"
            ),
            (
                "`model.layers.{0,1}.mlp.down_proj.weight` [3584, 18944]: "
                "the part of each of 8 GPUs is 2368, no multiple of its blocks of 128"
            ),
        ),
    )


def test_without_blocks_only_heads_and_even_cuts_count() -> None:
    assert working(Attention(heads=28, kv_heads=4), layer(hidden=3584, inner=18944, heads=28, kv=4), None) == [1, 2, 4]
    odd = only(LLAMA, layer(inner=1001), 2, None)
    assert (
        odd.reasons[0] == "`model.layers.0.mlp.gate_proj.weight` [1001, 4096] has 1001, which is no multiple of 2 GPUs"
    )


def test_heads_of_keys_and_values_are_copied_only_when_they_come_out_even() -> None:
    assert only(Attention(heads=48, kv_heads=6), [], 4, None).reasons == (
        "6 heads of keys and values can neither be dealt out nor copied evenly to 4 GPUs",
    )
    assert working(Attention(heads=48, kv_heads=2), [], None) == list(SIZES)
    assert working(Attention(heads=128, kv_heads=None), [], None) == list(SIZES)


def test_experts_that_cannot_be_cut_can_still_be_dealt_out_whole() -> None:
    # Qwen3-30B-A3B: 768 in the middle of an expert are six blocks.
    attention = Attention(heads=32, kv_heads=4)
    shapes: Shapes = []
    for expert in range(3):
        start = f"model.layers.0.mlp.experts.{expert}"
        shapes += [(f"{start}.{name}.weight", (768, 2048)) for name in ("gate_proj", "up_proj")]
        shapes.append((f"{start}.down_proj.weight", (2048, 768)))
    assert working(attention, shapes) == [1, 2]
    four = only(attention, shapes, 4)
    assert four.remedy == "add --enable-expert-parallel: every GPU then holds whole experts"
    assert four.reasons[0] == (
        "`model.layers.0.mlp.experts.{0..2}.gate_proj.weight` [768, 2048]: "
        "the part of each of 4 GPUs is 192, no multiple of its blocks of 128"
    )
    assert only(attention, [*shapes, *layer(inner=640, heads=32, kv=4)], 4).remedy is None


def test_deepseeks_low_rank_projections_stay_whole() -> None:
    attention = Attention(heads=128)
    shapes: Shapes = [
        ("model.layers.0.self_attn.q_a_proj.weight", (1536, 7168)),
        ("model.layers.0.self_attn.q_b_proj.weight", (128 * 192, 1536)),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168)),
        ("model.layers.0.self_attn.kv_b_proj.weight", (128 * 256, 512)),
        ("model.layers.0.self_attn.o_proj.weight", (7168, 128 * 128)),
        *((f"model.layers.3.mlp.experts.{each}.gate_proj.weight", (2048, 7168)) for each in range(16)),
        *((f"model.layers.3.mlp.experts.{each}.up_proj.weight", (2048, 7168)) for each in range(16)),
        *((f"model.layers.3.mlp.experts.{each}.down_proj.weight", (7168, 2048)) for each in range(16)),
    ]
    assert working(attention, shapes) == [1, 2, 4, 8, 16]


def test_weights_of_unknown_names_are_named_not_judged() -> None:
    shapes: Shapes = [
        ("model.layers.0.mixer.in_proj.weight", (100, 100)),
        ("model.layers.1.mixer.in_proj.weight", (100, 100)),
        ("visual.blocks.0.attn.qkv_proj.weight", (100, 100)),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 100, 100)),
        ("odd", (3, 5)),
    ]
    verdicts, unknown = judge_sizes(LLAMA, shapes, BLOCK)
    assert [verdict.verdict for verdict in verdicts] == ["works"] * len(SIZES)
    assert unknown == (
        "model.layers.{0,1}.mixer.in_proj.weight",
        "visual.blocks.0.attn.qkv_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "odd",
    )


def test_a_model_without_heads_in_its_config_is_judged_on_one_gpu_only() -> None:
    verdicts, _ = judge_sizes(Attention(), layer(), BLOCK)
    assert [verdict.verdict for verdict in verdicts] == ["works", *["not checked"] * 4]


def test_deepseeks_own_format_is_merged_by_vllm_without_a_check() -> None:
    shapes: Shapes = [
        ("model.layers.0.mlp.gate_proj.weight", (192, 256)),
        ("model.layers.0.mlp.up_proj.weight", (192, 256)),
    ]
    ours, _ = judge_sizes(LLAMA, shapes, BLOCK, sizes=(1,))
    assert ours[0].verdict == "refused"
    (theirs,), _ = judge_sizes(LLAMA, shapes, BLOCK, merged_checked=False, sizes=(1,))
    assert (theirs.verdict, theirs.reasons) == (
        "not checked",
        (
            (
                "`model.layers.0.mlp.gate_proj.weight` [192, 256]: the part that is merged with others is 192, "
                "no multiple of its blocks of 128, and vLLM does not check it in this format"
            ),
        ),
    )


def test_columns_that_are_no_whole_blocks_are_a_doubt_and_no_refusal() -> None:
    # gpt-oss: 2880 is 22.5 blocks, and is cut by nobody on one GPU.
    shapes: Shapes = [("model.layers.0.self_attn.q_b_proj.weight", (4096, 2880))]
    assert only(Attention(heads=64, kv_heads=8), shapes, 1) == TensorParallel(
        size=1,
        verdict="not checked",
        reasons=(
            (
                "`model.layers.0.self_attn.q_b_proj.weight` [4096, 2880] has 2880 columns, no multiple of 128, by "
                "which vLLM groups activations: its kernels may refuse them"
            ),
        ),
    )
    assert only(Attention(heads=64, kv_heads=8), shapes, 1, None).verdict == "works"
    # A cut that leaves no whole blocks is refused for that alone.
    rows: Shapes = [("model.layers.0.self_attn.o_proj.weight", (4096, 2880))]
    assert only(Attention(heads=64, kv_heads=8), rows, 2).verdict == "refused"


def test_more_gpus_than_experts_are_a_doubt() -> None:
    shapes = [(name, shape) for name, shape in experts(1) if int(name.split(".")[5]) < 4]
    model = Attention(heads=32, kv_heads=4)
    assert only(model, shapes, 4, None).verdict == "works"
    assert only(model, shapes, 8, None) == TensorParallel(
        size=8,
        verdict="not checked",
        reasons=("8 GPUs are more than its 4 experts, which some of vLLM's models refuse",),
    )


def test_deepseeks_own_format_lets_merged_heads_be_as_they_are() -> None:
    shapes: Shapes = [(f"model.layers.0.self_attn.{each}_proj.weight", (64, 256)) for each in "qkv"]
    few = Attention(heads=1, kv_heads=1)
    (ours,), _ = judge_sizes(few, shapes, BLOCK, sizes=(1,))
    assert ours.verdict == "refused"
    (theirs,), _ = judge_sizes(few, shapes, BLOCK, merged_checked=False, sizes=(1,))
    assert theirs.verdict == "not checked"


def experts(layers: int) -> list[tuple[str, tuple[int, int]]]:
    return [
        (f"model.layers.{number}.mlp.experts.{expert}.{name}.weight", shape)
        for number in range(layers)
        for expert in range(333)
        for name, shape in (("gate_proj", (768, 2048)), ("up_proj", (768, 2048)), ("down_proj", (2048, 768)))
    ]


def test_five_times_the_weights_take_about_five_times_as_long_to_judge() -> None:
    few, many = experts(20), experts(100)
    model = Attention(heads=32, kv_heads=4)
    assert growth(lambda: judge_sizes(model, few, None), lambda: judge_sizes(model, many, None)) < 9


ROWS = (128, 192, 256, 384, 512, 640, 1024, 2048, 18944)


def vllm_refuses(
    size: int,
    *,
    columns: int,
    column_parts: int,
    outputs: list[int],
    split_outputs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> bool:
    """Ask vLLM's own check about a layer of one rank."""
    import vllm.distributed
    from vllm.model_executor.layers.quantization.utils.fp8_utils import validate_fp8_block_shape

    monkeypatch.setattr(vllm.distributed, "get_tensor_model_parallel_world_size", lambda: size)
    partition = [output // size if split_outputs else output for output in outputs]
    try:
        validate_fp8_block_shape(
            SimpleNamespace(tp_size=size),  # type: ignore[arg-type]
            columns,
            sum(outputs),
            columns // column_parts,
            partition,
            list(BLOCK),
        )
    except ValueError:
        return True
    return False


@pytest.mark.slow
def test_vllm_itself_refuses_to_group_activations_of_odd_columns_where_it_computes_in_fp8() -> None:
    from vllm.model_executor.layers.quantization.utils.fp8_utils import per_token_group_quant_fp8

    with pytest.raises(AssertionError, match=r"2880 must be divisible by `group_size` 128"):
        per_token_group_quant_fp8(torch.zeros(1, 2880), BLOCK[1])


@pytest.mark.slow
def test_vllm_itself_lets_blocks_of_merged_weights_not_fit_in_deepseeks_own_format_alone() -> None:
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    def allows(parts: list[int], **config: object) -> bool:
        layer = SimpleNamespace(quant_config=SimpleNamespace(**config), output_partition_sizes=parts)
        ColumnParallelLinear._maybe_allow_fp8_block_shape_mismatch(layer)  # type: ignore[arg-type]
        return getattr(layer, "allow_fp8_block_shape_mismatch", False)

    assert allows([64, 64, 64], weight_block_size=[128, 128])
    assert not allows([64], weight_block_size=[128, 128])
    # The config of compressed-tensors has no such attribute.
    assert not allows([64, 64, 64])


@pytest.mark.slow
def test_vllms_check_of_linear_layers_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, rows, columns in itertools.product((1, 2, 4, 8), ROWS, ROWS):
        if rows % size or columns % size:
            continue
        name = "model.layers.0.mlp"
        plain = {"columns": columns, "column_parts": 1, "monkeypatch": monkeypatch}
        cases = {
            # Row-parallel: the input is cut.
            "down_proj": ({**plain, "column_parts": size}, [rows], False),
            # Column-parallel: the output is cut.
            "fc1": (plain, [rows], True),
        }
        for module, (given, outputs, split) in cases.items():
            refused = vllm_refuses(size, outputs=outputs, split_outputs=split, **given)
            verdict = only(Attention(heads=64, kv_heads=8), [(f"{name}.{module}.weight", (rows, columns))], size)
            assert (verdict.verdict == "refused") == refused, (module, size, rows, columns)
        # Merged: gate and up, cut and not cut.
        refused = vllm_refuses(size, outputs=[rows, rows], split_outputs=True, **plain)
        shapes: Shapes = [(f"{name}.{module}.weight", (rows, columns)) for module in ("gate_proj", "up_proj")]
        assert (only(Attention(heads=64, kv_heads=8), shapes, size).verdict == "refused") == refused, (size, rows)
        fused: Shapes = [(f"{name}.gate_up_proj.weight", (2 * rows, columns))]
        assert (only(Attention(heads=64, kv_heads=8), fused, size).verdict == "refused") == refused, (size, rows)


@pytest.mark.slow
def test_vllms_check_of_merged_heads_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, heads, kv, head in itertools.product((1, 2, 4, 8, 16), (8, 16, 28, 32), (1, 2, 4, 8), (32, 64, 96, 128)):
        if heads % size or heads % kv or max(kv, size) % min(kv, size):
            continue
        # As QKVParallelLinear counts: each rank holds one head of keys and values at least.
        outputs = [heads * head, max(kv, size) * head, max(kv, size) * head]
        refused = vllm_refuses(
            size, columns=1024, column_parts=1, outputs=outputs, split_outputs=True, monkeypatch=monkeypatch
        )
        attention = Attention(heads=heads, kv_heads=kv)
        apart: Shapes = [
            ("model.layers.0.self_attn.q_proj.weight", (heads * head, 1024)),
            ("model.layers.0.self_attn.k_proj.weight", (kv * head, 1024)),
            ("model.layers.0.self_attn.v_proj.weight", (kv * head, 1024)),
        ]
        fused: Shapes = [("model.layers.0.self_attn.qkv_proj.weight", ((heads + 2 * kv) * head, 1024))]
        for shapes in (apart, fused):
            assert (only(attention, shapes, size).verdict == "refused") == refused, (size, heads, kv, head, shapes)


@pytest.mark.slow
def test_vllms_check_of_experts_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.distributed
    from vllm.model_executor.layers.quantization.utils.fp8_utils import validate_fp8_block_shape_moe

    for size, inner in itertools.product((1, 2, 4, 8, 16), (128, 192, 256, 512, 704, 768, 1408, 1536, 2048, 14336)):
        monkeypatch.setattr(vllm.distributed, "get_tensor_model_parallel_world_size", lambda size=size: size)
        refused = bool(inner % size)
        try:
            validate_fp8_block_shape_moe(inner // size, list(BLOCK))
        except ValueError:
            refused = True
        start = "model.layers.0.mlp.experts.0"
        shapes: Shapes = [(f"{start}.{name}.weight", (inner, 1024)) for name in ("gate_proj", "up_proj")]
        shapes.append((f"{start}.down_proj.weight", (1024, inner)))
        assert (only(Attention(heads=64, kv_heads=16), shapes, size).verdict == "refused") == refused, (size, inner)
