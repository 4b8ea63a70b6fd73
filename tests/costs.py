"""What a thing costs, as a ratio within one run: a busy machine is slow for both, and that proves nothing."""

import time
from collections.abc import Callable


def growth(few: Callable[[], object], many: Callable[[], object], *, runs: int = 3) -> float:
    """Processor time of `many` over that of `few`, each the least of some runs in turn."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(runs):
        for which, work in ((False, few), (True, many)):
            begun = time.process_time()
            work()
            seconds[which].append(time.process_time() - begun)
    return min(seconds[True]) / min(seconds[False])
