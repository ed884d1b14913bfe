"""Models of one line for tests of ensembles: masks of magnitudes and waveform models of several stems."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vocalremover.chunks import Chunking, trapezoid
from vocalremover.models import ModelSpec
from vocalremover.separate import Inference, Separator
from vocalremover.spectrogram import STFT

RATE = 8000
SPEC = ModelSpec(
    name="toy", network="toy", args={}, target="vocals", stft=STFT(n_fft=256, hop=128),
    chunking=Chunking(size=24, context=5), rate=RATE, peak=False,
)  # fmt: skip
OTHER = replace(SPEC, name="other", stft=STFT(n_fft=512, hop=128), chunking=Chunking(size=40))
SLOW = replace(SPEC, name="slow", rate=5512, stft=STFT(n_fft=128, hop=64), chunking=Chunking(size=50, context=4))
RECURRENT = replace(SPEC, name="recurrent", recurrent=True, peak=True, chunking=Chunking(24))
BAND = ModelSpec(
    name="band", network="toy", args={"stereo": True, "num_stems": 4}, target="vocals", domain="waveform",
    instruments=("drums", "bass", "other", "vocals"), reads="complex", stft=STFT(128, 32, pad_mode="reflect"),
    chunking=trapezoid(1280, 0.5), rate=RATE, peak=False,
)  # fmt: skip
WAVE = replace(BAND, name="wave", args={"stereo": True}, instruments=())


class Network(nn.Module):
    """Any function of magnitudes `[batch, channels, bins, frames]` to a mask; counts its windows."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.windows = 0

    def forward(self, magnitudes: Tensor) -> Tensor:
        self.windows += len(magnitudes)
        return self.answer(magnitudes)


class Gains(nn.Module):
    """A waveform model: every stem is a share of the song."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.shares = shares

    def forward(self, spectrogram: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        heads = range(len(self.shares)) if stems is None else stems
        one = torch.tensor((1.0, 0.0), device=spectrogram.device).expand_as(spectrogram)
        return torch.stack([self.shares[head] * one for head in heads], dim=1)


class Recurrent(nn.Module):
    """Reads the two crops before, as V9."""

    def forward(self, x: Tensor) -> Tensor:
        now, before, kept, earlier, kept_earlier = x.split(2, dim=1)
        return torch.sigmoid(now - before + 2 * kept - 3 * earlier + 4 * kept_earlier)


def constant(value: float) -> Network:
    return Network(lambda x: torch.full_like(x, value))


def soft(slope: float) -> Network:
    """A mask of the magnitudes, a different one for every slope."""
    return Network(lambda x: torch.sigmoid(slope * (x - 0.5)))


def noise(channels: int, samples: int, seed: int = 0) -> Tensor:
    audio = np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, samples))
    return torch.from_numpy(audio.astype(np.float32))


def separator(network: nn.Module, spec: ModelSpec = SPEC, **settings: int) -> Separator:
    return Separator(spec, network, inference=Inference(**settings))
