"""Which modules a simulation rounds: `--targets`, `--ignore` and `--no-default-ignore`, as `fp8 quantize` has them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from fp8cli.core.model.patterns import LINEAR
from fp8cli.errors import UsageError
from fp8cli.simulator.scheme import SimulatedScheme

TARGETS_DEFAULT: Final = (LINEAR,)
_DIGITS: Final = 6


@dataclass(frozen=True, kw_only=True)
class ModuleOptions:
    """What the user said."""

    targets: tuple[str, ...] = TARGETS_DEFAULT
    ignore: tuple[str, ...] = ()
    default_ignore: bool = True

    @property
    def given(self) -> tuple[str, ...]:
        """The options that were given."""
        said = {
            "--targets": self.targets != TARGETS_DEFAULT,
            "--ignore": bool(self.ignore),
            "--no-default-ignore": not self.default_ignore,
        }
        return tuple(option for option, is_said in said.items() if is_said)

    @property
    def words(self) -> tuple[str, ...]:
        """The options with their values, as a command has them."""
        targets = () if self.targets == TARGETS_DEFAULT else self.targets
        pairs = [*(("--targets", each) for each in targets), *(("--ignore", each) for each in self.ignore)]
        head = () if self.default_ignore else ("--no-default-ignore",)
        return (*(word for pair in pairs for word in pair), *head)

    @property
    def mark(self) -> str:
        """A few digits that tell such options from others, for the name of a folder; nothing for the default."""
        if not self.given:
            return ""
        said = json.dumps([self.targets, self.ignore, self.default_ignore])
        return hashlib.sha256(said.encode()).hexdigest()[:_DIGITS]


EVERY_LINEAR: Final = ModuleOptions()


def check_modules(modules: ModuleOptions, scheme: SimulatedScheme) -> None:
    """Refuse options that would have no effect. Raises UsageError."""
    if scheme.weights is None and modules.given:
        message = f"no weight is rounded, so {' and '.join(modules.given)} would have no effect"
        raise UsageError(message, hint="leave it out, or simulate a scheme: --simulate fp8_dynamic")
