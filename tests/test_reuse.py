"""Renderings that are heard again: what an example is depends on its number and the renderings alone."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vocalremover.voxaug.keys import WINDOW, pitch_classes
from vocalremover.voxaug.reuse import GAIN_DB, Rendering, Repertoire

LENGTH = 50
RATE = 44100
SHELF = Repertoire(seed=3, times=4, places=6, candidates=1, samples=20, rate=RATE)


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
    held = {number: Rendering(rendering(number), RATE) for number in range(40)}
    for number, (mixture, vocals) in enumerate(batches_from(0, 30)):
        if number % SHELF.times == 0:
            continue
        voice, backing = SHELF.sources(number, held)
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


def test_no_process_renders_what_another_one_hears() -> None:
    shelves = [replace(SHELF, process=process, processes=3) for process in range(3)]
    rendered: list[set[int]] = []
    for shelf in shelves:

        def own(start: int, first: int = shelf.process) -> Iterator[tuple[list[int], Tensor]]:
            for number in range(start + first, 3000, 3):
                rendered[-1].add(number)
                yield [number], rendering(number)[None]

        rendered.append(set())
        mine = iter([list(range(start + shelf.process, start + 12, 3)) for start in range(0, 240, 12)])
        for numbers, audio in shelf.batches(own, mine):
            for number, example in zip(numbers, audio, strict=True):
                voice, backings = shelf.choice(number)
                assert {shelf.mix(each) % 3 for each in (voice, *backings)} == {number % 3}
                if number // 3 % shelf.times == 0:
                    drawn = pieces(rendering(shelf.mix(voice)))
                    assert any(torch.equal(drawn[..., place, :], example) for place in range(drawn.shape[-2]))
    assert not rendered[0] & rendered[1] and not rendered[1] & rendered[2]
    assert sorted(set().union(*rendered)) == list(range(60))


def chord(*notes: int, loudness: float = 0.1) -> Tensor:
    """Semitones above 220 Hz, two seconds of stereo."""
    time = torch.arange(2 * RATE) / RATE
    return loudness * sum(torch.sin(2 * torch.pi * 220 * 2 ** (note / 12) * time) for note in notes).repeat(2, 1)


def test_pitch_classes_tell_the_notes_whatever_their_octave_and_level() -> None:
    minor = pitch_classes(chord(0, 3, 7), RATE)
    assert minor.topk(3).indices.sort().values.tolist() == [0, 3, 7]
    assert float(minor.norm()) == pytest.approx(1) and float(minor.mean()) == pytest.approx(0, abs=1e-6)
    assert float(minor @ pitch_classes(chord(12, 15, 19, loudness=0.001), RATE)) > 0.95
    assert float(minor @ pitch_classes(chord(2, 5, 9), RATE)) < 0
    assert float(minor @ pitch_classes(chord(0, 3, 7).flip(0) * torch.tensor([[1.0], [-1.0]]), RATE)) > 0.999
    assert not pitch_classes(torch.zeros(2, 2 * RATE), RATE).any()
    assert pitch_classes(chord(0)[:, : WINDOW // 2], RATE).argmax() == 0


def test_a_voice_meets_the_backing_of_its_key() -> None:
    """Renderings 0 to 11, each a voice alone on its note over a chord that has it."""
    held: dict[int, Rendering] = {}
    for number in range(12):
        voice, backing = chord(number), chord(number, number + 4, number + 7)
        held[number] = Rendering(torch.stack((voice + backing, voice)), RATE)
    scores = {}
    for candidates in (1, 6):
        shelf = replace(SHELF, places=12, candidates=candidates)
        pairs = [shelf.sources(number, held) for number in range(48) if number % shelf.times]
        scores[candidates] = sum(float(held[voice].voice @ held[backing].backing) for voice, backing in pairs) / 36
        assert len({backing for _, backing in pairs}) > 6
    assert scores[1] < 0.3 and scores[6] > scores[1] + 0.3
