"""Weights in the state between two modifiers: smoothed, and not rounded yet.

`oneshot` runs its modifiers one after another at the end of every part of the model, and GPTQ overwrites what smoothing
has made of a weight at once. So one more modifier stands between them, which changes nothing.
"""

from collections.abc import Callable, Collection
from typing import Any


def keeper_of(modules: Collection[str], keep: Callable[[str, Any], None]) -> Any:
    """Return a modifier that hands over the weight of each of these Linears as it finds it at the end of its part.

    Its place is before the modifier that rounds. keep: gets the name and the weight itself, which others may change.
    """
    from llmcompressor.modifiers import Modifier

    wanted = frozenset(modules)
    names: dict[int, str] = {}

    class KeepingModifier(Modifier):  # type: ignore[misc]  # the library has no types
        """A modifier that looks."""

        def on_initialize(self, state: Any, **rest: Any) -> bool:  # noqa: ARG002 - its form is the library's
            return True

        def on_calibration_start(self, state: Any, event: Any, **rest: Any) -> None:  # noqa: ARG002 - as above
            names.update((id(module), name) for name, module in state.model.named_modules() if name in wanted)

        def on_sequential_epoch_end(
            self,
            state: Any,  # noqa: ARG002 - as above
            event: Any,  # noqa: ARG002 - as above
            modules: Any,
            **rest: Any,  # noqa: ARG002 - as above
        ) -> None:
            for module in modules:
                if id(module) in names:
                    keep(names[id(module)], module.weight.detach())

    return KeepingModifier()
