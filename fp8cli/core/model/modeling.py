"""Rules for an architecture the table does not know, read from transformers' own model of it.

The model is built from `config.json` on the meta device: every module and shape, not one byte of weights. Names
are the names *on disk*: transformers 5 fuses the experts of a layer into one 3-D parameter in memory and splits
them again when it saves, and `save_pretrained`'s own reverse conversion is asked what they are called there.

This is the only module of the package that imports transformers. `scripts/architecture_table.py` reads its
models with the same functions, so the table and this fallback cannot disagree.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fp8cli.core.model.architectures import ALWAYS, OPTIONAL, ArchitectureRules, Role, TensorRule, architecture_name
from fp8cli.errors import BadInput, CannotRun

_NO_DECODERS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForConditionalGeneration")
"""Ends of the names of classes that are built as what they are; any other stands for its `model_type`'s causal LM."""
_GATE = re.compile(r"Router|Gating|Gate(?![a-z])")


@dataclass(frozen=True, kw_only=True)
class DiskTensor:
    """One tensor as `save_pretrained` would write it."""

    name: str
    role: Role
    shape: tuple[int, ...]
    is_parameter: bool


def is_gate(class_name: str) -> bool:
    """Whether compressed-tensors 0.19 writes modules of this class into `ignore` as if they were nn.Linear."""
    return "ExpertMLP" not in class_name and _GATE.search(class_name) is not None


def read_rules(config: Mapping[str, Any]) -> ArchitectureRules | None:
    """Build the model `config` describes on the meta device and write its rules down; None if it is unknown."""
    try:
        import torch
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError as error:
        raise CannotRun(
            f"`{architecture_name(config)}` is not in the built-in table, and transformers is not installed"
            " to describe it",
            hint="pip install 'fp8cli[transformers]'",
        ) from error
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return None
    # By its class: the Auto classes import a hundred other models first.
    own = architecture_name(config).endswith(_NO_DECODERS) and hasattr(transformers, architecture_name(config))
    name = architecture_name(config) if own else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if name is None:
        return None
    try:
        parsed = CONFIG_MAPPING[model_type].from_dict(dict(config))
        with torch.device("meta"):
            model = getattr(transformers, name)(parsed)
    except Exception as error:
        raise BadInput(
            f"transformers {transformers.__version__} cannot build `{architecture_name(config)}`: {error}"
        ) from error
    tied = tied_names(model)
    rules = tuple(
        TensorRule(
            pattern=tensor.name,
            role=tensor.role,
            shape=tuple(str(size) for size in tensor.shape),
            presence=ALWAYS if tensor.is_parameter and tensor.name not in tied else OPTIONAL,
        )
        for tensor in read_tensors(model)
    )
    return ArchitectureRules(
        name=type(model).__name__,
        origin="transformers",
        tensors=rules,
        gates=tuple(read_gates(model)),
        in_memory=_renamed_head(model),
        tie_word_embeddings=bool(getattr(parsed.get_text_config(decoder=True), "tie_word_embeddings", False)),
        **read_traits(model),
    )


def refuse_unknown(rules: ArchitectureRules, doing: str) -> None:
    """Raise CannotRun for a model that transformers does not know: no code of a checkpoint is run here.

    doing: what cannot be done with it, as `calibrated`.
    """
    if rules.origin == "names and shapes":
        message = f"transformers does not know `{rules.name}`, and only a model that it knows can be {doing}"
        raise CannotRun(message, hint="FP8_DYNAMIC and FP8_BLOCK need not load it: --scheme FP8_DYNAMIC")


def read_traits(model: Any) -> dict[str, Any]:
    """Read what the model class says of itself: its head, what stays in float32, what it skips on load."""
    head, embedding = _module_name(model, "get_output_embeddings"), _module_name(model, "get_input_embeddings")
    prefix = model.base_model_prefix
    return {
        "output_head": _holder_on_disk(model, head),
        "input_embedding": _holder_on_disk(model, embedding),
        "can_tie": head is not None and f"{head}.weight" in (model._tied_weights_keys or {}),
        "base_prefix": f"{prefix}." if prefix and hasattr(model, prefix) else "",
        "keep_fp32": tuple(sorted(model._keep_in_fp32_modules_strict or ())),
        "keep_fp32_from_fp16": tuple(sorted(model._keep_in_fp32_modules or ())),
        "ignored_on_load": tuple(sorted(model._keys_to_ignore_on_load_unexpected or ())),
    }


def read_tensors(model: Any) -> Iterator[DiskTensor]:
    """Every tensor of the model under its name on disk, in the order of the model's modules."""
    from transformers.core_model_loading import revert_weight_conversion

    _attach_conversions(model)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    state, seen = model.state_dict(), set()
    gates = {name for name, module in modules.items() if is_gate(type(module).__name__)}
    head = _module_name(model, "get_output_embeddings")
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        # One tensor at a time, so that each name on disk can be traced to the module it came from.
        for name, tensor in revert_weight_conversion(model, {key: value}).items():
            seen.add(name)
            role = _role(modules[path], leaf, before=value.ndim, on_disk=tensor.ndim, in_gate=path in gates)
            if path == head and leaf == "weight":
                role = "output head"
            yield DiskTensor(name=name, role=role, shape=tuple(tensor.shape), is_parameter=key in parameters)
    together = set(revert_weight_conversion(model, state))
    if seen != together:
        raise CannotRun(f"the names of `{type(model).__name__}` on disk are not known: {sorted(seen ^ together)[:2]}")


def read_gates(model: Any) -> Iterator[str]:
    """Names on disk of the modules that compressed-tensors treats as gates."""
    for name, module in model.named_modules():
        if is_gate(type(module).__name__):
            yield _name_on_disk(model, name)


def tied_names(model: Any) -> frozenset[str]:
    """Tensors that share the storage of another under this model's config, and are not saved."""
    return frozenset(model.all_tied_weights_keys)


def _role(module: Any, leaf: str, *, before: int, on_disk: int, in_gate: bool) -> Role:
    """Role of one tensor, from the class of the module that holds it."""
    from torch import nn

    name = type(module).__name__
    if in_gate and "Forget" not in name:  # KimiLinearForgetGate is one by its name, and chooses no experts.
        return "router"
    if leaf in module._buffers:
        return "buffer"
    if leaf == "bias":
        return "bias"
    if isinstance(module, nn.Linear):
        return "linear" if leaf == "weight" and on_disk == 2 else "other"
    if "Expert" in name and before >= 3:
        return "fused experts" if on_disk >= 3 else "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if name == "Conv1D":
        return "transposed linear"
    if "Conv" in name:
        return "convolution"
    return "norm" if "norm" in name.lower() else "other"


def _attach_conversions(model: Any) -> None:
    """Fix the conversions `save_pretrained` would apply, so that they are not collected anew for each tensor."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    if getattr(model, "_weight_conversions", None) is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [x for x in conversions if not isinstance(x, PrefixChange)] or None


def _name_on_disk(model: Any, module: str) -> str:
    """Rename a module the way compressed-tensors does for `ignore`."""
    _attach_conversions(model)
    for conversion in reversed(model._weight_conversions or ()):
        module = conversion.reverse_transform().rename_source_key(module)[0]
    return module


def _holder_on_disk(model: Any, module: str | None) -> str | None:
    """Module name in the name on disk of a module's weight: `embed_out` for GPT-NeoX's `lm_head`."""
    from transformers.core_model_loading import revert_weight_conversion

    if module is None:
        return None
    _attach_conversions(model)
    weight = f"{module}.weight"
    return str(next(iter(revert_weight_conversion(model, {weight: model.state_dict()[weight]})))).removesuffix(
        ".weight"
    )


def _renamed_head(model: Any) -> dict[str, str]:
    """Name of the output head on disk, with the one it has in memory where that is another."""
    head = _module_name(model, "get_output_embeddings")
    on_disk = _holder_on_disk(model, head)
    return {on_disk: head} if head is not None and on_disk is not None and on_disk != head else {}


def _module_name(model: Any, getter: str) -> str | None:
    """Find the name of the module that `getter` returns."""
    found = getattr(model, getter)()
    return next((name for name, module in model.named_modules() if module is found), None)
