"""What a checkpoint says about its quantization: the same few nouns, whichever tool wrote it.

A declaration is a list of groups, each with the modules it is for, how their weights are stored, and what is done
to their activations. core.inspection.declared_methods reads it from the configs; nothing here looks at a tensor.
"""

from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.schemes import SCHEMES

Strategy = Literal["tensor", "channel", "token", "block", "group", "attn_head", "unsaid"]
"""What shares one scale. `unsaid`: the method leaves it to whoever loads the checkpoint."""
When = Literal["static", "run time"]
Matching = Literal["compressed-tensors", "names", "wildcards"]
"""How names in `ignored` are read: exact or `re:…`; exact or part of a name; shell patterns or part of a name."""

FP8_KINDS: Final = frozenset({"E4M3", "E5M2"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """How one kind of value is stored."""

    kind: str | None
    """`E4M3`, `INT4`, …; None where the config says something that this tool does not know."""
    bits: int | None = None
    strategy: Strategy | None = None
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, for blocks and groups."""
    when: When | None = "static"
    """When the scale is taken; None where the config says something that this tool does not know."""

    @property
    def granularity(self) -> str | None:
        """What shares a scale, in words; None if it is not known, empty if it is left to the loader."""
        match self.strategy:
            case "tensor" | "channel" | "token":
                return f"per {self.strategy}"
            case "attn_head":
                return "per attention head"
            case "block" if self.block is not None:
                return f"per {self.block[0]}×{self.block[1]} block"
            case "group" if self.block is not None:
                return f"per group of {self.block[1]}"
            case "unsaid":
                return ""
            case _:
                return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One way of quantizing, and the modules it is for."""

    targets: tuple[str, ...]
    """Names, `re:` patterns, or classes such as `Linear`."""
    weights: Numbers | None
    """None: left alone."""
    activations: Numbers | None

    @property
    def words(self) -> str | None:
        """Weights and activations in words, as in a scheme's summary; None if something in it is not known."""
        weights = "weights left alone"
        if self.weights is not None:
            if self.weights.kind is None or not self.weights.granularity or self.weights.strategy == "attn_head":
                return None
            weights = f"{self.weights.kind} weights {self.weights.granularity}"
        if self.activations is None:
            return f"{weights}, activations left alone"
        kind, granularity, when = self.activations.kind, self.activations.granularity, self.activations.when
        if kind is None or granularity is None or when is None:
            return None
        same = self.weights is not None and self.weights.kind == kind
        activations = " ".join(word for word in ("" if same else kind, "activations", granularity) if word)
        return f"{weights}, {activations}{' at run time' if when == 'run time' else ', calibrated'}"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a checkpoint says about its quantization, and where."""

    source: str
    """The file that says it."""
    method: str
    """The value of `quant_method`, in lower case."""
    name: str
    """The dialect by the name people know it by."""
    format: str | None = None
    groups: tuple[Group, ...] = ()
    """Empty: only the method is known, or nothing but the KV cache is quantized."""
    ignored: tuple[str, ...] = ()
    matching: Matching = "names"
    kv_cache: Numbers | None = None
    inverse_name: bool = False
    """Whether weight scales are called `weight_scale_inv`; they multiply all the same."""

    @property
    def words(self) -> str | None:
        """All groups in words; None if one of them is not known, or there is none."""
        words = tuple(dict.fromkeys(group.words for group in self.groups))
        known = [text for text in words if text is not None]
        return "; ".join(known) if known and len(known) == len(words) else None

    @property
    def scheme(self) -> str | None:
        """The preset of schemes.py that it equals in every word."""
        words = self.words
        return next((scheme.name for scheme in SCHEMES.values() if scheme.summary == words), None)

    @property
    def is_fp8(self) -> bool:
        """Whether it declares weights in 8-bit floats."""
        return any(group.weights is not None and group.weights.kind in FP8_KINDS for group in self.groups)

    @property
    def is_cache_alone(self) -> bool:
        """Whether nothing but the KV cache is quantized."""
        return not self.groups and self.kv_cache is not None

    @property
    def is_known(self) -> bool:
        """Whether this tool understands which tensors such a checkpoint must hold."""
        return all(group.weights is None or group.weights.kind is not None for group in self.groups) and (
            bool(self.groups) or self.is_cache_alone
        )


def kv_words(numbers: Numbers) -> str:
    """Say how keys and values are cached."""
    parts = [numbers.kind or "quantized", numbers.granularity or ""]
    when = "at run time" if numbers.when == "run time" else "calibrated"
    return f"{' '.join(part for part in parts if part)}, {when}"
