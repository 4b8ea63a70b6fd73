"""The finding of scales: llm-compressor's real `oneshot` over the samples, in memory, and what it found read off.

The model that comes out of it is thrown away: its weights are written by the streaming engine, from the checkpoint,
with the same bytes. What is kept is what needs data, under the names and in the shapes of a checkpoint.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from fp8cli.calibrator.names import rename, weights_of
from fp8cli.calibrator.protocol import SCALE_ENDINGS, CalibrationJob
from fp8cli.samples.encoding import Encoded
from fp8cli.worker.failures import Failure, describe, sentence

_OBSERVED: Final = ("input", "k", "v")
"""Values that are observed while samples go through: inputs of layers, keys and values."""

_STRATEGIES: Final = {"tensor": "tensor", "head": "attn_head"}
_MAX_NAMED: Final = 3


def find_scales(job: CalibrationJob, model: Any, tokenizer: Any, encoded: Encoded, tell: Callable[..., None]) -> None:
    """Run `oneshot` over the samples; the scales are in the model afterwards.

    Raises Failure naming a module that no sample reached, or saying why the model cannot be calibrated.
    """
    layers = count_parts(model)
    tell("begins", samples=len(encoded.ids), layers=layers)
    recipe, missed = _make_modifier(job, lambda number: tell("layer", number=number, of=max(number, layers)))
    try:
        _run_oneshot(recipe, data_set_of(encoded), model, tokenizer, encoded.max_seq_length)
    except Exception as error:
        failure = describe(error)
        if failure.kind != "other":
            raise failure from error
        message = f"llm-compressor cannot calibrate this model ({sentence(error)})"
        hint = None if job.kv_cache is None else "it may without --kv-cache: the layers of some models are not known"
        raise Failure(kind="model", message=message, hint=hint) from error
    refuse_unreached(missed)


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


def data_set_of(encoded: Encoded) -> Any:
    """Return the samples as `oneshot` takes them."""
    from datasets import Dataset

    ids = [list(each) for each in encoded.ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]})


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
    )


def save_scales(job: CalibrationJob, model: Any, target: Path) -> int:
    """Write the scales that are wanted under their names in the checkpoint, and return how many there are.

    Raises Failure naming one that is not there, or is no positive number.
    """
    import torch
    from safetensors.torch import load_file, save_file

    found = {name: value for name, value in model.state_dict().items() if name.endswith(SCALE_ENDINGS)}
    if not found:
        raise Failure(kind="model", message="no layer of the model needs a scale", hint="check --targets and --ignore")
    with TemporaryDirectory(dir=target.parent) as folder:
        # The class's own method: it turns names of modules into those of a checkpoint, and with a `state_dict` of
        # scales alone it writes nothing else. The instance's, llm-compressor's, would compress the model first.
        type(model).save_pretrained(model, folder, state_dict=found)
        weights = weights_of(Path(job.model))
        saved = load_file(Path(folder) / "model.safetensors")
    named = {rename(name, weights): scale for name, scale in saved.items()}
    wanted = named if job.wanted is None else job.wanted
    missing = next((name for name in wanted if name not in named), None)
    if missing is not None:
        hint = "keep that module as it is with --ignore"
        raise Failure(kind="model", message=f"llm-compressor has no scale for `{missing}`", hint=hint)
    scales = {name: named[name] for name in wanted}
    for name, scale in scales.items():
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            message = f"calibration found no positive number for `{name}`, but {scale.min().item():g}"
            hint = "the model overflows in its dtype, or its weights hold NaN: fp8 inspect CHECKPOINT"
            raise Failure(kind="model", message=message, hint=hint)
    save_file(scales, target)
    return len(scales)


def _make_modifier(job: CalibrationJob, layer_done: Callable[[int], None]) -> tuple[Any, list[str]]:
    """Return llm-compressor's modifier, which tells of every part that is done, and the modules nothing reached.

    The list is filled when the calibration ends.
    """
    from llmcompressor.modifiers.quantization import QuantizationModifier

    reached: set[int] = set()
    missed: list[str] = []
    done = 0

    class Told(QuantizationModifier):  # type: ignore[misc]  # the library has no types
        """The same, with a word after each part of the model."""

        def on_sequential_epoch_end(self, state: Any, event: Any, modules: Any, **rest: Any) -> None:
            nonlocal done
            # Before the scales are computed: after that an observer forgets what it saw.
            reached.update(id(seen) for module in modules for seen in observers_of(module) if seen.has_statistics)
            super().on_sequential_epoch_end(state, event, modules, **rest)
            done += 1
            layer_done(done)

        def on_calibration_end(self, state: Any, event: Any, **rest: Any) -> None:
            for name, module in state.model.named_modules():
                if any(id(seen) not in reached for seen in observers_of(module)):
                    missed.append(name)
            super().on_calibration_end(state, event, **rest)

    cache = None if job.kv_cache is None else kv_cache_scheme(job.kv_cache)
    common = {"targets": list(job.targets), "ignore": list(job.ignore), "kv_cache_scheme": cache}
    return Told(**common) if job.scheme is None else Told(**common, scheme=job.scheme), missed


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
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    targets = set(infer_sequential_targets(model))
    return 1 + sum(type(module).__name__ in targets for module in model.modules())
