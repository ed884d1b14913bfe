"""How good a separation is: stems and their references, both audio `[channels, samples]`, to decibels.

`sdr` takes whole stems; `Meter` takes them in blocks and holds a few numbers a second of song, whatever its length.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from vocalremover.chunks import Queue
from vocalremover.errors import UsageError
from vocalremover.spectrogram import STFT

IDEAL = STFT(n_fft=2048, hop=1024)  # what the ideal ratio mask is made on, whatever the model


@dataclass(frozen=True)
class Scores:
    """Of one stem, in dB. sdr: over the whole of it; seconds: the median over its seconds; si_sdr: whatever its level.

    NaN where there is nothing to measure, such as the seconds of a song that is shorter than one.
    """

    sdr: float
    seconds: float
    si_sdr: float


def sdr(estimate: Tensor, reference: Tensor) -> float:
    """The signal-to-distortion ratio in dB over the whole of a stem, all channels together.

    10 log10(|reference|^2 / |reference - estimate|^2), the "global" SDR of the Music Demixing Challenge (Mitsufuji et
    al. 2021): no filtering of the estimate and no median over time. Infinity for a perfect estimate, minus infinity
    where the reference is silent and the estimate is not. Raises UsageError if the shapes differ.
    """
    if estimate.shape != reference.shape:
        shapes = f"{tuple(estimate.shape)} cannot be held against {tuple(reference.shape)}"
        raise UsageError(f"an estimate of shape {shapes}")
    wanted = reference.double().square().sum()
    wrong = (reference.double() - estimate.double()).square().sum()
    return _decibels(wanted.item(), wrong.item())


def si_sdr(estimate: Tensor, reference: Tensor) -> float:
    """The scale-invariant SDR in dB (Le Roux et al., ICASSP 2019), all channels together: blind to the level."""
    estimate, reference = estimate.double(), reference.double()
    energies = (estimate * reference).sum(), estimate.square().sum(), reference.square().sum()
    return _scale_invariant(*(energy.item() for energy in energies))


def ideal_ratio_mask(vocals: Tensor, instrumental: Tensor) -> Tensor:
    """The mask `[channels, bins, frames]` that divides every bin by the magnitudes of two spectrograms: a ceiling."""
    return vocals.abs() / (vocals.abs() + instrumental.abs()).clamp(min=1e-12)


def ideal_vocals(stems: Iterable[Tensor]) -> Iterator[Tensor]:
    """Blocks `[2 (vocals, instrumental), channels, samples]` -> what the ideal ratio mask makes of their sums.

    The blocks `[channels, samples]` come in other sizes, and may hold a part of a window more than the stems.
    """
    spectrograms = IDEAL.forward_blocks(stems, cover=True)
    return IDEAL.inverse_blocks(ideal_ratio_mask(*both) * both.sum(dim=0) for both in spectrograms)


class Meter:
    """Scores of stems that come in blocks.

    The median over seconds is that of museval (BSS Eval v4: Liutkus, Stöter and Ito 2018, windows and hops of one
    second), whose SDR is the plain ratio in each window: a last part of a second does not count, and no second counts
    in which some reference or some estimate is silent.
    """

    def __init__(self, rate: int) -> None:
        """rate: samples a second."""
        self._rate = rate
        self._held = Queue()
        self._whole: dict[str, list[float]] = {}  # estimate x reference, estimate^2, reference^2, error^2
        self._seconds: dict[str, list[float]] = {}
        self._stems: tuple[str, ...] = ()

    def add(self, estimates: Mapping[str, Tensor], references: Mapping[str, Tensor]) -> None:
        """The next block of every stem: estimate and reference `[channels, samples]`, all of one shape."""
        self._stems = self._stems or tuple(references)
        shapes = {tuple(stems[name].shape) for stems in (estimates, references) for name in self._stems}
        if len(shapes) > 1:
            raise UsageError(f"stems of different shapes cannot be held against each other: {sorted(shapes)}")
        self._held.push(torch.stack([torch.stack([estimates[s], references[s]]) for s in self._stems]))
        while self._held.held >= self._rate:
            self._measure(self._held.piece(self._rate).double(), whole=True)

    def scores(self) -> dict[str, Scores]:
        """The scores of every stem; call it once, after the last block."""
        if self._held.held:
            self._measure(self._held.piece(self._held.held).double(), whole=False)
        return {stem: self._scores(stem) for stem in self._stems}

    def _measure(self, block: Tensor, whole: bool) -> None:  # [stems, 2 (estimate, reference), channels, samples]
        sounds = bool((block.sum(dim=-2) != 0).any(dim=-1).all())
        for stem, (estimate, reference) in zip(self._stems, block, strict=True):
            error = (estimate - reference).square().sum().item()
            products = (estimate * reference, estimate.square(), reference.square())
            sums = [product.sum().item() for product in products]
            totals = self._whole.setdefault(stem, [0.0] * 4)
            self._whole[stem] = [total + more for total, more in zip(totals, (*sums, error), strict=True)]
            if whole and sounds:
                self._seconds.setdefault(stem, []).append(_decibels(sums[2], error))

    def _scores(self, stem: str) -> Scores:
        product, estimate, reference, error = self._whole.get(stem, [0.0] * 4)
        seconds = self._seconds.get(stem)
        scaled = _scale_invariant(product, estimate, reference)
        return Scores(_decibels(reference, error), median(seconds) if seconds else math.nan, scaled)


def _scale_invariant(product: float, estimate: float, reference: float) -> float:
    """From the energies of both and their product. Silence, and what else has nothing of the reference, has -inf."""
    target = product**2 / reference if reference else 0.0
    if reference and not target:
        return -math.inf
    return _decibels(target, max(estimate - target, 0.0))


def _decibels(wanted: float, wrong: float) -> float:
    if wrong == 0:
        return math.inf
    return 10 * math.log10(wanted / wrong) if wanted else -math.inf
