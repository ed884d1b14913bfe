"""Effects on waves, batched: audio `[batch, channels, samples]` and a number for each example -> the same shape.

Every effect is a pure function of its arguments, runs wherever the audio is, and leaves an example alone at its neutral
number. Effects that are linear and stand still are responses, see `filters`; those on spectrograms are in `spectra`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

TENTH = 4410  # samples in which loudness is measured
QUIETEST = 1e-3  # RMS: nothing is taken for quieter, so that no noise floor is ever raised to a voice
LEVEL_WINDOW, LEVEL_STEP = 1024, 256  # samples: of the compressor's level, about 23 ms
SHORTEST = 441  # samples of a loop


def change_speed(audio: Tensor, samples: int) -> Tensor:
    """`[..., n]` -> `[..., samples]`: the whole of it in another time, pitch and formants moved, like a tape.

    Band-limited by cutting the spectrum; exact for audio that begins as it ends. n == samples is the identity.
    """
    given = audio.shape[-1]
    if given == samples:
        return audio
    spectrum = torch.fft.rfft(audio)[..., : samples // 2 + 1]
    return torch.fft.irfft(spectrum * (samples / given), n=samples)


def loudness(audio: Tensor) -> Tensor:
    """RMS `[batch]` of the louder half of the tenths of a second, so that pauses do not count; at least QUIETEST."""
    power = _powers(audio)
    louder = power.sort(dim=-1).values[:, power.shape[-1] // 2 :].mean(dim=-1)
    return louder.sqrt().clamp(min=QUIETEST)


def _powers(audio: Tensor) -> Tensor:
    """Mean squares `[batch, tenths]` of the whole tenths of a second; of all where there is none."""
    tenths, length = max(audio.shape[-1] // TENTH, 1), min(TENTH, audio.shape[-1])
    return reduce(audio[..., : tenths * length].square(), "b c (n s) -> b n", "mean", n=tenths)


def compress(audio: Tensor, ratios: Tensor, threshold_db: float = -6.0) -> Tensor:
    """Turn down what is louder than `threshold_db` beside the loudness; a ratio `[batch]` of 1 changes nothing.

    The level is measured over a window around each sample and over both channels, so that the stereo picture stays.
    """
    power = F.pad(audio.square(), (LEVEL_WINDOW // 2, LEVEL_WINDOW // 2 + -audio.shape[-1] % LEVEL_STEP))
    steps = reduce(power, "b c (n s) -> b 1 n", "mean", s=LEVEL_STEP)
    level = F.avg_pool1d(steps, LEVEL_WINDOW // LEVEL_STEP, 1) + 1e-10
    above = 10 * level.log10() - 20 * loudness(audio)[:, None, None].log10() - threshold_db
    gain_db = -(1 - 1 / ratios[:, None, None]) * above.clamp(min=0)
    return audio * F.interpolate(10 ** (gain_db / 20), size=audio.shape[-1], mode="linear")


def distort(audio: Tensor, drives: Tensor) -> Tensor:
    """Bend what is loud: tanh(drive * x) / drive. A drive `[batch]` of 0 changes nothing."""
    drives = drives[:, None, None].clamp(min=1e-4)
    return torch.tanh(drives * audio) / drives


def silence(audio: Tensor, begins: Tensor, ends: Tensor, fade: int = 441) -> Tensor:
    """Nothing from begin to end (`[batch]`, 0..1 of the length), with short ramps inside the gap."""
    places = torch.arange(audio.shape[-1], device=audio.device)
    first, last = (rearrange(edge, "b -> b 1") * audio.shape[-1] for edge in (begins, ends))
    inside = torch.minimum(places - first, last - places)  # samples to the nearer edge of the gap
    return audio * (1 - inside / fade).clamp(0, 1)[:, None]


def loop(audio: Tensor, periods: Tensor, begins: Tensor, fade: int = 220) -> Tensor:
    """From begin (`[batch]`, 0..1 of the length) on, so many samples (periods, `[batch]`) again and again: those that
    start with the loudest tenth of a second. Every turn rises and falls in short ramps."""
    samples = audio.shape[-1]
    periods = periods.long().clamp(SHORTEST, samples)[:, None]
    first = torch.minimum(_powers(audio).argmax(dim=-1, keepdim=True) * TENTH, samples - periods)
    places = torch.arange(samples, device=audio.device)
    since = places - (begins[:, None] * samples).long()
    turned = since % periods
    taken = torch.where(since < 0, places, first + turned)
    ramps = (torch.minimum(turned, periods - turned) / fade).clamp(max=1).where(since >= 0, 1)
    return audio.gather(-1, repeat(taken, "b n -> b c n", c=audio.shape[1])) * ramps[:, None]


def place(audio: Tensor, pans: Tensor) -> Tensor:
    """Mono or stereo -> stereo at a pan `[batch]` of -1 (left) to 1 (right), with the power of both sides kept."""
    gains = torch.stack([1 - pans, 1 + pans], dim=1).clamp(min=0).sqrt()
    return audio.expand(-1, 2, -1) * gains[..., None]


def widen(audio: Tensor, widths: Tensor) -> Tensor:
    """Stereo with its sides (left minus right) multiplied by a width `[batch]`: 0 is mono, 1 changes nothing."""
    middle = audio.mean(dim=1, keepdim=True)
    return middle + (audio - middle) * widths[:, None, None]


def swap(audio: Tensor, swapped: Tensor) -> Tensor:
    """Left and right of `[batch, ..., channels, samples]` exchanged where `swapped` (`[batch]`, bool)."""
    return torch.where(swapped.reshape(-1, *[1] * (audio.dim() - 1)), audio.flip(-2), audio)


def drop(audio: Tensor, channels: Tensor) -> Tensor:
    """One channel silent: its number in `channels` `[batch]`, -1 for none."""
    numbers = torch.arange(audio.shape[1], device=audio.device)
    return audio * (numbers != channels[:, None])[..., None]


def with_loudness(audio: Tensor, levels: Tensor) -> Tensor:
    """The audio as loud as `levels` `[batch]`, unless it is next to silent."""
    return audio * (levels / loudness(audio))[:, None, None]
