"""The model of a job, as one of lm-eval's own classes with exactly the arguments that the job names."""

import os
from collections.abc import Mapping
from typing import Any, Final

from fp8cli.worker.failures import Failure, describe, sentence
from fp8cli.worker.lm_eval_vllm import answer_for_the_cpu_build
from fp8cli.worker.model_class import read_as_text, reads_pictures
from fp8cli.worker.protocol import Backend, Job

CLASSES: Final[Mapping[Backend, str]] = {"hf": "hf", "vllm": "vllm", "server": "local-completions"}
"""Names of lm-eval's classes."""

SMALL_VOCABULARY: Final = 20_000
"""Up to here vLLM hands over all log-probabilities of a position in reasonable time."""

NOT_LOADED: Final = (OSError, KeyError, TypeError, RuntimeError, ValueError)
"""How transformers says that a checkpoint is broken or not of a kind it knows."""


def load_model(job: Job) -> Any:
    """Load the model. Raises Failure where the reason is known here; vLLM writes most of its reasons to the log."""
    from lm_eval.api.registry import get_model

    options = {"batch_size": job.batch_size, "device": _device(job)}
    try:
        if job.backend == "vllm":
            answer_for_the_cpu_build()
        known = get_model(CLASSES[job.backend])
        if job.backend == "hf" and reads_pictures(_config(job.model_args)):
            return _load_whole(known, model_args(job), options)
        return known.create_from_arg_obj(model_args(job), options)
    except Exception as error:
        failure = describe(error)
        if failure.kind == "other" and job.backend == "hf" and isinstance(error, NOT_LOADED):
            raise Failure(kind="model", message=f"the checkpoint could not be loaded ({sentence(error)})") from error
        raise failure from error


def _load_whole(known: Any, arguments: Mapping[str, object], options: Mapping[str, object]) -> Any:
    """Load a model of several parts for texts; lm-eval's own class for it wants pictures with every request."""
    from transformers import AutoModelForImageTextToText

    class Whole(known):  # type: ignore[misc]  # lm-eval has no types
        """The class for texts, with another class of transformers behind it."""

        AUTO_MODEL_CLASS = AutoModelForImageTextToText

    loaded = Whole.create_from_arg_obj(arguments, options)
    read_as_text(loaded.model)
    return loaded


def model_args(job: Job) -> dict[str, object]:
    """Return the job's arguments of the model, and what vLLM must be told at its start to hand over distributions."""
    arguments = dict(job.model_args)
    if job.backend == "vllm" and job.fidelity is not None and "max_logprobs" not in arguments:
        vocabulary = _vocabulary(arguments)
        arguments["max_logprobs"] = vocabulary if vocabulary <= SMALL_VOCABULARY else job.fidelity.top_k
    return arguments


def end_model(job: Job, lm: Any) -> None:
    """End the engine processes of vLLM, if it has any: they would outlive a worker that leaves at once."""
    if job.backend == "vllm":
        lm.model.llm_engine.engine_core.shutdown()


def _vocabulary(arguments: Mapping[str, object]) -> int:
    """Return how many tokens the output layer knows, of the config alone."""
    return int(_config(arguments).get_text_config().vocab_size)


def _config(arguments: Mapping[str, object]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        str(arguments["pretrained"]),
        revision=arguments.get("revision"),
        trust_remote_code=bool(arguments.get("trust_remote_code", False)),
    )


def _device(job: Job) -> str | None:
    """Return the device; where none is asked for, lm-eval's class would take a GPU, there or not."""
    if job.backend != "hf" or job.device is not None:
        return job.device
    import torch

    return "cuda" if torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu"
