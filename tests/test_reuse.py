"""Renderings that are heard again: what an example is depends on its number alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vocalremover.voxaug.reuse import GAIN_DB, Shelf

LENGTH = 50
SHELF = Shelf(seed=3, times=4, places=6, samples=20)


def rendering(number: int) -> Tensor:
    """`[2 (mixture, vocals), 2, LENGTH]`, of random numbers that tell which one it is."""
    generator = torch.Generator().manual_seed(number)
    vocals, backing = torch.randn(2, 2, LENGTH, generator=generator)
    return torch.stack((vocals + backing, vocals))


def renderings(start: int) -> Iterator[tuple[list[int], Tensor]]:
    while True:
        yield list(range(start, start + 3)), torch.stack([rendering(number) for number in range(start, start + 3)])
        start += 3


def batches_from(start: int, count: int, size: int = 4) -> Tensor:
    numbers = iter([list(range(first, first + size)) for first in range(start, start + count * size, size)])
    return torch.cat([audio for _, audio in SHELF.batches(renderings, numbers)])


def pieces(audio: Tensor) -> Tensor:
    return audio.unfold(-1, SHELF.samples, 1)


def test_a_run_that_goes_on_hears_what_it_would_have_heard() -> None:
    whole = batches_from(0, 20)
    for start in (0, 4, 36, 60):
        assert torch.equal(batches_from(start, 2), whole[start : start + 8])
    assert torch.equal(batches_from(0, 10, size=8), whole)


def test_the_first_time_a_rendering_is_heard_as_it_was_drawn() -> None:
    for number, example in zip(range(0, 80, 4), batches_from(0, 20)[::4], strict=True):
        own = pieces(rendering(number // 4))
        assert any(torch.equal(own[..., place, :], example) for place in range(own.shape[-2]))


def test_other_times_a_voice_of_the_shelf_meets_a_backing_of_the_shelf() -> None:
    pairs, ratios = set(), []
    for number, (mixture, vocals) in enumerate(batches_from(0, 30)):
        if number % SHELF.times == 0:
            continue
        voice, backing = SHELF.sources(number)
        newest = max(number // SHELF.times, SHELF.places - 1)
        assert newest - SHELF.places < min(voice, backing) and max(voice, backing) <= newest
        pairs.add((voice, backing))
        sung = pieces(rendering(voice)[1])
        assert any(torch.equal(each, vocals) for place in range(sung.shape[-2])
                   for each in (sung[:, place], sung[:, place].flip(0)))  # fmt: skip
        whole = rendering(backing)
        played, rest = pieces(whole[0] - whole[1]), mixture - vocals
        shares = [
            (rest * each).sum() / each.square().sum() for place in range(played.shape[-2])
            for each in (played[:, place], played[:, place].flip(0))
        ]  # fmt: skip
        best = max(shares, key=abs)
        ratios.append(20 * torch.log10(best.abs()).item())
    assert len(pairs) > 60
    assert max(map(abs, ratios)) < GAIN_DB + 1e-3 and max(ratios) - min(ratios) > GAIN_DB


def test_no_more_is_held_than_the_shelf_has_places() -> None:
    handed = 0

    def counted(start: int) -> Iterator[tuple[list[int], Tensor]]:
        nonlocal handed
        for numbers, audio in renderings(start):
            handed = numbers[-1] + 1
            yield numbers, audio

    for taken, _ in SHELF.batches(counted, iter([list(range(k, k + 4)) for k in range(0, 200, 4)])):
        assert handed <= max(taken[-1] // SHELF.times + 1, SHELF.places) + 3
