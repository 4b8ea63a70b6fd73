"""Which modules a declaration means: the group that a module belongs to, and whether it is left alone.

Patterns are read as vLLM 0.32 reads them for each method. They come from strangers: one that is no regular
expression, or that could take for ever, names nothing here and is reported instead.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Final

from fp8cli.core.inspection.declaration import Declaration, Group, Matching
from fp8cli.core.inspection.pairing import module_of
from fp8cli.core.inspection.pattern_cost import is_too_costly

_LINEARS: Final = frozenset({"Linear", "ColumnParallelLinear", "RowParallelLinear"})
_CLASSES: Final = _LINEARS | {"Embedding"}
"""Targets that are classes of modules; all others are names."""
_LONGEST_NAME: Final = 256
"""No module has a longer name; patterns are not tried on one, for it could take them hours."""
_DEEPEST: Final = 24
"""Up to so many words in a name its parts are looked up; a longer name is searched instead."""


@dataclass(frozen=True, kw_only=True)
class NameMatcher:
    """Some names and patterns, ready to be asked about modules."""

    names: frozenset[str]
    """Modules named in full."""
    patterns: tuple[re.Pattern[str], ...]
    """Matched from the start of a name."""
    parts: frozenset[str] = frozenset()
    """Names that may also be a part of a module's name, between dots."""
    unread: tuple[str, ...] = ()
    """Patterns that were not tried."""
    _seen: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, words: Iterable[str], matching: Matching) -> "NameMatcher":
        """Prepare the names of one config."""
        names: set[str] = set()
        patterns: list[re.Pattern[str]] = []
        parts: set[str] = set()
        unread: list[str] = []
        for word in dict.fromkeys(words):
            if word.startswith("re:"):
                _compile(word.removeprefix("re:"), word, patterns, unread)
            elif matching == "wildcards" and any(sign in word for sign in "*?["):
                _compile(translate(word), word, patterns, unread)
            else:
                names.add(word)
                if matching != "compressed-tensors":
                    parts.add(word.strip("."))
        return cls(names=frozenset(names), patterns=tuple(patterns), parts=frozenset(parts), unread=tuple(unread))

    def names_exactly(self, module: str) -> bool:
        """Whether every reader takes the module to be named: in full, or by a pattern."""
        if module in self.names:
            return True
        return len(module) <= _LONGEST_NAME and any(pattern.match(module) for pattern in self.patterns)

    def may_name(self, module: str) -> bool:
        """Whether some reader takes the module to be named: also by a part of its name."""
        if module not in self._seen:
            self._seen[module] = self.names_exactly(module) or (bool(self.parts) and self._names_a_part(module))
        return self._seen[module]

    def _names_a_part(self, module: str) -> bool:
        words = module.split(".")
        if len(words) > _DEEPEST:
            return any(f".{part}." in f".{module}." for part in self.parts)
        ends = range(1, len(words) + 1)
        return any(".".join(words[begin:end]) in self.parts for end in ends for begin in range(end))


def _compile(text: str, word: str, patterns: list[re.Pattern[str]], unread: list[str]) -> None:
    try:
        if is_too_costly(text):
            unread.append(word)
        else:
            patterns.append(re.compile(text))
    except (re.error, RecursionError, OverflowError):
        unread.append(word)


@dataclass(frozen=True, kw_only=True)
class GroupFinder:
    """The groups of a declaration, each with the modules it names."""

    groups: tuple[tuple[NameMatcher, bool, Group], ...]
    """(what it names, whether it is for every nn.Linear, the group)"""

    @classmethod
    def of(cls, declaration: Declaration | None) -> "GroupFinder":
        """Prepare the groups; without a declaration there is none."""
        if declaration is None:
            return cls(groups=())
        matching: Matching = declaration.matching
        return cls(
            groups=tuple(
                (
                    NameMatcher.of((target for target in group.targets if target not in _CLASSES), matching),
                    not _LINEARS.isdisjoint(group.targets),
                    group,
                )
                for group in declaration.groups
            )
        )

    def group_of(self, module: str) -> Group | None:
        """The group of a Linear: the one that names it, else the one for its class; None if there is none."""
        if len(self.groups) == 1 and self.groups[0][1]:
            return self.groups[0][2]
        named = next((group for matcher, _, group in self.groups if matcher.may_name(module)), None)
        return named or next((group for _, is_class, group in self.groups if is_class), None)

    def group_of_weight(self, name: str) -> Group | None:
        """The group of the module that a weight belongs to."""
        return self.group_of(module_of(name)) if self.groups else None
