"""Items whose outcome or answer is not the same on both sides: what an equal accuracy can hide."""

from typing import Final, Literal, get_args

from fp8cli.core.comparing.comparison import ChangedItem, Flips
from fp8cli.core.comparing.items import Pair, PairedItems
from fp8cli.core.comparing.measures import PairedShares
from fp8cli.core.comparing.metrics import MeasuredMetric
from fp8cli.formats.lm_eval_samples import SHOWN, Answer, Sample

Change = Literal["lost", "gained", "answer"]

_BY_LENGTH: Final = "acc_norm"
_ORDER: Final[tuple[Change, ...]] = get_args(Change)


def find_changed(task: str, metric: MeasuredMetric, items: PairedItems) -> tuple[Flips | None, tuple[ChangedItem, ...]]:
    """Count the flips of the metric that decides, and list every item that changed: lost, gained, other answers.

    None and nothing where neither outcomes nor answers are known item by item.
    """
    pairs = items.by_filter.get(metric.base.filter, ())
    shares = metric.measure if isinstance(metric.measure, PairedShares) else None
    name = metric.base.metric
    known = changed = 0
    listed: list[ChangedItem] = []
    for pair in pairs:
        ours, theirs = (_answer(sample, name) for sample in pair)
        differs = ours is not None and theirs is not None and ours.exact != theirs.exact
        known += ours is not None and theirs is not None
        changed += differs
        outcomes = [sample.values.get(name) for sample in pair]
        if shares is not None and outcomes[0] != outcomes[1]:
            gained = (outcomes[1] == 1.0) == metric.higher_is_better
            listed.append(_item(task, "gained" if gained else "lost", pair, ours, theirs))
        elif differs:
            listed.append(_item(task, "answer", pair, ours, theirs))
    if shares is None and not known:
        return None, ()
    flips = Flips(
        items=len(pairs),
        lost=0 if shares is None else shares.lost,
        gained=0 if shares is None else shares.gained,
        answers=known,
        answers_changed=changed,
    )
    return flips, tuple(sorted(listed, key=lambda item: _ORDER.index(item.change)))


def _answer(sample: Sample, metric: str) -> Answer | None:
    return sample.answer_by_length if metric == _BY_LENGTH and sample.answer_by_length else sample.answer


def _item(task: str, change: Change, pair: Pair, ours: Answer | None, theirs: Answer | None) -> ChangedItem:
    sample = pair[0]
    base, other = _shown(ours, theirs)
    return ChangedItem(
        task=task,
        doc_id=sample.doc_id,
        change=change,
        prompt=sample.prompt,
        target=sample.target,
        base_answer=base,
        other_answer=other,
    )


def _shown(ours: Answer | None, theirs: Answer | None) -> tuple[str, str]:
    """Both answers as they were scored; where that is the same, the texts around the first difference."""
    if ours is None or theirs is None:
        return "" if ours is None else ours.shown, "" if theirs is None else theirs.shown
    if ours.shown != theirs.shown or ours.text is None or theirs.text is None:
        return ours.shown, theirs.shown
    if ours.text == theirs.text:
        after = f"{ours.text} … (differs after {SHOWN} characters)" if ours.exact != theirs.exact else ours.text
        return after, after
    return ours.text, theirs.text
