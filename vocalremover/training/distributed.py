"""Several processes that train one network, as torchrun starts them; a process on its own is a world of one.

`torchrun --nproc-per-node N -m -- vocalremover train ...` sets RANK, WORLD_SIZE and LOCAL_RANK. GPUs talk over NCCL,
CPUs over gloo. The process of rank 0 writes; all decide together, so that none waits for another that has stopped.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from vocalremover.errors import UsageError

PATIENCE = timedelta(hours=6)  # for the longest validation or decoding that one process may do for all

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """Where this process stands among `size` processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means of some numbers over all processes; a NaN anywhere is a NaN everywhere."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(numbers)
        return (numbers / self.size).tolist()

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, those of rank 0 first, in every process."""
        if self.size == 1:
            return list(items)
        parts: list[Sequence[Item]] = [()] * self.size
        distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment tells of; with several GPUs in a machine each process takes its own."""
    size = _size()
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield World(distributed.get_rank(), size, device)
    # Not where an error leaves: NCCL would wait here for the others, who wait for this process. Its end is what makes
    # torchrun end them.
    distributed.destroy_process_group()


def alone(device: torch.device) -> World:
    """The world of one process, for what several cannot share. UsageError where torchrun has started several."""
    if _size() > 1:
        raise UsageError("this is for one process: start it without torchrun")
    return World(0, 1, device)


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
