"""A song of any length, rate and channel count comes out as stems that sum to it, here of easily checked networks."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import most_behind
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover import checkpoint
from vocalremover.chunks import Chunking
from vocalremover.errors import AudioError, DeviceError, ModelError, UsageError
from vocalremover.models import ModelSpec
from vocalremover.separate import Inference, Separator
from vocalremover.separate.inference import CPU_CONTEXT, CPU_FRAMES
from vocalremover.spectrogram import STFT

RATE = 8000
SPEC = ModelSpec(
    name="toy",
    network="toy",
    args={},
    target="vocals",
    stft=STFT(n_fft=256, hop=128),
    chunking=Chunking(size=24, context=5),
    rate=RATE,
    peak=False,
)


class Network(nn.Module):
    """Any function of magnitudes `[batch, channels, bins, frames]` to a mask; counts its calls and their shapes."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.shapes: list[torch.Size] = []

    def forward(self, magnitudes: Tensor) -> Tensor:
        self.shapes.append(magnitudes.shape)
        return self.answer(magnitudes)


def constant(value: float) -> Network:
    return Network(lambda x: torch.full_like(x, value))


def delayed(x: Tensor) -> Tensor:
    """A mask of every magnitude and the one a frame earlier, so that the borders of a window matter."""
    return torch.sigmoid(6 * x - 1 + 2 * F.pad(x, (1, 0))[..., :-1])


def local(x: Tensor) -> Tensor:
    """A mask of every frame and three on either side: less than the context, so that no border shows."""
    return torch.sigmoid(4 * F.avg_pool1d(F.pad(x, (3, 3)).flatten(0, 2), 7, stride=1).reshape(x.shape) - 1)


def noise(channels: int, samples: int, seed: int = 0) -> Tensor:
    audio = np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, samples))
    return torch.from_numpy(audio.astype(np.float32))


def separator(network: nn.Module, spec: ModelSpec = SPEC, **settings: int | str | None) -> Separator:
    return Separator(spec, network, settings.pop("device", "cpu"), Inference(**settings))


def assert_sum(stems: dict[str, Tensor], song: Tensor) -> None:
    """Vocals and instrumental are the song, to the rounding of one difference and one sum."""
    assert stems["vocals"].shape == stems["instrumental"].shape == song.shape
    assert_close(stems["vocals"] + stems["instrumental"], song, rtol=0, atol=3e-7)


@given(
    samples=st.one_of(st.sampled_from([0, 1, 100]), st.integers(0, 9000)),
    channels=st.integers(1, 3),
    batch=st.integers(1, 4),
    target=st.sampled_from(["vocals", "instrumental"]),
    pad_mode=st.sampled_from(["constant", "reflect"]),
    fade=st.sampled_from([0, 5]),
)
@settings(deadline=None, max_examples=30)
def test_a_mask_of_one_keeps_the_song(
    samples: int, channels: int, batch: int, target: str, pad_mode: str, fade: int
) -> None:
    spec = replace(SPEC, target=target, stft=STFT(256, 128, pad_mode=pad_mode), chunking=Chunking(24, 5, fade))
    song = noise(channels, samples)
    stems = separator(constant(1.0 if target == "vocals" else 0.0), spec, batch=batch).separate(song, RATE)
    assert_sum(stems, song)
    assert_close(stems["vocals"], song, rtol=0, atol=2e-6)  # the float32 rounding of the STFT and its inverse


@pytest.mark.parametrize("rate", [8000, 11025, 48000, 192000])
@pytest.mark.parametrize("samples", [0, 1, 100, 30011])
def test_any_rate_and_length(rate: int, samples: int) -> None:
    song = noise(2, samples)
    stems = separator(constant(0.4)).separate(song, rate)
    assert_sum(stems, song)
    if rate == RATE:
        assert_close(stems["vocals"], 0.4 * song, rtol=0, atol=1e-6)


def test_nothing_above_the_model_is_lost() -> None:
    """A tone that the model's rate cannot hold stays in the instrumental, whatever the network says."""
    rate = 48000
    seconds = torch.arange(rate) / rate
    low, high = 0.3 * torch.sin(2 * torch.pi * 440 * seconds), 0.3 * torch.sin(2 * torch.pi * 15000 * seconds)
    song = (low + high).expand(2, -1)
    stems = separator(constant(1.0)).separate(song, rate)
    inner = slice(2000, -2000)  # away from the ends, where the resampler's filter rings
    assert_close(stems["instrumental"][:, inner], high.expand(2, -1)[:, inner], rtol=0, atol=1e-3)
    assert_close(stems["vocals"][:, inner], low.expand(2, -1)[:, inner], rtol=0, atol=1e-3)


@pytest.mark.parametrize("peak", [True, False])
def test_silence(peak: bool) -> None:
    for samples in (1, 5000):
        stems = separator(Network(delayed), replace(SPEC, peak=peak)).separate(torch.zeros(2, samples), RATE)
        assert not stems["vocals"].any() and not stems["instrumental"].any()


def test_no_blocks() -> None:
    assert list(separator(constant(1.0)).stream([], RATE)) == []
    assert separator(constant(1.0), replace(SPEC, peak=True)).peak([], RATE) == 0


@given(data=st.data(), samples=st.integers(1, 12000), batch=st.integers(1, 5))
@settings(deadline=None, max_examples=15)
def test_blocks_and_batches_change_nothing(data: st.DataObject, samples: int, batch: int) -> None:
    song = noise(2, samples)
    sizes = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=4))
    blocks = [block for part in song.split(sum(sizes), dim=-1) for block in part.split(max(sizes), dim=-1)]
    whole = separator(Network(local)).separate(song, RATE)
    streamed = list(separator(Network(local), batch=batch).stream(blocks, RATE))
    for stem, audio in whole.items():
        assert_close(torch.cat([block[stem] for block in streamed], dim=-1), audio, rtol=0, atol=1e-6)


@given(samples=st.integers(1, 12000), size=st.integers(1, 60), context=st.integers(3, 9))
@settings(deadline=None, max_examples=15)
def test_crops_do_not_show(samples: int, size: int, context: int) -> None:
    """A network that looks no further than the context gives what it gives for the song in one crop."""
    song = noise(2, samples)
    whole = separator(Network(local), size=1000).separate(song, RATE)
    cropped = separator(Network(local), size=size, context=context).separate(song, RATE)
    assert_close(cropped["vocals"], whole["vocals"], rtol=0, atol=2e-6)


def original(spectrogram: np.ndarray, size: int, context: int) -> np.ndarray:
    """The mask of a whole spectrogram as the original project's Separator makes it, with `delayed` as its network.

    carperbr/frame-transformer, inference/inference.py at a6786372: the song is padded up to whole crops, every crop
    sees `context` frames on both sides, and the Nyquist bin, which that mask sets to 0, is left out here.
    """
    magnitudes = np.abs(spectrogram) / np.abs(spectrogram).max()
    frames = magnitudes.shape[-1]
    magnitudes = np.pad(magnitudes, ((0, 0), (0, 0), (context, size - frames % size + context)))
    crops = [
        delayed(torch.from_numpy(magnitudes[None, :, :, start : start + size + 2 * context]))
        for start in range(0, frames, size)
    ]
    return torch.cat([crop[0, :, :, context : context + size] for crop in crops], dim=-1)[..., :frames].numpy()


@pytest.mark.parametrize("samples", [9001, 24 * 128 * 3 - 1, 24 * 128 * 3])
@pytest.mark.parametrize("context", [0, 5, 12])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_original_pipeline(samples: int, context: int, batch: int) -> None:
    song = noise(2, samples)
    spec = replace(SPEC, target="instrumental", peak=True, chunking=Chunking(24, context, multiple=24))
    ours = separator(Network(delayed), spec, batch=batch)
    spectrogram = librosa.stft(song.numpy(), n_fft=256, hop_length=128)
    mask = original(spectrogram, 24, context)

    peak = ours.peak([song], RATE)
    assert peak == pytest.approx(np.abs(spectrogram).max(), rel=1e-6)
    masks = ours.masks(iter(torch.from_numpy(spectrogram).split(7, dim=-1)), peak)
    assert_close(torch.cat(list(masks), dim=-1), torch.from_numpy(mask), rtol=0, atol=1e-6)

    length = 128 * (spectrogram.shape[-1] - 1)  # what the original's inverse STFT gives; the tail is dropped
    instrumental = librosa.istft(mask * spectrogram, n_fft=256, hop_length=128)
    # the last frames of the original know nothing of the samples that it drops
    inner = slice(0, length - 128)
    stems = ours.separate(song, RATE)
    assert_sum(stems, song)
    assert_close(stems["instrumental"][:, inner], torch.from_numpy(instrumental)[:, inner], rtol=0, atol=2e-6)


def test_the_end_does_not_click() -> None:
    """The last samples, under the slope of one frame only, are as loud as the rest."""
    song = noise(2, 128 * 60 - 1)
    stems = separator(Network(lambda x: (torch.arange(x.shape[-1]) % 2).expand_as(x).float())).separate(song, RATE)
    assert stems["vocals"].abs().max() < 1


def test_peak_is_of_the_whole_song() -> None:
    """One loud channel at the end scales every crop of every pair."""
    song = noise(4, 20000) / 10
    song[3, -300:] *= 10
    spec = replace(SPEC, peak=True)
    seen = []
    ours = separator(Network(lambda x: seen.append(x.max().item()) or torch.ones_like(x)), spec)
    largest = max(np.abs(librosa.stft(channel.numpy(), n_fft=256, hop_length=128)).max() for channel in song)
    assert ours.peak(song.split(777, dim=-1), RATE) == pytest.approx(largest, rel=1e-6)
    ours.separate(song, RATE)
    assert max(seen) == pytest.approx(1, rel=1e-6) and sorted(seen)[len(seen) // 2] < 0.5
    assert separator(constant(1.0)).peak(iter(()), RATE) is None
    with pytest.raises(UsageError, match="peak"):
        ours.stream([song], RATE)


@pytest.mark.parametrize(
    ("layout", "together"),
    [
        ("mono", [[0]]),
        ("stereo", [[0, 1]]),
        ("2.1", [[0, 1], [2]]),
        ("quad", [[0, 1], [2, 3]]),
        ("4.0", [[0, 1], [2], [3]]),
        ("5.0", [[0, 1], [2], [3, 4]]),
        ("5.1", [[0, 1], [2], [3], [4, 5]]),
        ("5.1(side)", [[0, 1], [2], [3], [4, 5]]),
        ("7.1", [[0, 1], [2], [3], [4, 5], [6, 7]]),
        (None, [[0, 1], [2, 3], [4, 5], [6, 7], [8]]),
    ],
)
def test_channels_are_separated_in_pairs(layout: str | None, together: list[list[int]]) -> None:
    """The network hears left and right of a pair, a lone channel twice; every channel comes out in its own place."""
    channels = sum(map(len, together))
    song = noise(channels, 3000) * torch.arange(1, channels + 1)[:, None] / channels
    heard = []

    def left_only(x: Tensor) -> Tensor:
        heard.extend(x)
        return torch.stack((torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 1])), dim=1)

    stems = separator(Network(left_only), batch=8).separate(song, RATE, layout=layout)
    assert_sum(stems, song)
    magnitudes = STFT(256, 128).forward(song).abs()
    assert len(heard) == len(together)
    for pair, (first, *second) in zip(heard, together, strict=True):
        assert_close(pair[:, :, 5:29], magnitudes[[first, *(second or [first])]][:, :, :24], rtol=1e-4, atol=1e-4)
        if second:
            assert_close(stems["vocals"][first], song[first], rtol=0, atol=2e-6)
            assert_close(stems["vocals"][second[0]], 0 * song[0], rtol=0, atol=2e-6)
        else:
            assert_close(stems["vocals"][first], song[first] / 2, rtol=0, atol=2e-6)  # the mean of both sides


class Recurrent(nn.Module):
    """A mask of all five inputs, differently; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[:2] == (1, 10)
        self.inputs.append(x.clone())
        now, before, kept, earlier, kept_earlier = x.split(2, dim=1)
        return torch.sigmoid(now - before + 2 * kept - 3 * earlier + 4 * kept_earlier)


@pytest.mark.parametrize("multiple", [8, 24])
@pytest.mark.parametrize("channels", [2, 3])
def test_recurrent(multiple: int, channels: int) -> None:
    """Every crop sees the two before it and what the mask left of them; the state of a song starts at zero."""
    spec = replace(SPEC, recurrent=True, peak=True, chunking=Chunking(24, multiple=multiple))
    song = noise(channels, 128 * 81)  # 82 frames: three crops and 10 frames
    network = Recurrent()
    ours = separator(network, spec)
    peak = ours.peak([song], RATE)
    for _ in range(2):
        network.inputs.clear()
        assert_sum(ours.separate(song, RATE), song)

    pairs = [[0, 1], [2, 2]][: channels - 1]
    width = -(-10 // multiple) * multiple
    for number, pair in enumerate(pairs):
        magnitudes = F.pad(STFT(256, 128).forward(song[pair]).abs() / peak, (0, width - 10))
        x = [magnitudes[None, :, :, start : start + 24] for start in (0, 24, 48, 72)]
        y = [torch.zeros_like(x[0])] * 2
        for step, crop in enumerate(x):
            before = [x[step - 1] if step > 0 else y[0], y[-1], x[step - 2] if step > 1 else y[0], y[-2]]
            fed = torch.cat((crop, *(past[..., : crop.shape[-1]] for past in before)), dim=1)
            assert_close(network.inputs[step * len(pairs) + number], fed, rtol=1e-4, atol=1e-5)
            y.append(crop * Recurrent()(fed))


def test_recurrent_refuses_padding() -> None:
    spec = replace(SPEC, recurrent=True, chunking=Chunking(24))
    with pytest.raises(UsageError, match="padding must be 0"):
        separator(Recurrent(), spec, context=5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_song(bad: float) -> None:
    song = noise(2, 5000)
    song[1, 4321] = bad
    with pytest.raises(AudioError, match="not finite"):
        separator(constant(1.0)).separate(song, RATE)


def test_a_song_too_loud_for_its_energy() -> None:
    with pytest.raises(AudioError, match="beyond 1e"):
        separator(constant(1.0)).separate(noise(2, 5000) * 1e36, RATE)


@pytest.mark.parametrize(
    "song",
    [torch.zeros(100), torch.zeros(2, 100, dtype=torch.int16), torch.zeros(0, 100), torch.zeros(44100, 2),
     torch.zeros(2, 100).numpy(), torch.zeros(2, 100).to_sparse()],
)  # fmt: skip
def test_not_a_song(song: object) -> None:
    with pytest.raises(AudioError, match="channels, samples"):
        separator(constant(1.0)).separate(song, RATE)


def test_overflow_in_half_precision_runs_again() -> None:
    """Only the crops concerned, and the answer is that of single precision."""

    def fragile(x: Tensor) -> Tensor:
        mask = local(x)
        if torch.is_autocast_enabled("cpu"):
            mask = torch.where(x.amax((1, 2, 3), keepdim=True) > 5, torch.inf - torch.inf * mask, mask)
        return mask

    song = noise(2, 30000) / 100
    song[:, 10000:12000] *= 100
    half = separator(Network(fragile), precision="bf16", batch=3)
    assert_close(half.separate(song, RATE), separator(Network(local)).separate(song, RATE), rtol=0, atol=1e-6)
    assert len(half.warnings) == 1 and "fp32" in half.warnings[0]
    assert 1 <= sum(shape[0] for shape in half.network.shapes) - len(song[0]) // 128 // 24 - 1 <= 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_broken_network_is_told(precision: str) -> None:
    with pytest.raises(ModelError, match="not finite"):
        separator(constant(float("nan")), precision=precision).separate(noise(2, 5000), RATE)


def test_bf16_is_autocast() -> None:
    layer = nn.Conv2d(2, 2, 1)
    seen = []
    network = Network(lambda x: seen.append(layer(x).dtype) or torch.ones_like(x, dtype=torch.bfloat16))
    song = noise(2, 5000)
    assert_close(separator(network, precision="bf16").separate(song, RATE)["vocals"], song, rtol=0, atol=2e-6)
    assert set(seen) == {torch.bfloat16}


def hungry(most: int, answer: Callable[[Tensor], Tensor] = local) -> Network:
    """Runs out of memory above so many frames in a batch."""

    def run(x: Tensor) -> Tensor:
        if x.shape[0] * x.shape[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(x)

    return Network(run)


@pytest.mark.parametrize(("most", "batch", "core"), [(200, 4, 24), (140, 4, 24), (80, 2, 24), (40, 1, 24), (33, 1, 12)])
def test_out_of_memory_halves_the_batch_then_the_crop(most: int, batch: int, core: int) -> None:
    song = noise(2, 40001)
    ours = separator(hungry(most), batch=8)
    assert_close(ours.separate(song, RATE), separator(Network(local)).separate(song, RATE), rtol=0, atol=2e-6)
    assert ours.batch == batch
    assert len(ours.warnings) == (8 // batch).bit_length() - 1 + (core < 24)
    assert all("ran out of memory" in warning for warning in ours.warnings)
    told, calls = len(ours.warnings), len(ours.network.shapes)
    ours.separate(song, RATE)
    assert len(ours.warnings) == told  # it is not tried again
    assert all(s[0] * s[-1] <= most for s in ours.network.shapes[calls:])


def test_too_little_memory_for_anything() -> None:
    with pytest.raises(DeviceError, match="too little memory"):
        separator(hungry(5)).separate(noise(2, 5000), RATE)
    with pytest.raises(DeviceError, match="too little memory"):
        separator(hungry(5), replace(SPEC, recurrent=True, chunking=Chunking(24))).separate(noise(2, 5000), RATE)


def test_little_is_held() -> None:
    """However long the song, the stems follow a few windows behind."""
    few = 2 * (24 + 2 * 5) * 128 + 2000  # a batch of two windows, one block and the STFT's reach
    paired = separator(constant(0.5), batch=2)
    assert most_behind(lambda song: (stems["vocals"] for stems in paired.stream(song, RATE))) <= few


def test_progress_wraps_the_stems() -> None:
    counted = []

    def counting(blocks: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        for block in blocks:
            counted.append(block["vocals"].shape[-1])
            yield block

    separator(constant(0.5)).separate(noise(2, 40000), RATE, progress=counting)
    assert sum(counted) == 40000 and len(counted) > 5


def test_the_callers_song_is_left_alone() -> None:
    song = noise(2, 5000)
    before = song.clone()
    for stems in separator(constant(0.0)).stream([song], RATE):
        for audio in stems.values():
            audio.mul_(0)  # no inference tensor, no view of the song
    assert torch.equal(song, before)


def test_defaults() -> None:
    large = replace(SPEC, chunking=Chunking(4096, 128))
    assert separator(constant(1.0), large).chunking == Chunking(CPU_FRAMES, 128)
    assert separator(constant(1.0), large, size=2048).chunking == Chunking(2048, 128)
    assert separator(constant(1.0), large, context=0).chunking == Chunking(CPU_FRAMES, 0)
    hard = replace(large, chunking=Chunking(4096))
    assert separator(constant(1.0), hard).chunking == Chunking(CPU_FRAMES, CPU_CONTEXT)
    table = replace(hard, args={"cropsize": 32})
    assert separator(constant(1.0), table).chunking == Chunking(32, 0)
    assert separator(constant(1.0), hard, size=4096).chunking == Chunking(4096, 0)
    assert (
        separator(constant(1.0), replace(large, chunking=Chunking(4096, multiple=4096))).chunking.multiple == CPU_FRAMES
    )
    recurrent = replace(large, recurrent=True, chunking=Chunking(4096, multiple=256))
    assert separator(constant(1.0), recurrent).chunking == Chunking(4096, multiple=256)
    overlap = replace(SPEC, chunking=Chunking(24, 5, 5))
    assert separator(constant(1.0), overlap, context=8).chunking == Chunking(24, 8, 8)
    assert separator(constant(1.0)).precision == "fp32" and separator(constant(1.0)).batch == 1


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"context": -1}, {"batch": 0}, {"precision": "int8"}, {"precision": "fp16"}, {"segment": 1e9},
     {"context": 10**7}],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(UsageError):
        separator(constant(1.0), **wrong)


def test_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, device: torch.device, config: Path | None) -> tuple[ModelSpec, nn.Module]:
        return replace(SPEC, name=name), constant(1.0).to(device)

    monkeypatch.setattr(checkpoint, "load", load)
    ours = Separator.load("toy", "cpu", Inference(size=48, context=7, batch=3))
    assert (ours.spec.name, ours.chunking, ours.batch) == ("toy", Chunking(48, 7), 3)
    assert ours.device == torch.device("cpu") and ours.stems == ("vocals", "instrumental")
    assert Separator.load("toy", torch.device("cpu"), stems="vocals").stems == ("vocals",)
    for rate in (0, "44100"):
        with pytest.raises(UsageError, match="sample rate"):
            ours.separate(noise(2, 5000), rate)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_gives_what_the_cpu_gives() -> None:
    song = noise(2, 200_000)
    expected = separator(Network(local)).separate(song, RATE)
    assert_close(
        separator(Network(local), device="cuda", precision="fp32").separate(song, RATE), expected, rtol=0, atol=1e-5
    )


def test_a_network_that_only_judges_is_refused() -> None:
    with pytest.raises(ModelError, match="makes none"):
        Separator(ModelSpec("newft_disc", "newft_disc", {}), torch.nn.Identity())
