"""How good a separation is: stems and their references, both audio `[channels, samples]`, to decibels."""

import torch
from torch import Tensor

from vocalremover.errors import UsageError


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
    if wrong == 0:
        return float("inf")
    return (10 * torch.log10(wanted / wrong)).item()


def ideal_ratio_mask(vocals: Tensor, instrumental: Tensor) -> Tensor:
    """The mask `[channels, bins, frames]` that divides every bin by the magnitudes of two spectrograms: a ceiling."""
    return vocals.abs() / (vocals.abs() + instrumental.abs()).clamp(min=1e-12)
