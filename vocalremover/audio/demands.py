"""What a song and a sample rate have to be, wherever one is handed in; a sentence for everything else."""

import torch
from torch import Tensor

from vocalremover.errors import AudioError, UsageError

MANY = 64  # channels, which a very short song may have


def demand_audio(audio: Tensor) -> None:
    """Raises AudioError for what is not `[channels, samples]` of floating point numbers."""
    if not isinstance(audio, Tensor) or audio.layout != torch.strided:
        raise AudioError(f"a song is a tensor [channels, samples], not {type(audio).__name__}")
    if audio.dim() != 2 or not audio.shape[0] or not audio.is_floating_point():
        found = f"{list(audio.shape)} of {audio.dtype}"
        raise AudioError(f"a song is a tensor [channels, samples] of floating point numbers, not {found}")


def demand_song(song: Tensor) -> None:
    """Raises AudioError for what is no audio, and for a whole song whose axes were taken for one another."""
    demand_audio(song)
    if song.shape[0] > max(song.shape[1], MANY):
        raise AudioError(f"a song is [channels, samples], and {list(song.shape)} looks turned round: transpose it")


def demand_rate(rate: float) -> int:
    """A rate in Hz as a plain number. Raises UsageError for what is not a whole number from 1 on."""
    try:
        if rate >= 1 and rate == int(rate):
            return int(rate)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"a sample rate is a whole number of Hz from 1 on, not {rate!r}")
