"""What a person asks for becomes windows and passes, for every family; what cannot be is told in a sentence."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import most_behind
from hypothesis import given, settings
from hypothesis import strategies as st
from test_separate import RATE, SPEC, Network, constant, local, noise
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover.chunks import Chunking, trapezoid
from vocalremover.errors import UsageError
from vocalremover.models import MODELS, ModelSpec
from vocalremover.separate import Separator
from vocalremover.separate.inference import (
    BEST_OVERLAP,
    CPU_FRAMES,
    FAST_OVERLAP,
    ORIGINAL_TTA,
    OVERLAP,
    QUALITIES,
    Inference,
    choose_chunking,
    choose_passes,
)
from vocalremover.separate.passes import Pass
from vocalremover.spectrogram import STFT

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WAVE = ModelSpec(
    "wave", "toy", {"stereo": True}, "vocals", domain="waveform", reads="complex",
    stft=STFT(2048, 441, pad_mode="reflect"), chunking=trapezoid(352800, 0.5), peak=False,
)  # fmt: skip
WIDE = replace(SPEC, chunking=Chunking(512, 64))


def placed(x: Tensor) -> Tensor:
    """A mask that knows its place in the window and its side."""
    return torch.linspace(0.2, 1, x.shape[-1]) * torch.tensor([1.0, 0.5])[:, None, None] * torch.ones_like(x)


def separator(network: nn.Module, spec: ModelSpec = SPEC, **how: object) -> Separator:
    return Separator(spec, network, inference=Inference(**how))


@pytest.mark.parametrize("spec", [*MODELS.values(), WAVE], ids=lambda spec: spec.name)
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_qualities_in_order(spec: ModelSpec, device: torch.device) -> None:
    """From fast to best no model is computed less, its windows stay as wide, and some are worth a difference."""
    chosen = [choose_chunking(spec, device, Inference(quality=quality)) for quality in ("fast", "balanced", "best")]
    overlaps = [chunking.overlap for chunking in chosen]
    passes = [len(choose_passes(spec, chosen[-1], Inference(quality=quality))) for quality in QUALITIES]
    assert max(chunking.whole for chunking in chosen) - min(chunking.whole for chunking in chosen) <= 1
    if spec.recurrent:
        assert overlaps == [0, 0, 0] and passes == [1, 1, 1]
        return
    assert overlaps == sorted(overlaps) and passes == [1, 1, 2]
    assert overlaps[0] <= FAST_OVERLAP + 1e-2 and overlaps[2] >= BEST_OVERLAP - 1e-2
    if spec.domain == "waveform":
        assert overlaps[1] == pytest.approx(OVERLAP, abs=1e-4)
    elif device == GPU and not spec.most_frames:
        assert chosen[1] == spec.chunking


def test_what_is_given_wins_over_the_quality() -> None:
    for spec, whole in ((WAVE, 352800), (WIDE, 640)):
        chunking = choose_chunking(spec, CPU, Inference(quality="best", overlap=0.25))
        assert (chunking.whole, chunking.overlap) == (whole, 0.25)
        assert choose_passes(spec, chunking, Inference(quality="best", shifts=1)) == (Pass(chunking),)
    assert choose_chunking(WIDE, CPU, Inference(quality="best", context=10)) == Chunking(512, 10)


def test_the_references_windows() -> None:
    """Half shared: a core of half a window, full weight up to the tenths at its ends."""
    chunking = choose_chunking(WAVE, CPU, Inference(overlap=0.5))
    assert (chunking.size, chunking.context, chunking.whole) == (176400, 88200, 352800)
    assert chunking.multiple == chunking.size


@pytest.mark.parametrize(
    ("spec", "how", "whole"),
    [
        (WAVE, {"segment": 4}, 4 * 44100),
        (WAVE, {"segment": 1.004}, 44100),
        (WAVE, {"size": 801}, 352800),
        (WIDE, {"segment": 4}, 250),
        (WIDE, {"segment": 4, "context": 20}, 250),
        (WIDE, {"segment": 4, "overlap": 0.5}, 250),
        (WIDE, {"size": 100, "context": 20}, 140),
        (replace(SPEC, recurrent=True, chunking=Chunking(64, multiple=16)), {"segment": 4}, 240),
    ],
)
def test_windows_in_seconds_and_frames(spec: ModelSpec, how: dict, whole: int) -> None:
    chunking = choose_chunking(spec, CPU, Inference(**how))
    assert chunking.whole == whole
    if "context" in how:
        assert chunking.context == how["context"]


def test_passes() -> None:
    chunking = trapezoid(1000, 0.2)  # a core of 800
    wave, wide = replace(WAVE, chunking=chunking), WIDE
    assert choose_passes(wide, chunking, Inference()) == (Pass(chunking),)
    assert [each.shift for each in choose_passes(wide, chunking, Inference(shifts=4))] == [0, 200, 400, 600]
    assert [(each.shift, each.turned) for each in choose_passes(wide, chunking, Inference(tta=True))] == [
        (0, ""), (400, ""), (0, "swap")
    ]  # fmt: skip
    assert [(each.shift, each.turned) for each in choose_passes(wave, chunking, Inference(tta=True, shifts=2))] == [
        (0, ""), (400, ""), (0, "swap"), (0, "invert")
    ]  # fmt: skip
    mono = replace(wave, args={})
    assert "swap" not in [each.turned for each in choose_passes(mono, chunking, Inference(tta=True))]
    recurrent = replace(SPEC, recurrent=True)
    assert [each.turned for each in choose_passes(recurrent, Chunking(24), Inference(tta=True))] == ["", "swap"]
    assert len(choose_passes(wide, Chunking(2), Inference(shifts=9))) == 2  # there are no more places to begin


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_crops_of_the_original(device: torch.device) -> None:
    inference = Inference(crops=ORIGINAL_TTA)
    passes = choose_passes(SPEC, choose_chunking(SPEC, device, inference), inference)
    assert [(each.chunking.size, each.chunking.context) for each in passes] == list(ORIGINAL_TTA)
    assert all(each.chunking.equal and not each.shift for each in passes)


@pytest.mark.parametrize("name", ["primer", "primer_pre", "resnet"])
def test_crops_wider_than_the_positions(name: str) -> None:
    spec = MODELS[name]
    with pytest.raises(UsageError, match=f"positions for {spec.most_frames} frames"):
        choose_passes(spec, spec.chunking, Inference(crops=ORIGINAL_TTA))
    assert len(choose_passes(spec, spec.chunking, Inference(crops=((128, 192), (512, 0))))) == 2


def test_several_crops_are_the_mean_of_each() -> None:
    song = noise(2, 9001)

    def vocals(*crops: tuple[int, int]) -> Tensor:
        return separator(Network(placed), crops=crops).separate(song, RATE)["vocals"]

    both = vocals((16, 8), (24, 24))
    assert (vocals((16, 8)) - vocals((24, 24))).abs().max() > 1e-3
    assert_close(both, (vocals((16, 8)) + vocals((24, 24))) / 2, rtol=0, atol=1e-6)


@given(
    samples=st.one_of(st.sampled_from([0, 1, 100]), st.integers(0, 9000)),
    overlap=st.sampled_from([0, 0.1, 0.5, 0.9]),
    shifts=st.integers(1, 4),
    tta=st.booleans(),
    batch=st.integers(1, 3),
)
@settings(deadline=None, max_examples=20)
def test_a_mask_of_one_keeps_the_song_however_it_is_run(
    samples: int, overlap: float, shifts: int, tta: bool, batch: int
) -> None:
    song = noise(2, samples)
    ours = separator(constant(1.0), overlap=overlap, shifts=shifts, tta=tta, batch=batch)
    assert_close(ours.separate(song, RATE)["vocals"], song, rtol=0, atol=2e-6)


@given(samples=st.integers(1, 9000), shifts=st.integers(1, 4), tta=st.booleans())
@settings(deadline=None, max_examples=15)
def test_passes_of_a_network_that_ignores_places_are_one(samples: int, shifts: int, tta: bool) -> None:
    """It looks no further than the context, and treats both sides alike."""
    song = noise(2, samples)
    one = separator(Network(local)).separate(song, RATE)["vocals"]
    assert_close(
        separator(Network(local), shifts=shifts, tta=tta).separate(song, RATE)["vocals"], one, rtol=0, atol=3e-6
    )


def test_tta_is_the_mean_of_its_passes() -> None:
    song = noise(2, 9000)

    def vocals(song: Tensor, **how: object) -> Tensor:
        return separator(Network(placed), **how).separate(song, RATE)["vocals"]

    plain, swapped = vocals(song), vocals(song.flip(0)).flip(0)
    shifted = 2 * vocals(song, shifts=2) - plain
    assert (plain - swapped).abs().max() > 1e-2 < (plain - shifted).abs().max()
    assert_close(vocals(song, tta=True), (plain + shifted + swapped) / 3, rtol=0, atol=1e-6)


def test_passes_hold_little() -> None:
    several = separator(constant(0.5), shifts=3, tta=True, overlap=0.5)
    # A window has 34 frames.
    assert most_behind(lambda song: (stems["vocals"] for stems in several.stream(song, RATE))) <= 3 * 34 * 128 + 2000


def test_recurrent_models_refuse_what_they_cannot() -> None:
    spec = replace(SPEC, recurrent=True, chunking=Chunking(24))
    for how in ({"overlap": 0.1}, {"shifts": 2}):
        with pytest.raises(UsageError, match="no overlap and no shifts"):
            separator(constant(1), spec, **how)
    with pytest.raises(UsageError, match="several crops"):
        separator(constant(1), spec, crops=((8, 0),))
    separator(constant(1), spec, overlap=0, shifts=1, quality="best")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"size": 0}, "crop size"),
        ({"context": -1}, "padding"),
        ({"batch": 0}, "batch size"),
        ({"shifts": 0}, "shifts"),
        ({"segment": 0}, "segment"),
        ({"segment": float("nan")}, "segment"),
        ({"quality": "good"}, "fast, balanced, best"),
        ({"size": 9, "segment": 1}, "one of them"),
        ({"context": 9, "overlap": 0.1}, "one of them"),
        ({"crops": ((8, 8),), "tta": True}, "several crops"),
    ],
)
def test_contradictions(wrong: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Inference(**wrong)


def test_an_unknown_acceleration_is_refused() -> None:
    with pytest.raises(UsageError, match="auto, none, compile"):
        Inference(acceleration="turbo")


def test_windows_that_cannot_be() -> None:
    for how in ({"overlap": 0.96}, {"overlap": -0.1}, {"segment": 1, "context": 40}):
        with pytest.raises(UsageError):
            choose_chunking(SPEC, CPU, Inference(**how))


def test_what_is_in_force_is_told() -> None:
    told = separator(constant(1.0), quality="best", batch=3).describe()
    assert json.loads(json.dumps(told)) == told
    assert (told["batch"], told["quality"], len(told["passes"])) == (3, "best", 2) and told["overlap"] > 0.45
    waves = Separator(WAVE, nn.Identity(), inference=Inference(segment=2), stems=["vocals"]).describe()
    assert waves["unit"] == "samples" and waves["stems"] == ["vocals"]
    assert told != separator(constant(1.0), quality="fast", batch=3).describe()


def test_a_cpu_gets_smaller_crops() -> None:
    wide = replace(SPEC, chunking=Chunking(4096, 128))
    assert choose_chunking(wide, CPU, Inference()).size == CPU_FRAMES
    assert choose_chunking(wide, GPU, Inference()) == wide.chunking
