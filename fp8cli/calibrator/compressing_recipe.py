"""From a job to llm-compressor's modifiers: those that options ask for, or those of a recipe, judged before a model is.

A recipe is run as it is. Refused is what this tool could not vouch for afterwards: anything but FP8.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from fp8cli.calibrator.awq_mappings import awq_mappings
from fp8cli.calibrator.compressing_protocol import RECIPE, CompressionJob
from fp8cli.calibrator.finding import kv_cache_scheme
from fp8cli.calibrator.smoothing_readers import refuse_forgotten_readers
from fp8cli.worker.failures import Failure, sentence

_BITS: Final = 8
_AFTER_ATTENTION: Final = "post_attention_layernorm"
_BEFORE_MLP: Final = "pre_feedforward_layernorm"
_SHARING: Final = frozenset({"tensor", "channel", "block", "token", "group", "attn_head"})
_WEIGHTS_SHARING: Final = frozenset({"tensor", "channel", "block"})


class Wanted(Protocol):
    """What options may ask for besides a scheme; a job of this room and a scheme of the simulator both say so."""

    @property
    def kv_cache(self) -> Literal["tensor", "head"] | None:
        """What shares a scale of the KV cache; None: it stays as it is."""

    @property
    def smoothing(self) -> float | None:
        """Strength of SmoothQuant; None: without it."""

    @property
    def awq(self) -> bool:
        """Whether AWQ is used."""

    @property
    def gptq(self) -> bool:
        """Whether GPTQ is used."""


def make_modifiers(job: CompressionJob, folder: Path) -> Sequence[Any]:
    """Return the modifiers of a job, in the order in which they act.

    Raises Failure for a recipe that llm-compressor does not take, and for one that makes something else than FP8.
    """
    if not job.recipe:
        return modifiers_for(job, job.scheme, targets=job.targets, ignore=job.ignore)
    modifiers = _from_recipe(folder / RECIPE)
    _refuse_other_formats(modifiers)
    return modifiers


def modifiers_for(
    wanted: Wanted, scheme: str | None, *, targets: Sequence[str], ignore: Sequence[str]
) -> Sequence[Any]:
    """Return the modifiers that options ask for. scheme: llm-compressor's preset; None: the KV cache alone."""
    return tuple(_from_options(wanted, scheme, targets, ignore))


def check_data(job: CompressionJob, modifiers: Sequence[Any]) -> bool:
    """Return whether the modifiers need data. Raises Failure where there is none, or where it is named in vain."""
    needing = [type(modifier).__name__ for modifier in modifiers if modifier.requires_calibration_data]
    if needing and job.samples is None:
        message = f"the recipe needs calibration data, for `{needing[0]}`, and there is none"
        raise Failure(kind="data", message=message, hint="name some with --calibration-data")
    if not needing and job.data_is_named:
        message = "--calibration-data would have no effect: nothing in the recipe needs data"
        raise Failure(kind="data", message=message, hint="leave it out")
    return bool(needing)


def list_mappings(modifiers: Sequence[Any], model: Any) -> None:
    """Fill in what AWQ would not find for this model, and what SmoothQuant would, as lists.

    SmoothQuant would find tuples, and write them into recipe.yaml in a form that no safe reader of YAML takes, its own
    included. Raises Failure for a model that its table is wrong for.
    """
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import (
        get_layer_mappings_from_model as mappings_of_awq,
    )
    from llmcompressor.modifiers.transform.smoothquant.dynamic_mappings import get_layer_mappings_from_model

    for modifier in modifiers:
        if isinstance(modifier, SmoothQuantModifier) and modifier.mappings is None:
            modifier.mappings = [[_listed(part) for part in each] for each in get_layer_mappings_from_model(model)]
            _refuse_wrong_norm(modifier.mappings, model)
            refuse_forgotten_readers("SmoothQuant", [(norm, balance) for balance, norm in modifier.mappings], model)
        if isinstance(modifier, AWQModifier) and modifier.mappings is None:
            modifier.mappings = awq_mappings(model)
            mappings = modifier.mappings or mappings_of_awq(model)
            refuse_forgotten_readers("AWQ", [(each.smooth_layer, each.balance_layers) for each in mappings], model)


def _refuse_wrong_norm(mappings: Sequence[Any], model: Any) -> None:
    """Refuse to smooth a norm that does not feed the layers which are to make up for it.

    llm-compressor 0.14 has Gemma 2 and 3 among the models of its default table, whose MLP follows another norm there:
    the logits of random ones came out 90 % changed, without a word.
    """
    between = any(name.endswith(_BEFORE_MLP) for name, _ in model.named_modules())
    if between and any(_AFTER_ATTENTION in norm for _, norm in mappings):
        message = f"llm-compressor's SmoothQuant would change this model: it takes `{_AFTER_ATTENTION}` for"
        raise Failure(
            kind="model",
            message=f"{message} what feeds the MLP, and that is `{_BEFORE_MLP}`",
            hint="use --awq or --gptq, or name the mappings in a recipe",
        )


def _listed(part: Any) -> Any:
    return part if isinstance(part, str) else list(part)


def _from_options(wanted: Wanted, scheme: str | None, targets: Sequence[str], ignore: Sequence[str]) -> Iterator[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier

    if wanted.smoothing is not None:
        yield SmoothQuantModifier(smoothing_strength=wanted.smoothing)
    if wanted.awq:
        # What weighs weights and activations against each other needs a scale for more than a whole weight.
        yield AWQModifier(duo_scaling=scheme != "FP8")
    cache = None if wanted.kv_cache is None else kv_cache_scheme(wanted.kv_cache)
    preset = {} if scheme is None else {"scheme": scheme}
    last = GPTQModifier if wanted.gptq else QuantizationModifier
    yield last(targets=list(targets), ignore=list(ignore), kv_cache_scheme=cache, **preset)


def _from_recipe(path: Path) -> Sequence[Any]:
    from llmcompressor.recipe import Recipe

    try:
        modifiers = Recipe.create_instance(str(path)).modifiers
    except Exception as error:
        # Which fields a modifier has, only llm-compressor knows.
        message = f"llm-compressor does not take the recipe ({_reason(error)})"
        raise Failure(
            kind="data", message=message, hint="docs.vllm.ai/projects/llm-compressor lists modifiers"
        ) from error
    return tuple(modifiers)


def _reason(error: Exception) -> str:
    """Return why a recipe is not taken: of pydantic, which fills a page, the first field and what it says of it."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return sentence(error)
    first = error.errors()[0]
    where = ".".join(map(str, (error.title, *first["loc"])))
    return f"`{where}`: {first['msg']}".rstrip(".")


def _refuse_other_formats(modifiers: Sequence[Any]) -> None:
    from llmcompressor.modifiers.quantization import QuantizationMixin

    quantizing = [modifier for modifier in modifiers if isinstance(modifier, QuantizationMixin)]
    if not quantizing:
        named = ", ".join(f"`{type(modifier).__name__}`" for modifier in modifiers)
        message = f"the recipe quantizes nothing: it has {named} alone"
        raise Failure(kind="data", message=message, hint="add a QuantizationModifier with scheme: FP8_DYNAMIC")
    for modifier in quantizing:
        config = modifier.resolved_config
        schemes = [*config.config_groups.values()]
        found = [_other_weights(scheme.weights) for scheme in schemes]
        found += [_other(scheme.input_activations, "activations") for scheme in schemes]
        found += [_other(scheme.output_activations, "outputs") for scheme in schemes]
        found.append(_other(config.kv_cache_scheme, "a KV cache"))
        other = next((words for words in found if words is not None), None)
        if other is not None:
            message = f"the recipe makes {other}, which is not the FP8 that this tool can examine"
            hint = "use llm-compressor itself for other formats; fp8 quantize --help names the schemes there are"
            raise Failure(kind="data", message=message, hint=hint)


def _other_weights(arguments: Any) -> str | None:
    words = _other(arguments, "weights")
    if words is None and arguments is not None and _word(arguments.strategy) not in _WEIGHTS_SHARING:
        return f"FP8 weights with a scale for each {_word(arguments.strategy)}"
    return words


def _other(arguments: Any, what: str) -> str | None:
    """Return in words what is quantized to something else than FP8; None if it is FP8, or not quantized."""
    if arguments is None:
        return None
    if arguments.num_bits != _BITS or _word(arguments.type) != "float":
        return f"{what} of {arguments.num_bits}-bit {_word(arguments.type)} numbers"
    if _word(arguments.strategy) not in _SHARING or arguments.scale_dtype is not None:
        return f"{what} with scales of another kind (`{_word(arguments.strategy)}`, {arguments.scale_dtype})"
    return None


def _word(value: Any) -> str:
    """Return a word of a closed set, which pydantic keeps now as a member and now as its text."""
    return str(getattr(value, "value", value))
