"""The words of `--targets` and `--ignore`: which modules a pattern names.

A pattern is the full name of a module (`model.layers.0.mlp.down_proj`, with or without `.weight`), a glob whose
`*` also crosses dots (`*.mlp.down_proj`), or `re:` and a regular expression that must match from the start of the
name, as in compressed-tensors. One that names nothing is an error: it is a typing mistake, or another model.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from fp8cli.errors import UsageError

LINEAR = "Linear"
"""The target that stands for every nn.Linear."""


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """Targets and ignores, checked against the modules of one checkpoint."""

    targets: tuple[str, ...]
    ignore: tuple[str, ...]

    @classmethod
    def of(cls, modules: Iterable[str], *, targets: Sequence[str], ignore: Sequence[str]) -> "Chooser":
        """Check that every pattern names one of `modules`; raises UsageError with the nearest names if not."""
        names = sorted(modules)
        if not targets:
            raise UsageError("`targets` is empty, so nothing would be quantized", hint=f"`{LINEAR}` stands for all")
        for word, patterns in (("targets", targets), ("ignore", ignore)):
            for pattern in patterns:
                if pattern == LINEAR and word == "targets":
                    continue
                if not any(matches(pattern, name) for name in names):
                    raise UsageError(f"`{pattern}` in `{word}` matches no module", hint=_suggest(pattern, names))
        return cls(targets=tuple(targets), ignore=tuple(ignore))

    def ignored_by(self, module: str) -> str | None:
        """Return the first pattern of `ignore` that names the module."""
        return next((pattern for pattern in self.ignore if matches(pattern, module)), None)

    def is_target(self, module: str) -> bool:
        """Whether the targets take this nn.Linear in."""
        return any(pattern == LINEAR or matches(pattern, module) for pattern in self.targets)


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern names a module."""
    if pattern.startswith("re:"):
        try:
            return re.match(pattern.removeprefix("re:"), module) is not None
        except re.error as error:
            raise UsageError(f"`{pattern}` is not a regular expression: {error}") from error
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(module, pattern) or fnmatchcase(f"{module}.weight", pattern)
    return pattern in (module, f"{module}.weight")


def _suggest(pattern: str, names: list[str]) -> str:
    """Name the modules below the pattern, or those spelled most like it."""
    word = pattern.removeprefix("re:").removesuffix(".weight")
    if any(name.startswith(f"{word}.") for name in names):
        return f"it is the part of the model that holds others; write `{word}.*`"
    near = get_close_matches(word, names, n=3, cutoff=0.5)
    if not near:
        ends = {name.rpartition(".")[2] for name in names}
        near = [f"*.{end}" for end in get_close_matches(word.rpartition(".")[2].strip("*$^\\"), ends, n=3, cutoff=0.5)]
    return "did you mean " + " or ".join(f"`{name}`" for name in near) + "?" if near else f"a module is `{names[0]}`"
