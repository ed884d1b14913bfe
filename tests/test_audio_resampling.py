"""Laws of the streaming resampler: it is soxr of the whole song, of exact length, without delay."""

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vocalremover.audio import resample

RATES = [8000, 11025, 22050, 32000, 44100, 48000, 88200, 96000, 192000]


def joined(blocks: list[torch.Tensor], channels: int) -> torch.Tensor:
    return torch.cat([torch.zeros(channels, 0), *blocks], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(0, 6000),
    channels=st.integers(1, 6),
    block=st.integers(1, 4000),
    rates=st.tuples(st.sampled_from(RATES), st.sampled_from(RATES)),
)
def test_a_stream_is_the_whole_song_resampled(samples: int, channels: int, block: int, rates: tuple[int, int]) -> None:
    from_rate, to_rate = rates
    song = torch.randn(channels, samples, generator=torch.Generator().manual_seed(samples)) / 4
    streamed = joined(list(resample(song.split(block, dim=1) if samples else [], from_rate, to_rate)), channels)
    assert streamed.shape == (channels, round(samples * to_rate / from_rate))
    if samples:
        whole = soxr.resample(song.numpy().T, from_rate, to_rate, quality="HQ").T
        # A unit in the last place of float32 is 1.2e-7; the two differ by the order of a few sums.
        np.testing.assert_allclose(streamed.numpy(), whole[:, : streamed.shape[1]], atol=1e-6)


def test_equal_rates_hand_the_very_blocks_through() -> None:
    blocks = [torch.randn(2, 10), torch.randn(2, 3)]
    assert all(given is block for given, block in zip(resample(blocks, 44100, 44100), blocks, strict=True))


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 44100), (44100, 48000), (8000, 44100), (192000, 44100)])
def test_a_tone_keeps_its_place_and_its_level(from_rate: int, to_rate: int) -> None:
    def tone(rate: int) -> torch.Tensor:
        seconds = torch.arange(rate, dtype=torch.float64) / rate
        envelope = torch.sin(torch.pi * seconds) ** 2
        return (0.9 * envelope * torch.sin(2 * torch.pi * 1000 * seconds))[None].float()

    converted = joined(list(resample(tone(from_rate).split(1000, dim=1), from_rate, to_rate)), 1)
    # HQ stands for 20 bits: an error below 2^-20 of full scale, doubled for the edges of the float range.
    torch.testing.assert_close(converted, tone(to_rate), atol=2**-19, rtol=0)
