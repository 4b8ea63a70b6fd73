"""The compressor: llm-compressor's real `oneshot`, and what it makes of a model saved as it saves it.

The second program of this room, started as the calibrator is. Where the calibrator keeps nothing but scales, all that
comes out of this one is kept: it is for weights that need data too, and for recipes.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from fp8cli.calibrator import compressing_protocol as protocol
from fp8cli.calibrator.awq_mappings import without_idle_mappings
from fp8cli.calibrator.compressing_recipe import check_data, list_mappings, make_modifiers
from fp8cli.calibrator.finding import count_parts, data_set_of, layers_of, observers_of, refuse_unreached
from fp8cli.calibrator.loading import load_model
from fp8cli.calibrator.names import rename, weights_of
from fp8cli.calibrator.surroundings import check_device, peak_gpu_bytes, seed_all, tell_started
from fp8cli.calibrator.tracing import configs_kept_whole
from fp8cli.samples.encoding import Encoded
from fp8cli.worker.doing import run_job, write_whole
from fp8cli.worker.facts import peak_memory_bytes
from fp8cli.worker.failures import Failure, describe, sentence
from fp8cli.worker.progress import Progress

SEED: Final = 1234
"""Where there is no data, and so no seed of the draw."""

SHARD: Final = "1GB"
"""Of the result, whose tensors go into the source's shards: weights that stay on disk are collected by shards."""


def main(folder: Path) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`."""
    run_job(folder, compress_job)


def compress_job(folder: Path, progress: Progress) -> None:
    """Do the job of a folder; its facts are written last. Raises Failure and UnfitData."""
    job = protocol.read_job(folder)
    here = tell_started(progress)
    started = time.perf_counter()
    check_device(job.device)
    modifiers = make_modifiers(job, folder)
    encoded, tokenizer = None, None
    if check_data(job, modifiers) and job.samples is not None:
        from fp8cli.samples.encoding import encode_samples, load_tokenizer, positions_of

        tokenizer = load_tokenizer(job.model)
        encoded = encode_samples(job.samples, folder, tokenizer, positions_of(job.model))
        progress.tell("texts", samples=len(encoded.ids), tokens=encoded.tokens)
    progress.tell("loading")
    seed_all(SEED if job.samples is None else job.samples.seed)
    weights = folder / protocol.WEIGHTS
    model = load_model(job.model, job.dtype, offload=weights if job.offload else None)
    compress_model(modifiers, model, tokenizer, encoded, progress.tell)
    progress.tell("saving")
    renamed = _save(model, job.model, folder / protocol.RESULT)
    shutil.rmtree(weights, ignore_errors=True)
    write_whole(
        folder / protocol.FACTS,
        {
            "modifiers": [type(modifier).__name__ for modifier in modifiers],
            "renamed": renamed,
            "samples": 0 if encoded is None else len(encoded.ids),
            "tokens": 0 if encoded is None else encoded.tokens,
            "max_seq_length": 0 if encoded is None else encoded.max_seq_length,
            "conversations": encoded is not None and encoded.conversations,
            "token_ids_sha256": "" if encoded is None else encoded.sha256(),
            "versions": here,
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(0),
            "peak_gpu_memory_bytes": peak_gpu_bytes(),
        },
    )


def compress_model(
    modifiers: Sequence[Any],
    model: Any,
    tokenizer: Any,
    encoded: Encoded | None,
    tell: Callable[..., None],
    *,
    before_last: Sequence[Any] = (),
) -> None:
    """Run `oneshot`: the model is quantized afterwards, but not packed yet.

    before_last: modifiers that change nothing, and go before the last one, which rounds.

    Raises Failure naming modules that no sample reached, or saying why the model cannot be compressed.
    """
    from llmcompressor import oneshot

    parts = 1 if encoded is None else count_parts(model)
    tell("begins", samples=0 if encoded is None else len(encoded.ids), layers=parts)
    data = {
        "tokenizer": tokenizer,
        "dataset": None if encoded is None else data_set_of(encoded, model),
        "num_calibration_samples": 0 if encoded is None else len(encoded.ids),
        "max_seq_length": None if encoded is None else encoded.max_seq_length,
        "sequential_targets": layers_of(model),
    }
    missed: list[str] = []
    try:
        list_mappings(modifiers, model)
        watched = _watched(modifiers, model, missed, lambda number: tell("layer", number=number, of=max(number, parts)))
        with without_idle_mappings(), watched, configs_kept_whole():
            oneshot(
                model=model,
                recipe=[*modifiers[:-1], *before_last, modifiers[-1]],
                pipeline="datafree" if encoded is None else "sequential",
                batch_size=1,
                shuffle_calibration_samples=False,
                moe_calibrate_all_experts=True,
                **({} if encoded is None else data),
            )
    except Exception as error:
        failure = describe(error)
        if failure.kind != "other":
            raise failure from error
        named = " and ".join(f"`{type(modifier).__name__}`" for modifier in modifiers)
        raise Failure(
            kind="model", message=f"{named} cannot be applied to this model ({sentence(_first(error))})"
        ) from error
    if encoded is not None:
        refuse_unreached(missed)


def _first(error: BaseException) -> BaseException:
    """Return what an error comes from: pipelines wrap those of a model in ones that name nothing but a place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _watched(modifiers: Sequence[Any], model: Any, missed: list[str], done: Callable[[int], None]) -> Iterator[None]:
    """Tell of every part of the model that is done, and fill in the modules that nothing reached.

    The events that pipelines give to modifiers are listened to, not the modifiers: their classes name the recipe.
    """
    import torch
    from llmcompressor.core import LifecycleCallbacks
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    reached: set[int] = set()
    hooks: list[Any] = []
    parts = 0
    # GPTQ does nothing at all to a weight that nothing went through, and leaves its scale as memory was.
    by_inputs = any(isinstance(modifier, GPTQModifier) for modifier in modifiers)

    def calibration_begins(**rest: Any) -> Any:
        result = originals["calibration_start"](**rest)
        of = _quantized(model) if by_inputs else []
        hooks.extend(module.register_forward_hook(lambda module, *_: reached.add(id(module))) for module in of)
        return result

    def part_ends(modules: Any, **rest: Any) -> Any:
        nonlocal parts
        # Before the scales are computed: after that an observer forgets what it saw.
        reached.update(id(seen) for module in modules for seen in observers_of(module) if seen.has_statistics)
        result = originals["sequential_epoch_end"](modules, **rest)
        parts += 1
        done(parts)
        return result

    def calibration_ends(**rest: Any) -> Any:
        wanted = set(map(id, _quantized(model))) if by_inputs else set()
        for name, module in model.named_modules():
            lacking = any(id(seen) not in reached for seen in observers_of(module))
            if lacking or (id(module) in wanted and id(module) not in reached):
                missed.append(name)
        return originals["calibration_end"](**rest)

    listeners: Mapping[str, Callable[..., Any]] = {
        "calibration_start": calibration_begins,
        "sequential_epoch_end": part_ends,
        "calibration_end": calibration_ends,
    }
    originals = {name: getattr(LifecycleCallbacks, name) for name in listeners}
    pin = IntermediatesCache.pin_memory
    try:
        for name, listener in listeners.items():
            setattr(LifecycleCallbacks, name, staticmethod(listener))
        if not torch.accelerator.is_available():
            # AWQ pins memory for copies to a GPU, which torch refuses where there is none to copy to.
            IntermediatesCache.pin_memory = lambda *_, **__: None
        yield
    finally:
        IntermediatesCache.pin_memory = pin
        for name, original in originals.items():
            setattr(LifecycleCallbacks, name, original)
        for hook in hooks:
            hook.remove()


def _quantized(model: Any) -> list[Any]:
    """Return the modules whose weights are to be quantized."""
    schemes = ((module, getattr(module, "quantization_scheme", None)) for module in model.modules())
    return [module for module, scheme in schemes if getattr(scheme, "weights", None) is not None]


def _save(model: Any, checkpoint: str, folder: Path) -> dict[str, str]:
    """Save the model packed, and return the names of tensors that the checkpoint has others for, with those."""
    from llmcompressor.transformers.compression import compressed_tensors_utils
    from safetensors import safe_open
    from transformers import GenerationConfig

    # The source's own file is carried over as it is; transformers refuses to write some that it reads.
    model.generation_config = GenerationConfig()
    # A recipe beside the source says how that was made. Added to this one it would be run again, and one that cannot be
    # read would fail the saving after all the work.
    compressed_tensors_utils.infer_recipe_from_model_path = lambda *_: None
    model.save_pretrained(folder, save_compressed=True, max_shard_size=SHARD)
    weights = weights_of(Path(checkpoint))
    renamed = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = {name: rename(name, weights) for name in file.keys()}  # noqa: SIM118 - no mapping
        renamed.update({name: other for name, other in names.items() if name != other})
        _flush(path)
    return renamed


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
