"""What an interpreter has installed, counted by itself, with its own standard library alone.

The text of this file is also what core.machine.interpreters runs in other interpreters (`PYTHON -I -c`). So it
imports nothing of this package and nothing that Python 3.9 lacks, and it judges nothing: that is done in the
interpreter that asked. No package is imported either; metadata and one text file are read.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Row = tuple[str, str, list[str]]


def take_census() -> dict[str, object]:
    """Return a description of this interpreter that JSON can carry.

    distributions: (name, version, requirements) in the order of `sys.path`; of one name the first is the one that
    is imported. markers: the environment that markers of requirements are evaluated in. vllm: the distribution
    that the module of that name comes from, which for its CPU build has another name; None without the module.
    torch: the text of torch/version.py; None without torch. unreadable: metadata that could not be read.
    """
    version = platform.python_version()
    unreadable: list[str] = []
    rows = list(_distributions(unreadable))
    return {
        "python": version,
        "prefix": sys.prefix,
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": version,
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": version,
            "python_version": ".".join(platform.python_version_tuple()[:2]),
            "sys_platform": sys.platform,
        },
        "distributions": rows,
        "vllm": _provider("vllm", [name for name, _, _ in rows]),
        "torch": _torch_text(),
        "unreadable": unreadable,
    }


def _distributions(unreadable: list[str]) -> Iterator[Row]:
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        except (OSError, UnicodeDecodeError):
            unreadable.append(str(getattr(distribution, "_path", distribution)))
            continue
        fields: dict[str, list[str]] = {"Name": [], "Version": [], "Requires-Dist": []}
        # By lines: the parser of e-mails behind `distribution.metadata` takes five times as long.
        for line in text.splitlines():
            if not line:
                break
            key, _, value = line.partition(":")
            if key in fields:
                fields[key].append(value.strip())
        # What an interrupted installation left behind has no name; no one can import it by one.
        if fields["Name"] and fields["Version"]:
            yield fields["Name"][0], fields["Version"][0], fields["Requires-Dist"]


def _provider(module: str, names: list[str]) -> str | None:
    """Return the distribution that `module` comes from; the module's own name if none claims it."""
    if util.find_spec(module) is None:
        return None
    for name in (name for name in names if name.lower().startswith(module)):
        claimed = metadata.distribution(name).read_text("top_level.txt") or ""
        if module in claimed.split():
            return name
    return metadata.packages_distributions().get(module, [module])[0] if sys.version_info >= (3, 10) else module


def _torch_text() -> str | None:
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(take_census()))  # noqa: T201 - the answer to whoever runs this text
