"""Everything the doctor's checks look at, each thing found out when a check first asks for it, and then once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fp8cli.core.doctor.candidate import Candidate, look_at
from fp8cli.core.machine.amd import AmdGpu, find_amd_gpus
from fp8cli.core.machine.gpus import Gpus, find_gpus
from fp8cli.core.machine.hub_settings import HubSettings, read_hub_settings
from fp8cli.core.machine.interpreters import PROBE_SECONDS, Interpreter, find_vllm, this_interpreter
from fp8cli.core.machine.probes import ROOT
from fp8cli.errors import Fp8Error
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The machine, its interpreters and the user's wishes. What cannot be found out raises where it is asked for."""

    checkpoint: str | None = None
    """A folder or a Hub id, as the user writes it."""
    python: Path | None = None
    """The interpreter of vLLM, if the user names it."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Path = ROOT
    nvml: Any = None
    """Stands in for pynvml."""
    probe_seconds: float = PROBE_SECONDS

    @property
    def candidate(self) -> Candidate:
        """The checkpoint. Raises Fp8Error if there is none of that name, or it cannot be reached."""
        if isinstance(self._looked_at, Fp8Error):
            raise self._looked_at
        return self._looked_at

    @cached_property
    def _looked_at(self) -> Candidate | Fp8Error:
        try:
            return look_at(self.checkpoint or "")
        except Fp8Error as problem:  # Kept too: the Hub is not to be asked again by every check.
            return problem

    @property
    def out(self) -> Path:
        """Where `fp8 quantize` would write by default."""
        name = Path(self.checkpoint or "model").expanduser().resolve().name
        return Path(f"{name}-{SCHEMES[DEFAULT_SCHEME].suffix}")

    @cached_property
    def gpus(self) -> Gpus:
        """NVIDIA GPUs."""
        return find_gpus(self.nvml, self.environ, self.root)

    @cached_property
    def amd(self) -> tuple[AmdGpu, ...]:
        """AMD GPUs."""
        return find_amd_gpus(self.root)

    @cached_property
    def here(self) -> Interpreter:
        """The interpreter that runs this."""
        return this_interpreter()

    @cached_property
    def vllm(self) -> Interpreter | None:
        """The interpreter vLLM lives in."""
        return find_vllm(self.python, self.here, self.environ, seconds=self.probe_seconds)

    @cached_property
    def hub(self) -> HubSettings:
        """How the Hub would be reached."""
        return read_hub_settings(self.environ)
