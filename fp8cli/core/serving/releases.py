"""Which release of vLLM a checkpoint needs: for its form of FP8, for its KV cache, and for its architecture.

Read as text in the sources of releases, from 0.5.0 on, as far as PyPI has them; nothing but 0.32 was run. A form counts
as there from the first release whose loader has what `source` names, with a quantization_config that says it; files of
`source` lie under vllm/model_executor/layers/quantization. Architectures are those of vLLM's own registries, kept in
`vllm_architectures.json` by scripts/vllm_architectures.py. What was not looked up is "at most" the release that all
of this package was checked against, and what that release does not know is said to be unknown.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

from fp8cli.core.serving.modes import NATIVE_FROM, Capability, Kind

Known = Literal["since", "at most", "unknown"]
"""The release is the first that has it; or has it, and older ones were not looked at; or none is known to have it."""


@dataclass(frozen=True, kw_only=True)
class ReleaseNeed:
    """What one property of a checkpoint asks of vLLM."""

    what: str
    """The property, as the beginning of a sentence's object: `FP8 in blocks of compressed-tensors`."""
    known: Known
    release: str | None
    """None where it is unknown."""
    lacking: str | None = None
    """The latest release below it that was read, and has it not."""
    source: str
    """Where that is to be seen, or what was looked through in vain."""
    below: Capability | None = None
    """None, or the compute capability below which alone it counts."""


@dataclass(frozen=True, kw_only=True)
class VllmNeed:
    """The least release of vLLM for a checkpoint."""

    least: str | None
    """The latest of its needs, those of some GPUs alone left out; None where one of them is unknown."""
    checked: str
    """The release that all was checked against."""
    needs: tuple[ReleaseNeed, ...]
    """Those of some GPUs alone only where they ask for more than the others."""


_Fact = tuple[str, str | None, str]
"""First release that has it, latest read that has it not, and where that is to be seen."""

_COMPRESSED: Final = "compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py"
_EXPERTS: Final = "compressed_tensors/compressed_tensors_moe.py"

_LINEAR: Final[Mapping[tuple[str, Kind], _Fact]] = {
    ("compressed-tensors", "static"): ("0.5.2", "0.5.1", _COMPRESSED),
    ("compressed-tensors", "dynamic"): ("0.5.3", "0.5.2", f"{_COMPRESSED}: QuantizationStrategy.CHANNEL"),
    ("compressed-tensors", "block"): ("0.11.0", "0.10.2", f"{_COMPRESSED}: QuantizationStrategy.BLOCK"),
    ("compressed-tensors", "weights"): ("0.5.4", "0.5.3", _COMPRESSED.replace("w8a8", "w8a16")),
    ("fp8", "static"): ("0.5.0", None, "fp8.py: activation_scheme"),
    ("fp8", "dynamic"): ("0.5.0", None, "fp8.py: activation_scheme"),
    ("fp8", "block"): ("0.6.6", "0.6.5", "fp8.py: weight_block_size"),
    ("fbgemm_fp8", "dynamic"): ("0.5.3", "0.5.2", "fbgemm_fp8.py"),
    ("modelopt", "static"): ("0.6.2", "0.6.0", "modelopt.py"),
    ("modelopt", "dynamic"): ("0.14.0", "0.13.0", "modelopt.py: FP8_PER_CHANNEL_PER_TOKEN"),
    ("modelopt", "block"): ("0.14.0", "0.13.0", "modelopt.py: FP8_PB_WO"),
}
_OF_EXPERTS: Final[Mapping[tuple[str, Kind], _Fact]] = {
    ("compressed-tensors", "static"): ("0.6.2", "0.6.0", f"{_EXPERTS}: CompressedTensorsW8A8Fp8MoEMethod"),
    ("compressed-tensors", "dynamic"): ("0.8.5", "0.7.0", f"{_EXPERTS}: QuantizationStrategy.CHANNEL"),
    ("compressed-tensors", "block"): ("0.11.0", "0.10.2", f"{_EXPERTS}: QuantizationStrategy.BLOCK"),
    ("fp8", "static"): ("0.5.1", "0.5.0", "fp8.py: Fp8MoEMethod"),
    ("fp8", "dynamic"): ("0.5.1", "0.5.0", "fp8.py: Fp8MoEMethod"),
    ("fp8", "block"): ("0.6.6", "0.6.5", "fp8.py: Fp8MoEMethod with block_quant"),
    ("modelopt", "static"): ("0.10.0", "0.9.2", "modelopt.py: ModelOptFp8MoEMethod"),
}
_KV_CACHE: Final[_Fact] = ("0.5.3", "0.5.2", "compressed_tensors/compressed_tensors.py: kv_cache_scheme")
_HEAD_SCALES: Final[_Fact] = ("0.16.0", "0.14.1", "compressed_tensors/compressed_tensors.py: attn_head")
_BLOCKS_IN_16_BITS: Final[_Fact] = (
    "0.16.0",
    "0.14.1",
    f"{_COMPRESSED.replace('w8a8', 'w8a16')}: QuantizationStrategy.BLOCK",
)

_LONGEST_NAME: Final = 80
"""Characters; a longer name of an architecture is a joke or an attack."""

ENDINGS: Final = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "ChatModel",
    "LMHeadModel",
    "ForTextEncoding",
    "EmbeddingModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForAudioClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ClassificationModel",
    "ForRewardModeling",
    "RewardModel",
    "Model",
)
"""Ends of names of architectures that vLLM 0.32 takes for one another, in its order (vllm/config/model.py
`_SUFFIX_TO_DEFAULTS`, and `_normalize_arch` of its registry)."""

_KINDS: Final[Mapping[Kind, str]] = {
    "dynamic": "FP8 with dynamic activations",
    "static": "FP8 with calibrated activations",
    "block": "FP8 in blocks",
    "weights": "FP8 weights alone",
    "mx": "MXFP8",
}


def need_of(
    *,
    method: str | None,
    kind: Kind | None,
    fp8: bool,
    experts: bool,
    blocks: bool,
    kv_cache_fp8: bool,
    head_scales: bool,
    architecture: str | None,
) -> VllmNeed:
    """Tell which release of vLLM a checkpoint needs.

    method: its `quant_method`; None where nothing is declared. kind: of its FP8; None where that is not known. fp8:
    whether any weight is in FP8. experts: whether some of those are experts. blocks: whether blocks share scales.
    kv_cache_fp8, head_scales: what it says of the KV cache. architecture: the first in config.json.
    """
    needs: list[ReleaseNeed] = []
    if fp8:
        needs += _weights(method, kind, experts=experts, blocks=blocks)
    if kv_cache_fp8:
        fact = None if method != "compressed-tensors" else _HEAD_SCALES if head_scales else _KV_CACHE
        what = f"an FP8 KV cache{' with scales for each head' if head_scales else ''}, {_named(method)}"
        needs.append(_need(what, fact))
    needs.append(_architecture(architecture))
    everywhere = [need for need in needs if need.below is None]
    known = [need.release for need in everywhere if need.release is not None]
    least = max(known, key=_numbers) if len(known) == len(everywhere) else None
    asking_more = (
        need for need in needs if need.below is None or least is None or _numbers(need.release) > _numbers(least)
    )
    return VllmNeed(least=least, checked=checked_release(), needs=tuple(asking_more))


def _weights(method: str | None, kind: Kind | None, *, experts: bool, blocks: bool) -> Iterator[ReleaseNeed]:
    if kind is None:
        source = "what its config declares is none of the forms known here, or more than one"
        source = "no config says what it is" if method is None else source
        yield ReleaseNeed(what="its kind of FP8", known="unknown", release=None, source=source)
        return
    what = f"{_KINDS[kind]}, {_named(method)}"
    in_16_bits = _BLOCKS_IN_16_BITS if method == "compressed-tensors" and blocks else None
    yield _need(what, in_16_bits if kind == "weights" and in_16_bits else _LINEAR.get((method or "", kind)))
    if experts:
        yield _need(f"experts in {what}", _OF_EXPERTS.get((method or "", kind)))
    if kind == "block" and in_16_bits is not None:
        yield _need(f"{what}, computed in 16 bits", in_16_bits, below=NATIVE_FROM["block"])


def _named(method: str | None) -> str:
    """Return a method by its name; one that is not known here by none, because it is a stranger's text."""
    known = any(method == each for each, _ in _LINEAR)
    return str(method) if known else "another method"


def _architecture(name: str | None) -> ReleaseNeed:
    registry = "vllm/model_executor/models/registry.py"
    if name is None:
        source = "config.json names no architecture"
        return ReleaseNeed(what="its architecture", known="unknown", release=None, source=source)
    found = _releases().get(name)
    if found is None and (stand_in := _run_as(name)) is not None:
        source = f"vLLM {checked_release()} runs it as `{stand_in}`; older ones were not looked at"
        return ReleaseNeed(what=f"`{name}`", known="at most", release=checked_release(), source=source)
    if found is None:
        last = _table()["last"].get(name)
        source = (
            f"not in {registry} of {checked_release()}, whose Transformers backend may run it all the same"
            if last is None
            else f"vLLM {last} was the last to have it, and {checked_release()} refuses it"
        )
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
        return ReleaseNeed(what=f"`{shown}`", known="unknown", release=None, source=source)
    releases = list(_table()["since"])
    place = releases.index(found)
    lacking = releases[place - 1] if place else None
    return ReleaseNeed(what=f"`{name}`", known="since", release=found, lacking=lacking, source=registry)


def _run_as(name: str) -> str | None:
    """Return the architecture that vLLM takes for one it has not, such as a model for embeddings; None: it has none."""
    ending = next((each for each in ENDINGS if name.endswith(each)), None)
    if ending is None:
        return None
    others = (name.removesuffix(ending) + each for each in ENDINGS)
    return next((each for each in others if each in _releases()), None)


def _need(what: str, fact: _Fact | None, *, below: Capability | None = None) -> ReleaseNeed:
    if fact is None:
        release = checked_release()
        source = f"vLLM {release}; older ones were not looked at"
        return ReleaseNeed(what=what, known="at most", release=release, source=source, below=below)
    release, lacking, source = fact
    return ReleaseNeed(what=what, known="since", release=release, lacking=lacking, source=source, below=below)


def checked_release() -> str:
    """Return the release of vLLM whose registry the table of architectures was made from."""
    return str(_table()["checked"])


@cache
def _table() -> dict[str, Any]:
    text = files("fp8cli.core.serving").joinpath("vllm_architectures.json").read_text("utf-8")
    return dict(json.loads(text))


@cache
def _releases() -> Mapping[str, str]:
    """Architecture → the first release that has it."""
    return {name: release for release, names in _table()["since"].items() for name in names}


def _numbers(release: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release or "")))
