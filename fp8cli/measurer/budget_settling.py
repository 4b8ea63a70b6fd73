"""Whether a choice holds where modifiers run for it alone, and the next one if it does not. Pure arithmetic.

A search (`budget_choosing`) looks at a model that modifiers have prepared once, for everything in FP8. The checkpoint
is made by a run of its own, which rounds what is left in FP8 a little differently. So the chosen set gets such a run,
and its KL is that. Where it is beyond the budget, or has room to spare, the search goes on with a limit that is lower
or higher in the same proportion as the run came out above or below what the search had seen of that set, and never as
high as the search had seen of a set that turned out to be beyond the budget. The set with the fewest bytes of those
whose run is within it is taken; the runs are few, since each takes as long as making the checkpoint.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.measurer.budget_choosing import Found, Kept

MOST_RUNS: Final = 5
"""Sets that get a run of their own."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What the runs came to."""

    kept: Kept | None
    """The set that is within the budget by a run of its own, or everything if nothing else is; None: no run was within
    it, or not even everything in 16 bits is."""
    exhausted: bool
    """Whether the runs, or the measurements of the search, ran out before it had nothing more to offer."""


def settle_kl(
    search: Callable[[float], Found | None],
    limit: float,
    *,
    everything: Kept,
    seen: Callable[[Kept], float],
    run: Callable[[Kept], float],
    size: Callable[[Kept], int],
) -> Settled:
    """Return the set with the fewest bytes whose own run has a KL of at most `limit`.

    search: returns the set with the fewest bytes whose KL is at most its argument, as far as it has seen; None if there
    is none. seen: that KL. run: the KL of a run for a set alone. size: the bytes that keeping a set costs.
    """
    ran: dict[Kept, float] = {}
    asked, below = limit, math.inf
    exhausted = False
    while True:
        found = search(min(asked, below))
        if found is None or found.kept == everything or found.kept in ran:
            exhausted = exhausted or (found is not None and found.exhausted)
            break
        if len(ran) == MOST_RUNS:
            exhausted = True
            break
        exhausted = found.exhausted
        kl = ran[found.kept] = run(found.kept)
        if kl > limit:
            below = min(below, math.nextafter(seen(found.kept), -math.inf))
        asked = limit * seen(found.kept) / kl if kl else limit
    within = [kept for kept, kl in ran.items() if kl <= limit]
    if within:
        return Settled(kept=min(within, key=size), exhausted=exhausted)
    all_kept = found is not None and found.kept == everything
    return Settled(kept=everything if all_kept else None, exhausted=exhausted)


def settle_outputs(kept: Kept, run: Callable[[Kept], Mapping[int, float]], *, most: float, everything: Kept) -> Settled:
    """Return a set that has, besides `kept`, all groups whose outputs turn out too noisy in a run without them.

    run: of each group in FP8, the noise by signal of its outputs in a run for a set alone. most: what it may be.
    """
    for _ in range(MOST_RUNS):
        if kept == everything:
            break
        loud = {number for number, ratio in run(kept).items() if ratio > most}
        if not loud:
            return Settled(kept=kept, exhausted=False)
        kept |= loud
    return Settled(kept=kept if kept == everything else None, exhausted=kept != everything)
