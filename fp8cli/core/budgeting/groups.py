"""What a budget decides about: Linears that must share one fate, because vLLM computes them by one kernel.

vLLM loads the projections of queries, keys and values as one matrix, those of gate and up as another, all experts of
a layer as one layer; a checkpoint that quantizes one part of such a matrix and not another is refused
(`should_ignore_layer` of its compressed-tensors, `get_moe_method` for experts; vLLM 0.32). What is fused there:

    qkv_proj, in_proj_qkvg, in_proj_qkvgfab    q_proj k_proj v_proj; with gates: g_proj b_proj f_a_proj g_a_proj
    gate_up_proj, w13, fc13, merged_proj       gate_proj up_proj; w1 w3; fc1 fc3; gate_proj dense_h_to_4h
    fused_qkv_a_proj                           q_a_proj kv_a_proj_with_mqa
    wk_weights_proj                            wk weights_proj
    in_proj_qkvz, in_proj_ba                   in_proj_qkv in_proj_z; in_proj_b in_proj_a
    experts                                    whatever lies below `experts.0`, `experts.1`, …

Where models of vLLM differ, the wider fusion counts: what shares a fate without need costs some bytes, what is torn
apart does not load.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.folding import natural_order
from fp8cli.core.model.roster import Roster
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES

FUSED: Final[tuple[frozenset[str], ...]] = tuple(
    frozenset(row.split())
    for row in (
        "q_proj k_proj v_proj g_proj b_proj f_a_proj g_a_proj",
        "query key value",
        "q k v",
        "wq wk wv weights_proj",
        "gate_proj up_proj dense_h_to_4h",
        "w1 w3",
        "fc1 fc3",
        "c_fc_0 c_fc_1",
        "q_a_proj kv_a_proj_with_mqa",
        "in_proj_qkv in_proj_z",
        "in_proj_b in_proj_a",
    )
)
"""Last parts of names; those of one row that stand beside each other are one matrix to some model of vLLM."""

_WEIGHT: Final = ".weight"
_NUMBER: Final = re.compile(r"\.\d+\.")
_EXPERTS: Final = re.compile(r"(?P<layer>.*\bexperts)\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Linears that are quantized together or not at all."""

    name: str
    """`model.layers.0.self_attn.{q,k,v}_proj`, or the module's own name."""
    modules: tuple[str, ...]
    """By their full names, in the order of the checkpoint."""
    tensors: tuple[str, ...]
    """Their weights, by their names on disk."""
    saved_bytes: int
    """Bytes that quantizing them saves, scales counted. Not above 0 for a head that a quantized form unties."""


def find_groups(plan: Plan, checkpoint: Checkpoint, roster: Roster) -> tuple[Group, ...]:
    """Return the decisions that a plan leaves to a budget: all that it quantizes, grouped, in natural order.

    roster: of the checkpoint; it knows the full names.
    """
    width = DTYPES[plan.dtype].bits // 8
    inputs = {scale.module: scale.info.bytes for scale in plan.calibrated if scale.kind == "input"}
    quantized = {_module(tensor, roster): tensor for tensor in plan.tensors if tensor.action == "quantize"}
    # vLLM loads experts that share a tensor in one form: of all layers or of none they are taken out of it.
    fused = [module for module, tensor in quantized.items() if _is_part(tensor)]
    groups = []
    for modules in (
        *share_fate([module for module in quantized if module not in set(fused)]),
        *([fused] if fused else ()),
    ):
        tensors = [quantized[module] for module in modules]
        saved = 0
        for tensor in tensors:
            # A tied head takes no room of its own unless it is quantized.
            untied = tensor.name not in checkpoint.tensors and not _is_part(tensor)
            stays = 0 if untied else tensor.source.elements * width
            saved += stays - tensor.bytes_out - inputs.get(tensor.name.removesuffix(_WEIGHT), 0)
        names = tuple(tensor.name for tensor in tensors)
        groups.append(Group(name=_name(modules), modules=tuple(modules), tensors=names, saved_bytes=saved))
    return tuple(sorted(groups, key=lambda group: natural_order(group.name)))


def share_fate(modules: Sequence[str]) -> list[list[str]]:
    """Cut names of Linears into lists that vLLM demands one scheme for, each in the order it is given in."""
    lists: dict[tuple[str, int], list[str]] = {}
    for module in modules:
        lists.setdefault(_kernel(module), []).append(module)
    return list(lists.values())


def patterns_of(groups: Sequence[Group], linears: Collection[str]) -> tuple[str, ...]:
    """Return what names the modules of some groups in `ignore`, and no other of the model's `linears`.

    Names; for a layer of experts one regular expression, where nothing else lies below it.
    """
    words: list[str] = []
    for group in groups:
        pattern = f"^{re.escape(group.name)}\\.".replace(r"\*", r"\d+")
        if set(group.modules) == {name for name in linears if re.match(pattern, name)}:
            words.append(f"re:{pattern}")
        else:
            words.extend(group.modules)
    return tuple(words)


def _kernel(module: str) -> tuple[str, int]:
    """What a Linear has in common with those that vLLM computes together with it."""
    experts = _EXPERTS.match(module)
    if experts is not None:
        return experts["layer"], -1
    parent, _, leaf = module.rpartition(".")
    row = next((number for number, row in enumerate(FUSED) if leaf in row), None)
    return (module, -1) if row is None else (parent, row)


def _module(tensor: PlannedTensor, roster: Roster) -> str:
    """Full name of a module; a head that is tied to the embedding is no tensor of the checkpoint."""
    return roster.full_names.get(tensor.name, tensor.name).removesuffix(_WEIGHT)


def _is_part(tensor: PlannedTensor) -> bool:
    """Whether it is one of several weights that one stored tensor holds."""
    return tensor.role != "output head" and tensor.source.name != tensor.name


def _name(modules: Sequence[str]) -> str:
    """Write a list in a word: `model.layers.0.mlp.{gate,up}_proj`, `model.layers.3.mlp.experts`; of all layers, `*`."""
    experts = _EXPERTS.match(modules[0])
    if experts is not None:
        layer = experts["layer"]
        return layer if modules[-1].startswith(f"{layer}.") else _NUMBER.sub(".*.", layer)
    if len(modules) == 1:
        return modules[0]
    parent, dot, _ = modules[0].rpartition(".")
    leaves = [module.rpartition(".")[2] for module in modules]
    ending = "_proj" if all(leaf.endswith("_proj") for leaf in leaves) else ""
    return f"{parent}{dot}{{{','.join(leaf.removesuffix(ending) for leaf in leaves)}}}{ending}"
