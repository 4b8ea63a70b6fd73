"""A recipe of llm-compressor, as far as it can be told from a file: stages of groups of modifiers, in YAML.

    default_stage:
      default_modifiers:
        QuantizationModifier: {targets: [Linear], scheme: FP8_DYNAMIC, ignore: [lm_head]}

llm-compressor passes over keys that are neither stages nor groups without a word; here they are refused, by line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from fp8cli.errors import BadInput

_STAGE: Final = "_stage"
_GROUP: Final = "_modifiers"
_MAPPING: Final = "tag:yaml.org,2002:map"
_PLAIN: Final = "tag:yaml.org,2002:"
_FORM: Final = "a recipe is `default_stage:`, in it `default_modifiers:`, and in that modifiers with their fields"
_MOST_BYTES: Final = 10**6


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe that has the form of one."""

    name: str
    """Of the file, without its folders."""
    text: str
    modifiers: tuple[str, ...]
    """Names of its modifiers, in their order. Whether there are such only llm-compressor knows."""


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe. Raises BadInput naming the line that makes it none."""
    text = _read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        where = "" if mark is None else f"line {mark.line + 1:,} of "
        raise BadInput(f"{where}`{path}` is not YAML: {problem.problem or problem.context}", hint=_FORM) from problem
    except (yaml.YAMLError, RecursionError) as problem:
        raise BadInput(f"`{path}` is not YAML", hint=_FORM) from problem
    if root is None:
        raise BadInput(f"`{path}` is empty", hint=_FORM)
    names = tuple(_modifiers(root, path))
    if not names:
        raise BadInput(f"`{path}` names no modifier", hint=_FORM)
    return RecipeFile(name=path.name, text=text, modifiers=names)


def _read_text(path: Path) -> str:
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise BadInput(f"the recipe `{path}` {reason}", hint=_FORM)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadInput(f"`{path}` has {path.stat().st_size:,} bytes, and no recipe has more than {_MOST_BYTES:,}")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise BadInput(f"`{path}` is not UTF-8 at byte {problem.start:,}", hint=_FORM) from None
    except OSError as problem:
        raise BadInput(f"`{path}` cannot be read: {problem.strerror or problem}") from problem


def _modifiers(root: Any, path: Path) -> Iterator[str]:
    for stage, groups in _entries(root, path, "the recipe"):
        if not stage.value.endswith(_STAGE):
            raise _none(stage, path, f"`{stage.value}` is no stage, whose names end in `{_STAGE}`")
        for group, modifiers in _entries(groups, path, f"`{stage.value}`"):
            if not group.value.endswith(_GROUP):
                raise _none(group, path, f"`{group.value}` is no group of modifiers, whose names end in `{_GROUP}`")
            for modifier, fields in _entries(modifiers, path, f"`{group.value}`"):
                _refuse_objects(fields, path)
                if fields.tag != _MAPPING:
                    raise _none(modifier, path, f"`{modifier.value}` has no fields")
                yield modifier.value


def _entries(node: Any, path: Path, what: str) -> list[tuple[Any, Any]]:
    if node.tag != _MAPPING:
        raise _none(node, path, f"{what} holds no names with values")
    for key, _ in node.value:
        if not isinstance(key.value, str):
            raise _none(key, path, f"{what} has a key that is no name")
    return list(node.value)


def _refuse_objects(node: Any, path: Path) -> None:
    """Refuse objects of a programming language, which no safe reader makes."""
    waiting, seen = [node], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if not each.tag.startswith(_PLAIN) or "python" in each.tag:
            raise _none(each, path, f"`{each.tag.replace(_PLAIN, '!!')}` is no plain value")
        if isinstance(each.value, list):
            waiting.extend(part for entry in each.value for part in (entry if isinstance(entry, tuple) else (entry,)))


def _none(node: Any, path: Path, reason: str) -> BadInput:
    return BadInput(f"line {node.start_mark.line + 1:,} of `{path}`: {reason}", hint=_FORM)
