"""Several passes over one stream, averaged: displaced windows, swapped sides, inverted polarity.

Every pass reads the same blocks `[..., n]` and answers with as many places; what it turns round on the way in, it turns
back on the way out. The passes run in step, so that memory does not depend on how long the stream is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Literal

from torch import Tensor

from vocalremover.chunks import Chunking
from vocalremover.streams import abreast

Work = Callable[[Iterable[Tensor], Chunking, int], Iterable[Tensor]]


@dataclass(frozen=True)
class Pass:
    """One way over a song: how it is cut, how many places earlier, and what is turned round.

    swap: left and right change places. invert: the polarity of the samples is inverted.
    """

    chunking: Chunking
    shift: int = 0
    turned: Literal["", "swap", "invert"] = ""


def run(blocks: Iterable[Tensor], passes: Sequence[Pass], sides: int, work: Work) -> Iterator[Tensor]:
    """The mean of what `work(blocks, chunking, shift)` answers for every pass.

    sides: the axis of left and right, counted from the end, in the blocks and in the answers alike.
    """
    answers = []
    for each, copy in zip(passes, tee(blocks, len(passes)), strict=True):
        answers.append(_turned(work(_turned(copy, each, sides), each.chunking, each.shift), each, sides))
    return average(answers)


def _turned(blocks: Iterable[Tensor], each: Pass, sides: int) -> Iterable[Tensor]:
    if each.turned == "swap":
        return (block.flip(sides) for block in blocks)
    if each.turned == "invert":
        return (-block for block in blocks)
    return blocks


def displace(
    blocks: Iterable[Tensor], by: int, work: Callable[[Iterable[Tensor]], Iterable[Tensor]]
) -> Iterator[Tensor]:
    """`work` on the blocks `[..., n]` with all windows `by` places earlier: zeros lead in, and their answer is dropped.

    The answer of `work` has as many places as it gets.
    """

    def led() -> Iterator[Tensor]:
        for number, block in enumerate(blocks):
            if number == 0:
                yield block.new_zeros(*block.shape[:-1], by)
            yield block

    ahead = by
    for block in work(led()):
        dropped = min(ahead, block.shape[-1])
        ahead -= dropped
        if block.shape[-1] > dropped:
            yield block[..., dropped:]


def average(answers: Sequence[Iterable[Tensor]]) -> Iterator[Tensor]:
    """The mean of several streams of blocks `[..., n]` of any sizes, equally long in all."""
    return iter(answers[0]) if len(answers) == 1 else (sum(blocks) / len(blocks) for blocks in abreast(answers))
