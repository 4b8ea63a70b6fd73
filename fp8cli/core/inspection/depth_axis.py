"""The depth of a model as an axis: which layer a tensor's name puts it in, and where that layer is drawn.

A model may have several stacks of layers (language model, vision tower, draft layers); they follow one another on
the axis, and what is in no layer, as `lm_head`, comes last.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.core.folding import natural_order

ModuleKind = Literal["attention", "mlp", "experts", "other"]

MOST_STACKS: Final = 4
"""Stacks that the axis has room for."""

_MOST_DIGITS: Final = 6
"""A longer number in a name is no layer."""
_ATTENTION: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"})
_MLP: Final = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "dense_h_to_4h"})
_MLP_PARTS: Final = ("mlp", "feed_forward", "feedforward", "ffn", "denserelu")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: the name before its layer's number, the number, and the kind of its module."""

    stack: str | None
    """Such as `model.layers`; None for what is in no layer, as lm_head."""
    layer: int
    kind: ModuleKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Layers that follow one another, and where on the axis they begin."""

    name: str
    first: int
    last: int
    begin: int

    def holds(self, position: int) -> bool:
        """Whether that position of the axis is one of its layers."""
        return self.begin <= position <= self.begin + self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Depth as positions: one stack after another with a gap between them, and last what is in no layer."""

    stacks: tuple[Stack, ...]
    outside: int | None
    """Position of what is in no layer; None where everything is."""

    def position(self, place: Place) -> int:
        """Return where a tensor is drawn."""
        for stack in self.stacks:
            if stack.name == place.stack:
                return stack.begin + place.layer - stack.first
        return 0 if self.outside is None else self.outside

    def stack_at(self, position: int) -> Stack | None:
        """Return the stack that a position lies in; None outside the layers."""
        return next((stack for stack in self.stacks if stack.holds(position)), None)

    def describe(self, position: int) -> str:
        """Name a position, `layer 3`; with more than one stack `model.layers 3`."""
        stack = self.stack_at(position)
        if stack is None:
            return "outside the layers"
        layer = position - stack.begin + stack.first
        return f"layer {layer}" if len(self.stacks) == 1 else f"{stack.name} {layer}"

    @property
    def end(self) -> int:
        """The last position."""
        if self.outside is not None:
            return self.outside
        return max((stack.begin + stack.last - stack.first for stack in self.stacks), default=0)


def locate(name: str) -> Place:
    """Read layer and kind of module from a tensor's name; the layer is its first component that is a number."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isascii() and part.isdecimal() and len(part) <= _MOST_DIGITS:
            return Place(".".join(parts[:index]), int(part), _kind_of_module(parts[index + 1 :]))
    return Place(None, 0, _kind_of_module(parts))


def lay_out(places: Iterable[Place]) -> Axis:
    """Give every place its position, the largest stack first; those beyond MOST_STACKS count as outside the layers."""
    layers: defaultdict[str | None, Counter[int]] = defaultdict(Counter)
    for place in places:
        layers[place.stack][place.layer] += 1
    by_size = sorted(
        (name for name in layers if name is not None), key=lambda name: (-layers[name].total(), natural_order(name))
    )
    stacks: list[Stack] = []
    begin = 0
    for name in by_size[:MOST_STACKS]:
        first, last = min(layers[name]), max(layers[name])
        stacks.append(Stack(name=name, first=first, last=last, begin=begin))
        begin += last - first + 2
    is_all = None not in layers and len(by_size) <= MOST_STACKS
    return Axis(stacks=tuple(stacks), outside=None if is_all else begin)


def _kind_of_module(parts: Sequence[str]) -> ModuleKind:
    words = [part.lower() for part in parts]
    if any("expert" in word for word in words):
        return "experts"
    if any("attn" in word or "attention" in word or word in _ATTENTION for word in words):
        return "attention"
    if any(word in _MLP or any(part in word for part in _MLP_PARTS) for word in words):
        return "mlp"
    return "other"
