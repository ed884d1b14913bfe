"""A network on its device: batches of windows in, as many finite outputs in float32 out, whatever the memory.

Out of memory halves the batch and then the window, for good; a window that overflows half precision runs again in
single precision, alone. What is done around the network (a transform, a product) is the caller's.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from vocalremover.chunks import Chunking, join, split
from vocalremover.devices import PRECISIONS
from vocalremover.errors import DeviceError, ModelError

Network = Callable[..., Tensor]
Around = Callable[[Tensor, Network], Tensor]


class Runner:
    """`runner(windows, chunking)` is what `around` makes of windows `[batch, ..., context + core + context]`.

    `around` gets some of the windows and the network, whose answer is float32 even where it computes in half precision;
    its result has the windows' last axis. `name` is the model's in sentences, `unit` what a window is measured in.
    `batch` is how many windows go through together; it and the core shrink when memory runs out, as `warnings` tells.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, precision: str = "fp32", batch: int = 1,
        name: str = "the model", unit: str = "frames", around: Around = lambda windows, network: network(windows),
        cast: bool = False,
    ) -> None:  # fmt: skip
        """`network` in eval mode on the device; precision: a key of PRECISIONS.

        cast: keep a copy with its parameters in half precision, so that no window has to cast them. For networks that
        compute in single precision by themselves where it matters. Costs half of the parameters' memory once more.
        """
        self.network = network
        self.device = device
        self.precision = precision
        self.batch = batch
        self.warnings: list[str] = []
        self.unit, self.around = unit, around
        self._name = name
        cast = cast and precision != "fp32"
        self._half = copy.deepcopy(network).to(PRECISIONS[precision]) if cast else network
        self._widest: int | None = None  # the widest window known to fit into memory, where one did not

    def __call__(self, windows: Tensor, chunking: Chunking) -> Tensor:
        """Windows `[n, ..., samples or frames]` -> finite outputs, in the given order, on the windows' device.

        Raises DeviceError if even half a window takes too much memory, ModelError if the network gives NaN or infinity.
        """
        while True:
            if windows.shape[0] > self.batch:
                return torch.cat([self(part, chunking) for part in windows.split(self.batch)])
            halves = split(windows, chunking)
            if self._widest is not None and windows.shape[-1] > self._widest and halves:
                return join(*(self(half, chunking) for half in halves), chunking)
            try:
                return self._run(windows)
            except torch.cuda.OutOfMemoryError:
                pass  # what the traceback holds is freed before the next try
            self._shrink(windows.shape[0], windows.shape[-1] - 2 * chunking.context, halves, chunking)

    def once(self, windows: Tensor) -> Tensor:
        """As a call, for windows that cannot be made narrower, each run alone."""
        try:
            return torch.cat([self._run(window) for window in windows.split(1)])
        except torch.cuda.OutOfMemoryError:
            raise self._too_small(windows.shape[-1]) from None

    def _shrink(self, batch: int, core: int, halves: tuple[Tensor, Tensor] | None, chunking: Chunking) -> None:
        """Halves the batch or, where that is 1, the core."""
        if batch > 1:
            self.batch = batch // 2
            self.warnings.append(f"{self.device} ran out of memory: the batch size is now {self.batch}")
        elif halves:
            self._widest = halves[1].shape[-1]
            core = self._widest - 2 * chunking.context
            self.warnings.append(f"{self.device} ran out of memory: the crop size is now {core} {self.unit}")
        else:
            raise self._too_small(core)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_small(self, width: int) -> DeviceError:
        return DeviceError(
            f"{self.device} has too little memory for {self._name} even with a crop of {width} {self.unit}: "
            "choose a smaller crop size, padding or segment, or --device cpu"
        )

    @torch.inference_mode()
    def _run(self, windows: Tensor) -> Tensor:
        """One batch. What overflows in half precision is computed again in single precision."""
        answer = self.around(windows, self._forward)
        finite = answer.isfinite().flatten(1).all(dim=1)
        if self.precision != "fp32" and not finite.all():
            answer[~finite] = self.around(windows[~finite], self._forward_single)
            finite = answer.isfinite().flatten(1).all(dim=1)
            note = f"{self.precision} overflowed: the crops concerned were computed again in fp32"
            if note not in self.warnings:
                self.warnings.append(note)
        if not finite.all():
            raise ModelError(
                f"the network of {self._name} gives numbers that are not finite: its weights are damaged, "
                "get the file again"
            )
        return answer

    def _forward(self, inputs: Tensor, **keywords: object) -> Tensor:
        half = self.precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[self.precision]) if half else nullcontext():
            return self._half(inputs.to(self.device), **keywords).float().to(inputs.device)

    def _forward_single(self, inputs: Tensor, **keywords: object) -> Tensor:
        return self.network(inputs.to(self.device), **keywords).float().to(inputs.device)
