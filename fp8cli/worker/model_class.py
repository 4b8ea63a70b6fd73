"""Which class of transformers loads a checkpoint that is to be shown texts, and which of its modules text reaches.

A model of several parts is loaded whole, by the class that it is published for: names, positions and masks are those of
no other. It is asked with token ids alone, so nothing goes through its towers for pictures.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

_PREFIX_SEES_ALL: Final = frozenset({"paligemma"})
"""Kinds of models whose attention goes both ways among all tokens that are not said to be an answer. A text by itself
is read from left to right, by vLLM too."""

_ANSWER: Final = 1


def class_for(config: Any) -> Any:
    """Return the class that loads a model with this config. config: as `AutoConfig` reads it."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if reads_pictures(config):
        return AutoModelForImageTextToText
    return AutoModel if _is_named(config, MODEL_MAPPING_NAMES) else AutoModelForCausalLM


def reads_pictures(config: Any) -> bool:
    """Whether the class that a config names is transformers' own for text and pictures."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return _is_named(config, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def _is_named(config: Any, classes: Mapping[str, object]) -> bool:
    """Whether a config names the class that transformers has for its kind. classes: by the kind, some several."""
    known = classes.get(config.model_type)
    names = config.architectures or ()
    return known in names if isinstance(known, str) else isinstance(known, tuple) and not set(known).isdisjoint(names)


def outline(checkpoint: str) -> Any:
    """Return the model of a checkpoint without a number in it, on torch's `meta` device."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        return class_for(config).from_config(config)


def further_inputs(config: Any) -> dict[str, int]:
    """Return what a model must be told of every token of a text, beside its id."""
    return {"token_type_ids": _ANSWER} if config.model_type in _PREFIX_SEES_ALL else {}


def read_as_text(model: Any) -> Any:
    """Let a model get its further inputs at every call that names none, and return it."""
    import torch

    further = further_inputs(model.config)

    def before(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else named.get("input_ids")
        told = {} if ids is None else {name: torch.full_like(ids, value) for name, value in further.items()}
        return args, {**told, **named}

    if further:
        model.register_forward_pre_hook(before, with_kwargs=True)
    return model


def reached_by_text(model: Any) -> Callable[[Any], bool]:
    """Return what says of a module of the model whether it is one of the language model's, its head among them."""
    language = {id(module) for module in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    language |= set() if head is None else {id(head)}
    return lambda module: id(module) in language
