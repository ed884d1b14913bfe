"""What a masked spectrogram costs."""

import torch
from torch import Tensor


def masked_error(mask: Tensor, mixture: Tensor, vocals: Tensor) -> Tensor:
    """The error of mask * mixture against the vocals, as a scalar; 0 is perfect.

    mask `[batch, channels, bins, frames]`, mixture and vocals complex spectrograms of the same shape. The error is
    taken on complex values, so the best mask also makes up for a phase that is not the voice's (the phase-sensitive
    mask of Erdogan et al., ICASSP 2015), which is what SDR rewards; the error of the instrumental is the same number.
    Half of the loss is the mean absolute error, which every song's quiet parts share in, half the root mean square,
    which is SDR's own measure; both relative to the mixture, so that loud examples do not count more.
    """
    error = torch.view_as_real(mask * mixture - vocals).square().sum(dim=-1)
    power = torch.view_as_real(mixture).square().sum(dim=-1)
    absolute = (error + 1e-9).sqrt().mean(dim=(1, 2, 3)) / ((power + 1e-9).sqrt().mean(dim=(1, 2, 3)) + 1e-3)
    square = error.mean(dim=(1, 2, 3)).add(1e-9).sqrt() / (power.mean(dim=(1, 2, 3)).sqrt() + 1e-3)
    return (absolute + square).mean() / 2
