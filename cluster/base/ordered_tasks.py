"""Spreads work without a state of its own over the cores of a cluster, and keeps the order of its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
FEW = 8  # so many are done here before workers would have started
MOST_WAITING = 64  # items and results that are in the object store at the same time, however many cores there are


def in_tasks(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield what `work` makes of each item, as `map` does, but made by Ray tasks of one core each if there are many.

    Raises:
        Exception: what `work` raises.
    """
    import ray
    import ray.exceptions

    stream = iter(items)
    first = list(islice(stream, FEW + 1))
    if len(first) <= FEW:
        yield from map(work, first)
        return
    done: Any = ray.remote(num_cpus=1)(_done)
    shared = ray.put(work)
    most = min(MOST_WAITING, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        for item in chain(first, stream):
            waiting.append(done.remote(shared, item))
            if len(waiting) >= most:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for left in waiting:
            ray.cancel(left)


def _done(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)
