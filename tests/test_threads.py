"""One thread calls, another waits: order, errors, and signals at any moment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vocalremover.threads import TICK, Aside, Bell

# Signals at any moment of many calls; whoever waits for ever is killed by the test's patience.
INTERRUPTED = """
import signal
from vocalremover.threads import Aside

def stop(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
for trial in range(2000):
    aside, done = Aside(), []
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + 1e-6 * (trial % 300))
        while True:
            aside.begin(done.append, len(done))()
    except KeyboardInterrupt:
        aside.end()
    assert done == list(range(len(done)))
print("whole")
"""


def test_calls_are_made_in_order_in_another_thread() -> None:
    aside, seen = Aside(), []
    waiting = [aside.begin(lambda number=number: seen.append(number) or number) for number in range(5)]
    assert [outcome() for outcome in waiting] == seen == list(range(5))
    aside.begin(time.sleep, 0.05)
    last = aside.begin(seen.append, 5)
    aside.end()
    assert seen[-1] == 5
    assert last() is None
    aside.end()


def test_what_a_call_raises_is_raised_where_it_is_awaited() -> None:
    aside = Aside()
    outcome = aside.begin(int, "no number")
    assert aside.begin(int, "3")() == 3
    with pytest.raises(ValueError, match="no number"):
        outcome()
    aside.end()


@pytest.mark.skipif(os.name != "posix", reason="timers that signal are POSIX")
def test_a_signal_at_any_moment_leaves_nobody_waiting() -> None:
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], env={**os.environ, **root}, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "whole\n", done.stderr


def test_a_bell_keeps_one_ring() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    began = time.perf_counter()
    bell.wait()
    assert time.perf_counter() - began < TICK
    bell.wait()
    assert time.perf_counter() - began >= TICK
