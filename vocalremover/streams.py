"""Several streams of blocks `[..., samples]` side by side: the same stretch of each at a time, in bounded memory."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from vocalremover.chunks import Queue


def abreast(streams: Sequence[Iterable[Tensor]], leading: Collection[int] = ()) -> Iterator[list[Tensor]]:
    """Streams in blocks of any sizes -> lists with an equally long block of each; the shorter ones end in zeros.

    leading: the numbers of the streams of which the shortest decides on the end; without any, the longest of all does.
    Only the stream that is furthest behind is asked for more, so that what is held is what one stream gives at a time
    ahead of the others, however long they are. Where some streams are empty, the others' blocks come with zeros of
    their own shape in the place of these.
    """
    running = [iter(stream) for stream in streams]
    queues = [Queue() for _ in streams]
    open_ones = set(range(len(running)))
    while open_ones and all(number in open_ones or queues[number].held for number in leading):
        behind = min(open_ones, key=lambda number: queues[number].held)
        block = next(running[behind], None)
        if block is None:
            open_ones.discard(behind)
        else:
            queues[behind].push(block)
        longest = max(queue.held for queue in queues)
        ready = min((queues[number].held for number in open_ones.union(leading)), default=longest)
        if ready:
            yield _level(queues, ready)


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


def _level(queues: Sequence[Queue], samples: int) -> list[Tensor]:
    """One block of so many samples of every stream; some of them hold as many."""
    pieces = [queue.piece(samples) if queue.held else None for queue in queues]
    silence = next(piece for piece in pieces if piece is not None)[..., :0]
    blocks = [silence if piece is None else piece for piece in pieces]
    missing = [samples - block.shape[-1] for block in blocks]
    return [F.pad(block, (0, more)) if more else block for block, more in zip(blocks, missing, strict=True)]
