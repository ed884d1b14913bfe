"""Several passes over one stream: each returns what it was given, and their mean comes in step."""

from collections.abc import Iterator

import torch
from conftest import most_behind
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chunks import chunkings, ramp
from torch import Tensor
from torch.testing import assert_close

from vocalremover.chunks import Chunking, blend, cut
from vocalremover.separate.passes import Pass, average, displace, run


@given(data=st.data(), total=st.integers(0, 700), by=st.integers(0, 200), block=st.integers(1, 100))
@settings(deadline=None, max_examples=50)
def test_displaced_windows_return_their_input(data: st.DataObject, total: int, by: int, block: int) -> None:
    chunking, signal = data.draw(chunkings()), ramp(total)
    answer = displace(signal.split(block, dim=-1), by, lambda blocks: blend(cut(blocks, chunking), chunking))
    assert_close(torch.cat([signal[..., :0], *answer], dim=-1), signal, rtol=2e-6, atol=0)


def test_windows_move_by_the_displacement() -> None:
    starts = []

    def work(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        for window, content in cut(blocks, Chunking(50, 10)):
            starts.append(content[0, 10].item())
            yield content[..., 10 : 10 + window.size]

    assert torch.equal(torch.cat(list(displace([ramp(130)], 20, work)), dim=-1), ramp(130))
    assert starts == [0, 31, 81]  # the numbers of a ramp begin with 1


@given(total=st.integers(0, 2000), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_average_of_streams(total: int, sizes: list[int]) -> None:
    """The mean, block sizes aside."""
    streams = [[(number + 1) * block for block in ramp(total).split(size, dim=-1)] for number, size in enumerate(sizes)]
    averaged = torch.cat([ramp(0), *average(streams)], dim=-1)
    assert_close(averaged, ramp(total) * (len(sizes) + 1) / 2, rtol=1e-6, atol=0, check_dtype=False)


def stereo(total: int) -> Tensor:
    return torch.stack((ramp(total)[0], -ramp(total)[1]))


@given(total=st.integers(0, 700), block=st.integers(1, 100), count=st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_what_is_turned_is_turned_back(total: int, block: int, count: int) -> None:
    """Each pass sees its own version of the blocks; a work that does nothing gives the song."""
    kinds = ["", "swap", "invert", "", "swap", "invert"][:count]
    passes = [Pass(Chunking(10 + number), number, kind) for number, kind in enumerate(kinds)]
    seen: dict[int, list[Tensor]] = {}

    def work(blocks: Iterator[Tensor], chunking: Chunking, shift: int) -> Iterator[Tensor]:
        assert chunking.size == 10 + shift
        for one in blocks:
            seen.setdefault(shift, []).append(one)
            yield one

    song = stereo(total)
    answer = torch.cat([song[:, :0], *run(song.split(block, dim=-1), passes, -2, work)], dim=-1)
    assert_close(answer, song, rtol=1e-6, atol=0)
    as_it_was = {"": song, "swap": song.flip(0), "invert": -song}
    for number, kind in enumerate(kinds):
        assert torch.equal(torch.cat([song[:, :0], *seen.get(number, [])], dim=-1), as_it_was[kind])


def test_passes_stay_in_step() -> None:
    """However long the stream, what waits is no more than the widest pass holds."""

    def work(given: Iterator[Tensor], chunking: Chunking, shift: int) -> Iterator[Tensor]:
        return displace(given, shift, lambda led: blend(cut(led, chunking), chunking))

    passes = [Pass(Chunking(100, 20)), Pass(Chunking(300, 50, 50), 150), Pass(Chunking(20), 10, "swap")]
    assert most_behind(lambda blocks: run(blocks, passes, -2, work), samples=100) <= 400 + 100
