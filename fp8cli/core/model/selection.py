"""Which tensors are quantized, and the reason for each; decided from names and shapes alone.

llm-compressor's `oneshot` is the model to follow: with the targets `Linear` and `ignore` of the output head it
quantizes the weight of every other nn.Linear. This module reaches the same verdicts without building a model,
from the built-in table of architectures, and says of every tensor why. It differs on purpose in two places:

- Routers written as a plain nn.Linear (`mlp.shared_expert_gate`, Jamba's `router`) are kept by default, because
  vLLM holds them unquantized and has no place for their scales. So are the other layers of `unserved`.
- Tensors that transformers does not know (layers for multi-token prediction) are copied, not lost. Their parts
  are added to `ignore`, so that vLLM does not look for scales there.

A missing tensor or a wrong shape stops the run here, before the first byte of a weight is read.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from fp8cli.core.model import modeling, multimodal
from fp8cli.core.model.architectures import (
    ArchitectureRules,
    Role,
    TensorRule,
    architecture_name,
    find_rules,
    numbers_of,
    pattern_of,
)
from fp8cli.core.model.attention import text_config
from fp8cli.core.model.fused import Part
from fp8cli.core.model.patterns import Chooser
from fp8cli.core.model.roster import Roster, Tensors, parents_of
from fp8cli.core.model.unserved import reason_unserved
from fp8cli.errors import CannotRun, UsageError

Action = Literal["quantize", "keep", "drop"]

_ROUTER = re.compile(r"(^|\.)(router|gate|gating|shared_expert_gate|modality_router)$")
_HEAD = re.compile(r"(\w+\.)?(lm_head|embed_out|output)\.weight")
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe)\.")
_NORM = re.compile(r"norm|(^|\.)ln")
_NOT_LINEAR = re.compile(r"conv|rotary|router|(^|\.)gate\.")
_CLASS_HEAD = re.compile(r"(score|classifier)\.")
ROTARY_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
ATTENTION_MASK = re.compile(r"\.(attn|attention|self_attn|self_attention)\.(masked_)?bias$")
_REASONS: dict[Role, str] = {
    "embedding": "an embedding, not an nn.Linear",
    "norm": "a normalization, not an nn.Linear",
    "router": "part of a router, which chooses the experts and is not an nn.Linear",
    "bias": "a bias: only weights are quantized",
    "convolution": "a convolution, not an nn.Linear",
    "transposed linear": "a transposed Conv1D, not an nn.Linear",
    "buffer": "a buffer, not a weight",
    "other": "not the weight of an nn.Linear",
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one tensor of the output, and why."""

    name: str
    action: Action
    role: Role
    reason: str
    source: str
    """Tensor of the checkpoint whose values it takes: itself, except a tied head that is quantized on its own."""
    part: Part | None = None
    """Which part of `source` it is, if `source` holds several experts; None: all of it."""
    float32_under: tuple[str, ...] = ()
    """dtypes of the model (`F16`, `BF16`) under which transformers holds this tensor in float32."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One decision per tensor, and what the output's `config.json` must say about them."""

    decisions: tuple[Decision, ...]
    ignored_modules: tuple[str, ...]
    """`quantization_config.ignore`, as llm-compressor writes it: full names in the order of the model's modules."""
    tie_word_embeddings: bool
    """What `config.json` must say from now on."""
    duplicates: tuple[tuple[str, str], ...] = ()
    """Pairs (dropped, repeated). If their bytes differ, the head is not tied: select again with `untied=True`."""
    rules: ArchitectureRules


def rules_for(config: Mapping[str, Any], tensors: Tensors) -> ArchitectureRules:
    """Find the rules of a checkpoint: in the table, else from transformers, else from its names and shapes."""
    name = architecture_name(config)
    if multimodal.is_multimodal(name, config):
        return multimodal.compose_rules(name, config, tensors)
    return find_rules(config) or modeling.read_rules(config) or rules_from_names(name, tensors)


def rules_from_names(name: str, tensors: Tensors) -> ArchitectureRules:
    """Guess the rules of a model nobody here knows: matrices in numbered layers are Linear, by name and shape."""
    ordered = sorted(tensors, key=lambda key: (pattern_of(key).count("*"), numbers_of(key), key))
    rules = tuple(TensorRule(pattern=key, role=guess_role(key, tensors[key][1])) for key in ordered)
    modules = {rule.role: rule.pattern.removesuffix(".weight") for rule in reversed(rules)}
    return ArchitectureRules(
        name=name,
        origin="names and shapes",
        tensors=rules,
        output_head=modules.get("output head"),
        input_embedding=modules.get("embedding"),
        tie_word_embeddings="output head" not in modules,
        base_prefix="",
    )


def select(
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    rules: ArchitectureRules,
    targets: Sequence[str] = ("Linear",),
    ignore: Sequence[str] = (),
    default_ignore: bool = True,
    untied: bool = False,
) -> Selection:
    """Decide for every tensor of a checkpoint.

    config: the parsed `config.json`. tensors: what the headers say. targets: `Linear`, or modules to restrict to;
    ignore: modules to keep besides the default ones. Both take a module name, the name of its weight, a glob, or
    `re:` and a regular expression that must match from the start. default_ignore=False quantizes the output head
    and plain-Linear routers too. untied=True disbelieves `tie_word_embeddings`.
    Raises BadInput (missing tensor, wrong shape), UsageError (a pattern without a match), CannotRun (unsupported).
    """
    head, embedding = rules.output_head, f"{rules.input_embedding}.weight"
    told = config.get("tie_word_embeddings")
    says_tied = bool(rules.tie_word_embeddings if told is None else told) and not untied
    tied = says_tied and rules.can_tie and head is not None
    roster = Roster(config=text_config(config) if rules.towers else config, tensors=tensors, rules=rules)
    roster.check(head_is_stored=head is not None and not tied)
    chooser = Chooser.of(roster.modules | ({head} if head else set()), targets=targets, ignore=ignore)
    judge = _Judge(roster=roster, chooser=chooser, default_ignore=default_ignore)

    decisions = [each for name in tensors for each in judge.decide_all(name)]
    kept = [each for each in decisions if each.action != "quantize"]
    whole = next((each.name for each in kept if each.name in roster.split), None)
    if whole is not None and any(each.part is not None for each in decisions):
        # Llama 4's loader in vLLM takes the first fused tensor it meets as a promise for all layers.
        message = f"`{whole}` would stay in one tensor, but experts of other layers are taken out of theirs"
        raise UsageError(message, hint="vLLM wants one form: ignore the experts of all layers, or of none")
    ignored = {judge.module(each) for each in kept if judge.is_linear(each.name)}
    ignored |= {module for each in kept for module, _ in roster.split.get(each.name, ())}
    duplicates: list[tuple[str, str]] = []
    if tied:
        weight = f"{head}.weight"
        twin = roster.on_disk[embedding]
        stored = next((each for each in decisions if roster.full_names.get(each.name) == weight), None)
        action, reason = judge.judge(weight.removesuffix(".weight"), "output head")
        if action == "quantize":
            if rules.towers:
                raise CannotRun(f"the output head of `{rules.name}` is tied to `{twin}`, so it cannot be quantized")
            says_tied = False
            if stored is None:
                reason = f"{reason}, untied from `{twin}`"
                decisions.append(
                    Decision(name=weight, action="quantize", role="output head", reason=reason, source=twin)
                )
        else:
            ignored.add(str(head))
            if stored is not None:
                reason = f"repeats `{twin}`, to which `tie_word_embeddings` ties it"
                decisions[decisions.index(stored)] = replace(stored, action="drop", reason=reason)
                duplicates.append((stored.name, twin))
    ignored |= {
        memory + module.removeprefix(disk)
        for module in ignored
        for disk, memory in rules.in_memory.items()
        if module.startswith(disk)
    }
    return Selection(
        decisions=tuple(decisions),
        ignored_modules=(
            *sorted(ignored | roster.gates, key=_module_order(rules)),
            *rules.tower_patterns,
            *judge.foreign_parts(),
        ),
        tie_word_embeddings=says_tied,
        duplicates=tuple(duplicates),
        rules=rules,
    )


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Gives the verdict on one tensor at a time."""

    roster: Roster
    chooser: Chooser
    default_ignore: bool

    def decide_all(self, name: str) -> Iterator[Decision]:
        """Decide for one tensor of the checkpoint, or for every expert's weight in it."""
        apart = self.roster.split.get(name)
        if apart is None:
            yield self.decide(name)
            return
        verdicts = {module: self.judge(module, "linear") for module, _ in apart}
        actions = {action for action, _ in verdicts.values()}
        if len(actions) > 1:
            quantized = next(module for module, (action, _) in verdicts.items() if action == "quantize")
            message = f"`{name}` holds all experts of a layer, so `{quantized}` cannot be quantized without the others"
            raise UsageError(message, hint="name all experts of a layer, or none")
        if actions == {"keep"}:
            _, reason = next(iter(verdicts.values()))
            yield Decision(name=name, action="keep", role="fused experts", reason=reason, source=name)
            return
        for module, part in apart:
            reason = "the weight of one expert, out of a tensor that holds those of all"
            weight = f"{module}.weight"
            yield Decision(name=weight, action="quantize", role="linear", reason=reason, source=name, part=part)

    def decide(self, name: str) -> Decision:
        """Decide for one tensor by itself, whatever it may be tied to."""
        tower = self.roster.rules.tower_of(name)
        if tower is not None:
            reason = f"part of the {tower}, which stays: only the language model is quantized"
            return Decision(name=name, action="keep", role=tower, reason=reason, source=name)
        rule = self.roster.found.get(name)
        if rule is None:
            action, reason = self._judge_foreign(name)
            return Decision(name=name, action=action, role="other", reason=reason, source=name)
        module = self.roster.full_names[name].rpartition(".")[0]
        role = "router" if rule.role == "linear" and is_router(module, self.roster.rules) else rule.role
        if self.is_linear(name):
            action, reason = self.judge(module, role)
        else:
            action, reason = "keep", _REASONS[role]
        return Decision(
            name=name,
            action=action,
            role=role,
            reason=reason,
            source=name,
            float32_under=() if action == "quantize" else self._float32_under(name),
        )

    def judge(self, module: str, role: Role) -> tuple[Action, str]:
        """Whether an nn.Linear is quantized, and why."""
        pattern = self.chooser.ignored_by(module)
        if pattern is not None:
            return "keep", f"ignored by `{pattern}`"
        if not self.chooser.is_target(module):
            return "keep", f"an nn.Linear, but not among the targets {', '.join(map(repr, self.chooser.targets))}"
        if self.default_ignore and role == "output head":
            return "keep", "the output head, kept by default: vLLM does not load it quantized"
        if self.default_ignore and role == "router":
            return "keep", "a router, kept by default: vLLM holds it unquantized"
        unserved = reason_unserved(self.roster.rules.name, module)
        if self.default_ignore and unserved is not None:
            return "keep", unserved
        by = ", by name and shape" if self.roster.rules.origin == "names and shapes" else ""
        return "quantize", f"the weight of an nn.Linear{by}" if role == "linear" else f"the {role}, an nn.Linear{by}"

    def is_linear(self, name: str) -> bool:
        """Whether a tensor is the weight of an nn.Linear."""
        rule = self.roster.found.get(name)
        return rule is not None and rule.role in ("linear", "output head")

    def module(self, decision: Decision) -> str:
        """Full name of the module a decision is about."""
        return self.roster.full_names[decision.name].rpartition(".")[0]

    def foreign_parts(self) -> list[str]:
        """Patterns for `ignore` that cover the kept tensors outside the model, one for each layer or part."""
        parts = set()
        for name, (_, shape) in self.roster.tensors.items():
            if self.roster.found.get(name) is None and len(shape) == 2 and name.endswith(".weight"):
                layer = re.match(r".*?\.\d+\.", name)
                first, dot, rest = name.partition(".")
                parts.add(layer.group() if layer else first if rest == "weight" else first + dot)
        ordered = sorted(parts, key=lambda part: (numbers_of(part + "x"), part))
        # A module that stands alone is named: as a beginning it would need a dot, and its name has none.
        return [f"re:^{re.escape(part)}" if part.endswith(".") else part for part in ordered]

    def _judge_foreign(self, name: str) -> tuple[Action, str]:
        rules = self.roster.rules
        listed = any(re.search(pattern, name) for pattern in rules.ignored_on_load)
        if ROTARY_BUFFER.search(name) or (listed and ATTENTION_MASK.search(name)):
            return "drop", "a buffer that transformers and vLLM compute themselves and skip on load"
        if rules.output_head is None and _CLASS_HEAD.match(name):
            return "keep", "the head for classes, kept: vLLM computes it in 16 or 32 bits"
        layers = self.roster.layers
        beyond = layers is not None and rules.find(self.roster.full_names[name]) is not None
        extra = f" with {layers} layers" if beyond else ""
        return "keep", f"not part of `{rules.name}`{extra}; copied unchanged"

    def _float32_under(self, name: str) -> tuple[str, ...]:
        rules, full = self.roster.rules, self.roster.full_names[name]
        if any(re.search(pattern.replace("*", ".*"), full) for pattern in rules.keep_fp32):
            return ("F16", "BF16")
        if any(re.search(pattern.replace("*", ".*"), full) for pattern in rules.keep_fp32_from_fp16):
            return ("F16",)
        return ()


def is_router(module: str, rules: ArchitectureRules) -> bool:
    """Whether a module chooses experts, by its name or because it lies in one that does."""
    return _ROUTER.search(module) is not None or _lies_in(pattern_of(module), rules.gates)


@lru_cache
def _lies_in(pattern: str, places: tuple[str, ...]) -> bool:
    """Whether a module, written as a pattern, lies below one of some places; transformers names those of each layer."""
    return not frozenset(map(pattern_of, places)).isdisjoint(parents_of(pattern))


def guess_role(name: str, shape: tuple[int, ...]) -> Role:
    """Role of a tensor whose model nobody knows."""
    if name.endswith("bias"):
        return "bias"
    if len(shape) >= 3 and "expert" in name:
        return "fused experts"
    if _HEAD.fullmatch(name):
        return "output head"
    if _EMBEDDING.search(name):
        return "embedding"
    if _NORM.search(name):
        return "norm"
    numbered = "*" in pattern_of(name)
    matrix = len(shape) == 2 and name.endswith(".weight") and not _NOT_LINEAR.search(name)
    return "linear" if numbered and matrix else "other"


def _module_order(rules: ArchitectureRules) -> Callable[[str], tuple[tuple[int, int], ...]]:
    """Sort key that puts module names in the order in which the model registers them."""
    ranks: dict[str, int] = {}
    for rule in rules.tensors:
        parts = pattern_of(rule.pattern).split(".")
        for end in range(1, len(parts)):
            ranks.setdefault(".".join(parts[:end]), len(ranks))

    def key(module: str) -> tuple[tuple[int, int], ...]:
        parts, pattern = module.split("."), pattern_of(f"{module}.x").split(".")
        return tuple(
            (ranks.get(".".join(pattern[: end + 1]), len(ranks)), int(part) if part.isdigit() else 0)
            for end, part in enumerate(parts)
        )

    return key
