"""Rendered voices and backings, heard again in other pairs: effects cost as much as a small network's learning.

A shelf holds the last so many renderings. Example k belongs to rendering k // times: the first such example is that
rendering as it was drawn, the others are a voice and a backing from anywhere on the shelf, at levels and places of
their own. Of up to `candidates` backings the one most in the voice's key is taken: in a song both are in one key, so
that the notes do not tell a voice from the band, as they do in most pairs of a shelf; and the voice and the band of one
rendering meet again. What example k is depends on k, the seed and the renderings alone, so a run that goes on hears
what it would have heard.

Of several processes each has a shelf of its own, with every so manieth rendering and example: none renders what another
one hears.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vocalremover.voxaug.keys import pitch_classes

GAIN_DB = 4.0  # up to which a voice and a backing that meet again are moved apart, either way

Renderings = Callable[[int], Iterator[tuple[list[int], Tensor]]]
"""From a number on: numbers and audio `[batch, 2 (mixture, vocals), 2 channels, samples]`."""


@dataclass(frozen=True)
class Rendering:
    """audio: `[2 (mixture, vocals), 2 channels, samples]` at `rate` Hz."""

    audio: Tensor
    rate: float

    @cached_property
    def voice(self) -> Tensor:
        """The voice's pitch classes, on the CPU."""
        return pitch_classes(self.audio[1], self.rate).cpu()

    @cached_property
    def backing(self) -> Tensor:
        """The backing's."""
        mixture, voice = self.audio
        return pitch_classes(mixture - voice, self.rate).cpu()


@dataclass(frozen=True)
class Repertoire:
    """How renderings of `rate` Hz are heard again: `times` each, among the last `places`, cut to `samples`, the backing
    one of up to `candidates`; in which of how many processes. Its own renderings are counted from 0 on."""

    seed: int
    times: int
    places: int
    candidates: int
    samples: int
    rate: float
    process: int = 0
    processes: int = 1

    def batches(self, renderings: Renderings, numbers: Iterator[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of examples by their numbers, which must rise."""
        held: dict[int, Rendering] = {}
        arriving: Iterator[tuple[int, Tensor]] | None = None
        for taken in numbers:
            newest = self._own(max(taken))
            first = max(0, self._own(min(taken)) - self.places + 1)
            arriving = arriving or _one_by_one(renderings(first * self.processes))
            wanted = max(newest, self.places - 1)  # at the start the shelf is filled before anything is taken
            while not held or max(held) < wanted:
                number, audio = next(arriving)
                held[number // self.processes] = Rendering(audio, self.rate)
            for number in [number for number in held if number < first]:
                del held[number]
            yield taken, torch.stack([self.example(number, held) for number in taken])

    def choice(self, number: int) -> tuple[int, list[int]]:
        """The rendering that gives an example its voice, and those that one gives the backing of."""
        own = self._own(number)
        if self._is_first(number):
            return own, [own]
        rng = self._dice(number, "pair")
        newest = max(own, self.places - 1)
        voice, *backings = (newest - rng.integers(0, self.places, 1 + rng.integers(1, self.candidates + 1))).tolist()
        return voice, [*backings, voice] if len(backings) > 1 else backings

    def sources(self, number: int, held: dict[int, Rendering]) -> tuple[int, int]:
        """The renderings that give an example its voice and its backing."""
        voice, backings = self.choice(number)
        if len(backings) == 1:
            return voice, backings[0]
        return voice, max(backings, key=lambda backing: float(held[voice].voice @ held[backing].backing))

    def example(self, number: int, held: dict[int, Rendering]) -> Tensor:
        """`[2 (mixture, vocals), 2 channels, samples]`."""
        rng = self._dice(number, "reuse")
        place, gain, turns = rng.random(), 10 ** (rng.uniform(-GAIN_DB, GAIN_DB) / 20), rng.random(3) < 0.5
        sources = self.sources(number, held)
        (mixture, voice), (whole, other) = (self.cut(held[source].audio, place) for source in sources)
        if self._is_first(number):
            return torch.stack((mixture, voice))
        backing = (whole - other) * (-gain if turns[0] else gain)
        voice, backing = (
            each.flip(0) if turn else each for each, turn in zip((voice, backing), turns[1:], strict=True)
        )
        return torch.stack((voice + backing, voice))

    def mix(self, rendering: int) -> int:
        """The number of the mix that a rendering of this process is, among those of all."""
        return rendering * self.processes + self.process

    def _own(self, number: int) -> int:
        return number // self.processes // self.times

    def _is_first(self, number: int) -> bool:
        return number // self.processes % self.times == 0

    def _dice(self, number: int, purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, number, *purpose.encode()]))

    def cut(self, audio: Tensor, place: float) -> Tensor:
        """The part of a rendering that begins at `place`, 0..1 of all."""
        first = int(place * (audio.shape[-1] - self.samples + 1))
        return audio[..., first : first + self.samples]


def _one_by_one(batches: Iterator[tuple[list[int], Tensor]]) -> Iterator[tuple[int, Tensor]]:
    for numbers, audio in batches:
        yield from zip(numbers, audio, strict=True)
