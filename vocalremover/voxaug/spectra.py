"""Effects on spectrograms, batched: complex `[batch, channels, bins, frames]`, a number for each example -> the same.

Pure, on whatever device the spectrogram is, and neutral at their neutral number, like `waves`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vocalremover.spectrogram import STFT

EFFECTS = STFT(n_fft=2048, hop=512)
THROAT = 60  # samples of the cepstrum that are the throat and not the pitch: below the period of 735 Hz
BOOST = 2.3  # natural logarithm of what a formant may be raised or lowered by: 20 dB
BAND = 16  # bins for which a coder decides together what is too quiet to be kept


def stretch(audio: Tensor, rates: Tensor, samples: int) -> Tensor:
    """Audio `[batch, channels, n]` played `rates` `[batch]` times as fast at its own pitch -> `[..., samples]`.

    A phase vocoder (Flanagan and Golden 1966): magnitudes are read between frames, phases advance as they did there.
    What is missing at the end is silent.
    """
    spectrogram = EFFECTS.forward(audio)
    places = torch.arange(EFFECTS.frames(samples), device=audio.device) * rates[:, None]  # [batch, frames]
    padded = F.pad(torch.view_as_real(spectrogram), (0, 0, 0, 2))
    spectrogram = torch.view_as_complex(padded.contiguous())
    last = spectrogram.shape[-1] - 1
    below = places.long().clamp(max=last - 1)
    share = (places - below).clamp(max=1)[:, None, None]
    here, there = (_frames(spectrogram, index) for index in (below, below + 1))
    magnitude = here.abs() * (1 - share) + there.abs() * share
    advance = there.angle() - here.angle()
    advance -= 2 * torch.pi * (advance / (2 * torch.pi)).round()  # small numbers add up with small errors
    phase = here[..., :1].angle() + F.pad(advance[..., :-1].cumsum(dim=-1), (1, 0))
    return EFFECTS.inverse(torch.polar(magnitude, phase), samples)


def shift_formants(spectrogram: Tensor, semitones: Tensor) -> Tensor:
    """Move what the throat adds by `semitones` `[batch]`, and leave pitch and phases.

    The throat is the slow part of the logarithmic spectrum (its first cepstral coefficients).
    """
    logarithm = spectrogram.abs().clamp(min=1e-6).log()
    throat = _smooth(logarithm)
    bins = throat.shape[-2]
    sources = torch.arange(bins, device=throat.device) / 2 ** (semitones[:, None] / 12)  # [batch, bins]
    below = sources.long().clamp(max=bins - 2)
    share = (sources - below).clamp(max=1)[:, None, :, None]
    moved = _bins(throat, below) * (1 - share) + _bins(throat, below + 1) * share
    return spectrogram * (moved - throat).clamp(-BOOST, BOOST).exp()


def roughen(spectrogram: Tensor, noise: Tensor, strengths: Tensor) -> Tensor:
    """Multiply every bin by 1 + strength `[batch]` * noise (of the spectrogram's shape), phases as they were."""
    return spectrogram * (1 + strengths[:, None, None, None] * noise).clamp(min=0)


def blur_phases(spectrogram: Tensor, noise: Tensor, strengths: Tensor) -> Tensor:
    """Turn every bin by strength `[batch]` * noise radians; its magnitude stays."""
    angles = strengths[:, None, None, None] * noise
    return spectrogram * torch.polar(torch.ones_like(angles), angles)


def coded(spectrogram: Tensor, depths_db: Tensor) -> Tensor:
    """The bins, as a mask of 0 and 1, that a coder of music keeps: not `depths_db` `[batch]` below a band's mean."""
    power = spectrogram.abs().square()
    bins = power.shape[-2]
    banded = rearrange(F.pad(power, (0, 0, 0, -bins % BAND)), "b c (n s) t -> b c n s t", s=BAND)
    threshold = banded.mean(dim=-2, keepdim=True) * 10 ** (-depths_db[:, None, None, None, None] / 10)
    kept = rearrange((banded >= threshold).to(power.dtype), "b c n s t -> b c (n s) t")
    return kept[..., :bins, :]


def _smooth(logarithm: Tensor) -> Tensor:
    size = 2 * (logarithm.shape[-2] - 1)
    cepstrum = torch.fft.irfft(logarithm.transpose(-1, -2), n=size)
    cepstrum[..., THROAT : size - THROAT + 1] = 0
    return torch.fft.rfft(cepstrum).real.transpose(-1, -2)


def _frames(spectrogram: Tensor, index: Tensor) -> Tensor:
    """The frames `[batch, n]` of each example."""
    return spectrogram.gather(-1, index[:, None, None].expand(-1, *spectrogram.shape[1:-1], -1))


def _bins(values: Tensor, index: Tensor) -> Tensor:
    """The bins `[batch, n]` of each example."""
    return values.gather(-2, index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1]))
