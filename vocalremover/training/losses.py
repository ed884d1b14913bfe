"""What a separation costs: an `Estimate` and its truth -> a scalar, 0 for perfection.

A recipe names the losses it wants and weighs them. All are taken in float32 and are means over the examples, so that
several processes with a part of the batch each train as one process with the whole of it, but for batch normalisation
on CPUs, where each has its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from vocalremover.spectrogram import STFT

WINDOWS = (4096, 2048, 1024, 512, 256)  # samples
HOP = 147  # samples
MEL_BANDS = 128
ACTIVE = 0.00125  # mean magnitude of such a patch, the crop's peak being 1, above which a voice is in it


@dataclass(frozen=True)
class Estimate:
    """What a network made of a batch, beside what it should have made.

    spectrogram, wanted: complex `[batch, channels, bins, frames]`, or with an axis of stems after the batch; mixture:
    the same shape or one that fits; audio: the wanted waves `[..., samples]`; peak: the mixture's largest magnitude
    `[batch, 1, ...]`; activity: logits of a voice in a patch `[batch, channels, patches, frames]`, where the network
    gives them; vocals: the true vocals' spectrogram.
    """

    spectrogram: Tensor
    wanted: Tensor
    mixture: Tensor
    audio: Tensor
    peak: Tensor
    stft: STFT
    rate: int
    vocals: Tensor
    activity: Tensor | None = None

    @cached_property
    def waves(self) -> Tensor:
        """The estimate as audio `[..., samples]`."""
        return self.stft.inverse(self.spectrogram, self.audio.shape[-1])

    @cached_property
    def magnitudes(self) -> tuple[Tensor, Tensor]:
        """Of the estimate and of the truth, without the Nyquist bin (no network decides about it), by the peak."""
        return tuple(_modulus(each[..., :-1, :]) / self.peak for each in (self.spectrogram, self.wanted))


def _modulus(spectrogram: Tensor) -> Tensor:
    """Magnitudes whose gradient is finite in silence, too."""
    return (torch.view_as_real(spectrogram).square().sum(dim=-1) + 1e-16).sqrt()


def magnitude_error(estimate: Estimate) -> Tensor:
    """The mean absolute error of the magnitudes: what the frame transformers are trained with."""
    found, wanted = estimate.magnitudes
    return (found - wanted).abs().mean()


def mel_error(estimate: Estimate) -> Tensor:
    """The same on 128 bands of the mel scale, in which the high frequencies count less (V7, V8)."""
    found, wanted = (
        torch.einsum("...ft,fm->...mt", each, mel_bands(each.shape[-2], estimate.rate, each.device))
        for each in estimate.magnitudes
    )
    return (found - wanted).abs().mean()


def distortion(estimate: Estimate) -> Tensor:
    """-10 log10 of the energy of what the magnitudes have in common with the truth against that of the rest, in dB.

    The original took all examples as one vector, in which loud ones drown the others; here it is a mean over examples.
    """
    found, wanted = (each.flatten(1) for each in estimate.magnitudes)
    share = (found * wanted).sum(1, keepdim=True) / (wanted.square().sum(1, keepdim=True) + 1e-8)
    common, rest = (share * wanted).square().sum(1), (found - share * wanted).square().sum(1)
    return -10 * torch.log10((common + 1e-8) / (rest + 1e-8)).mean()


def complex_error(estimate: Estimate) -> Tensor:
    """The error of the complex values against the size of the mixture, half of it absolute and half root mean square.

    On complex values the best mask also makes up for a phase that is not the voice's (the phase-sensitive mask of
    Erdogan et al., ICASSP 2015), which is what SDR rewards; the error of the instrumental is the same number. In the
    absolute part every song's quiet parts share, the other is SDR's own measure; both are relative to the mixture, so
    that loud examples do not count more.
    """
    error = torch.view_as_real(estimate.spectrogram - estimate.wanted).square().sum(dim=-1).flatten(1)
    power = torch.view_as_real(estimate.mixture).square().sum(dim=-1).flatten(1)
    absolute = (error + 1e-9).sqrt().mean(dim=1) / ((power + 1e-9).sqrt().mean(dim=1) + 1e-3)
    square = error.mean(dim=1).add(1e-9).sqrt() / (power.mean(dim=1).sqrt() + 1e-3)
    return (absolute + square).mean() / 2


def wave_error(estimate: Estimate) -> Tensor:
    """The mean absolute error of the samples."""
    return (estimate.waves - estimate.audio).abs().mean()


def resolution_error(estimate: Estimate) -> Tensor:
    """The sum over five window lengths of the mean absolute error of complex spectrograms, as the RoFormers have it.

    Source: lucidrains/BS-RoFormer 1.2.4 and ZFTurbo/Music-Source-Separation-Training at ccc011a (MIT).
    """
    error = estimate.waves.new_zeros(())
    for size in WINDOWS:
        window = torch.hann_window(size, device=error.device)
        found, wanted = (
            torch.stft(rearrange(waves, "... samples -> (...) samples"), max(size, estimate.stft.n_fft), HOP, size,
                       window, return_complex=True)
            for waves in (estimate.waves, estimate.audio)
        )  # fmt: skip
        error = error + _modulus(found - wanted).mean()
    return error


def activity_error(estimate: Estimate) -> Tensor:
    """How wrongly the generator tells in which patches there is a voice (binary cross-entropy)."""
    bands = estimate.activity.shape[-2]
    size = (estimate.vocals.shape[-2] - 1) // bands
    magnitudes = estimate.vocals[..., : bands * size, :].abs() / estimate.peak
    loud = reduce(magnitudes, "b c (n s) t -> b c n t", "mean", s=size)
    return F.binary_cross_entropy_with_logits(estimate.activity.float(), (loud > ACTIVE).float())


LOSSES: dict[str, Callable[[Estimate], Tensor]] = {
    "magnitude": magnitude_error,
    "mel": mel_error,
    "distortion": distortion,
    "complex": complex_error,
    "wave": wave_error,
    "resolutions": resolution_error,
    "activity": activity_error,
}
"""What a recipe's `losses` may name."""


def weigh(estimate: Estimate, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Every loss that is asked for, and their weighted sum as "loss"."""
    parts = {name: LOSSES[name](estimate) for name in weights}
    return {"loss": sum(weights[name] * part for name, part in parts.items()), **parts}


@lru_cache(maxsize=8)
def mel_bands(bins: int, rate: int, device: torch.device) -> Tensor:
    """`[bins, MEL_BANDS]`: triangles that are evenly spaced on the mel scale of HTK, 2595 log10(1 + Hz / 700)."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, top.item(), MEL_BANDS + 2, dtype=torch.float64) / 2595) - 1)
    hertz = torch.arange(bins, dtype=torch.float64)[:, None] * rate / 2 / bins
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float().to(device)
