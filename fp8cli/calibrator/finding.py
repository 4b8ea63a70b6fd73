"""The finding of scales: llm-compressor's real `oneshot` over the samples, and what it found read off.

The model that comes out of it is thrown away: its weights are written by the streaming engine, from the checkpoint,
with the same bytes. What is kept is what needs data, under the names and in the shapes of a checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from fp8cli.calibrator import ranks
from fp8cli.calibrator.names import rename, weights_of
from fp8cli.calibrator.protocol import SCALE_ENDINGS, CalibrationJob
from fp8cli.calibrator.tracing import configs_kept_whole
from fp8cli.samples.encoding import Encoded
from fp8cli.worker.failures import Failure, describe, sentence
from fp8cli.worker.model_class import further_inputs, reached_by_text

_OBSERVED: Final = ("input", "k", "v")
"""Values that are observed while samples go through: inputs of layers, keys and values."""

_OF_CACHE: Final = ("Cannot determine", "QuantizedKVCache")
"""What compressed-tensors' words have in them where it knows no heads in a config, or where a model keeps a cache of
its own kind."""

_STRATEGIES: Final = {"tensor": "tensor", "head": "attn_head"}
_MAX_NAMED: Final = 3
_UNREACHED: Final = -1


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is noted while samples go through, of scales by their names in the model."""

    reached: set[int]
    """Observers that saw something."""
    still: dict[str, Any]
    """Masks of the scales of values that never were anything but 0."""
    missed: list[str]
    """Scales of what nothing reached; filled in when the calibration ends."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What was written."""

    count: int
    dead: tuple[str, ...]
    """Names of scales of values that were 0 in every sample: they are the least that the dtype tells from 0 beside 1,
    which says nothing about the values to come."""


def find_scales(job: CalibrationJob, model: Any, tokenizer: Any, encoded: Encoded, tell: Callable[..., None]) -> Seen:
    """Run `oneshot` over the samples; the scales are in the model afterwards.

    Returns what the samples did not show. Raises Failure saying why the model cannot be calibrated.
    """
    if job.kv_cache is not None:
        _refuse_scales_of_its_own(model)
    layers = count_parts(model)
    tell("begins", samples=len(encoded.ids), layers=layers)
    seen = Seen(reached=set(), still={}, missed=[])
    recipe = _make_modifier(job, seen, lambda number: tell("layer", number=number, of=max(number, layers)))
    try:
        with configs_kept_whole():
            _run_oneshot(recipe, data_set_of(encoded, model), model, tokenizer, encoded.max_seq_length)
    except Exception as error:
        failure = describe(error)
        if failure.kind != "other":
            raise failure from error
        raise _cannot(job, str(model.config.model_type), error) from error
    return seen


def _refuse_scales_of_its_own(model: Any) -> None:
    """Raise Failure where the scales of a cache would take the place of numbers that the model computes with."""
    for module in model.modules():
        own = next((name for name in ("k_scale", "v_scale") if hasattr(module, name)), None)
        if own is not None:
            # MiMo-V2-Flash multiplies its values by it; llm-compressor's begins at 0.
            message = f"`{type(module).__name__}` has a `{own}` of its own, whose place llm-compressor's would take"
            raise Failure(kind="model", message=message, hint="leave out --kv-cache")


def _cannot(job: CalibrationJob, kind: str, error: Exception) -> Failure:
    """Say that llm-compressor fails on a model of some kind, and whether it is for the KV cache."""
    reason = sentence(error).partition(". ")[0]
    if job.kv_cache is not None and any(words in reason for words in _OF_CACHE):
        message = f"llm-compressor cannot calibrate the KV cache of `{kind}` models ({reason})"
        return Failure(kind="model", message=message, hint="leave out --kv-cache")
    hint = None if job.kv_cache is None else "it may without --kv-cache: the layers of some models are not known"
    return Failure(kind="model", message=f"llm-compressor cannot calibrate this `{kind}` model ({reason})", hint=hint)


def refuse_unreached(modules: Sequence[str]) -> None:
    """Raise Failure naming modules that no sample reached, if there are any."""
    if modules:
        named = ", ".join(f"`{name}`" for name in modules[:_MAX_NAMED])
        more = f" and {len(modules) - _MAX_NAMED:,} more" if len(modules) > _MAX_NAMED else ""
        raise Failure(
            kind="data",
            message=f"no sample reached {named}{more}, so there is no scale for it",
            hint="take more samples, or keep such modules as they are with --ignore",
        )


def data_set_of(encoded: Encoded, model: Any) -> Any:
    """Return the samples as `oneshot` takes them for a model: of several processes, each has its share."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rank, processes = ranks.place()
    ids = [list(each) for each in encoded.ids[rank::processes]]
    of_all = {"attention_mask": 1, **further_inputs(model.config)}
    further = {name: [[value] * len(each) for each in ids] for name, value in of_all.items()}
    table = InMemoryTable.from_pydict({"input_ids": ids, **further})
    # llm-compressor 0.14 takes data sets of one fingerprint for one data set and deals it out, but then every process
    # reads the first share of it, and what is in the others is seen by none.
    return Dataset(table, fingerprint=f"{encoded.sha256()}-{rank}-of-{processes}")


def _run_oneshot(recipe: Any, samples: Any, model: Any, tokenizer: Any, max_seq_length: int) -> None:
    from llmcompressor import oneshot

    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=samples,
        recipe=recipe,
        pipeline="sequential",
        batch_size=1,
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
        max_seq_length=max_seq_length,
        moe_calibrate_all_experts=True,
        # Nothing is rounded while scales are looked for, so that a second pass over each part would hand on the same.
        propagate_error=False,
        sequential_targets=layers_of(model),
    )


def save_scales(job: CalibrationJob, model: Any, target: Path, seen: Seen) -> Saved:
    """Write the scales that are wanted under their names in the checkpoint. seen: what `find_scales` returned.

    Raises Failure naming one that is not there, is no positive number, or is of a module that no sample reached.
    """
    import torch
    from safetensors.torch import load_file, save_file

    found = _scales_in(model)
    if not found:
        raise Failure(kind="model", message="no layer of the model needs a scale", hint="check --targets and --ignore")
    # No scale is 0, so 0 can stand for those of values that never moved while names change, and -1 for those of none.
    marked = {
        **found,
        **{name: found[name].masked_fill(mask, 0) for name, mask in seen.still.items()},
        **{name: found[name].new_full(found[name].shape, _UNREACHED) for name in seen.missed},
    }
    with TemporaryDirectory(dir=target.parent) as folder:
        # The class's own method: it turns names of modules into those of a checkpoint, and with a `state_dict` of
        # scales alone it writes nothing else. The instance's, llm-compressor's, would compress the model first.
        type(model).save_pretrained(model, folder, state_dict=marked)
        weights = weights_of(Path(job.model))
        saved = load_file(Path(folder) / "model.safetensors")
    named = {rename(name, weights): scale for name, scale in saved.items()}
    wanted = named if job.wanted is None else job.wanted
    missing = next((name for name in wanted if name not in named), None)
    if missing is not None:
        hint = "keep that module as it is with --ignore"
        raise Failure(kind="model", message=f"llm-compressor has no scale for `{missing}`", hint=hint)
    refuse_unreached([name.rpartition(".")[0] for name in wanted if bool((named[name] == _UNREACHED).all())])
    dead = tuple(name for name in wanted if bool((named[name] == 0).any()))
    scales = {name: named[name].masked_fill(named[name] == 0, _least(named[name])) for name in wanted}
    for name, scale in scales.items():
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            message = f"calibration found no positive number for `{name}`, but {scale.min().item():g}"
            hint = "the model overflows in its dtype, or its weights hold NaN: fp8 inspect CHECKPOINT"
            raise Failure(kind="model", message=message, hint=hint)
    save_file(scales, target)
    return Saved(count=len(scales), dead=dead)


def _scales_in(model: Any) -> dict[str, Any]:
    """Return the scales by their names in the model. `state_dict` would read every weight from the disk as well."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for own in module._parameters:  # noqa: SLF001 - the names alone, without a value being read
            full = f"{name}.{own}"
            if full.endswith(SCALE_ENDINGS):
                found[full] = getattr(module, own).detach()
    return found


def _least(scale: Any) -> float:
    """Return what compressed-tensors has for a scale of nothing but zeros: the epsilon of its dtype."""
    import torch

    return torch.finfo(scale.dtype).eps


def _make_modifier(job: CalibrationJob, seen: Seen, layer_done: Callable[[int], None]) -> Any:
    """Return llm-compressor's modifier, which tells of every part that is done and notes what was seen."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    names: dict[int, str] = {}
    done = 0

    class Told(QuantizationModifier):  # type: ignore[misc]  # the library has no types
        """The same, with a word after each part of the model."""

        def on_calibration_start(self, state: Any, event: Any, **rest: Any) -> None:
            super().on_calibration_start(state, event, **rest)
            names.update((id(module), name) for name, module in state.model.named_modules())

        def sync_obs_act_stats(self, modules: Any) -> None:
            # Before the scales are computed, for after that an observer forgets what it saw, and after the processes
            # have joined what they saw, if there are several.
            super().sync_obs_act_stats(modules)
            for module in modules:
                for observer in observers_of(module):
                    if observer.has_statistics:
                        seen.reached.add(id(observer))
                        name = f"{names[id(module)]}.{observer.base_name}_scale"
                        zero = (observer.min_vals == 0) & (observer.max_vals == 0)
                        if bool(zero.any()):
                            seen.still[name] = zero.reshape(getattr(module, f"{observer.base_name}_scale").shape).cpu()

        def on_sequential_epoch_end(self, state: Any, event: Any, modules: Any, **rest: Any) -> None:
            nonlocal done
            super().on_sequential_epoch_end(state, event, modules, **rest)
            done += 1
            layer_done(done)

        def on_calibration_end(self, state: Any, event: Any, **rest: Any) -> None:
            for name, module in state.model.named_modules():
                missed = [each for each in observers_of(module) if id(each) not in seen.reached]
                seen.missed.extend(f"{name}.{observer.base_name}_scale" for observer in missed)
            super().on_calibration_end(state, event, **rest)

    cache = None if job.kv_cache is None else kv_cache_scheme(job.kv_cache)
    common = {"targets": list(job.targets), "ignore": list(job.ignore), "kv_cache_scheme": cache}
    return Told(**common) if job.scheme is None else Told(**common, scheme=job.scheme)


def kv_cache_scheme(kv_cache: Literal["tensor", "head"]) -> dict[str, object]:
    """Return llm-compressor's words for an FP8 KV cache."""
    # The default observer is a moving average, which the first sample dominates: values clip by 9 to 18 %.
    return {
        "num_bits": 8,
        "type": "float",
        "strategy": _STRATEGIES[kv_cache],
        "dynamic": False,
        "symmetric": True,
        "observer": "static_minmax",
    }


def observers_of(module: Any) -> list[Any]:
    """Return what observes a module while samples go through."""
    found = (getattr(module, f"{base}_observer", None) for base in _OBSERVED)
    return [observer for observer in found if observer is not None]


def count_parts(model: Any) -> int:
    """Return how many parts the sequential pipeline makes of the model: its layers, and what comes after them."""
    layers = set(layers_of(model))
    return 1 + sum(type(module).__name__ in layers for module in model.modules())


def layers_of(model: Any) -> list[str]:
    """Return the names of the classes of the model's layers, without those that only its towers have."""
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    found = infer_sequential_targets(model)
    reached = reached_by_text(model)
    classes = {type(module).__name__ for module in model.modules() if reached(module)}
    return [found] if isinstance(found, str) else [name for name in found if name in classes]
