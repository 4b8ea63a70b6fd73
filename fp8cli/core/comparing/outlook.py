"""What an evaluation can settle, said before anyone waits for it: a hundred items never settle one percentage point."""

from typing import Final

from fp8cli.core.comparing.power import items_needed_paired, margin_settled

ASSUMED_FLIP_RATE: Final = 0.03
"""Share of the items whose outcome FP8 changes, before it is known; a comparison counts the real ones."""


def outlook_of_margin(margin: float) -> str:
    """Say how many items the margin takes."""
    needed = items_needed_paired(ASSUMED_FLIP_RATE, margin)
    items = "more items than any task has" if needed is None else f"about {needed:,} items"
    return (
        f"a margin of {100 * margin:.3g} pp takes {items} of each task, if {100 * ASSUMED_FLIP_RATE:g} % of them flip"
    )


def outlook_of_items(task: str, items: int, margin: float) -> str | None:
    """Say what the items of a task can settle; None where that is the margin."""
    settled = margin_settled(items, ASSUMED_FLIP_RATE)
    if settled <= margin:
        return None
    return (
        f"`{task}` has {items:,} items: with {100 * ASSUMED_FLIP_RATE:g} % of them flipped they settle "
        f"{100 * settled:.2g} pp, and not the margin of {100 * margin:.3g} pp"
    )
