"""Verdicts on the machine beyond what quantizing asks of it: processors, shared memory, cache, temporary files, Hub.

None of these stops anyone by itself, so none ever fails: what is tight or missing is a warning.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fp8cli.core.doctor.environment import SPARE_BYTES, Check, gb, gib
from fp8cli.core.machine.hub_settings import HubSettings
from fp8cli.core.machine.probes import ROOT, read_disk, usable_cpus

QUEUE_BYTES: Final = 160 * 2**20
"""Shared memory of the queue between vLLM's workers: ten chunks of VLLM_MQ_MAX_CHUNK_BYTES_MB, 16 by default (0.32).
A container has 64 MB unless it is told otherwise."""

_SHARED: Final = "dev/shm"


def check_processors(root: Path = ROOT) -> Check:
    """Count the processors; one is enough for anything."""
    usable, all_of_them = usable_cpus(root), os.cpu_count() or 1
    found = f"{usable} of {all_of_them}, by affinity and control group"
    return Check(name="processors", status="passed", found=found, wanted="1")


def check_shared_memory(gpus: int, root: Path = ROOT) -> Check:
    """Check `/dev/shm`, through which vLLM's workers talk when there is more than one GPU."""
    name, wanted = "shared memory", f"{gib(QUEUE_BYTES)} in /dev/shm, where vLLM runs on more than one GPU"
    folder = root / _SHARED
    if not folder.is_dir():
        return Check(name=name, status="not checked", found="there is no /dev/shm", wanted=wanted)
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} free in /dev/shm"
    if gpus > 1 and free < QUEUE_BYTES:
        fix = "start the container with --ipc=host or --shm-size=1g"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    return Check(name=name, status="passed", found=found, wanted=wanted)


def check_cache(settings: HubSettings) -> Check:
    """Check that models from the Hub can be kept where huggingface_hub keeps them."""
    fix = "choose another place with HF_HUB_CACHE or HF_HOME"
    return _check_place("cache", settings.cache, "a folder that can be written, for models from the Hub", fix)


def check_temporary(environ: Mapping[str, str] = os.environ) -> Check:
    """Check the folder for temporary files, without which neither vLLM nor torch's compiler starts."""
    folder = Path(environ.get("TMPDIR") or "/tmp")  # noqa: S108 - looked at, not written to
    return _check_place("temporary files", folder, "a folder that can be written", "set TMPDIR to another folder")


def _check_place(name: str, folder: Path, wanted: str, fix: str) -> Check:
    disk = read_disk(folder / "file")
    if disk.refusal is not None:
        found = f"`{disk.folder}`: {disk.refusal}"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    if disk.free_bytes is None:
        found = f"the file system of `{disk.folder}` does not say how much is free"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    # The cache is made when it is needed: until then what counts is the folder it will lie in.
    found = f"{gb(disk.free_bytes)} free in `{folder}`"
    if disk.free_bytes < SPARE_BYTES:
        return Check(name=name, status="warning", found=found, wanted=f"{wanted}, and {gb(SPARE_BYTES)}", fix=fix)
    return Check(name=name, status="passed", found=found, wanted=wanted)


def check_hub(settings: HubSettings) -> Check:
    """Say how the Hub would be reached. It is not contacted, so whether it answers is not known."""
    name, wanted = "hub", "an address of http or https"
    if not settings.valid:
        fix = "unset HF_ENDPOINT: the default is https://huggingface.co"
        return Check(name=name, status="warning", found=f"HF_ENDPOINT is {settings.endpoint}", wanted=wanted, fix=fix)
    found = f"{settings.endpoint}, not contacted"
    if settings.offline_by is not None:
        found = f"offline by {settings.offline_by}: only models in the cache, none from {settings.endpoint}"
    return Check(name=name, status="passed", found=found, wanted=wanted)


def check_token(settings: HubSettings) -> Check:
    """Say whether there is a token for the Hub, and nothing else about it."""
    name, wanted = "token", "none for public models, one for private and gated ones"
    if settings.token_from is None:
        return Check(name=name, status="passed", found="none", wanted=wanted)
    withheld = "; HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it from being sent" if settings.token_withheld else ""
    return Check(name=name, status="passed", found=f"present, from {settings.token_from}{withheld}", wanted=wanted)
