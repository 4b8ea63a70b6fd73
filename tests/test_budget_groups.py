"""What shares one fate: against vLLM's own tables of fused layers and its own check of what is ignored."""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fp8cli.core.budgeting.groups import Group, find_groups, patterns_of, share_fate
from fp8cli.core.model.patterns import matches
from fp8cli.core.model.roster import Roster
from fp8cli.core.model.selection import rules_for
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from tests.budgets import decide_on
from tests.calibrated import MODEL, plan_of

LAYER = "model.layers.3"


def vllm_tables() -> Iterator[tuple[str, Mapping[str, list[str]]]]:
    """Every `packed_modules_mapping` that is written out in a model of the installed vLLM."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    for file in sorted((Path(found.origin).parent / "model_executor" / "models").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id="packed_modules_mapping")], value=ast.Dict() as value)
                    | ast.AnnAssign(target=ast.Name(id="packed_modules_mapping"), value=ast.Dict() as value)
                ):
                    try:
                        yield file.stem, ast.literal_eval(value)
                    except ValueError:
                        continue


def groups_of(scheme: str = "FP8_DYNAMIC", **options: bool) -> tuple[Group, ...]:
    checkpoint = open_checkpoint(LocalFolder(MODEL))
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    roster = Roster(config=checkpoint.config, tensors=tensors, rules=rules_for(checkpoint.config, tensors))
    return find_groups(plan_of(MODEL, scheme, **options), checkpoint, roster)


@pytest.mark.slow
def test_whatever_some_model_of_vllm_fuses_shares_one_fate() -> None:
    tables = list(vllm_tables())
    assert len(tables) > 100
    torn = []
    for model, table in tables:
        for fused, parts in table.items():
            modules = [f"{LAYER}.mixer.{part}" for part in parts]
            if len(share_fate(modules)) != 1:
                torn.append((model, fused, parts))
    assert not torn, torn


def test_layers_and_parts_that_nothing_fuses_are_decided_by_themselves() -> None:
    modules = [
        f"model.layers.{layer}.{part}"
        for layer in range(2)
        for part in ("self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.gate_proj")
    ]
    assert share_fate(modules) == [
        ["model.layers.0.self_attn.o_proj"],
        ["model.layers.0.mlp.down_proj"],
        ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
        ["model.layers.0.self_attn.gate_proj"],
        ["model.layers.1.self_attn.o_proj"],
        ["model.layers.1.mlp.down_proj"],
        ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"],
        ["model.layers.1.self_attn.gate_proj"],
    ]


@pytest.mark.parametrize("parts", [("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3")])
def test_all_experts_of_a_layer_share_one_fate_and_the_shared_expert_has_its_own(parts: tuple[str, ...]) -> None:
    experts = [f"{LAYER}.mlp.experts.{number}.{part}" for number in range(3) for part in parts]
    shared = [f"{LAYER}.mlp.shared_experts.{part}" for part in ("gate_proj", "up_proj")]
    assert share_fate([*experts, *shared]) == [experts, shared]


def test_latent_attention_has_one_fate_for_what_enters_and_others_for_the_rest() -> None:
    names = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    modules = [f"{LAYER}.self_attn.{name}" for name in names]
    assert share_fate(modules) == [[modules[0], modules[2]], [modules[1]], [modules[3]], [modules[4]]]


def test_groups_of_the_bundled_model_save_what_their_plans_differ_by() -> None:
    for scheme in ("FP8_DYNAMIC", "FP8_BLOCK", "FP8"):
        groups = groups_of(scheme)
        assert len(groups) == 12
        whole = plan_of(MODEL, scheme)
        for group in groups[:4]:
            kept = plan_of(MODEL, scheme, ignore=group.modules)
            assert sum(kept.bytes_after.values()) - sum(whole.bytes_after.values()) == group.saved_bytes


def test_a_group_has_a_name_that_says_what_is_in_it() -> None:
    assert [group.name for group in groups_of()[:4]] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.{gate,up}_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.self_attn.{k,q,v}_proj",
    ]


def test_experts_are_named_by_one_pattern_which_is_exact() -> None:
    experts = [f"{LAYER}.mlp.experts.{number}.{part}" for number in range(3) for part in ("w1", "w2", "w3")]
    others = [f"model.layers.33.mlp.experts.0.{part}" for part in ("w1", "w2", "w3")]
    attention = [f"{LAYER}.self_attn.o_proj"]
    group = Group(name=f"{LAYER}.mlp.experts", modules=tuple(experts), tensors=(), saved_bytes=1)
    linears = [*experts, *others, *attention]
    (pattern,) = patterns_of([group], linears)
    assert pattern == r"re:^model\.layers\.3\.mlp\.experts\."
    assert [name for name in linears if matches(pattern, name)] == experts
    # With a part of them kept already by the user, the pattern would say too much.
    rest = Group(name=group.name, modules=tuple(experts[3:]), tensors=(), saved_bytes=1)
    assert patterns_of([rest], linears) == tuple(experts[3:])


def test_a_layer_of_experts_stays_whole_and_its_neighbours_do_not(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 16, "vocab_size": 96}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 3}
    config = Qwen3MoeConfig(**sizes, **counts, num_experts_per_tok=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # In one expert nearly all lies halfway between two numbers of E4M3, 416 and 448: 28.6 dB.
    with torch.no_grad():
        weight = model.get_parameter("model.layers.1.mlp.experts.down_proj")
        weight[2] = 432 / 1024
        weight[2, :, 0] = 448 / 1024
    model.save_pretrained(tmp_path / "moe")
    report = decide_on(tmp_path / "moe", tmp_path / "out", dry_run=True, min_sqnr=31.0)
    assert report.groups[0].name == "model.layers.1.mlp.experts"
    assert report.ignore == (r"re:^model\.layers\.1\.mlp\.experts\.",)
    ignored = plan_of(tmp_path / "moe", "FP8_DYNAMIC", ignore=report.ignore).ignored_modules
    assert sorted(set(ignored) - {"lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(2))}) == sorted(
        f"model.layers.1.mlp.experts.{number}.{part}_proj" for number in range(3) for part in ("gate", "up", "down")
    )


@pytest.mark.slow
def test_vllm_accepts_every_list_of_kept_groups_and_refuses_one_that_tears_a_group_apart() -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer

    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    layers = [
        f"model.layers.{layer}.{part}"
        for layer in range(3)
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    ]
    groups = groups_of()
    for chosen in range(2 ** len(groups)):
        kept = [group for number, group in enumerate(groups) if chosen >> number & 1]
        ignore = plan_of(MODEL, "FP8_DYNAMIC", ignore=patterns_of(kept, ())).ignored_modules if chosen < 64 else ()
        ignore = ignore or ("lm_head", *(module for group in kept for module in group.modules))
        ignored = [layer for layer in layers if should_ignore_layer(layer, ignore, fused)]
        assert len(ignored) == len(kept)
    for group in groups:
        if len(group.modules) > 1:
            with pytest.raises(ValueError, match="different quantization schemes"):
                [should_ignore_layer(layer, group.modules[1:], fused) for layer in layers]
