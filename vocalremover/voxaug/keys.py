"""Which of the twelve notes a piece of audio is made of: what tells whether two pieces are in one key."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 8192  # samples: bins of 5.4 Hz at 44.1 kHz, a semitone at 93 Hz
LOWEST, HIGHEST = 110.0, 1760.0  # Hz: four octaves of melodies and chords
A = 440.0  # Hz


def pitch_classes(audio: Tensor, rate: float) -> Tensor:
    """Audio `[channels, samples]` -> `[12]`, how much of each note from A up is in it, of mean 0 and length 1; all
    0 where there is none.

    The product of two of these is 1 where the notes are the same ones: a chromagram (Fujishima, "Realtime chord
    recognition of musical sound", ICMC 1999) summed over time.
    """
    padded = F.pad(audio, (0, -audio.shape[-1] % WINDOW))
    windows = padded.unfold(-1, WINDOW, WINDOW) * torch.hann_window(WINDOW, device=audio.device)
    energy = torch.fft.rfft(windows).abs().square().sum(dim=(0, 1))
    notes = (_notes(rate).to(audio.device) @ energy).sqrt()  # of the energies, so that one loud note is not all
    notes = notes - notes.mean()
    return notes / notes.norm().clamp(min=1e-12)


@lru_cache(maxsize=4)
def _notes(rate: float) -> Tensor:
    """`[12, WINDOW / 2 + 1]`: the share that each bin has in each note."""
    frequency = torch.arange(WINDOW // 2 + 1) * rate / WINDOW
    semitones = 12 * torch.log2(frequency.clamp(min=1) / A)
    distance = (semitones - torch.arange(12)[:, None] + 6).remainder(12) - 6
    return (1 - distance.abs()).clamp(min=0) * ((frequency >= LOWEST) & (frequency <= HIGHEST))
