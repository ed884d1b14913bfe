"""Songs through networks that are shown windows of samples: exact, without seams, in bounded memory."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import demix
import numpy as np
import parity
import pytest
import torch
from conftest import most_behind
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover.chunks import trapezoid
from vocalremover.errors import DeviceError, ModelError, UsageError
from vocalremover.models import ModelSpec
from vocalremover.separate import Separator
from vocalremover.separate.inference import Inference, choose_passes
from vocalremover.separate.runner import Network, Runner
from vocalremover.separate.waves import Waves
from vocalremover.spectrogram import STFT

RATE = 8000
WHOLE = 1280  # samples of a window
SPEC = ModelSpec(
    name="toy", network="toy", args={"stereo": True}, target="vocals", domain="waveform", reads="complex",
    stft=STFT(128, 32, pad_mode="reflect"), chunking=trapezoid(WHOLE, 0.5), rate=RATE, peak=False,
)  # fmt: skip
BAND = replace(SPEC, args={"stereo": True, "num_stems": 4}, instruments=("drums", "bass", "other", "vocals"))
SHARES = (0.1, 0.2, 0.3, 0.4)  # of the song in every stem of BAND, for `gains`
FIXTURES = Path(__file__).parent / "fixtures"
CPU = torch.device("cpu")


class Masks(nn.Module):
    """Complex masks of `[batch, channels, bins, frames, 2]` from any function of it and of the number of the stem."""

    def __init__(self, answer: Callable[[Tensor, int], Tensor], count: int = 1) -> None:
        super().__init__()
        self.answer, self.count = answer, count
        self.asked: list[Sequence[int] | None] = []
        self.shapes: list[torch.Size] = []

    def forward(self, spectrogram: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        self.asked.append(stems)
        self.shapes.append(spectrogram.shape)
        answers = [self.answer(spectrogram, head) for head in (range(self.count) if stems is None else stems)]
        return torch.stack(answers, dim=1)


def flat(value: complex, like: Tensor) -> Tensor:
    """The same mask everywhere."""
    return torch.tensor((value.real, value.imag), device=like.device).expand_as(like)


def gains(*values: complex) -> Masks:
    """One mask a stem, the same everywhere."""
    return Masks(lambda x, head: flat(complex(values[head]), x), len(values))


def lopsided(x: Tensor, head: int) -> Tensor:
    """Masks that depend on the place in the window, on the side and on the song's loudness and polarity."""
    mask = torch.linspace(0.2, 1, x.shape[-2])[:, None] * torch.sigmoid(x[..., :1] + torch.tensor([[0.5]]))
    mask = mask * torch.tensor([1.0, 0.5])[: x.shape[1], None, None, None]
    return torch.cat((mask, 0.1 * mask), dim=-1)


def noise(channels: int, samples: int, seed: int = 0) -> Tensor:
    audio = np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, samples))
    return torch.from_numpy(audio.astype(np.float32))


def separator(
    network: nn.Module, spec: ModelSpec = SPEC, stems: Sequence[str] | None = None, **how: object
) -> Separator:
    return Separator(spec, network, inference=Inference(**how), stems=stems)


@given(
    samples=st.one_of(st.sampled_from([0, 1, 100, WHOLE - 1, WHOLE, WHOLE + 1]), st.integers(0, 9000)),
    channels=st.integers(1, 3),
    batch=st.integers(1, 5),
    overlap=st.sampled_from([0, 0.1, 0.5, 0.75, 0.95]),
    shifts=st.integers(1, 3),
    tta=st.booleans(),
    target=st.sampled_from(["vocals", "instrumental"]),
    stereo=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_mask_of_one_keeps_the_song(
    samples: int, channels: int, batch: int, overlap: float, shifts: int, tta: bool, target: str, stereo: bool
) -> None:
    spec = replace(SPEC, target=target, args={"stereo": stereo})
    song = noise(channels, samples)
    network = gains(1.0 if target == "vocals" else 0.0)
    stems = separator(network, spec, batch=batch, overlap=overlap, shifts=shifts, tta=tta).separate(song, RATE)
    assert tuple(stems) == ("vocals", "instrumental")
    assert_close(stems["vocals"] + stems["instrumental"], song, rtol=0, atol=3e-7)
    assert_close(stems["vocals"], song, rtol=0, atol=3e-6)  # an STFT and its inverse in float32


@given(
    batch=st.integers(1, 9),
    overlap=st.sampled_from([0, 0.04, 0.5, 0.75]),
    block=st.integers(100, 20_000),
    tta=st.booleans(),
)
@settings(deadline=None, max_examples=15)
def test_batches_and_blocks_change_nothing(batch: int, overlap: float, block: int, tta: bool) -> None:
    """Each window counts by itself, whatever runs beside it: the reference's seams cannot be."""
    song = noise(2, 11_000)
    whole = separator(Masks(lopsided), batch=1, overlap=overlap, tta=tta).separate(song, RATE)
    ours = separator(Masks(lopsided), batch=batch, overlap=overlap, tta=tta)
    streamed = list(ours.stream(song.split(block, dim=-1), RATE))
    for stem, audio in whole.items():
        assert_close(torch.cat([part[stem] for part in streamed], dim=-1), audio, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.75])
def test_windows_of_opposite_answers_leave_no_step(batch: int, overlap: float) -> None:
    """+1 and -1 by turns: neighbours differ by the slope of the fades alone. In batches the reference steps by 1."""
    count = 0

    def alternating(windows: Tensor, network: Network) -> Tensor:
        nonlocal count
        signs = [(-1.0) ** (count + number) for number in range(len(windows))]
        count += len(windows)
        return torch.ones_like(windows)[:, None] * torch.tensor(signs)[:, None, None, None]

    chunking = trapezoid(WHOLE, overlap)
    runner = Runner(nn.Identity(), CPU, batch=batch, around=alternating)
    waves = Waves(SPEC, runner, choose_passes(SPEC, chunking, Inference()), None, rest=False)
    answer = torch.cat(list(waves.parts([noise(2, 12_345)[None]])), dim=-1)
    assert answer.shape == (1, 1, 2, 12_345) and answer.abs().max() <= 1 + 1e-6
    assert answer.diff(dim=-1).abs().max() <= 2 / (chunking.fade + 1) + 1e-5


@given(samples=st.integers(1, 9000), overlap=st.sampled_from([0, 0.05, 0.5, 0.9]), shifts=st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_a_constant_has_no_seam_and_no_hole(samples: int, overlap: float, shifts: int) -> None:
    """Not at the edges of windows either, where the reference without overlap leaves zeros."""
    song = torch.ones(2, samples)
    vocals = separator(gains(0.3), overlap=overlap, shifts=shifts, batch=3).separate(song, RATE)["vocals"]
    assert_close(vocals, 0.3 * song, rtol=0, atol=2e-6)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("demix_*.json")), ids=lambda path: path.stem)
def test_the_reference(path: Path) -> None:
    assert [line.ok for line in parity.check(path)] == [True]


def test_no_zeros_where_the_reference_has_them() -> None:
    """Without overlap its windows weigh nothing at their edges, and 0 divided by 0 becomes silence."""
    path = FIXTURES / "demix_msst_dummy_ov1.json"
    fixture, stored = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))["output"]
    song = parity.network_input(fixture, {})
    ours, theirs = demix.compared(fixture, torch.from_numpy(stored), song, None)["other"]
    assert not theirs.any() and (ours != 0).all()


def test_the_vocals_are_what_the_song_has_over_the_instrumental() -> None:
    """A tone that the model's rate cannot hold stays in the instrumental, whichever of the two the network gives."""
    rate = 48000
    seconds = torch.arange(rate) / rate
    low, high = 0.3 * torch.sin(2 * torch.pi * 440 * seconds), 0.3 * torch.sin(2 * torch.pi * 15000 * seconds)
    for target, gain in (("vocals", 0.8), ("instrumental", 0.2)):
        stems = separator(gains(gain), replace(SPEC, target=target)).separate((low + high).expand(2, -1), rate)
        inner = slice(2000, -2000)  # away from the ends, where the resampler's filter rings
        assert_close(stems["vocals"][:, inner], 0.8 * low.expand(2, -1)[:, inner], rtol=0, atol=1e-3)
        assert_close(stems["instrumental"][0, inner], (0.2 * low + high)[inner], rtol=0, atol=1e-3)


def test_a_pair_with_names_of_its_own() -> None:
    song = noise(2, 3000)
    for instruments, other in (((), "no_drums"), (("drums", "rest"), "rest")):
        stems = separator(gains(0.3), replace(SPEC, target="drums", instruments=instruments)).separate(song, RATE)
        assert list(stems) == ["drums", other]
        assert_close(stems["drums"], 0.3 * song, rtol=0, atol=2e-6)
        assert_close(stems["drums"] + stems[other], song, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("wanted", "heads"),
    [
        (None, None),
        (["bass"], [1]),
        (["vocals", "drums"], [0, 3]),
        (["instrumental"], [3]),
        (["instrumental", "other"], [2, 3]),
    ],
)
@pytest.mark.parametrize("rate", [RATE, 11025])
def test_only_the_wanted_stems_are_computed(wanted: list[str] | None, heads: list[int] | None, rate: int) -> None:
    song, network = noise(3, 5000), gains(*SHARES)
    ours = separator(network, BAND, wanted)
    stems = ours.separate(song, rate)
    assert set(stems) == set(wanted or BAND.stems) and tuple(stems) == ours.stems
    assert all(asked is None if heads is None else list(asked) == heads for asked in network.asked)
    shares = dict(zip(BAND.outputs, SHARES, strict=True)) | {"instrumental": 1 - SHARES[3]}
    for stem, audio in stems.items():
        assert audio.shape == song.shape
        if rate == RATE:
            assert_close(audio, shares[stem] * song, rtol=0, atol=2e-6)
    if wanted is None:
        assert_close(stems["vocals"] + stems["instrumental"], song, rtol=0, atol=3e-7)


def test_a_pair_sums_to_the_song_whichever_comes_first() -> None:
    spec = replace(BAND, args={"stereo": True, "num_stems": 2}, instruments=("instrumental", "vocals"))
    stems = separator(gains(0.2, 0.3), spec).separate(song := noise(2, 3000), RATE)
    assert_close(stems["vocals"], 0.3 * song, rtol=0, atol=2e-6)
    assert_close(stems["instrumental"] + stems["vocals"], song, rtol=0, atol=3e-7)


def test_six_stems_of_which_one_is_the_instrumental() -> None:
    names = ("instrumental", "vocals", "guitar", "piano", "drums", "bass")
    spec = replace(BAND, args={"stereo": True, "num_stems": 6}, instruments=names)
    stems = separator(gains(*(number / 10 for number in range(6))), spec).separate(song := noise(2, 3000), RATE)
    assert tuple(stems) == names
    for number, stem in enumerate(names):
        assert_close(stems[stem], number / 10 * song, rtol=0, atol=2e-6)


def test_a_stem_that_the_model_does_not_give() -> None:
    with pytest.raises(UsageError, match=r"toy gives vocals, instrumental.*no drums"):
        separator(gains(1), stems=["drums"])


@pytest.mark.parametrize(("stereo", "shape"), [(True, (2, 2)), (False, (3, 1))])
def test_a_mono_network_hears_every_channel_alone(stereo: bool, shape: tuple[int, int]) -> None:
    """A stereo network hears two pairs in three channels, the lone third on both sides; a mono one hears three."""
    network = gains(0.5)
    song = noise(3, 1000)
    stems = separator(network, replace(SPEC, args={"stereo": stereo}), batch=8).separate(song, RATE)
    assert [tuple(seen[:2]) for seen in network.shapes] == [shape]
    assert_close(stems["vocals"], song / 2, rtol=0, atol=2e-6)


def test_complex_masks_turn_the_phase() -> None:
    seconds = torch.arange(RATE) / RATE
    song = torch.sin(2 * torch.pi * 1000 * seconds).expand(2, -1)
    ours = separator(gains(1j)).separate(song, RATE)["vocals"]
    inner = slice(WHOLE, -WHOLE)
    # every window's STFT mirrors a sine at its edges into another phase, which the fades leave a trace of
    assert_close(ours[:, inner], torch.cos(2 * torch.pi * 1000 * seconds).expand(2, -1)[:, inner], rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [3, 7, 41])
def test_a_window_in_frames(size: int) -> None:
    """As in the configurations of the reference, `dim_t` frames are `(dim_t - 1) * hop` samples."""
    network = gains(0.5)
    ours = separator(network, size=size)
    assert ours.chunking.whole == (size - 1) * 32
    ours.separate(noise(2, 3000), RATE)
    assert {seen[3] for seen in network.shapes} == {size}


def test_a_window_in_seconds() -> None:
    assert separator(gains(1), segment=0.5).chunking.whole == 4000 == 125 * 32
    assert separator(gains(1), segment=0.5, overlap=0.5).chunking.size == 2000


def test_first_windows_see_zeros_before_the_song() -> None:
    """The song is never mirrored: what a window shows beyond either end is silence."""
    seen: list[Tensor] = []

    def keep(windows: Tensor, network: Network) -> Tensor:
        seen.extend(windows)
        return windows[:, None]

    chunking = trapezoid(WHOLE, 0.5)
    runner = Runner(nn.Identity(), CPU, around=keep)
    waves = Waves(SPEC, runner, choose_passes(SPEC, chunking, Inference()), None, rest=False)
    song = noise(2, 4000)
    assert_close(torch.cat(list(waves.parts([song[None]])), dim=-1)[0, 0], song, rtol=0, atol=1e-6)
    border = WHOLE // 2
    padded = torch.nn.functional.pad(song, (border, 2 * WHOLE))
    for number, window in enumerate(seen):
        assert torch.equal(window, padded[:, number * border : number * border + WHOLE])


class Fragile(Masks):
    """Overflows in half precision where the song is loud."""

    def forward(self, spectrogram: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        masks = super().forward(spectrogram, stems)
        if torch.is_autocast_enabled("cpu"):
            loud = spectrogram.abs().amax((1, 2, 3, 4)) > 5
            masks = torch.where(loud[:, None, None, None, None, None], torch.nan, masks)
        return masks


def test_what_overflows_runs_again_in_single_precision() -> None:
    song = noise(2, 30_000) / 100
    song[:, 10_000:12_000] *= 100
    half = separator(Fragile(lopsided), precision="bf16", batch=3)
    expected = separator(Masks(lopsided)).separate(song, RATE)
    assert_close(half.separate(song, RATE), expected, rtol=0, atol=1e-6)
    assert len(half.warnings) == 1 and "fp32" in half.warnings[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_nan_reaches_the_stems(precision: str) -> None:
    broken = Masks(lambda x, head: torch.full_like(x, torch.nan))
    with pytest.raises(ModelError, match="not finite"):
        separator(broken, precision=precision).separate(noise(2, 5000), RATE)


def hungry(most: int) -> Masks:
    """Runs out of memory above so many frames in a batch; otherwise halves the song."""

    def run(x: Tensor, head: int) -> Tensor:
        if x.shape[0] * x.shape[-2] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return flat(0.5, x)

    return Masks(run)


def test_out_of_memory_halves_the_batch_then_the_window() -> None:
    song = noise(2, 20_000)
    for most, batch, told in ((90, 2, 2), (41, 1, 3), (30, 1, 4)):  # a window has 41 frames
        ours = separator(hungry(most), batch=8, overlap=0.25)
        assert_close(ours.separate(song, RATE)["vocals"], song / 2, rtol=0, atol=2e-6)
        assert (ours.batch, len(ours.warnings)) == (batch, told)
    with pytest.raises(DeviceError, match=r"too little memory for toy.*samples"):
        separator(hungry(2)).separate(song, RATE)


@given(shifts=st.integers(1, 5), tta=st.booleans(), samples=st.integers(1, 6000))
@settings(deadline=None, max_examples=15)
def test_passes_of_a_network_that_ignores_places_are_one(shifts: int, tta: bool, samples: int) -> None:
    song = noise(2, samples)
    one = separator(gains(0.7)).separate(song, RATE)
    assert_close(separator(gains(0.7), shifts=shifts, tta=tta).separate(song, RATE), one, rtol=0, atol=3e-6)


def test_tta_is_the_mean_of_its_passes() -> None:
    """Sides swapped, polarity inverted and half a core: each undone, all counted alike."""
    song = noise(2, 7000)

    def vocals(song: Tensor, **how: object) -> Tensor:
        return separator(Masks(lopsided), overlap=0.5, **how).separate(song, RATE)["vocals"]

    plain, shifted = vocals(song), 2 * vocals(song, shifts=2) - vocals(song)
    swapped, inverted = vocals(song.flip(0)).flip(0), -vocals(-song)
    assert all((one - plain).abs().max() > 1e-3 for one in (shifted, swapped, inverted))
    expected = (plain + shifted + swapped + inverted) / 4
    assert_close(vocals(song, tta=True), expected, rtol=0, atol=1e-6)


def test_little_is_held() -> None:
    """However long the song, the stems follow some windows behind, passes included."""
    several = separator(gains(0.5), batch=2, overlap=0.5, shifts=3, tta=True)
    assert most_behind(lambda song: (stems["vocals"] for stems in several.stream(song, RATE))) <= 3 * WHOLE + 2000


def test_the_callers_song_is_left_alone() -> None:
    for spec in (SPEC, replace(SPEC, args={"stereo": False})):
        song = noise(2, 5000)
        before = song.clone()
        for stems in separator(gains(1.0), spec, overlap=0).stream([song], RATE):
            for audio in stems.values():
                audio.mul_(0)  # no inference tensor, no view of the song
        assert torch.equal(song, before)


def test_what_a_waveform_model_has_not() -> None:
    with pytest.raises(UsageError, match="no mask"):
        separator(gains(1)).masks([])
    for how, word in (({"context": 5}, "padding"), ({"size": 1}, "2 frames"), ({"crops": ((8, 8),)}, "several crops")):
        with pytest.raises(UsageError, match=word):
            separator(gains(1), **how)


@pytest.mark.gpu
def test_gpu_gives_what_the_cpu_gives() -> None:
    song = noise(2, 100_000)
    expected = separator(gains(0.3)).separate(song, RATE)
    assert_close(Separator(SPEC, gains(0.3), "cuda").separate(song, RATE), expected, rtol=0, atol=1e-5)
