"""The STFT is librosa's, its inverse returns the audio to the sample, and blocks of any size change nothing."""

from collections.abc import Iterator

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vocalremover.errors import UsageError
from vocalremover.spectrogram import STFT, modulus

SMALL = {"n_fft": 64, "hop": 32}
SETTINGS = [
    STFT(),
    STFT(pad_mode="reflect"),
    STFT(n_fft=2048, hop=441),
    STFT(n_fft=512, hop=512, window="hamming"),
    STFT(n_fft=64, hop=50, pad_mode="reflect"),
    STFT(n_fft=512, hop=100, win_length=401, pad_mode="reflect"),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape))


def pieces(audio: Tensor, sizes: list[int]) -> list[Tensor]:
    """The audio cut at the given sizes in turn, the last of which repeats."""
    blocks, start = [], 0
    for size in sizes + [sizes[-1]] * audio.shape[-1]:
        if start >= audio.shape[-1]:
            break
        blocks.append(audio[..., start : start + size])
        start += size
    return blocks or [audio]


def reference(stft: STFT, audio: Tensor) -> Tensor:
    """`librosa.stft` of the audio padded as a whole, which is what librosa did before 0.10.

    librosa 0.11 pads only the ends; its mirror image is one sample short where a song is a multiple of hop long.
    """
    half = stft.n_fft // 2
    mode = stft.pad_mode if audio.shape[-1] > half else "constant"
    padded = np.pad(audio.numpy(), ((0, 0), (half, half)), mode=mode)
    return torch.from_numpy(librosa.stft(padded, center=False, dtype=np.complex128, **keywords(stft)))


def keywords(stft: STFT) -> dict:
    return {"n_fft": stft.n_fft, "hop_length": stft.hop, "window": stft.window, "win_length": stft.win_length}


@pytest.mark.parametrize("samples", [1, 100, 1023, 1024, 1025, 2048, 5000, 20480, 30001])
@pytest.mark.parametrize("stft", SETTINGS, ids=str)
def test_forward_is_librosa(stft: STFT, samples: int) -> None:
    audio = noise(2, samples)
    expected = reference(stft, audio)
    spectrogram = stft.forward(audio)
    assert spectrogram.shape == (2, stft.bins, stft.frames(samples))
    # float64: what is left is the rounding of two different transforms of n_fft numbers of size 1
    assert_close(spectrogram, expected, rtol=0, atol=1e-11)
    # float32: the rounding of a sum of n_fft numbers of size 1, 6e-8 * sqrt(n_fft) a step, some steps
    single = stft.forward(audio.float())
    assert single.dtype == torch.complex64
    assert_close(single, expected.to(torch.complex64), rtol=0, atol=3e-7 * stft.n_fft**0.5)


@pytest.mark.parametrize("samples", [2048, 5000, 20480, 30001])
@pytest.mark.parametrize("stft", SETTINGS, ids=str)
def test_forward_is_librosa_centred(stft: STFT, samples: int) -> None:
    """All frames but the mirrored last one, see `reference`."""
    expected = librosa.stft(noise(2, samples).numpy(), pad_mode=stft.pad_mode, dtype=np.complex128, **keywords(stft))
    same = slice(None) if stft.pad_mode == "constant" else slice(-1)
    assert_close(stft.forward(noise(2, samples))[..., same], torch.from_numpy(expected)[..., same], rtol=0, atol=1e-11)


@pytest.mark.parametrize("samples", [1, 100, 1024, 5000, 20480])
@pytest.mark.parametrize("stft", SETTINGS[:4], ids=str)
def test_inverse_is_librosa(stft: STFT, samples: int) -> None:
    """Of any spectrogram, not only of one that some audio has."""
    frames = stft.frames(samples)
    spectrogram = torch.complex(noise(2, stft.bins, frames), noise(2, stft.bins, frames, seed=1))
    spectrogram[..., [0, -1], :] = spectrogram[..., [0, -1], :].real.to(spectrogram.dtype)
    expected = librosa.istft(spectrogram.numpy(), length=samples, dtype=np.float64, **keywords(stft))
    # under the last slope of the window both divide by almost nothing, so the tolerance is relative
    assert_close(stft.inverse(spectrogram, samples), torch.from_numpy(expected), rtol=1e-7, atol=1e-9)


def test_no_samples() -> None:
    spectrogram = STFT().forward(torch.zeros(2, 0))
    assert spectrogram.shape == (2, 1025, 1) and not spectrogram.abs().any()
    assert STFT().inverse(spectrogram, 0).shape == (2, 0)
    assert list(STFT().forward_blocks([])) == [] and list(STFT().inverse_blocks([])) == []


@given(
    samples=st.integers(0, 400),
    hop=st.integers(1, 32),
    pad_mode=st.sampled_from(["constant", "reflect"]),
    lead=st.sampled_from([(), (2,), (3, 2)]),
)
@settings(deadline=None, max_examples=50)
def test_inverse_of_forward_is_the_audio(samples: int, hop: int, pad_mode: str, lead: tuple[int, ...]) -> None:
    stft = STFT(n_fft=64, hop=hop, pad_mode=pad_mode)
    audio = noise(*lead, samples)
    spectrogram = stft.forward(audio)
    assert spectrogram.shape == (*lead, 33, stft.frames(samples))
    # the last sample may lie where the window is (pi / n_fft) ** 2, which rounding is divided by
    assert_close(stft.inverse(spectrogram, samples), audio, rtol=0, atol=1e-11)


@given(
    samples=st.integers(0, 300),
    hop=st.integers(5, 64),
    pad_mode=st.sampled_from(["constant", "reflect"]),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    cover=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_blocks_are_the_whole(samples: int, hop: int, pad_mode: str, sizes: list[int], cover: bool) -> None:
    stft = STFT(n_fft=64, hop=hop, pad_mode=pad_mode)
    audio = noise(2, samples)
    streamed = torch.cat(list(stft.forward_blocks(pieces(audio, sizes), cover)), dim=-1)
    frames = stft.frames(samples)
    assert streamed.shape[-1] == frames + (cover and samples % hop > 0)
    assert_close(streamed[..., :frames], stft.forward(audio), rtol=0, atol=1e-12)

    whole = torch.cat(list(stft.inverse_blocks([streamed])), dim=-1)
    assert whole.shape[-1] == (streamed.shape[-1] - 1) * hop + 32
    assert_close(torch.cat(list(stft.inverse_blocks(pieces(streamed, sizes))), dim=-1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_cover_leaves_no_click_at_the_end(pad_mode: str) -> None:
    """A mask that differs from frame to frame is not magnified under the last slope of the window."""
    stft = STFT(pad_mode=pad_mode)
    audio = noise(2, 10 * 1024 - 1).float()
    covered = torch.cat(list(stft.forward_blocks([audio], cover=True)), dim=-1)
    mask = noise(2, 1025, covered.shape[-1], seed=2).abs()
    assert stft.inverse(covered * mask, audio.shape[-1]).abs().max() < 2
    bare = stft.forward(audio)
    assert stft.inverse(bare * mask[..., : bare.shape[-1]], audio.shape[-1]).abs().max() > 100


def test_streaming_holds_little() -> None:
    """A block comes out as soon as it can, and what stays behind does not grow."""
    stft = STFT(**SMALL)
    asked = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield torch.zeros(1, 32)

    for number, audio in enumerate(stft.inverse_blocks(stft.forward_blocks(blocks()))):
        assert asked <= number + 4 and audio.shape[-1] <= 64


def test_gradients_flow() -> None:
    stft = STFT(**SMALL)
    audio = noise(1, 100).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: stft.inverse(stft.forward(a), 100), (audio,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_fft": 63},
        {"hop": 0},
        {"hop": 4096},
        {"window": "box"},
        {"pad_mode": "edge"},
        {"win_length": 4096},
        {"win_length": 1000},
    ],
)
def test_settings_that_make_no_transform(wrong: dict) -> None:
    with pytest.raises(UsageError):
        STFT(**wrong)


def test_modulus_is_the_absolute_value() -> None:
    spectrogram = STFT(512, 128).forward(torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)))
    # Each of the two may be off by a bit in the last place.
    for one in (spectrogram, spectrogram.conj(), spectrogram[..., 1:4], 1e30 * spectrogram, 1e-30 * spectrogram):
        torch.testing.assert_close(modulus(one), one.abs(), rtol=3e-7, atol=0)
