"""CUDA graphs of a network: the work for inputs of one shape is recorded once, then started in one go each time.

A network is hundreds of small kernels. Started one by one by Python they leave gaps in which a fast GPU waits; a graph
leaves none, takes no time to compile and computes what was recorded, bit for bit. It fits one shape only and keeps the
memory of all its intermediate results, so it is for the windows that most of a song consists of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from vocalremover import devices

Network = Callable[..., Tensor]


class Record(Protocol):
    """As `devices.record`."""

    def __call__(self, work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]: ...


@dataclass(frozen=True)
class _Recorded:
    """inputs: the place that the graph reads. answer: the place that it fills."""

    inputs: Tensor
    replay: Callable[[], None]
    answer: Tensor


class Graphs:
    """`graphs(inputs, **keywords)` is `network(inputs, **keywords)`, from the third call of a kind on by replay.

    A kind is a shape, a dtype and keywords. The first call of each runs as it comes, which chooses and loads kernels
    and fills the network's tables; the second is recorded. All calls come on one stream, not the default one, from any
    thread. Where recording fails, `trouble` says why and everything runs as it comes. The answer is the caller's to
    keep.
    """

    def __init__(
        self, network: Network, device: torch.device, record: Record = devices.record,
        roomy: Callable[[torch.device], bool] = devices.roomy,
    ) -> None:  # fmt: skip
        """record and roomy: how to record, and whether there is memory to keep a recording."""
        self.trouble: str | None = None
        self._network, self._device, self._record, self._roomy = network, device, record, roomy
        self._kinds: dict[object, _Recorded | None] = {}  # None: it ran once
        self._pool: object = None
        self._turn = Lock()  # every recording has one place for what goes in and one for what comes out

    def __call__(self, inputs: Tensor, **keywords: object) -> Tensor:
        """On the device; raises what the network raises."""
        kind = (inputs.shape, inputs.dtype, repr(sorted(keywords.items())))
        with self._turn:
            known = self._kinds.get(kind)
            if known is None and kind in self._kinds and self.trouble is None and self._roomy(self._device):
                known = self._kinds[kind] = self._made(inputs, keywords)
            if known is None:
                self._kinds.setdefault(kind)
                return self._network(inputs, **keywords)
            known.inputs.copy_(inputs)
            known.replay()
            return known.answer.clone()

    def forget(self) -> bool:
        """Gives the memory of all recordings back and records no more; whether there were any."""
        had = any(self._kinds.values())
        self._kinds.clear()
        self.trouble = self.trouble or f"{self._device} ran out of memory"
        return had

    def _made(self, inputs: Tensor, keywords: dict[str, object]) -> _Recorded | None:
        """A recording for inputs of this kind; None, and `trouble`, where it cannot be had."""
        place = inputs.clone()
        if self._pool is None and self._device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return _Recorded(place, *self._record(lambda: self._network(place, **keywords), self._pool))
        except RuntimeError as error:  # no memory left is one, too
            self.trouble = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return None
