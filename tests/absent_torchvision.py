"""A torchvision that has every name and does nothing, for a process that imports image processors and no pictures.

vLLM's multimodal models import it with their processors, and so does transformers; this project does not install it.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from transformers.utils import is_torchvision_available


class _Nothing(type):
    """The type of whatever is asked of the module: again with every name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


class _Absent(ModuleType):
    """The module, or a part of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


_PARTS = "", ".io", ".ops", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"
# Asked once, transformers remembers the answer: it goes on knowing that torchvision is not here.
if not is_torchvision_available():
    sys.modules.update({f"torchvision{part}": _Absent(f"torchvision{part}") for part in _PARTS})
