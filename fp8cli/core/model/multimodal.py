"""Models of several parts: where the language model lies among their tensors, and what the other parts are.

Only the language model is quantized. Towers for pictures and sound and the projectors behind them stay: the
published FP8 checkpoints of these families keep them, in vLLM they take a small part of the memory and of the time,
and their layers are often narrower than a block of scales. vLLM builds most of them with the checkpoint's
quantization config all the same, so `ignore` must cover them, in the names that transformers gives them too.

The language model's own tensors are described by the table of architectures, under other names: the family's text
model says which. A family that is not listed here is refused, because nobody looked at where its parts lie.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fp8cli.core.model.architectures import ArchitectureRules, Role, find_rules
from fp8cli.core.model.attention import text_config
from fp8cli.core.model.fused import FUSED
from fp8cli.errors import BadInput, CannotRun, Fp8Error

_PROJECTOR: Final = "multi_modal_projector."

TOWERS: Final[frozenset[Role]] = frozenset({"vision tower", "audio tower", "projector"})
"""Roles of the parts beside a language model."""


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """The names of one generation of checkpoints of a family."""

    model: str
    """What stands where the text model says `model.`."""
    head: str
    towers: Mapping[str, Role]
    """Beginning of a name → the part it belongs to. The first is always there; sound is not."""
    in_memory: Mapping[str, str] = field(default_factory=dict)
    """See `ArchitectureRules`."""

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a checkpoint is spelled so: its layers and a tower are where this says."""
        places = (f"{self.model}layers.", next(iter(self.towers)))
        return all(any(name.startswith(place) for name in names) for place in places)


_LLAVA: Final = (
    Spelling(
        model="language_model.model.",
        head="language_model.lm_head",
        towers={"vision_tower.": "vision tower", _PROJECTOR: "projector"},
        in_memory={"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"},
    ),
    Spelling(
        model="model.language_model.",
        head="lm_head",
        towers={"model.vision_tower.": "vision tower", f"model.{_PROJECTOR}": "projector"},
    ),
)
# Before transformers 4.52 `model.` and `visual.`.
_QWEN: Final = (
    Spelling(model="model.language_model.", head="lm_head", towers={"model.visual.": "vision tower"}),
    Spelling(
        model="model.",
        head="lm_head",
        towers={"visual.": "vision tower"},
        in_memory={"model.": "model.language_model."},
    ),
)
_LLAMA: Final = (
    Spelling(
        model="language_model.model.",
        head="language_model.lm_head",
        towers={"vision_model.": "vision tower", _PROJECTOR: "projector"},
    ),
)

_GEMMA_4: Final = (
    Spelling(
        model="model.language_model.",
        head="lm_head",
        towers={
            "model.vision_tower.": "vision tower",
            "model.embed_vision.": "projector",
            "model.audio_tower.": "audio tower",
            "model.embed_audio.": "projector",
        },
    ),
)
_IDEFICS: Final = (
    Spelling(
        model="model.text_model.",
        head="lm_head",
        towers={"model.vision_model.": "vision tower", "model.connector.": "projector"},
    ),
)
_MINICPM: Final = (
    Spelling(
        model="model.language_model.",
        head="lm_head",
        towers={"model.vision_tower.": "vision tower", "model.merger.": "projector"},
    ),
)

_FAMILIES: Final[Mapping[str, tuple[str | None, tuple[Spelling, ...]]]] = {
    "AyaVisionForConditionalGeneration": (None, _LLAVA),
    "Cohere2VisionForConditionalGeneration": (None, _LLAVA),
    "Exaone4_5_ForConditionalGeneration": ("Exaone4ForCausalLM", _QWEN[:1]),
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", _LLAVA),
    "Gemma4ForConditionalGeneration": ("Gemma4ForCausalLM", _GEMMA_4),
    "Glm4vForConditionalGeneration": ("Glm4ForCausalLM", _QWEN[:1]),
    "Glm4vMoeForConditionalGeneration": ("Glm4MoeForCausalLM", _QWEN[:1]),
    "Idefics3ForConditionalGeneration": (None, _IDEFICS),
    "InternVLForConditionalGeneration": (None, _LLAVA),
    "Lfm2VlForConditionalGeneration": (None, _LLAVA),
    "Llama4ForConditionalGeneration": ("Llama4ForCausalLM", _LLAMA),
    "LlavaForConditionalGeneration": (None, _LLAVA),
    "LlavaNextForConditionalGeneration": (None, _LLAVA),
    "LlavaOnevisionForConditionalGeneration": (None, _LLAVA),
    "MiniCPMV4_6ForConditionalGeneration": ("Qwen3_5ForCausalLM", _MINICPM),
    "Mistral3ForConditionalGeneration": (None, _LLAVA),
    "PaliGemmaForConditionalGeneration": (None, _LLAVA),
    "Qwen2VLForConditionalGeneration": ("Qwen2ForCausalLM", _QWEN),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2ForCausalLM", _QWEN),
    "Qwen3_5ForConditionalGeneration": ("Qwen3_5ForCausalLM", _QWEN[:1]),
    "Qwen3_5MoeForConditionalGeneration": ("Qwen3_5MoeForCausalLM", _QWEN[:1]),
    "Qwen3VLForConditionalGeneration": ("Qwen3ForCausalLM", _QWEN[:1]),
    "Qwen3VLMoeForConditionalGeneration": ("Qwen3MoeForCausalLM", _QWEN[:1]),
    "SmolVLMForConditionalGeneration": (None, _IDEFICS),
}
"""Architecture → its text model in the table (None: the one `text_config` names) and how it may be spelled."""


_ONE_PIECE: Final = ("WhisperForConditionalGeneration",)
"""Encoder and decoder are both the model: vLLM gives both of them FP8 layers, and published checkpoints have them."""


def is_multimodal(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a model of several parts."""
    if name in _ONE_PIECE:
        return False
    several = not config.keys().isdisjoint(("vision_config", "audio_config"))
    return several or name.endswith("ForConditionalGeneration")


def refuse_unless_text_reaches(rules: ArchitectureRules, doing: str) -> None:
    """Raise CannotRun for a model that text alone does not go through: an encoder of sound and what reads its output.

    doing: what cannot be done with it, as `calibrated`; so below.
    """
    if rules.name.endswith("ForConditionalGeneration") and not rules.towers:
        message = f"`{rules.name}` wants more than text, and only what text alone goes through can be {doing}"
        raise CannotRun(message, hint="FP8_DYNAMIC and FP8_BLOCK need no data: --scheme FP8_DYNAMIC")


def refuse_unless_it_predicts(rules: ArchitectureRules, doing: str) -> None:
    """Raise CannotRun for a model that predicts no text, or needs more than text to do so."""
    refuse_unless_text_reaches(rules, doing)
    if rules.output_head is None:
        message = f"`{rules.name}` predicts no text, and only a model that does can be {doing}"
        raise CannotRun(message, hint="fp8 quantize MODEL and fp8 inspect MODEL ask it nothing")


def refuse_unless_text(rules: ArchitectureRules, doing: str) -> None:
    """Raise CannotRun for a model that is more, or less, than a language model of text."""
    if rules.towers or rules.output_head is None or rules.name.endswith("ForConditionalGeneration"):
        message = f"`{rules.name}` is no language model of text alone, and only such can be {doing} yet"
        raise CannotRun(message, hint="fp8 quantize MODEL and fp8 inspect MODEL need not load it")


def compose_rules(name: str, config: Mapping[str, Any], names: Iterable[str]) -> ArchitectureRules:
    """Return the rules of a model of several parts whose checkpoint holds tensors of these names.

    Raises CannotRun for a family that is not known, BadInput for one whose parts are not where they should be.
    """
    if name not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise CannotRun(
            f"`{name}` is a multimodal model whose parts are not known, so nothing is quantized", hint=f"known: {known}"
        )
    text, spellings = _FAMILIES[name]
    language = text_config(config)
    rules = find_rules({"architectures": [text]} if text else {"model_type": language.get("model_type")})
    if rules is None:
        raise CannotRun(f"the language model of `{name}` is `{language.get('model_type')}`, which is not known")
    names = tuple(names)
    spelling = next((each for each in spellings if each.fits(names)), None)
    if spelling is None:
        wanted = f"names like `{spellings[0].model}layers.0` and `{next(iter(spellings[0].towers))}`"
        raise BadInput(f"the parts of `{name}` are not all here: expected {wanted}, found `{min(names, default='')}`")
    return _respell(rules, name, spelling, tied=_is_tied(config, language, spelling, names))


def known_rules(config: Mapping[str, Any], names: Iterable[str]) -> ArchitectureRules | None:
    """Return the rules of a model from what is built in alone; None where it is not known, whatever the reason."""
    match config:
        case {"architectures": [str() as name, *_]} if is_multimodal(name, config):
            try:
                return compose_rules(name, config, names)
            except Fp8Error:
                return None
        case _:
            return find_rules(config)


def _respell(rules: ArchitectureRules, name: str, spelling: Spelling, *, tied: bool) -> ArchitectureRules:
    """Give the rules of a text model the names that its parts have in the whole."""

    def call(module: str) -> str:
        head = rules.output_head or "lm_head"
        if module.startswith(head):
            return spelling.head + module.removeprefix(head)
        return spelling.model + module.removeprefix("model.")

    return replace(
        rules,
        name=name,
        tensors=tuple(replace(rule, pattern=call(rule.pattern)) for rule in rules.tensors),
        gates=tuple(call(gate) for gate in rules.gates),
        output_head=call(rules.output_head or "lm_head"),
        input_embedding=call(rules.input_embedding or ""),
        tie_word_embeddings=tied,
        base_prefix="",
        fused=tuple(
            replace(fused, pattern=call(fused.pattern), experts=call(fused.experts))
            for fused in FUSED.get(name, rules.fused)
        ),
        towers=spelling.towers,
        in_memory=spelling.in_memory,
    )


def _is_tied(
    config: Mapping[str, Any], language: Mapping[str, Any], spelling: Spelling, names: tuple[str, ...]
) -> bool:
    """Whether head and embedding share a weight when the outer config does not say: many configs leave it out."""
    told = config.get("tie_word_embeddings", language.get("tie_word_embeddings"))
    return bool(f"{spelling.head}.weight" not in names if told is None else told)
