"""Blocks handed from one thread to another, in order and in bounded memory."""

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

from torch import Tensor

from vocalremover.threads import TICK


class Gone(Exception):
    """The other side has given up; why is told elsewhere."""


class Flow:
    """A queue of blocks between a thread that gives and one that iterates.

    Whoever gives waits while `limit` bytes or more lie in between. After `end` the other side gets what is left; after
    `abandon`, by either side, both get Gone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0  # bytes that were given and are not known to be taken
        self._blocks: SimpleQueue[Tensor | None] = SimpleQueue()
        self._taken: SimpleQueue[int] = SimpleQueue()
        self._abandoned = False

    def give(self, block: Tensor) -> None:
        """Hands a block over for good: it must not be changed afterwards."""
        while self._held >= self._limit:
            self._held -= self._next(self._taken)
        if self._abandoned:
            raise Gone
        self._held += _size(block)
        self._blocks.put(block)

    def end(self) -> None:
        """No more blocks will come."""
        self._blocks.put(None)

    def abandon(self) -> None:
        """Wakes both sides, wherever they wait; what is held is let go."""
        self._abandoned = True
        with suppress(Empty):
            while True:
                self._blocks.get_nowait()
        self._blocks.put(None)
        self._taken.put(0)

    def __iter__(self) -> Iterator[Tensor]:
        while (block := self._next(self._blocks)) is not None:
            self._taken.put(_size(block))
            yield block

    def _next(self, queue: SimpleQueue) -> Tensor | int | None:
        while not self._abandoned:
            with suppress(Empty):
                item = queue.get(timeout=TICK)
                if not self._abandoned:
                    return item
        raise Gone


def _size(block: Tensor) -> int:
    return block.numel() * block.element_size()
