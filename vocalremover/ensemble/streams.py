"""Several streams of blocks `[..., samples]` side by side: the same stretch of each at a time, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vocalremover.chunks import Queue


def abreast(streams: Sequence[Iterable[Tensor]]) -> Iterator[list[Tensor]]:
    """Streams in blocks of any sizes -> lists with an equally long block of each; the shorter ones end in zeros.

    Only the stream that is furthest behind is asked for more, so that what is held is what one stream gives at a time
    ahead of the others, however long they are. Where some streams are empty, the others' blocks come with zeros of
    their own shape in the place of these.
    """
    running = [iter(stream) for stream in streams]
    queues = [Queue() for _ in streams]
    open_ones = set(range(len(running)))
    while open_ones:
        behind = min(open_ones, key=lambda number: queues[number].held)
        block = next(running[behind], None)
        if block is None:
            open_ones.discard(behind)
        else:
            queues[behind].push(block)
        ready = min((queues[number].held for number in open_ones), default=max(queue.held for queue in queues))
        if ready:
            yield _level([queue.take(ready) for queue in queues], ready)


def placed(blocks: Iterable[Tensor], lag: int, samples: int) -> Iterator[Tensor]:
    """The blocks from sample `lag` on, or after `-lag` zeros, cut or filled with zeros to `samples` in all."""
    done, template = -lag, None
    for block in blocks:
        if template is None and lag < 0:
            yield block.new_zeros(*block.shape[:-1], min(-lag, samples))
        template = block
        kept = block[..., max(-done, 0) : max(samples - done, 0)]
        done += block.shape[-1]
        if kept.shape[-1]:
            yield kept
    if template is not None and done < samples:
        yield template.new_zeros(*template.shape[:-1], samples - max(done, 0))


def _level(pieces: Sequence[list[Tensor]], samples: int) -> list[Tensor]:
    """One block of so many samples of every stream."""
    shape = next(piece for one in pieces for piece in one)
    blocks = [torch.cat(one, dim=-1) if one else shape[..., :0] for one in pieces]
    return [F.pad(block, (0, samples - block.shape[-1])) for block in blocks]
