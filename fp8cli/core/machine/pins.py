"""Which requirements of what is installed do not hold, and the command that mends them.

Read from the metadata of the installed distributions, so that no table of versions can be out of date: from the
packages a result depends on, along their requirements, markers and extras obeyed. A package that is not needed by
any of them may be as broken as it likes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from shlex import quote
from typing import Any

from fp8cli.core.machine.interpreters import Distribution, Interpreter, normalize


@dataclass(frozen=True, kw_only=True)
class BrokenPin:
    """One requirement that does not hold. Reads as `{by} {version} wants {wanted}, found {found}`."""

    by: str
    """Distribution that has the requirement."""
    version: str
    package: str
    """Distribution that is required, normalized."""
    wanted: str
    """The requirement as it is written, without its marker: `compressed-tensors==0.17.0`."""
    found: str | None
    """Installed version; None when it is not installed."""
    newer: bool = False
    """Whether what is installed is newer than anything that is wanted."""

    @property
    def words(self) -> str:
        """The sentence about it."""
        found = "it is not installed" if self.found is None else f"found {self.found}"
        return f"{self.by} {self.version} wants {self.wanted}, {found}"


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """One requirement that applies here."""

    of: Distribution
    requirement: Any
    """packaging.requirements.Requirement."""


def broken_pins(interpreter: Interpreter, roots: Sequence[str]) -> tuple[BrokenPin, ...]:
    """Return what is broken among the installed of `roots` and everything they need. A root may ask for extras."""
    return tuple(
        BrokenPin(
            by=wish.of.name,
            version=wish.of.version,
            package=normalize(wish.requirement.name),
            wanted=_text(wish.requirement),
            found=found,
            newer=found is not None and _is_newer(wish.requirement, found),
        )
        for wish in _wishes(interpreter, roots)
        if not _holds(wish.requirement, found := interpreter.version_of(wish.requirement.name))
    )


def mend(interpreter: Interpreter, pins: Sequence[BrokenPin], roots: Sequence[str]) -> str | None:
    """Return the command after which all of `pins` hold; None when no version of some package suits everyone.

    What suits everyone is known only where someone names exact versions; ranges are left to the installer.
    """
    wishes: dict[str, list[Any]] = {}
    for wish in _wishes(interpreter, roots):
        wishes.setdefault(normalize(wish.requirement.name), []).append(wish.requirement)
    words = [_one_for_all(package, wishes[package]) for package in dict.fromkeys(pin.package for pin in pins)]
    if not words or None in words:
        return None
    return f"uv pip install --python {quote(str(interpreter.python))} {' '.join(quote(word) for word in words if word)}"


def requirements_of(interpreter: Interpreter, name: str, extra: str) -> tuple[str, ...]:
    """Return what a distribution requires for one of its extras, as an installer takes it."""
    distribution = interpreter.distributions.get(normalize(name))
    if distribution is None:
        return ()
    read = (_read(text) for text in distribution.requires if "extra" in text)
    return tuple(
        _text(wanted)
        for wanted in read
        if wanted is not None
        and not _applies(wanted, interpreter.markers, "")
        and _applies(wanted, interpreter.markers, extra)
    )


def _wishes(interpreter: Interpreter, roots: Sequence[str]) -> Iterator[_Wish]:
    parts = [root.partition("[") for root in roots]
    waiting = [(normalize(name), extra) for name, _, extras in parts for extra in ("", *extras.rstrip("]").split(","))]
    waiting = list(dict.fromkeys(waiting))
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop(0)
        distribution = interpreter.distributions.get(name)
        if distribution is None:
            continue
        for text in distribution.requires:
            # Most requirements are some extra's; to read them all takes longer than everything else here.
            if not extra and "extra ==" in text:
                continue
            wanted = _read(text)
            if wanted is None or not _applies(wanted, interpreter.markers, extra):
                continue
            if extra and _applies(wanted, interpreter.markers, ""):
                continue  # Its turn comes, or came, without the extra.
            yield _Wish(of=distribution, requirement=wanted)
            further = [(normalize(wanted.name), each) for each in ("", *sorted(wanted.extras))]
            waiting += [step for step in further if step not in seen]
            seen.update(further)


def _one_for_all(package: str, wishes: Sequence[Any]) -> str | None:
    """Return a requirement that all wishes agree with; None if each named version is refused by someone."""
    exact = {each.version for wish in wishes for each in wish.specifier if each.operator == "=="}
    exact = {version for version in exact if not version.endswith(".*")}
    if not exact:
        ranges = sorted({str(each) for wish in wishes for each in wish.specifier})
        return package + ",".join(ranges)
    return next((f"{package}=={version}" for version in sorted(exact) if all(_holds(w, version) for w in wishes)), None)


def _holds(requirement: Any, version: str | None) -> bool:
    if version is None:
        return False
    if requirement.url is not None:  # A requirement by address says nothing about versions.
        return True
    try:
        return bool(requirement.specifier.contains(version, prereleases=True))
    except import_module("packaging.version").InvalidVersion:
        return False


def _is_newer(requirement: Any, version: str) -> bool:
    versions = import_module("packaging.version")
    bounds = [each.version.removesuffix(".*") for each in requirement.specifier if each.operator in {"==", "<", "<="}]
    try:
        return bool(bounds) and versions.Version(version) >= max(map(versions.Version, bounds))
    except versions.InvalidVersion:
        return False


@cache
def _read(text: str) -> Any:
    """Parse a requirement; None for one that no installer could read either."""
    requirements = import_module("packaging.requirements")
    try:
        return requirements.Requirement(text)
    except requirements.InvalidRequirement:
        return None


def _applies(requirement: Any, markers: Mapping[str, str], extra: str) -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({**markers, "extra": extra}))


def _text(requirement: Any) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
