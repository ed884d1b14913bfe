"""Processes that work on audio beside this one."""

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def make_pool(workers: int) -> ProcessPoolExecutor:
    """So many fresh processes, which leave ^C to this one: a fork of one that has run torch in threads may hang."""
    return ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
