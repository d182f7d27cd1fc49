"""Reads ahead: while one thing is worked on, a thread reads those that come next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def ahead(items: Iterable[Item], read: Callable[[Item], Read], count: int) -> Iterator[Read]:
    """Yields what `read` makes of each item, in the order of the items.

    Args:
        items: What is read.
        read: Runs in a thread, for one item after the other. What it raises is raised when it is the item's turn.
        count: How many are read, or being read, beside the one that was given last: at least 1.
    """
    left, waiting = iter(items), deque[Future[Read]]()
    with ThreadPoolExecutor(1, "reads-ahead") as thread:
        try:
            waiting.extend(thread.submit(read, item) for item in islice(left, count))
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(thread.submit(read, item) for item in islice(left, 1))
                yield found
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
