"""core.machine.hub_settings and the checks made of it: huggingface_hub is the oracle, and the token is never seen."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fp8cli.core.doctor.environment import Check
from fp8cli.core.doctor.machine_checks import check_cache, check_hub, check_token
from fp8cli.core.machine.hub_settings import HubSettings, read_hub_settings

HIDDEN = "hf_NeverShownInAnyOutput0123"
ORACLE = """
import json
from huggingface_hub import constants, get_token
print(json.dumps([constants.ENDPOINT, constants.HF_HUB_OFFLINE, get_token() is not None, constants.HF_HUB_CACHE]))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_ENDPOINT": "https://mirror.example/hub/"},
        {"HF_HUB_OFFLINE": "1"},
        {"HF_HUB_OFFLINE": "yes", "HF_TOKEN": HIDDEN},
        {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
        {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "TRUE"},
        {"HF_TOKEN": "  \n"},
        {"HUGGING_FACE_HUB_TOKEN": HIDDEN},
        {"HF_HOME": "~/elsewhere"},
        {"HF_HOME": "$HOME/elsewhere", "HF_TOKEN_PATH": "~/my-token"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HUB_CACHE": "/cache", "HUGGINGFACE_HUB_CACHE": "/other"},
        {"HUGGINGFACE_HUB_CACHE": "/other"},
    ],
)
def test_every_setting_is_read_as_huggingface_hub_reads_it(home: Path, variables: Mapping[str, str]) -> None:
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "token").write_text(f"{HIDDEN}\n", "utf-8")
    (home / "my-token").write_text("\n", "utf-8")
    environ = {name: os.environ[name] for name in ("PATH", "HOME")} | dict(variables)
    oracle = subprocess.run([sys.executable, "-c", ORACLE], env=environ, capture_output=True, check=True)
    endpoint, offline, has_token, cache = json.loads(oracle.stdout)
    settings = read_hub_settings(environ)
    assert settings.endpoint == endpoint
    assert (settings.offline_by is not None) == offline
    assert (settings.token_from is not None) == has_token
    assert settings.cache == Path(cache)


def test_only_where_a_token_lies_is_kept_and_nothing_of_it(home: Path) -> None:
    file = home / "token"
    file.write_text(HIDDEN, "utf-8")
    for environ, place in (
        ({"HF_TOKEN": HIDDEN}, "HF_TOKEN"),
        ({"HUGGING_FACE_HUB_TOKEN": HIDDEN}, "HUGGING_FACE_HUB_TOKEN"),
        ({"HF_TOKEN_PATH": str(file)}, f"the file `{file}`"),
    ):
        settings = read_hub_settings(environ)
        check = check_token(settings)
        assert check.found == f"present, from {place}"
        assert not any(part in f"{settings!r} {check!r}" for part in (HIDDEN, HIDDEN[:8], HIDDEN[-8:]))


def test_a_password_in_the_endpoint_is_left_out() -> None:
    settings = read_hub_settings({"HF_ENDPOINT": "https://me:hf_secret@mirror.example:8443/hub?token=hf_secret"})
    assert settings.endpoint == "https://mirror.example:8443/hub"


@pytest.mark.parametrize("text", ["mirror.example", "ftp://mirror.example", "https://", "https://[::1", "http://x:y"])
def test_an_endpoint_that_is_no_address_is_a_warning(text: str) -> None:
    check = check_hub(read_hub_settings({"HF_ENDPOINT": text}))
    assert check.status == "warning"
    assert check.fix == "unset HF_ENDPOINT: the default is https://huggingface.co"
    assert "HF_ENDPOINT" in check.found


def test_offline_names_the_variable_that_makes_it_so() -> None:
    settings = read_hub_settings({"TRANSFORMERS_OFFLINE": "1"})
    assert check_hub(settings).found == (
        "offline by TRANSFORMERS_OFFLINE: only models in the cache, none from https://huggingface.co"
    )


def test_a_token_that_is_not_sent_is_said_not_to_be() -> None:
    settings = read_hub_settings({"HF_TOKEN": HIDDEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})
    assert check_token(settings).found == (
        "present, from HF_TOKEN; HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it from being sent"
    )


def settings_with(cache: Path) -> HubSettings:
    return read_hub_settings({"HF_HUB_CACHE": str(cache)})


def test_a_cache_that_is_no_folder_is_a_warning_that_says_how_to_move_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert check_cache(settings_with(tmp_path / "file" / "hub")) == Check(
        name="cache",
        status="warning",
        found=f"`{tmp_path / 'file'}`: Not a directory",
        wanted="a folder that can be written, for models from the Hub",
        fix="choose another place with HF_HUB_CACHE or HF_HOME",
    )


def test_a_cache_that_is_not_made_yet_is_judged_by_the_folder_it_will_lie_in(tmp_path: Path) -> None:
    check = check_cache(settings_with(tmp_path / "not" / "yet"))
    assert check.status == "passed"
    assert check.found.endswith(f"free in `{tmp_path / 'not' / 'yet'}`")
    assert list(tmp_path.iterdir()) == []
