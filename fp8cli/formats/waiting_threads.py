"""Several threads that mostly wait for a network, and that nobody has to wait for when the run is stopped.

Those of `concurrent.futures` are joined when the interpreter ends, so that Ctrl-C would last as long as the slowest
request; these are not.
"""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


def for_each(items: Iterable[_Item], do: Callable[[_Item], None], *, threads: int) -> None:
    """Do something with every item, several at a time. Raises the first error, and does no more then.

    Items are taken one at a time, so a generator may read them as they are wanted.
    """
    waiting, lock = iter(items), threading.Lock()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            while not problems:
                with lock:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        return
                do(item)
        except BaseException as problem:  # noqa: BLE001 - raised again where it is waited for
            problems.append(problem)

    workers = [threading.Thread(target=work, name="fp8-send", daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]
