"""Whether one dialect can become another without a bit lost; if not, what would be lost, and what to type instead."""

import shlex
from collections.abc import Iterator

from fp8cli.core.converting.coded import Coded
from fp8cli.core.converting.relabelling import Conversion
from fp8cli.core.converting.targets import TARGETS, Target
from fp8cli.errors import BadInput, UsageError
from fp8cli.schemes import BLOCK, SCHEMES, Scheme


def decide(coded: Coded, target: Target, *, scheme: str | None, requantize: bool) -> Conversion:
    """Return what is to become of a checkpoint.

    scheme: the name of the wanted one; None: the source's own, or with `requantize` the dialect's first. requantize:
    weights may be rounded again where they must; where they need not, they are not. Raises UsageError for a scheme that
    the dialect has not, BadInput for what would be lost.
    """
    wanted = None if scheme is None else _scheme_named(scheme, target)
    own = own_scheme(coded, target)
    if coded.name == target.name and (wanted is None or wanted == own):
        message = f"`{coded.label}` is {target.called} already"
        others = ", ".join(name for name in TARGETS if name != target.name)
        raise UsageError(message, hint=f"--to takes {others}; another --scheme of the same takes --requantize")
    if not coded.weights:
        message = f"`{coded.label}` has a quantized KV cache alone, for which {target.called} has no words"
        raise BadInput(message, hint=f"fp8 dequantize {shlex.quote(coded.label)} drops its scales")
    _refuse_lost_caches(coded, target)
    fused = next((weight.codes for weight in coded.weights if len(weight.codes.info.shape) != 2), None)
    if fused is not None:
        message = f"`{fused.name}` holds all experts of a layer in one tensor, which is converted in no dialect"
        raise BadInput(message, hint=f"fp8 dequantize {shlex.quote(coded.label)} takes it to 16 bits")
    if own is not None and wanted in {None, own}:
        chosen, again = own, False
    elif requantize:
        chosen, again = wanted or next(each for each in target.schemes if not each.needs_calibration), True
        _refuse_what_takes_data(chosen)
    else:
        raise _cannot_say(coded, target, wanted)
    _refuse_what_vllm_cannot_load(coded, target, chosen)
    return Conversion(target=target, scheme=chosen, requantizes=again)


def _scheme_named(word: str, target: Target) -> Scheme:
    plain = word.upper().replace("-", "_")
    found = next((each for each in target.schemes if each.name == plain), None)
    if found is None:
        known = ", ".join(each.name for each in target.schemes if each.name in SCHEMES)
        message = f"{target.called} has no scheme `{word}`"
        raise UsageError(message, hint=f"with --to {target.name}, --scheme takes {known}, or leave it out")
    return found


def _refuse_what_takes_data(scheme: Scheme) -> None:
    if scheme.needs_calibration:
        message = f"`{scheme.name}` needs scales of activations, which only calibration finds"
        raise UsageError(message, hint="fp8 dequantize, then fp8 quantize --scheme FP8 with --calibration-data")


def own_scheme(coded: Coded, target: Target) -> Scheme | None:
    """Return the scheme of the dialect that says what the checkpoint is; None if none does."""
    if len(coded.forms) != 1:
        return None
    found = target.scheme_of(*coded.forms[0])
    blocks = {weight.decoding.block for weight in coded.weights if weight.granularity == "block"}
    if found is None or blocks - {(BLOCK, BLOCK)}:
        return None
    needs_inputs = not found.dynamic_activations
    return None if needs_inputs and any(weight.input_scale is None for weight in coded.weights) else found


def _cannot_say(coded: Coded, target: Target, wanted: Scheme | None) -> BadInput:
    again = "round every weight a second time with --requantize"
    if wanted is not None:
        message = f"`{coded.label}` has {coded.words}, and {wanted.name} would round every weight a second time"
        return BadInput(message, hint=f"leave --scheme out, or {again}")
    has = "; or ".join(each.summary for each in target.schemes)
    message = f"{target.called} has no words for what `{coded.label}` is ({coded.words}): it has {has}"
    fitting = [name for name, each in TARGETS.items() if name != coded.name and own_scheme(coded, each) is not None]
    if not fitting:
        return BadInput(message, hint=again)
    others = f" (or {', '.join(fitting[1:])})" if fitting[1:] else ""
    exact = f"keep every bit with fp8 convert {shlex.quote(coded.label)} --to {fitting[0]}{others}"
    return BadInput(message, hint=f"{exact}, or {again}")


def _refuse_lost_caches(coded: Coded, target: Target) -> None:
    if not coded.cache:
        return
    message = None
    if target.cache is None:
        message = f"{target.called} has no place for the {len(coded.cache)} scales of the FP8 KV cache"
    elif coded.cache_per_head and not target.cache_per_head:
        message = f"{target.called} has no place for KV scales of every head (first: `{coded.cache[0].tensor.name}`)"
    elif target.name == "modelopt":
        elsewhere = [each for each in coded.cache if not each.attention.endswith((".self_attn", ".mixer"))]
        if elsewhere:
            message = f"vLLM finds no KV scale of {target.called} in `{elsewhere[0].attention}`"
    if message is not None:
        raise BadInput(message, hint=f"fp8 convert {shlex.quote(coded.label)} --to compressed-tensors keeps them")


def _refuse_what_vllm_cannot_load(coded: Coded, target: Target, scheme: Scheme) -> None:
    reason = next(_obstacles(coded, target, scheme), None)
    if reason is not None:
        fitting = (name for name, each in TARGETS.items() if each not in {target, TARGETS.get(coded.name or "")})
        raise BadInput(reason, hint=f"choose another dialect: --to {', '.join(fitting)}")


def _obstacles(coded: Coded, target: Target, scheme: Scheme) -> Iterator[str]:
    """What vLLM 0.32 would load wrongly, or not at all."""
    modules = [weight.module for weight in coded.weights]
    if not target.experts:
        experts = [module for module in modules if ".experts." in module]
        if experts:
            yield f"vLLM leaves experts of {target.called} unquantized, and `{experts[0]}` is one"
    if target.name == "modelopt":
        if scheme.weights == "block":
            odd = [weight.codes for weight in coded.weights if weight.codes.info.shape[1] % BLOCK]
            if odd:
                columns = odd[0].info.shape[1]
                yield f"`{odd[0].name}` has {columns} columns, and vLLM wants multiples of {BLOCK} of {target.called}"
        # Its list of excluded modules is also searched for parts of names (modelopt.py, is_layer_excluded).
        known = set(modules)
        for kept in coded.kept:
            parts = [module for module in known if kept in module] if kept not in known else []
            if parts:
                yield f"vLLM would take `{min(parts)}` for unquantized, because `{kept}` is and is a part of its name"
