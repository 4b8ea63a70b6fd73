"""The names of a checkpoint beside the rules of its architecture: what each one is, and whether all are there.

Some published checkpoints leave out the prefix of the bare model (`h.0.…` for `transformer.h.0.…`); transformers
and vLLM add it on load. Rules, `--ignore` and the `ignore` of the output use the full name; the output's tensors
keep the name on disk.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fp8cli.core.model.architectures import ALWAYS, ArchitectureRules, TensorRule, layer_of, pattern_of
from fp8cli.core.model.fused import WITHOUT_A_PLACE, Part, is_transposed, parts
from fp8cli.errors import CannotRun
from fp8cli.formats.complaints import Complaint, refuse

_FUSED_DIMENSIONS: Final = 3
_MATRIX_OF_EXPERTS: Final = re.compile(r"(^|\.)experts\.(?:.*\.)?(?!\w*(?:weight|bias|scale)\w*$)\w+$")

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → safetensors dtype tag and shape, as the headers of a checkpoint have it."""


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The tensors of one checkpoint, each with the rule of its architecture that fits it."""

    config: Mapping[str, Any]
    tensors: Tensors
    rules: ArchitectureRules

    @cached_property
    def layers(self) -> int | None:
        """Number of layers the config promises, if it says."""
        return self.rules.value("num_hidden_layers", self.config)

    @cached_property
    def full_names(self) -> dict[str, str]:
        """Name on disk → name with the prefix of the bare model."""
        return {name: full for name, (full, _) in self._identified.items()}

    @cached_property
    def on_disk(self) -> dict[str, str]:
        """The other way round."""
        return {full: name for name, full in self.full_names.items()}

    @cached_property
    def modules(self) -> frozenset[str]:
        """Full names of all modules that hold a tensor; of fused experts, each by itself."""
        plain = (full.rpartition(".")[0] for name, full in self.full_names.items() if name not in self.split)
        return frozenset((*plain, *(module for parts in self.split.values() for module, _ in parts)))

    @cached_property
    def split(self) -> dict[str, tuple[tuple[str, Part], ...]]:
        """Name on disk of a tensor that holds several experts → full name of each nn.Linear in it, and where it lies.

        One of a shape that cannot be understood is left out.
        """
        if not self.rules.fused:
            return {}
        known = {name: fused for name, full in self.full_names.items() if (fused := self.rules.fused_of(full))}
        hidden = self.rules.value("hidden_size", self.config) or 0
        told = (is_transposed(fused, self.tensors[name][1], hidden) for name, fused in known.items())
        transposed = next((answer for answer in told if answer is not None), True)
        found = {}
        for name, fused in known.items():
            shape = self.tensors[name][1]
            if len(shape) != _FUSED_DIMENSIONS or shape[2 if transposed else 1] % len(fused.projections):
                continue
            experts = fused.experts.replace("*", str(layer_of(self.full_names[name])))
            found[name] = tuple(
                (f"{experts}.{leaf}", part) for leaf, part in parts(fused, shape, transposed=transposed)
            )
        return found

    def first_expert(self, name: str) -> list[str]:
        """Modules of the first expert in a tensor that holds several: by their names vLLM looks for all in `ignore`."""
        full = self.full_names.get(name, name)
        fused = self.rules.fused_of(full)
        if fused is None:
            return []
        experts = fused.experts.replace("*", str(layer_of(full)))
        return [f"{experts}.0.{leaf}" for leaf in fused.projections]

    @cached_property
    def gates(self) -> frozenset[str]:
        """Modules here that compressed-tensors lists in `ignore` for the name of their class."""
        wanted = set(self.rules.gates)
        paths: set[str] = set()
        for module in self.modules if wanted else ():
            # A module's parents are those of its siblings: going up ends where somebody was before.
            path = module
            while path and path not in paths:
                paths.add(path)
                path = path.rpartition(".")[0]
        return frozenset(path for path in paths if path in wanted or pattern_of(path) in wanted)

    @cached_property
    def found(self) -> dict[str, TensorRule]:
        """Name on disk → its rule, for the tensors that are part of the model."""
        return {
            name: rule
            for name, (full, rule) in self._identified.items()
            if rule is not None and not self._is_beyond(full)
        }

    def check(self, *, head_is_stored: bool) -> None:
        """Raise BadInput or CannotRun unless this checkpoint is a whole one, of the shapes its config promises."""
        self._refuse_what_is_unsupported()
        for complaint in self.complaints(head_is_stored=head_is_stored):
            refuse(complaint)

    def complaints(self, *, head_is_stored: bool) -> Iterator[Complaint]:
        """Everything that is missing or misshapen, one by one: a hostile config can promise layers without end."""
        yield from self._without_linears()
        yield from self._misshapen()
        yield from self._misshapen_experts()
        if head_is_stored:
            yield from self._without_head()
        yield from self._missing_singles()
        yield from self._missing_companions()

    def _is_beyond(self, full: str) -> bool:
        """Whether a name belongs to a layer after the last one, as layers for multi-token prediction do."""
        if self.rules.tower_of(full) is not None:
            return False
        layer = None if self.layers is None else layer_of(full)
        return layer is not None and self.layers is not None and layer >= self.layers

    def _is_fused(self, name: str) -> bool:
        """Whether a tensor holds several experts; some architectures are published both ways."""
        rule = self.found.get(name)
        if name in self.split:
            return False
        # What is known by its rule, as nearly all of a hundred thousand experts are, need not be searched.
        if rule is not None and rule.role != "other":
            return rule.role == "fused experts"
        dimensions = len(self.tensors[name][1])
        # DBRX has those of all, one below the other, in a matrix that is no layer's `weight`.
        matrix = dimensions > 1 and _MATRIX_OF_EXPERTS.search(name) is not None
        if rule is None:
            return matrix or ("experts" in name and dimensions >= _FUSED_DIMENSIONS)
        return matrix

    @cached_property
    def _identified(self) -> dict[str, tuple[str, TensorRule | None]]:
        """Name on disk → full name and rule, be it of a layer that the model does not have."""
        return {name: self._identify(name) for name in self.tensors}

    def _identify(self, name: str) -> tuple[str, TensorRule | None]:
        if self.rules.tower_of(name) is not None:
            return name, TensorRule(pattern=name, role="other")
        rule = self.rules.find(name)
        if rule is None and (rule := self.rules.find(self.rules.base_prefix + name)) is not None:
            return self.rules.base_prefix + name, rule
        return name, rule

    def _refuse_what_is_unsupported(self) -> None:
        fused = next((name for name in self.tensors if self._is_fused(name)), None)
        if fused is not None:
            size = list(self.tensors[fused][1])
            why, hint = WITHOUT_A_PLACE.get(self.rules.name, ("and how they lie in it is not known", None))
            raise CannotRun(f"`{fused}` holds all experts in one tensor {size}, {why}", hint=hint)
        if not any(rule.role == "linear" for rule in self.rules.tensors):
            raise CannotRun(_without_any_linear(self.rules))

    def _without_linears(self) -> Iterator[Complaint]:
        if not any(rule.role == "linear" for rule in self.found.values()) and not self.split:
            wanted = next((rule.pattern for rule in self.rules.tensors if rule.role == "linear"), "nothing")
            names = f"expected names like `{wanted}`, found `{min(self.tensors, default='nothing')}`"
            yield Complaint(
                check="tensor.none",
                words=f"no Linear weight of `{self.rules.name}` is here: {names}",
                hint="look at `architectures` in config.json: does it belong to these weights?",
            )

    def _misshapen(self) -> Iterator[Complaint]:
        # Once per rule, not per tensor: a mixture of experts has hundreds of tensors for each.
        rules = {rule.pattern: rule for rule in self.found.values()}
        promised = {
            pattern: tuple(self.rules.dimension(expression, self.config) for expression in rule.shape or ())
            for pattern, rule in rules.items()
        }
        for name, rule in self.found.items():
            if rule.shape is None:
                continue
            shape = self.tensors[name][1]
            wanted = promised[rule.pattern]
            if len(wanted) != len(shape) or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True)):
                expected = ", ".join("?" if size is None else str(size) for size in wanted)
                yield Complaint(
                    check="tensor.shape",
                    tensor=name,
                    words=f"has shape {list(shape)}, but config.json promises [{expected}]",
                    hint=f"the dimensions are [{', '.join(text or '?' for text in rule.shape)}]",
                )

    def _without_head(self) -> Iterator[Complaint]:
        head = f"{self.rules.output_head}.weight"
        if head not in self.on_disk:
            yield Complaint(
                check="tensor.missing",
                tensor=head,
                words="is missing, and `tie_word_embeddings` is false",
                hint="if the output head shares the embedding, config.json must say tie_word_embeddings: true",
            )

    def _missing_singles(self) -> Iterator[Complaint]:
        """What every layer has, and what is there once."""
        for rule in self.rules.tensors:
            for layer in range(self.layers or 0 if "*" in rule.pattern else 1) if rule.presence == ALWAYS else ():
                wanted = self._apart(rule, layer) or self._copies(rule, layer)
                yield from (self._missing(name) for name in wanted if name not in self._all_names)

    @cached_property
    def _all_names(self) -> frozenset[str]:
        """Full names of all weights, those in fused tensors too."""
        apart = (f"{module}.weight" for parts in self.split.values() for module, _ in parts)
        return frozenset((*self.on_disk, *apart))

    def _apart(self, rule: TensorRule, layer: int) -> list[str]:
        """Names of the weights that stand for a fused tensor where each expert has its own; none if it is here."""
        fused = self.rules.fused_of(rule.pattern)
        if fused is None:
            return []
        experts = fused.experts.replace("*", str(layer))
        if f"{experts}.0.{fused.projections[0]}.weight" not in self.on_disk:
            return []
        experts_of = range(self._experts or 1)
        return [f"{experts}.{expert}.{leaf}.weight" for expert in experts_of for leaf in fused.projections]

    @cached_property
    def _experts(self) -> int | None:
        """Number of experts that the config promises for a layer whose experts can be fused, if it says."""
        counts = (self.rules.value(key, self.config) for key in ("num_local_experts", "num_experts"))
        return next((count for count in counts if count is not None), None)

    def _misshapen_experts(self) -> Iterator[Complaint]:
        hidden = self.rules.value("hidden_size", self.config)
        for name, apart in self.split.items():
            shape, (module, part) = self.tensors[name][1], apart[-1]
            side = part.shape[0 if module.endswith("down_proj") else 1]
            if self._experts not in (None, shape[0]) or hidden not in (None, side):
                promised = f"{self._experts} experts and a hidden size of {hidden}"
                yield Complaint(
                    check="tensor.shape",
                    tensor=name,
                    words=f"has shape {list(shape)}, but config.json promises {promised}",
                    hint="is config.json that of these weights?",
                )

    def _missing_companions(self) -> Iterator[Complaint]:
        """Siblings stand together in a layer, and experts without a gap, unless they are in one tensor."""
        label = {rule.pattern: rule for rule in self.rules.tensors if rule.presence not in ("", ALWAYS)}
        standing = {pattern: rule.presence for pattern, rule in label.items()}
        for fused in self.rules.fused:
            if fused.pattern in label:
                apart = (f"{fused.experts}.*.{leaf}.weight" for leaf in fused.projections)
                standing |= dict.fromkeys(apart, label[fused.pattern].presence)
        places: dict[str, set[int]] = defaultdict(set)
        for name, rule in self.found.items():
            if rule.pattern in standing:
                places[standing[rule.pattern]].add(layer_of(self.full_names[name]) or 0)
        for rule in label.values():
            for layer in sorted(places[rule.presence]):
                wanted = self._apart(rule, layer) or self._copies(rule, layer)
                yield from (self._missing(name) for name in wanted if name not in self._all_names)

    def _copies(self, rule: TensorRule, layer: int) -> Iterator[str]:
        """Names of one rule in one layer: one, or one for each expert."""
        name = rule.pattern.replace("*", str(layer), 1)
        if "*" not in name:
            yield name
            return
        for expert in range(self.rules.dimension(rule.count, self.config) or 0):
            yield name.replace("*", str(expert))

    def _missing(self, name: str) -> Complaint:
        return Complaint(
            check="tensor.missing",
            tensor=name,
            words=f"is missing: `{self.rules.name}` with {self.layers} layers needs it",
            hint="the download may be incomplete: compare the shards with model.safetensors.index.json",
        )


def _without_any_linear(rules: ArchitectureRules) -> str:
    if any(rule.role == "transposed linear" for rule in rules.tensors):
        why = "transposed Conv1D, which neither llm-compressor nor compressed-tensors quantizes"
        return f"the layers of `{rules.name}` are {why}"
    return f"`{rules.name}` has no nn.Linear in its layers, so there is nothing to quantize"


def parents_of(name: str) -> Iterator[str]:
    """`a`, `a.b` for `a.b.c`."""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.start()]
