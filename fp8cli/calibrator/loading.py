"""The loading of a model: into memory, or onto a folder of links to the checkpoint's own shards.

With such a folder a weight is read when its module runs and let go of afterwards, so that a model larger than memory
can be calibrated: compressed-tensors' `DiskCache` holds a meta tensor for each, and the place of its bytes.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fp8cli.worker.failures import Failure, describe, sentence
from fp8cli.worker.model_class import class_for, outline, read_as_text

_NOT_LOADED: Final = (OSError, KeyError, TypeError, RuntimeError, ValueError)
"""How transformers says that a checkpoint is broken or not of a kind it knows."""


def load_model(checkpoint: str, dtype: str, *, offload: Path | None, shared: bool = False) -> Any:
    """Load a language model, with the towers of other parts if it has any.

    checkpoint: its folder. dtype: torch's name of the type to compute in. offload: a folder for links and for what is
    no tensor of the checkpoint as it is (experts that transformers fuses); None: all of the model comes into memory.
    Of several processes, joined by `torch.distributed`, all must call this, with the same folder. shared: whether that
    folder is all that they share, because they are on several hosts.

    Raises Failure where the reason is known here.
    """
    import torch
    from transformers import AutoConfig

    if offload is not None:
        _check_links(offload, Path(checkpoint))
    try:
        # Experts become layers of their own later, in `oneshot`. Its way of loading them so takes every class of
        # transformers in hand, of which some cannot be loaded without torchvision.
        if offload is None:
            loads = class_for(AutoConfig.from_pretrained(checkpoint))
            return read_as_text(loads.from_pretrained(checkpoint, dtype=getattr(torch, dtype)))
        return _load_from_disk(checkpoint, getattr(torch, dtype), offload, shared=shared)
    except Exception as error:
        failure = describe(error)
        if failure.kind == "other" and isinstance(error, _NOT_LOADED):
            raise Failure(kind="model", message=f"the checkpoint could not be loaded ({sentence(error)})") from error
        raise failure from error


def _check_links(folder: Path, checkpoint: Path) -> None:
    """Raise Failure where the folder's file system takes no links, or does not follow them, as sshfs in Debian."""
    probe = folder / f"probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.symlink_to(checkpoint.absolute())
        probe.stat()
    except OSError as problem:
        message = f"`{folder}` takes no links to the checkpoint's shards: {problem.strerror or problem}"
        hint = "make the output on another file system, or load the weights: --offload none, in one process"
        raise Failure(kind="other", message=message, hint=hint) from problem
    finally:
        probe.unlink(missing_ok=True)


def _load_from_disk(checkpoint: str, dtype: Any, folder: Path, *, shared: bool) -> Any:
    from compressed_tensors.distributed import is_source_process
    from compressed_tensors.offload import from_accelerate
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    # Of several processes the first alone loads, and tells the others where everything lies.
    places = _places(checkpoint) if is_source_process() else "meta"
    with _shards_read_by_tensor():
        model = class_for(AutoConfig.from_pretrained(checkpoint)).from_pretrained(
            checkpoint, dtype=dtype, device_map=places, offload_folder=str(folder), offload_buffers=True
        )
    if shared:
        _dispatch_by_folder(model)
    else:
        from_accelerate(model)
    return model


def _dispatch_by_folder(model: Any) -> None:
    """Do what `from_accelerate` does, with every tensor on disk.

    It would hand what lies in memory to other processes as shared memory, which another host does not see.
    """
    from compressed_tensors.distributed import get_source_rank
    from compressed_tensors.offload.convert.from_accelerate import remove_accelerate
    from compressed_tensors.offload.dispatch import dispatch_with_map
    from torch import distributed

    places, folder = remove_accelerate(model)
    told: list[Any] = [{name: (at, None if stays is None else "disk") for name, (at, stays) in places.items()}, folder]
    if distributed.is_initialized():
        distributed.broadcast_object_list(told, src=get_source_rank())
    dispatch_with_map(model, *told)


def _places(checkpoint: str) -> dict[str, str]:
    """Return where the parts of the model go: all onto disk but the smallest, for accelerate refuses a whole model."""
    parts = dict(_parts("", outline(checkpoint)))
    smallest = min(parts, key=lambda name: sum(weight.numel() for weight in parts[name].parameters()))
    return {name: "cpu" if name == smallest else "disk" for name in parts}


def _parts(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    """Yield lists of layers, and what stands beside them."""
    import torch

    children = list(module.named_children())
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if not children or own or isinstance(module, torch.nn.ModuleList):
        yield name, module
        return
    for child, part in children:
        yield from _parts(f"{name}.{child}" if name else child, part)


class _Slice:
    """A tensor of a file that is opened for it alone."""

    def __init__(self, path: str, name: str, options: dict[str, Any]) -> None:
        self._path, self._name, self._options = path, name, options

    def __getitem__(self, part: Any) -> Any:
        from safetensors import safe_open

        with safe_open(self._path, **self._options) as file:
            return file.get_slice(self._name)[part]


class _Shard:
    """What transformers takes for an open safetensors file."""

    def __init__(self, path: str, **options: Any) -> None:
        from safetensors import safe_open

        with safe_open(path, **options) as file:
            self._names = list(file.keys())
        self._path, self._options = path, options

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        return self._names

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self._path, name, self._options)


@contextmanager
def _shards_read_by_tensor() -> Iterator[None]:
    """Let transformers open a shard anew for each tensor.

    It keeps them all open, mapped into memory, while it casts one tensor after another; everything that was read stays
    resident meanwhile, which comes to the whole model.
    """
    from transformers import modeling_utils

    original = modeling_utils.safe_open
    modeling_utils.safe_open = _Shard
    try:
        yield
    finally:
        modeling_utils.safe_open = original
