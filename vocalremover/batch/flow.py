"""Blocks handed from one thread to another, in order and in bounded memory."""

import threading
from collections import deque
from collections.abc import Iterator

from torch import Tensor

# No wait is endless, so that a signal is answered on systems where a waiting lock is deaf.
TICK = 0.1


class Gone(Exception):
    """The other side has given up; why is told elsewhere."""


class Flow:
    """A queue of blocks between a thread that gives and one that iterates.

    Whoever gives waits while `limit` bytes or more lie in between. After `end` the other side gets what is left; after
    `abandon`, by either side, both get Gone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: deque[Tensor] = deque()
        self._held = 0
        self._ended = self._abandoned = False
        self._changed = threading.Condition()

    def give(self, block: Tensor) -> None:
        """Hands a block over for good: it must not be changed afterwards."""
        with self._changed:
            while self._held >= self._limit and not self._abandoned:
                self._changed.wait(TICK)
            if self._abandoned:
                raise Gone
            self._blocks.append(block)
            self._held += _size(block)
            self._changed.notify_all()

    def end(self) -> None:
        """No more blocks will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Wakes both sides, wherever they wait; what is held is let go."""
        with self._changed:
            self._abandoned = True
            self._blocks.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Tensor]:
        while (block := self._next()) is not None:
            yield block

    def _next(self) -> Tensor | None:
        with self._changed:
            while not (self._blocks or self._ended or self._abandoned):
                self._changed.wait(TICK)
            if self._abandoned:
                raise Gone
            if not self._blocks:
                return None
            block = self._blocks.popleft()
            self._held -= _size(block)
            self._changed.notify_all()
            return block


def _size(block: Tensor) -> int:
    return block.numel() * block.element_size()
