"""Streams in step: all of each comes, once and in order, and little of any waits for the others."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vocalremover.streams import abreast, placed

SIZES = st.lists(st.lists(st.integers(0, 40), max_size=6), min_size=1, max_size=4)


@given(sizes=SIZES, data=st.data())
@settings(deadline=None)
def test_streams_abreast(sizes: list[list[int]], data: st.DataObject) -> None:
    """Everything comes up to the end of the shortest that leads, without one of the longest; before it, zeros."""
    songs = [torch.arange(1.0, sum(one) + 1)[None] for one in sizes]
    streams = [song.split(one, dim=-1) if one else [] for song, one in zip(songs, sizes, strict=True)]
    leading = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    pieces = list(abreast(streams, leading))
    lengths = [song.shape[-1] for song in songs]
    end = min(lengths[number] for number in leading) if leading else max(lengths)
    for number, song in enumerate(songs):
        joined = torch.cat([torch.zeros(1, 0), *(piece[number] for piece in pieces)], dim=-1)
        assert torch.equal(joined, F.pad(song, (0, end - song.shape[-1])))


@given(total=st.integers(0, 2000), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_streams_in_step(total: int, sizes: list[int]) -> None:
    """Of streams that are equally long, none runs ahead of another by more than its own largest block."""
    given_out = [0] * len(sizes)

    def stream(number: int, size: int) -> Iterator[Tensor]:
        for block in torch.zeros(2, total).split(size, dim=-1):
            given_out[number] += block.shape[-1]
            yield block

    done = 0
    for blocks in abreast([stream(number, size) for number, size in enumerate(sizes)]):
        done += blocks[0].shape[-1]
        assert all(ahead - done <= size for ahead, size in zip(given_out, sizes, strict=True))
    assert done == total


@given(st.lists(st.integers(1, 30), max_size=6), st.integers(-50, 50), st.integers(0, 200))
@settings(deadline=None)
def test_placed(sizes: list[int], lag: int, samples: int) -> None:
    song = torch.arange(1.0, sum(sizes) + 1)[None]
    joined = torch.cat([torch.zeros(1, 0), *placed(song.split(sizes, dim=-1) if sizes else [], lag, samples)], dim=-1)
    padded = F.pad(song, (max(-lag, 0), samples))[:, max(lag, 0) :][:, :samples]
    assert torch.equal(joined, F.pad(padded, (0, samples - padded.shape[-1])) if sizes else song)
