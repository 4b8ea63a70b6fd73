"""What every test runs in: no network through Hugging Face, none of the user's caches, one thread, plain output.

The settings stand in the environment before any test module is imported, because the libraries read them at
import, and because tests start other processes, which inherit them. A test with a server of its own on the
loopback device sets `HF_HUB_OFFLINE` to 0 in the process that talks to it.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, and that proves nothing. The same examples every time: a failure can be repeated.
settings.register_profile("fp8", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fp8")

_caches = Path(tempfile.mkdtemp(prefix="fp8-tests-"))

# uv's cache is the exception: it holds what the package index says and scripts/setup has just filled it.
_users_caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("UV_CACHE_DIR", str(_users_caches / "uv"))

os.environ.update(
    HF_HOME=str(_caches / "huggingface"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    VLLM_CACHE_ROOT=str(_caches / "vllm"),
    VLLM_NO_USAGE_STATS="1",
    XDG_CACHE_HOME=str(_caches),
    # Tiny tensors: more threads only wait for each other.
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    TOKENIZERS_PARALLELISM="false",
)
# Colour and width are what a test says, not what the terminal or the CI service of the day says.
for _name in ("CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "HF_TOKEN", "LINES", "NO_COLOR"):
    os.environ.pop(_name, None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the caches."""
    del session
    shutil.rmtree(_caches, ignore_errors=True)
