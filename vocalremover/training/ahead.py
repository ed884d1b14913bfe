"""Batches made before they are asked for, by a thread and, on a GPU, on a stream of its own beside the step's."""

from collections.abc import Iterator
from contextlib import nullcontext
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

import torch
from torch import Tensor

Held = TypeVar("Held")
PATIENCE = 0.1  # seconds between looks at whether anybody still wants a batch


def run_ahead(batches: Iterator[Held], device: torch.device, depth: int = 2) -> Iterator[Held]:
    """The same batches in the same order, `depth` of them ready; what making them raises is raised here.

    A batch is an object whose tensors are its attributes. They are handed over on the device: the host waits for none.
    """
    ready: Queue = Queue(depth)
    ended, stream = Event(), None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))  # for what both use and one of them has made
    thread = Thread(target=_make, args=(batches, stream, ready, ended), daemon=True)
    thread.start()
    try:
        while True:
            made, mark = ready.get()
            if isinstance(made, BaseException):
                raise made
            if mark is not None:
                _take_over(made, mark, device)
            yield made
    finally:
        ended.set()
        thread.join()


def _make(batches: Iterator[Held], stream: torch.cuda.Stream | None, ready: Queue, ended: Event) -> None:
    try:
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for batch in batches:
                if not _put(ready, (batch, stream and stream.record_event()), ended):
                    return
        _put(ready, (EOFError("there are no more batches"), None), ended)
    except BaseException as error:
        _put(ready, (error, None), ended)


def _put(ready: Queue, item: tuple, ended: Event) -> bool:
    """False once nobody wants it any more."""
    while not ended.is_set():
        try:
            ready.put(item, timeout=PATIENCE)
        except Full:
            continue
        return True
    while True:  # what is left belongs to the device
        try:
            ready.get_nowait()
        except Empty:
            return False


def _take_over(made: Held, mark: torch.cuda.Event, device: torch.device) -> None:
    """Let the step's stream wait for the batch, and keep its memory until the step has read it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(mark)
    for value in vars(made).values():
        if isinstance(value, Tensor):
            value.record_stream(stream)
