"""Waiting for other threads, by steps that no signal can split.

Most of `threading`, `queue` and `concurrent.futures` is written in Python: what the handler of a signal raises in there
(^C raises KeyboardInterrupt) may leave a lock of theirs taken, and whoever wants it next waits for ever. Lock and
SimpleQueue are one step each, and all that is used here.
"""

from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TypeVar

Result = TypeVar("Result")
# Seconds. No wait is endless, so that a signal is answered on systems where a waiting lock is deaf.
TICK = 0.1


class Aside:
    """Calls functions in one thread of its own, in their order; the first call makes the thread, `end` ends it."""

    def __init__(self) -> None:
        self._calls: SimpleQueue | None = None

    def begin(self, function: Callable[..., Result], *arguments: object) -> Callable[[], Result]:
        """Has the function called; what this returns is to be called once, and waits for what it returns or raises."""
        if self._calls is None:
            calls: SimpleQueue = SimpleQueue()
            start_new_thread(_serve, (calls,))
            self._calls = calls
        outcome: SimpleQueue = SimpleQueue()
        self._calls.put((function, arguments, outcome))
        return lambda: _outcome(outcome)

    def end(self) -> None:
        """Waits until all that was begun is done; may be called again."""
        if self._calls is not None:
            self.begin(lambda: None)()  # the last in the order
            calls, self._calls = self._calls, None
            calls.put(None)


class Bell:
    """One side waits, others ring: a ring that nobody waits for is kept, and several are one."""

    def __init__(self) -> None:
        self._silent = Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Ends the wait that is on, or else the next one."""
        with suppress(RuntimeError):  # it has rung already
            self._silent.release()

    def wait(self) -> None:
        """Until it rings, but no longer than TICK."""
        self._silent.acquire(timeout=TICK)


def _serve(calls: SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        function, arguments, outcome = call
        try:
            result, error = function(*arguments), None
        except BaseException as raised:
            result, error = None, raised
        outcome.put((result, error))
        del call, function, arguments, outcome, result, error  # an idle thread keeps nothing alive


def _outcome(outcome: SimpleQueue) -> object:
    while True:
        with suppress(Empty):
            result, error = outcome.get(timeout=TICK)
            break
    if error is not None:
        raise error
    return result
