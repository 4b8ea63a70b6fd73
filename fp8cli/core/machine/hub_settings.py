"""How this process would reach the Hugging Face Hub: endpoint, offline or not, token or none, and the cache.

The variables are read as huggingface_hub reads them, without importing it. Of the token only whether there is one
is ever kept; no function here returns it, and no part of it.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_ENDPOINT: Final = "https://huggingface.co"
_TRUE: Final = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """What the environment says about the Hub."""

    endpoint: str
    """Without user names and passwords, should it hold any."""
    valid: bool
    """Whether the endpoint is an address that HTTP can reach."""
    offline_by: str | None
    """The variable that forbids the network; None when it is allowed."""
    token_from: str | None
    """Where a token lies: a variable or a file; None without one."""
    token_withheld: bool
    """Whether HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it from being sent."""
    cache: Path
    """Where downloaded models lie."""


def read_hub_settings(environ: Mapping[str, str] = os.environ) -> HubSettings:
    """Read what the environment says. Never raises for its values."""
    endpoint, valid = _endpoint(environ)
    home = _home(environ)
    offline = (name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if environ.get(name))
    first = next(offline, None)
    return HubSettings(
        endpoint=endpoint,
        valid=valid,
        offline_by=first if first is not None and _is_true(environ[first]) else None,
        token_from=_token_place(environ, home),
        token_withheld=_is_true(environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")),
        cache=_path(environ.get("HF_HUB_CACHE", environ.get("HUGGINGFACE_HUB_CACHE", str(home / "hub")))),
    )


def _endpoint(environ: Mapping[str, str]) -> tuple[str, bool]:
    text = environ.get("HF_ENDPOINT", _ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(text)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return "an address that cannot be read", False
    if parts.scheme not in {"http", "https"} or not host:
        # Shown in part only: who knows what it is.
        return "no address of http or https", False
    return f"{parts.scheme}://{host}{port}{parts.path}", True


def _home(environ: Mapping[str, str]) -> Path:
    default = Path(environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return _path(environ.get("HF_HOME", str(default)))


def _token_place(environ: Mapping[str, str], home: Path) -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environ.get(name, "").strip():
            return name
    file = _path(environ.get("HF_TOKEN_PATH", str(home / "token")))
    with suppress(OSError):
        if file.read_bytes().strip():
            return f"the file `{file}`"
    return None


def _is_true(value: str) -> bool:
    return value.upper() in _TRUE


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
