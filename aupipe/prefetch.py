"""Work ahead of a loop that computes: the next items are made by a thread, in memory that is used again."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
_KEPT = 6  # buffers: what is made ahead, what is computed with, and what a caller still has


def prefetch(items: Iterator[Item], count: int) -> Generator[Item, None, None]:
    """The items, of which a thread makes the next `count` while the caller is busy with one."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(cancel_futures=True)


class Buffers:
    """Arrays of bytes, of which one is handed out again as soon as nobody has it or a view of it any longer.

    Fresh memory for every batch comes from the system page by page, which costs a tenth of the decoding.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[np.uint8]] = []

    def empty(self, *shape: int) -> NDArray[np.uint8]:
        """An array of that shape with anything in it."""
        size = int(np.prod(shape))
        for n in range(len(self._kept)):
            # One reference is the list's, one the call's; every view, a tensor's too, would hold another.
            if self._kept[n].size == size and sys.getrefcount(self._kept[n]) == _UNUSED:
                return self._kept[n].reshape(shape)
        buffer = np.empty(size, np.uint8)
        self._kept = [*self._kept[1 - _KEPT :], buffer]
        return buffer.reshape(shape)


def _count_unused() -> int:
    """What the interpreter counts for an array that only a list has."""
    kept = [np.empty(1, np.uint8)]
    return sys.getrefcount(kept[0])


_UNUSED = _count_unused()
