"""`--tp N`: a number of GPUs as a requirement, refused before anything is written where vLLM could not keep it."""

from collections.abc import Iterator
from dataclasses import dataclass

from fp8cli.core.serving.preflight import Preflight, check_size
from fp8cli.core.serving.serving_report import Required
from fp8cli.errors import CannotRun, UsageError


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """Scales per channel in place of the blocks that were asked for."""

    asked: str
    """A scheme; so `taken`."""
    taken: str
    gpus: int
    reason: str
    """The first weight whose blocks cannot be split over so many, and why."""

    @property
    def sentence(self) -> str:
        """What was done, without the reason, which has names of a stranger's in it."""
        return f"{self.taken} in place of {self.asked}, whose blocks vLLM cannot split over {gpus(self.gpus)}"


def check_requirement(size: int | None, *, fallback: bool) -> None:
    """Raise UsageError for what is no number of GPUs, and for a fallback without one. None: none is asked for."""
    check_size(size)
    if size is None and fallback:
        message = "--tp-fallback would have no effect without a number of GPUs"
        raise UsageError(message, hint="say how many GPUs are to share the result, such as --tp 4")


def is_refused(preflight: Preflight) -> bool:
    """Tell whether vLLM cannot split it as required."""
    return preflight.required is not None and preflight.required.split.verdict == "refused"


def channels_would_do(preflight: Preflight) -> bool:
    """Tell whether blocks alone keep it from being split as required: with a scale for every row it could be."""
    required = preflight.required
    return required is not None and required.per_channel is not None and required.per_channel.verdict != "refused"


def note_fallback(preflight: Preflight, *, asked: str, taken: str) -> Fallback:
    """Note that another scheme is taken, because what was judged cannot be split as required."""
    assert preflight.required is not None  # noqa: S101 - else nothing is refused
    split = preflight.required.split
    return Fallback(asked=asked, taken=taken, gpus=split.size, reason=split.reasons[0])


def refuse_unsplittable(preflight: Preflight, *, channels: str | None) -> None:
    """Raise CannotRun with the first weight that vLLM cannot split as required.

    channels: what to type for scales per channel in place of blocks; None: nothing leads there.
    """
    required = preflight.required
    if required is None or not is_refused(preflight):
        return
    message = f"vLLM cannot split the result over {gpus(required.split.size)}: {required.split.reasons[0]}"
    raise CannotRun(message, hint="; ".join(_ways(preflight, required, channels)))


def _ways(preflight: Preflight, required: Required, channels: str | None) -> Iterator[str]:
    works = [str(each.size) for each in preflight.parallel if each.verdict == "works"]
    last = works.pop() if works else None
    many = f"{', '.join(works)} or {last} GPUs" if works else "1 GPU" if last == "1" else f"{last} GPUs"
    yield f"it can be served on {many}" if last is not None else "no number of GPUs is known to work"
    if channels is not None and channels_would_do(preflight):
        yield channels
    if required.split.remedy is not None:
        yield f"or leave --tp out and, when serving, {required.split.remedy}"


def serve_options(preflight: Preflight | None) -> tuple[str, ...]:
    """Return the words behind `vllm serve PATH` that make it run as required."""
    required = None if preflight is None else preflight.required
    if required is None or required.split.size == 1 or required.split.verdict == "refused":
        return ()
    return ("--tensor-parallel-size", str(required.split.size))


def required_words(required: Required) -> str:
    """Say whether it can be split as required, and if not, why."""
    split = required.split
    match split.verdict:
        case "works":
            return f"can be served on {gpus(split.size)}, as required"
        case "refused":
            return f"cannot be served on {gpus(split.size)}, as required: {split.reasons[0]}"
        case "not checked":
            return f"whether it can be served on {gpus(split.size)}, as required, is not known: {split.reasons[0]}"


def gpus(size: int) -> str:
    """Return a number of GPUs in words."""
    return f"{size} GPU{'' if size == 1 else 's'}"
