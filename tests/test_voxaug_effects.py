"""A law for each effect of the training mixes: neutral at its neutral number, and what it does beyond."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vocalremover.voxaug import filters, spectra, waves
from vocalremover.voxaug.spectra import EFFECTS

RATE = 44100
SAMPLES = 1 << 15


@pytest.fixture(scope="module")
def noise() -> Tensor:
    """Three stereo examples of noise, the second with a pause."""
    audio = 0.1 * torch.randn(3, 2, SAMPLES, generator=torch.Generator().manual_seed(1))
    audio[1, :, : SAMPLES // 3] = 0
    return audio


def tone(hertz: float, samples: int = SAMPLES) -> Tensor:
    """`[1, 1, samples]`."""
    return torch.sin(2 * torch.pi * hertz * torch.arange(samples, dtype=torch.float64) / RATE).float()[None, None]


def pitch(audio: Tensor) -> float:
    """Hertz of the strongest bin, refined by a parabola over its neighbours."""
    magnitude = torch.fft.rfft(audio.flatten() * torch.hann_window(audio.numel())).abs().log()
    top = int(magnitude.argmax())
    left, middle, right = magnitude[top - 1 : top + 2].tolist()
    return (top + 0.5 * (left - right) / (left - 2 * middle + right)) * RATE / audio.numel()


def cents(one: float, other: float) -> float:
    return 1200 * math.log2(one / other)


def power(audio: Tensor) -> Tensor:
    return audio.square().mean(dim=(-2, -1))


def test_speed_moves_pitch_like_a_tape() -> None:
    audio = tone(RATE * 200 / SAMPLES)  # begins as it ends
    assert waves.change_speed(audio, SAMPLES) is audio
    faster = waves.change_speed(audio, SAMPLES // 2)
    assert_close(faster, tone(RATE * 400 / SAMPLES, SAMPLES // 2), atol=1e-5, rtol=0)


def test_loudness_overlooks_pauses(noise: Tensor) -> None:
    loud = waves.loudness(noise)
    assert loud[0].item() == pytest.approx(0.1, rel=0.02)
    assert loud[1].item() == pytest.approx(0.1, rel=0.05)
    assert waves.loudness(torch.zeros(1, 2, 100)).item() == pytest.approx(waves.QUIETEST)


def test_equal_loudness_raises_no_silence(noise: Tensor) -> None:
    levels = torch.tensor([0.2, 0.3, 0.4])
    assert_close(waves.loudness(waves.with_loudness(noise, levels)), levels)
    hiss = 1e-6 * noise
    assert power(waves.with_loudness(hiss, levels)).max() < 1e-6


def test_compression_never_raises_a_sample(noise: Tensor) -> None:
    noise = noise * torch.linspace(0.1, 3, SAMPLES)
    squeezed = waves.compress(noise, torch.tensor([1.0, 3.0, 20.0]))
    assert_close(squeezed[0], noise[0])
    assert (squeezed.abs() <= noise.abs() * (1 + 1e-6)).all()
    spread = [float(waves.loudness(part) / power(part[0]).sqrt()) for part in (noise[2:], squeezed[2:])]
    assert spread[1] < 0.95 * spread[0], "the loud half stands out less"


def test_compression_keeps_the_stereo_picture(noise: Tensor) -> None:
    squeezed = waves.compress(noise, torch.full((3,), 8.0))
    assert_close(squeezed[0, 0] * noise[0, 1], squeezed[0, 1] * noise[0, 0], atol=1e-7, rtol=1e-4)


def test_distortion_is_odd_bounded_and_gentle_at_first(noise: Tensor) -> None:
    drives = torch.tensor([0.0, 2.0, 5.0])
    bent = waves.distort(20 * noise, drives)
    assert_close(bent[0], 20 * noise[0], rtol=1e-4, atol=1e-6)
    assert bent[1].abs().max() <= 1 / 2 and bent[2].abs().max() <= 1 / 5
    assert_close(waves.distort(-20 * noise, drives), -bent)


def test_a_gap_is_silent_and_nothing_else_changes(noise: Tensor) -> None:
    begins, ends = torch.tensor([0.25, 0.5, 0.0]), torch.tensor([0.5, 0.9, 0.0])
    gapped = waves.silence(noise, begins, ends, fade=100)
    first, last = SAMPLES // 4, SAMPLES // 2
    assert not gapped[0, :, first + 100 : last - 100].any()
    assert_close(gapped[0, :, :first], noise[0, :, :first])
    assert_close(gapped[0, :, last:], noise[0, :, last:])
    assert_close(gapped[2], noise[2])


def test_a_loop_repeats_what_is_loud() -> None:
    torch.manual_seed(4)
    audio = 0.01 * torch.randn(2, 2, 8 * waves.TENTH)
    audio[0, :, 5 * waves.TENTH : 6 * waves.TENTH] *= 30
    looped = waves.loop(audio, torch.tensor([1000.0, 3000.0]), torch.tensor([0.5, 0.0]), fade=50)
    assert_close(looped[0, :, : 4 * waves.TENTH], audio[0, :, : 4 * waves.TENTH])
    turns = looped[0, :, 4 * waves.TENTH :].unfold(-1, 1000, 1000)
    assert_close(turns, turns[:, :1].expand_as(turns))
    assert_close(turns[:, 0, 50:-50], audio[0, :, 5 * waves.TENTH : 5 * waves.TENTH + 1000][:, 50:-50])
    assert not turns[..., 0].any(), "no click where a turn begins"
    assert_close(looped[1, :, :3000], looped[1, :, 3000:6000])


def test_a_loop_longer_than_the_audio_is_all_of_it() -> None:
    audio = torch.randn(1, 1, waves.TENTH)
    looped = waves.loop(audio, torch.tensor([1e6]), torch.tensor([0.0]), fade=1)
    assert_close(looped[..., 1:], audio[..., 1:])


def test_placing_keeps_the_power(noise: Tensor) -> None:
    pans = torch.tensor([-1.0, 0.0, 0.6])
    placed = waves.place(noise[:, :1], pans)
    assert_close(power(placed), power(noise[:, :1]))
    assert not placed[0, 1].any()
    assert_close(waves.place(noise, torch.zeros(3)), noise)


def test_width_touches_the_sides_only(noise: Tensor) -> None:
    widened = waves.widen(noise, torch.tensor([0.0, 1.0, 2.0]))
    assert_close(widened.mean(dim=1), noise.mean(dim=1))
    assert_close(widened[0, 0], widened[0, 1])
    assert_close(widened[1], noise[1])
    assert_close(widened[2, 0] - widened[2, 1], 2 * (noise[2, 0] - noise[2, 1]))


def test_channels_are_swapped_and_dropped_where_asked(noise: Tensor) -> None:
    swapped = waves.swap(noise, torch.tensor([True, False, True]))
    assert_close(swapped[:2], torch.stack([noise[0].flip(0), noise[1]]))
    dropped = waves.drop(noise, torch.tensor([0, 1, -1]))
    assert not dropped[0, 0].any() and not dropped[1, 1].any()
    assert_close(dropped[0, 1], noise[0, 1])
    assert_close(dropped[2], noise[2])


def test_an_equaliser_of_0_db_is_the_identity(noise: Tensor) -> None:
    hertz = filters.frequencies(SAMPLES)
    flat = filters.equaliser(torch.zeros(3, 12), hertz)
    assert_close(filters.filtered(noise, flat), noise, atol=1e-6, rtol=1e-5)


def test_an_equaliser_has_its_gains_at_its_knots() -> None:
    gains = torch.tensor([[3.0, -6.0, 12.0]])
    knots = torch.tensor([40.0, math.sqrt(40 * 20000), 20000.0])
    assert_close(20 * filters.equaliser(gains, knots).log10(), gains, atol=1e-4, rtol=0)


def test_cuts_pass_half_the_power_where_they_stand() -> None:
    cuts = torch.tensor([100.0, 5000.0])
    for cut in (filters.high_pass, filters.low_pass):
        assert_close(cut(cuts, cuts).diagonal().square(), torch.full((2,), 0.5))
    assert_close(filters.low_pass(torch.tensor([math.inf]), cuts), torch.ones(1, 2))
    assert_close(filters.high_pass(torch.zeros(1), cuts), torch.ones(1, 2))
    assert filters.high_pass(cuts[:1], cuts[:1] / 2) < 10 ** (-23 / 20)


def test_an_echo_is_the_sound_again(noise: Tensor) -> None:
    hertz = filters.frequencies(SAMPLES)
    seconds, levels = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-6.0, -math.inf, 0.0])
    echoed = filters.filtered(noise, filters.echo(seconds, levels, hertz))
    again = torch.stack([part.roll(round(RATE * s), -1) for part, s in zip(noise, (0.1, 0.2, 0.3), strict=True)])
    # A delay in float32 is off by up to 1.5e-8 s, at 22 kHz 2e-3 of a turn in radians, of noise of 0.1 to 0.5.
    assert_close(echoed, noise + again * 10 ** (levels / 20)[:, None, None], atol=1e-3, rtol=0)


def test_a_room_that_is_one_impulse_doubles_the_sound(noise: Tensor) -> None:
    impulse = torch.zeros(3, 2, 500)
    impulse[..., 0] = 1
    response = filters.reverberation(
        filters.spectrum(impulse, SAMPLES), torch.tensor([0.0, -math.inf, -20.0])
    )
    factors = torch.tensor([2.0, 1.0, 1.1])[:, None, None]
    assert_close(filters.filtered(noise, response), factors * noise, atol=1e-6, rtol=1e-5)


def test_rooms_differ_and_have_unit_energy_on_both_sides() -> None:
    assert_close(filters.room(3).square().sum(dim=-1), torch.ones(2), rtol=1e-4, atol=0)
    assert filters.room(3) is filters.room(3)
    assert not torch.equal(filters.room(3), filters.room(4))


def test_a_stretch_of_1_is_the_identity(noise: Tensor) -> None:
    assert_close(spectra.stretch(noise, torch.ones(3), SAMPLES), noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [0.8, 1.3])
def test_stretching_changes_time_and_not_pitch(rate: float) -> None:
    audio = tone(440.0, 2 * SAMPLES)
    audio[..., SAMPLES // 2 :] = 0  # the tone ends where it ends in the new time
    stretched = spectra.stretch(audio, torch.tensor([rate]), SAMPLES)
    ends = int(SAMPLES // 2 / rate)
    assert abs(cents(pitch(stretched[..., 2048 : ends - 2048]), 440)) < 3
    # Neighbouring bins of one tone drift apart a little, which costs some power.
    assert stretched[..., : ends - 2048].square().mean() == pytest.approx(0.5, rel=0.2)
    assert stretched[..., ends + 2048 :].abs().max() < 0.05


def test_formants_move_and_pitch_stays() -> None:
    """A buzz of 150 Hz with one formant at 1 kHz: six semitones up, the formant lies at 1414 Hz."""
    hertz = torch.arange(1, 60) * 150.0
    weights = torch.exp(-(((hertz - 1000) / 250) ** 2)) + 1e-3
    buzz = sum(weight * tone(float(h)) for weight, h in zip(weights, hertz, strict=True))
    spectrogram = EFFECTS.forward(buzz.expand(2, -1, -1))
    moved = spectra.shift_formants(spectrogram, torch.tensor([0.0, 6.0]))
    assert_close(moved[0], spectrogram[0], rtol=1e-4, atol=1e-4)
    same, shifted = (torch.fft.rfft(EFFECTS.inverse(part, SAMPLES)[0]).abs() for part in moved)
    lines = (hertz * SAMPLES / RATE).round().long()
    centre = [float((part[lines] ** 2 * hertz).sum() / (part[lines] ** 2).sum()) for part in (same, shifted)]
    assert 3 < cents(centre[1], centre[0]) / 100 < 8
    between = lines[:-1] + (lines[1:] - lines[:-1]) // 2
    assert (shifted[between].mean() < 0.05 * shifted[lines].mean()).item(), "energy stays on the harmonics"


def test_roughness_keeps_phases_and_blur_keeps_magnitudes(noise: Tensor) -> None:
    spectrogram = EFFECTS.forward(noise)
    generator = torch.Generator().manual_seed(2)
    random = torch.randn(spectrogram.shape, generator=generator)
    strengths = torch.tensor([0.0, 0.3, 1.0])
    rough = spectra.roughen(spectrogram, random, strengths)
    blurred = spectra.blur_phases(spectrogram, random, strengths)
    for changed in (rough, blurred):
        assert_close(changed[0], spectrogram[0])
        assert not torch.allclose(changed[2], spectrogram[2], atol=1e-2)
    assert_close(blurred.abs(), spectrogram.abs(), rtol=1e-4, atol=1e-4)
    turned = (rough * spectrogram.conj())[2]
    assert (turned.real >= -1e-3).all() and turned.imag.abs().max() < 1e-3 * turned.real.max()


def test_a_coder_keeps_what_is_loud(noise: Tensor) -> None:
    spectrogram = EFFECTS.forward(noise)
    kept = spectra.coded(spectrogram, torch.tensor([math.inf, 6.0, 0.0]))
    assert kept[0].all()
    assert 0.1 < 1 - kept[2].mean() < 0.9
    lost = ((1 - kept) * spectrogram.abs().square()).sum(dim=(1, 2, 3)) / spectrogram.abs().square().sum(dim=(1, 2, 3))
    assert lost[2] < 0.5 and 1 - kept[2].mean() > 2 * lost[2]
