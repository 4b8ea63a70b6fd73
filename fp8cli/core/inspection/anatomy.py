"""What each tensor of a checkpoint is to its model, whatever form it is stored in.

Codes and packed weights go by the name of the weight that they stand for (`q_proj.weight_packed` by
`q_proj.weight`), so that the built-in table of architectures knows them. What it does not know is told by names and
shapes, and is said to be.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.model.architectures import ArchitectureRules, Role, TensorRule, architecture_name, pattern_of
from fp8cli.core.model.attention import text_config
from fp8cli.core.model.multimodal import known_rules
from fp8cli.core.model.roster import Roster
from fp8cli.core.model.selection import guess_role, is_router
from fp8cli.formats.safetensors import DTYPES

_PACKED: Final = {".weight_packed": ".weight", ".qweight": ".weight", "._weight_qdata": ".weight"}
# llm-compressor's `oneshot` writes experts under these names, whatever the source calls them.
_EXPERT: Final = re.compile(r"(\.experts\.\*)\.(gate_proj|up_proj|down_proj)\.weight$")
_PUBLISHED: Final = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One tensor that belongs to the model, not to its quantization."""

    tensor: StoredTensor
    module: str
    """Full name of its module, with the prefix that a bare model leaves out."""
    role: Role
    """`router` also for routers that are an nn.Linear."""
    is_linear: bool
    """Whether it is the weight of an nn.Linear, or of what is stored and quantized like one."""
    is_codes: bool
    """Whether it holds codes that mean nothing without a scale."""
    is_known: bool
    """Whether the model of this architecture has it; not so layers for multi-token prediction."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a checkpoint, and what its architecture asks for."""

    rules: ArchitectureRules
    roster: Roster
    """The tensors by the names of their weights, beside the rules."""
    parts: Mapping[str, Part]
    """By the name on disk."""
    renamed: Mapping[str, str]
    """Name on disk → the name that published checkpoints of this architecture have."""

    @property
    def is_known(self) -> bool:
        """Whether the architecture is in the built-in table."""
        return self.rules.origin == "table"

    @cached_property
    def linears(self) -> Mapping[str, Part]:
        """The weights of nn.Linear modules, by full module name."""
        return {part.module: part for part in self.parts.values() if part.is_linear}


def dissect(survey: Survey, dialect: Dialect) -> Anatomy:
    """Say what every tensor is, but for scales and the like, which `dialect.labels` names."""
    config = survey.config or {}
    own = {name: tensor for name, tensor in survey.tensors.items() if name not in dialect.labels}
    known = known_rules(config, own)
    rules = known or _rules_from_patterns(config, own)
    renamed = _renamed_experts(own, rules)
    logical = {name: renamed.get(name) or _logical_name(name, survey.tensors) for name in own}
    shapes = {weight: (own[name].info.dtype, own[name].info.shape) for name, weight in logical.items()}
    roster = Roster(config=text_config(config) if rules.towers else config, tensors=shapes, rules=rules)
    codes = {weight.name for weight in dialect.weights}
    teller = _Teller(roster=roster)
    parts = {
        name: teller.part(tensor, logical[name], is_codes=name in codes or _is_packed(tensor, name, logical[name]))
        for name, tensor in own.items()
    }
    return Anatomy(rules=rules, roster=roster, parts=parts, renamed=renamed)


class _Teller:
    """Tells the roles of tensors, pattern by pattern: a mixture of experts has hundreds of tensors for each."""

    def __init__(self, *, roster: Roster) -> None:
        self.roster = roster
        self.roles: dict[tuple[str, int], tuple[Role, bool]] = {}

    def part(self, tensor: StoredTensor, weight: str, *, is_codes: bool) -> Part:
        """Describe one tensor, which stands for `weight`."""
        full = self.roster.full_names[weight]
        pattern = pattern_of(full)
        key = (pattern, len(tensor.info.shape))
        if key not in self.roles:
            self.roles[key] = self._tell(full, pattern, tensor.info.shape)
        role, is_linear = self.roles[key]
        module = full.removesuffix(".weight").removesuffix(".bias")
        return Part(
            tensor=tensor,
            module=module,
            role=role,
            is_linear=is_linear,
            is_codes=is_codes,
            is_known=weight in self.roster.found,
        )

    def _tell(self, full: str, pattern: str, shape: tuple[int, ...]) -> tuple[Role, bool]:
        rule = self.roster.rules.find(full)
        role = guess_role(pattern, shape) if rule is None else rule.role
        is_linear = role in {"linear", "output head"}
        if is_linear and is_router(full.removesuffix(".weight"), self.roster.rules):
            role = "router"
        return role, is_linear


def _rules_from_patterns(config: Mapping[str, object], tensors: Mapping[str, StoredTensor]) -> ArchitectureRules:
    """Rules of an architecture nobody here knows, by the patterns of its names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        shapes.setdefault(pattern_of(_logical_name(name, tensors)), tensor.info.shape)
    rules = tuple(TensorRule(pattern=pattern, role=guess_role(pattern, shape)) for pattern, shape in shapes.items())
    modules = {rule.role: rule.pattern.removesuffix(".weight") for rule in rules}
    return ArchitectureRules(
        name=architecture_name(config),
        origin="names and shapes",
        tensors=rules,
        output_head=modules.get("output head"),
        input_embedding=modules.get("embedding"),
        base_prefix="",
    )


def _renamed_experts(tensors: Mapping[str, StoredTensor], rules: ArchitectureRules) -> Mapping[str, str]:
    """Experts under llm-compressor's names where the architecture's own are w1, w2 and w3."""
    if not any(pattern.endswith(".experts.*.w1.weight") for pattern in rules.by_pattern):
        return {}
    renamed: dict[str, str] = {}
    for name in tensors:
        found = _EXPERT.search(pattern_of(_logical_name(name, tensors)))
        if found is None or rules.find(name) is not None:
            continue
        projection = found.group(2)
        head, _, _ = name.rpartition(f".{projection}.")
        published = f"{head}.{_PUBLISHED[projection]}.weight"
        candidates = (published, published.replace(".mlp.", ".block_sparse_moe."))
        expected = next((candidate for candidate in candidates if rules.find(candidate) is not None), None)
        if expected is not None:
            renamed[name] = expected
    return renamed


def _logical_name(name: str, names: Mapping[str, StoredTensor]) -> str:
    """Name of the weight that a tensor stands for."""
    if name.endswith(".weight"):
        return name
    for ending, plain in _PACKED.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + plain
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in names:
        return name.removesuffix("_blocks")
    return name


def _is_packed(tensor: StoredTensor, name: str, weight: str) -> bool:
    """Whether a tensor that is not FP8 holds codes: under a packed name, or whole numbers where a weight should be."""
    if name != weight and name.endswith((*_PACKED, "_blocks")):
        return True
    return name.endswith(".weight") and not DTYPES[tensor.info.dtype].floating
