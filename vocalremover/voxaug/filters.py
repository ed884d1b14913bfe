"""Effects that are linear and stand still, as frequency responses: they multiply, and one transform applies them all.

A response is `[batch, bins]` (alike on all channels) or `[batch, channels, bins]`, for the `samples // 2 + 1` bins of a
whole crop. Filtering wraps around the crop's ends: what rings on at its end is heard at its beginning, as if the same
had been sung before.
"""

from functools import lru_cache
from math import log2

import numpy as np
import torch
from torch import Tensor

RATE = 44100
LOWEST, HIGHEST = 40.0, 20000.0  # hertz, of an equaliser's knots
ROOM_SECONDS = 2.0


def frequencies(samples: int, device: torch.device | str = "cpu") -> Tensor:
    """Hertz `[samples // 2 + 1]` of the bins of a crop."""
    return torch.fft.rfftfreq(samples, 1 / RATE, device=device)


def filtered(audio: Tensor, response: Tensor) -> Tensor:
    """Audio `[batch, 1 or channels, samples]` through a response, `[batch, channels, samples]`."""
    response = response if response.dim() == 3 else response[:, None]
    return torch.fft.irfft(torch.fft.rfft(audio) * response, n=audio.shape[-1])


def equaliser(gains_db: Tensor, hertz: Tensor) -> Tensor:
    """Response of gains `[batch, knots]` at knots evenly spaced in octaves, joined by straight lines; no delay."""
    knots = gains_db.shape[-1]
    octaves = (hertz.clamp(LOWEST, HIGHEST) / LOWEST).log2() / log2(HIGHEST / LOWEST) * (knots - 1)
    below = octaves.long().clamp(max=knots - 2)
    share = octaves - below
    return 10 ** ((gains_db[:, below] * (1 - share) + gains_db[:, below + 1] * share) / 20)


def high_pass(cuts: Tensor, hertz: Tensor) -> Tensor:
    """Response that lets pass what is above the cuts `[batch]` in hertz: half the power there, 24 dB an octave off."""
    return 1 / (1 + (cuts[:, None] / hertz.clamp(min=1e-3)) ** 8).sqrt()


def low_pass(cuts: Tensor, hertz: Tensor) -> Tensor:
    """Response that lets pass what is below the cuts `[batch]` in hertz, infinity being all: 96 dB an octave above.

    As steep as the cut that coders of music and telephones make.
    """
    return 1 / (1 + (hertz / cuts[:, None]) ** 32).sqrt()


def echo(seconds: Tensor, levels_db: Tensor, hertz: Tensor) -> Tensor:
    """Response of the sound itself and one repetition, so much later and so loud (`[batch]` each)."""
    turns = torch.remainder(seconds[:, None].double() * hertz.double(), 1).float()
    return 1 + 10 ** (levels_db[:, None] / 20) * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)


def reverberation(rooms: Tensor, levels_db: Tensor) -> Tensor:
    """Response `[batch, channels, bins]` of the sound itself and its reverberation, so loud; rooms: see `spectrum`."""
    return 1 + 10 ** (levels_db[:, None, None] / 20) * rooms


def spectrum(impulse: Tensor, samples: int) -> Tensor:
    """Response `[..., bins]` of a room with this impulse response `[..., n]`, whose end is cut if it is too long."""
    return torch.fft.rfft(impulse[..., :samples], n=samples)


@lru_cache(maxsize=128)
def room(number: int) -> Tensor:
    """Impulse response `[2, n]` of a synthetic room without the sound itself, of unit energy; `number` tells which.

    A few first reflections from the walls, then noise that decays, its highs sooner; both sides differ.
    """
    rng = np.random.Generator(np.random.PCG64([number, 7]))
    length = int(ROOM_SECONDS * RATE)
    seconds = np.arange(length) / RATE
    decay = 10 ** (-3 * seconds / rng.uniform(0.25, 2.5))  # -60 dB after the drawn reverberation time
    tail = rng.standard_normal((2, length)) * decay
    begin = int(rng.uniform(0, 0.04) * RATE)
    tail[:, :begin] = 0
    spectrum = np.fft.rfft(tail)
    spectrum /= 1 + (np.fft.rfftfreq(length, 1 / RATE) / rng.uniform(1500, 12000)) ** 2  # walls swallow the highs
    tail = np.fft.irfft(spectrum, n=length)
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True))
    for place in begin + rng.integers(80, 3000, 8):
        tail[rng.integers(2), place] += rng.uniform(-0.3, 0.3)
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True))
    return torch.from_numpy(tail.astype(np.float32))
