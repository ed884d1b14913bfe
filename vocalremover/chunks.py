"""Cuts anything along its last axis into windows and puts them together again: plan, cut, weight, blend.

    ...|  context  |           core           |  context  |...        one window, `size` is the core
                   ...|  context  |           core           |  context  |...       the next

The cores tile the axis; a window also sees `context` on both sides, zeros beyond the ends. What is done to a window
counts fully in its core and `flat` places beyond it, then on a ramp over `fade`, which the neighbours share: without
both it is the hard crop of the frame transformers, with either it is overlap-add. Crop sizes, padding, overlap and
batches are known here only; nothing here knows whether the axis is frames or samples. Everything streams and holds
about one window.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vocalremover.errors import UsageError

MOST_OVERLAP = 0.95  # beyond it a song is computed more than twenty times


@dataclass(frozen=True)
class Chunking:
    """How an axis is cut. The last core is what is left, filled up with zeros to a multiple of `multiple`.

    `multiple=1` leaves the last core its true length; `multiple=size` makes every window equally wide, as the
    original inference did. `flat + fade` is how far beyond its core a window counts, at most `context`. Raises
    UsageError for numbers that cannot cut anything.
    """

    size: int
    context: int = 0
    fade: int = 0
    multiple: int = 1
    flat: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"the crop size must be at least 1, not {self.size}")
        if self.context < 0:
            raise UsageError(f"the padding of a crop must be at least 0, not {self.context}")
        if min(self.fade, self.flat) < 0 or self.reach > self.context:
            raise UsageError(f"the fade must be 0 to the padding ({self.context}), not {self.reach}")
        if self.multiple < 1 or self.size % self.multiple:
            raise UsageError(f"the crop size must be a multiple of {self.multiple}, not {self.size}")

    @property
    def equal(self) -> bool:
        """True where every window is equally wide, the last one filled up to a whole core."""
        return 1 < self.multiple == self.size

    @property
    def whole(self) -> int:
        """The width of a full window."""
        return self.size + 2 * self.context

    @property
    def reach(self) -> int:
        """How far beyond its core a window counts."""
        return self.flat + self.fade

    @property
    def overlap(self) -> float:
        """The share of a window that it shares with its neighbours."""
        return 2 * self.context / self.whole


def resize(chunking: Chunking, size: int | None = None, context: int | None = None) -> Chunking:
    """The same kind of chunking with another core or context: overlap-add and equal windows stay what they are."""
    size = chunking.size if size is None else size
    context = chunking.context if context is None else context
    overlap_add = 0 < chunking.fade == chunking.context
    fade = context if overlap_add else min(chunking.fade, max(context, 0))
    flat = min(chunking.flat, max(context - fade, 0))
    return Chunking(size, context, fade, size if chunking.equal else chunking.multiple, flat)


def overlapped(chunking: Chunking, fraction: float) -> Chunking:
    """The same whole window, of which neighbours share `fraction` (0..0.95) instead; hard crops stay hard crops.

    Overlap-add becomes a `trapezoid`. Raises UsageError for another fraction.
    """
    if chunking.reach:
        return trapezoid(chunking.whole, fraction)
    size, context = _shares(chunking.whole, fraction)
    if chunking.equal:
        return Chunking(size, context, multiple=size)
    size = max(size // chunking.multiple, 1) * chunking.multiple
    return Chunking(size, (chunking.whole - size) // 2, multiple=chunking.multiple)


def trapezoid(whole: int, fraction: float) -> Chunking:
    """Equal windows of `whole` that share `fraction` (0..0.95) with neighbours and fade over a tenth at either end.

    The weights are those of MSST's `demix` (utils/model_utils.py at ccc011ab) at `num_overlap` = 1 / (1 - fraction):
    its ramp `linspace(0, 1, whole // 10)` begins with a 0, which is context here, and ends with a 1, which is flat.
    """
    size, context = _shares(whole, fraction)
    fade = min(max(whole // 10 - 2, 0), context)
    return Chunking(size, context, fade, size, max(context - fade - 1, 0))


def _shares(whole: int, fraction: float) -> tuple[int, int]:
    """The core and the context of a window of which `fraction` is shared."""
    if not 0 <= fraction <= MOST_OVERLAP:
        raise UsageError(f"the overlap is a share of a window, 0 to {MOST_OVERLAP}, not {fraction:g}")
    context = min(round(fraction * whole / 2), (whole - 1) // 2)
    return whole - 2 * context, context


@dataclass(frozen=True)
class Window:
    """One place along the axis: the core is `[start, start + size)`, `padded` wide once filled up with zeros."""

    start: int
    size: int
    padded: int

    @property
    def stop(self) -> int:
        """Where the core ends."""
        return self.start + self.size


class Queue:
    """Blocks waiting in order along their last axis; every answer is a view where that is possible."""

    def __init__(self) -> None:
        self._blocks: deque[Tensor] = deque()
        self.held = 0

    def push(self, block: Tensor) -> None:
        """Appends `[..., n]`."""
        if block.shape[-1]:
            self._blocks.append(block)
            self.held += block.shape[-1]

    def peek(self, count: int) -> Tensor:
        """The first `count` in one piece, which must be held; they stay."""
        if self._blocks[0].shape[-1] < count:
            self._blocks = deque([_joined(self._blocks)])
        return self._blocks[0][..., :count]

    def take(self, count: int) -> list[Tensor]:
        """Removes the first `count`, or all that is held if that is less, and returns them in pieces."""
        pieces = []
        while count > 0 and self._blocks:
            block = self._blocks.popleft()
            if block.shape[-1] > count:
                self._blocks.appendleft(block[..., count:])
                block = block[..., :count]
            pieces.append(block)
            count -= block.shape[-1]
            self.held -= block.shape[-1]
        return pieces

    def piece(self, count: int) -> Tensor:
        """Removes the first `count`, or all that is held if that is less, and returns them as one; something must be
        held."""
        pieces = self.take(count)
        return pieces[0] if len(pieces) == 1 else _joined(pieces)


def tap(blocks: Iterable[Tensor], queue: Queue) -> Iterator[Tensor]:
    """The blocks as they are; the queue gets them too."""
    for block in blocks:
        queue.push(block)
        yield block


def at_most(blocks: Iterable[Tensor], total: Callable[[], int]) -> Iterator[Tensor]:
    """The blocks, cut where they would be more than `total()` in all; it is asked for every block, as it may grow."""
    done = 0
    for block in blocks:
        kept = block[..., : max(total() - done, 0)]
        done += kept.shape[-1]
        yield kept


def plan(total: int, chunking: Chunking) -> list[Window]:
    """The windows that `cut` makes of an axis `total` long, in order; none for 0."""
    return [_window(start, total, chunking) for start in range(0, total, chunking.size)]


def cut(blocks: Iterable[Tensor], chunking: Chunking) -> Iterator[tuple[Window, Tensor]]:
    """Blocks `[..., n]` of any widths -> windows with their content `[..., context + padded + context]`."""
    queue, start = Queue(), 0
    for number, block in enumerate(blocks):
        if number == 0:
            queue.push(block.new_zeros(*block.shape[:-1], chunking.context))
        queue.push(block)
        while queue.held >= chunking.whole:
            yield Window(start, chunking.size, chunking.size), queue.peek(chunking.whole)
            queue.take(chunking.size)
            start += chunking.size
    total = start + queue.held - chunking.context
    while start < total:
        window = _window(start, total, chunking)
        width = window.padded + 2 * chunking.context
        content = queue.peek(min(width, queue.held))
        yield window, F.pad(content, (0, width - content.shape[-1]))
        queue.take(chunking.size)
        start += chunking.size


def weight(
    window: Window, chunking: Chunking, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """How much each place of a window counts before the weights of all windows are divided by their sum.

    `[context + padded + context]`: 1 over the core and `flat` on either side, a ramp to 0 over `fade`, 0 in the rest.
    It depends on the window alone, never on its neighbours in a batch.
    """
    ramp = torch.arange(1, chunking.fade + 1, dtype=dtype, device=device) / (chunking.fade + 1)
    weights = torch.cat((ramp, ramp.new_ones(window.size + 2 * chunking.flat), ramp.flip(0)))
    blank = chunking.context - chunking.reach
    return F.pad(weights, (blank, blank + window.padded - window.size))


def blend(windows: Iterable[tuple[Window, Tensor]], chunking: Chunking) -> Iterator[Tensor]:
    """Windows in the order of `cut`, `[..., context + padded + context]` each -> blocks `[..., n]` of the whole axis.

    Hard crops are passed on untouched, so a network that changes nothing changes no bit.
    """
    reach = chunking.reach
    if not reach:
        for window, content in windows:
            yield content[..., chunking.context : chunking.context + window.size]
        return
    done, stop = 0, 0
    sums: Tensor | None = None  # weighted windows from `done` on
    weights: Tensor | None = None  # the weights alone
    for window, content in windows:
        first = max(window.start - reach, 0)
        stop = window.stop
        inside = slice(first - window.start + chunking.context, window.size + chunking.context + reach)
        share = weight(window, chunking, content.real.dtype, content.device)[inside]
        part = content[..., inside] * share
        if sums is not None:
            missing = stop + reach - done - sums.shape[-1]
            sums, weights = F.pad(sums, (0, missing)), F.pad(weights, (0, missing))
            sums[..., first - done :] += part
            weights[first - done :] += share
        else:
            sums, weights = part, share.clone()
        ready = stop - reach - done
        if ready > 0:
            yield sums[..., :ready] / weights[:ready]
            sums, weights, done = sums[..., ready:], weights[ready:], done + ready
    if sums is not None:
        yield sums[..., : stop - done] / weights[: stop - done]


def group(windows: Iterable[tuple[Window, Tensor]], batch: int) -> Iterator[tuple[list[Window], Tensor]]:
    """Stacks up to `batch` consecutive windows of equal width, to be read only: `[..., n]` -> `[windows, ..., n]`."""
    places: list[Window] = []
    contents: list[Tensor] = []
    for window, content in windows:
        if len(places) == batch or (contents and contents[0].shape != content.shape):
            yield places, _stacked(contents)
            places, contents = [], []
        places.append(window)
        contents.append(content)
    if places:
        yield places, _stacked(contents)


def split(content: Tensor, chunking: Chunking) -> tuple[Tensor, Tensor] | None:
    """Two narrower windows for one: `[..., context + core + context]` -> two with about half the core each.

    Both have all their context, since the other half of the core is part of it. None if the core cannot be halved.
    """
    core = content.shape[-1] - 2 * chunking.context
    half = core // 2 // chunking.multiple * chunking.multiple
    if not half:
        return None
    return content[..., : half + 2 * chunking.context], content[..., half:]


def join(left: Tensor, right: Tensor, chunking: Chunking) -> Tensor:
    """Undoes `split` for what became of the two halves; overlap-add crosses from one to the other."""
    context = chunking.context
    cores = [half.shape[-1] - 2 * context for half in (left, right)]
    places = Window(0, cores[0], cores[0]), Window(cores[0], cores[1], cores[1])
    core = blend(zip(places, (left, right), strict=True), chunking)
    return torch.cat((left[..., :context], *core, right[..., right.shape[-1] - context :]), dim=-1)


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks `[..., n]` side by side in one. What lies in memory as an STFT makes it, bin by bin of a frame, stays so:
    turning it round would cost several times the copy."""
    if blocks[-1].dim() > 1 and blocks[-1].stride(-2) == 1 < blocks[-1].stride(-1):
        return torch.cat([block.mT for block in blocks], dim=-2).mT
    return torch.cat(tuple(blocks), dim=-1)


def _stacked(contents: list[Tensor]) -> Tensor:
    """One is not copied: it is ten megabytes with the default model."""
    return contents[0][None] if len(contents) == 1 else torch.stack(contents)


def _window(start: int, total: int, chunking: Chunking) -> Window:
    size = min(chunking.size, total - start)
    return Window(start, size, -(-size // chunking.multiple) * chunking.multiple)
