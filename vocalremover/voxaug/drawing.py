"""What meets what and how it is changed: (catalogue, seed, epoch, index, strengths) -> a `Mix`, the same every time.

The pairing is that of carperbr's voxaug2 (frame-transformer, commit 85e7f18b, dataset_voxaug2.py): at epoch e, backing
i meets voice (e + i) mod n, so that no pair repeats until all were heard. An epoch is every section of every backing
once, in an order of its own.
"""

from dataclasses import replace
from functools import lru_cache
from math import inf, log10

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vocalremover.dataset import Catalogue, Track
from vocalremover.voxaug.mixes import BANDS, FLAT, Mix, Part
from vocalremover.voxaug.rendering import ROOMS, render
from vocalremover.voxaug.strengths import OURS, Doses, Strengths

GRID = 0.25  # semitones between speeds that are drawn: few lengths, whose transforms are planned once
INTERVALS = (-12, -5, -4, -3, 3, 4, 5, 7, 12, -0.1, 0.1, 0.15)  # harmonies, and the same line sung again


class Mixes(Dataset):
    """Training examples by their number: number k is place k mod n of epoch k // n, n being the backings.

    The same number is the same example on any rank and in any worker; whoever hands out the numbers decides who hears
    what. There is no last one.
    """

    def __init__(self, catalogue: Catalogue, seed: int, samples: int, strengths: Strengths = OURS) -> None:
        self.catalogue, self.seed, self.samples, self.strengths = catalogue, seed, samples, strengths

    def __len__(self) -> int:
        return 1 << 40

    def mix(self, number: int) -> Mix:
        """The example as it was drawn, without its audio."""
        epoch, index = divmod(number, len(self.catalogue.backings))
        return draw(self.catalogue, self.seed, epoch, index, self.strengths)

    def __getitem__(self, number: int) -> Tensor:
        """float32 `[2 (mixture, vocals), 2 channels, samples]`."""
        return torch.from_numpy(np.stack(render(self.mix(number), self.samples)))


def draw(catalogue: Catalogue, seed: int, epoch: int, index: int, strengths: Strengths = OURS) -> Mix:
    """The mix at this place (0 to backings - 1) of this epoch; the same arguments always draw the same mix."""
    rng = np.random.Generator(np.random.PCG64([seed, epoch, index]))
    place = int(_order(len(catalogue.backings), (seed, epoch, 1))[index])
    voices = _order(len(catalogue.voices), (seed,))
    voice = catalogue.voices[int(voices[(epoch + place) % len(voices)])]
    voice = _draw_singer(catalogue, (seed, epoch, index), strengths.songs) or voice
    backing = catalogue.backings[place]
    kinds = rng.random(3)
    whole = {
        "gain_db": strengths.gain_db.draw(rng),
        "swap": bool(rng.random() < strengths.swap),
        "codec": strengths.codec.draw(rng, inf),
        "high_cut": strengths.high_cut.draw(rng, inf),
    }
    partner = catalogue.partners.get(voice.path)
    if partner and kinds[0] < strengths.song:
        parts = _draw_song(rng, voice, partner, strengths)
        level = "song" if strengths.level else "none"
    else:
        parts = _draw_voices(rng, catalogue, voice, strengths), _draw_backings(rng, catalogue, backing, strengths)
        level = "parts" if strengths.level else "none"
    silent, alone = kinds[1] < strengths.no_voice, kinds[2] < strengths.no_backing
    return Mix(() if silent else parts[0], () if alone and not silent else parts[1], level=level, **whole)


def _draw_singer(catalogue: Catalogue, place: tuple[int, ...], share: float) -> Track | None:
    """In a share of the examples, the voice of a whole song; dice of its own leave all else as it is without it."""
    rng = np.random.Generator(np.random.PCG64([*place, *b"songs"]))
    if not catalogue.songs or rng.random() >= share:
        return None
    return catalogue.singers[rng.integers(len(catalogue.singers))]


def _draw_voices(
    rng: np.random.Generator, catalogue: Catalogue, track: Track, strengths: Strengths
) -> tuple[Part, ...]:
    """The voice, maybe with a harmony to it, maybe with another singer."""
    voices = [_draw_part(rng, track, strengths.voice)]
    level = strengths.voice.harmony.draw(rng, -inf)
    interval = float(rng.choice(INTERVALS))
    other = catalogue.voices[rng.integers(len(catalogue.voices))]
    second = _draw_part(rng, other, strengths.voice)
    beside = strengths.second_voice.draw(rng, -inf)
    if level > -inf:
        voices.append(_harmony(voices[0], interval, level, strengths.voice.aside.low * float(rng.choice((-1, 1)))))
    if beside > -inf:
        voices.append(replace(second, gain_db=voices[0].gain_db + beside))
    return tuple(voices)


def _draw_backings(
    rng: np.random.Generator, catalogue: Catalogue, track: Track, strengths: Strengths
) -> tuple[Part, ...]:
    first = _draw_part(rng, track, strengths.backing)
    other = catalogue.backings[rng.integers(len(catalogue.backings))]
    second = _draw_part(rng, other, strengths.backing)
    beside = strengths.second_backing.draw(rng, -inf)
    return (first,) if beside == -inf else (first, replace(second, gain_db=first.gain_db + beside))


def _draw_song(rng: np.random.Generator, voice: Track, backing: Track, strengths: Strengths) -> tuple:
    """A song's two stems cut at the same place, with the speed and the equaliser of the whole."""
    start = float(rng.random())
    speed = _on_grid(strengths.backing.speed.draw(rng))
    equaliser = _draw_equaliser(rng, strengths.backing.equaliser_db.draw(rng))
    # The backing is cut where the voice is, though it has sections of its own elsewhere.
    stems = (voice, replace(backing, part=voice.part, parts=voice.parts, samples=voice.samples))
    return tuple((Part(stem, start, speed=speed, equaliser_db=equaliser),) for stem in stems)


def _draw_part(rng: np.random.Generator, track: Track, doses: Doses) -> Part:
    """A part with random effects, most of them absent."""
    aside, pan = doses.aside.draw(rng), doses.pan.draw(rng)
    gap, begin = doses.gap.draw(rng), rng.random()
    return Part(
        track=track,
        start=float(rng.random()),
        gain_db=doses.gain_db.draw(rng) + 20 * log10(doses.factor.draw(rng, 1.0)),
        speed=_on_grid(doses.speed.draw(rng)),
        tempo=doses.tempo.draw(rng, 1.0),
        formant=doses.formant.draw(rng),
        pan=aside or pan,
        width=0.0 if rng.random() < doses.mono.chance else doses.width.draw(rng, 1.0),
        equaliser_db=_draw_equaliser(rng, doses.equaliser_db.draw(rng)),
        compression=doses.compression.draw(rng, 1.0),
        drive=doses.drive.draw(rng),
        low_cut=doses.low_cut.draw(rng),
        high_cut=doses.high_cut.draw(rng, inf),
        echo_seconds=float(rng.uniform(0.06, 0.6)),
        echo_db=doses.echo_db.draw(rng, -inf),
        room=int(rng.integers(ROOMS)),
        wet_db=doses.wet_db.draw(rng, -inf),
        double=doses.double.draw(rng),
        roughness=doses.roughness.draw(rng),
        phase=doses.phase.draw(rng),
        noise=int(rng.integers(1 << 31)),
        gap=(begin * (1 - gap), begin * (1 - gap) + gap),
        swap=bool(rng.random() < doses.swap.chance),
        drop=int(rng.integers(2)) if rng.random() < doses.drop.chance else -1,
        loop=doses.loop.draw(rng),
        loop_begin=float(rng.uniform(0, 0.5)),
    )


def _harmony(voice: Part, interval: float, level_db: float, pan: float) -> Part:
    """The same line at the same time, `interval` semitones away, with another throat."""
    return replace(
        voice,
        speed=voice.speed + interval,
        tempo=voice.tempo * 2 ** (-interval / 12),
        formant=voice.formant - interval / 2,  # half way between the tape's throat and the singer's own
        gain_db=voice.gain_db + level_db,
        pan=pan / 2,
        double=0.0,
    )


def _draw_equaliser(rng: np.random.Generator, spread_db: float) -> tuple[float, ...]:
    gains = rng.standard_normal(BANDS)
    return tuple(float(spread_db * gain) for gain in gains) if spread_db else FLAT


def _on_grid(semitones: float) -> float:
    return round(semitones / GRID) * GRID


@lru_cache(maxsize=8)
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    """An order of so many things that the seed alone decides."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)
