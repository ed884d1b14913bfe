"""voxaug: any voice over any backing, drawn by a rule and rendered with effects.

`draw` is pure: (catalogue, seed, epoch, index) -> `Mix`, plain numbers that say which tracks, where cut, how loud and
how changed. `render` turns a `Mix` into audio. The pairing is that of carperbr's voxaug2 (frame-transformer, commit
85e7f18b, dataset_voxaug2.py): at epoch e, backing i meets voice (e + i) mod n, so that no pair repeats until all were
heard. The effects are ours: they stand in for the singers, rooms and producers that the data lacks.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import fft, ndimage

from vocalremover.audio import resample
from vocalremover.training.data import RATE, Catalogue, Track

LEVEL = 0.1  # RMS that voices and backings are brought to before their gain: -20 dBFS
ROOMS = 64
BANDS = 12  # knots of a random equaliser, evenly spaced in octaves from 40 Hz to 20 kHz


@dataclass(frozen=True)
class Voice:
    """One voice of a mix. semitones: change of speed, which moves pitch and formants; pan: -1 left .. 1 right."""

    track: Track
    start: float
    semitones: float
    gain_db: float
    pan: float
    equaliser_db: tuple[float, ...]
    compression: float
    drive: float
    room: int
    wet_db: float
    echo_seconds: float
    echo_db: float
    double_seconds: float
    silence: tuple[float, float]


@dataclass(frozen=True)
class Backing:
    """One instrumental of a mix; swap: left and right exchanged; mono: both channels the same."""

    track: Track
    start: float
    semitones: float
    gain_db: float
    equaliser_db: tuple[float, ...]
    swap: bool
    mono: bool


@dataclass(frozen=True)
class Mix:
    """One training example: what sounds, and the level of the whole."""

    voices: tuple[Voice, ...]
    backings: tuple[Backing, ...]
    gain_db: float


def draw(catalogue: Catalogue, seed: int, epoch: int, index: int) -> Mix:
    """The mix at this place of this epoch; the same arguments always draw the same mix."""
    rng = np.random.Generator(np.random.PCG64([seed, epoch, index]))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(catalogue.voices))
    track = catalogue.voices[order[(epoch + index) % len(order)]]
    backing = catalogue.backings[index % len(catalogue.backings)]
    gain_db = float(rng.uniform(-14, 4))
    partners = {vocals.path: instrumental for vocals, instrumental in catalogue.songs}
    if track.path in partners and rng.random() < 0.5:  # a song as it was mixed, only cut elsewhere
        start = float(rng.random())
        voice = Voice(track, start, 0, -3, 0, (0.0,) * BANDS, 0, 0, 0, -np.inf, 0, -np.inf, 0, (0, 0))
        song = Backing(partners[track.path], start, 0, 0, (0.0,) * BANDS, False, False)
        return Mix((voice,), (song,), gain_db)
    voices = [draw_voice(rng, track, float(np.clip(rng.normal(-2, 4.5), -14, 9)))]
    if rng.random() < 0.2:
        other = catalogue.voices[rng.integers(len(catalogue.voices))]
        voices.append(draw_voice(rng, other, voices[0].gain_db - float(rng.uniform(0, 10))))
    backings = [draw_backing(rng, backing, 0.0)]
    if rng.random() < 0.15:
        other = catalogue.backings[rng.integers(len(catalogue.backings))]
        backings.append(draw_backing(rng, other, float(rng.uniform(-12, 0))))
    alone = rng.random()
    return Mix(() if alone < 0.08 else tuple(voices), () if alone > 0.97 else tuple(backings), gain_db)


def draw_voice(rng: np.random.Generator, track: Track, gain_db: float) -> Voice:
    """A voice with random effects, most of them absent."""
    length = rng.uniform(0.1, 0.6) if rng.random() < 0.3 else 0.0
    begin = rng.uniform(0, 1 - length)
    return Voice(
        track=track,
        start=float(rng.random()),
        semitones=float(rng.uniform(-4, 4)) if rng.random() < 0.7 else 0.0,
        gain_db=gain_db,
        pan=float(np.clip(rng.normal(0, 0.08), -1, 1)) if rng.random() < 0.8 else float(rng.uniform(-0.8, 0.8)),
        equaliser_db=draw_equaliser(rng, 4.0),
        compression=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.5 else 0.0,
        drive=float(rng.uniform(0.5, 4)) if rng.random() < 0.2 else 0.0,
        room=int(rng.integers(ROOMS)),
        wet_db=float(rng.uniform(-26, -6)) if rng.random() < 0.7 else -np.inf,
        echo_seconds=float(rng.uniform(0.06, 0.6)),
        echo_db=float(rng.uniform(-20, -8)) if rng.random() < 0.2 else -np.inf,
        double_seconds=float(rng.uniform(0.008, 0.03)) if rng.random() < 0.2 else 0.0,
        silence=(float(begin), float(begin + length)),
    )


def draw_backing(rng: np.random.Generator, track: Track, gain_db: float) -> Backing:
    """A backing with a random cut, speed and equaliser."""
    return Backing(
        track=track,
        start=float(rng.random()),
        semitones=float(rng.uniform(-3, 3)) if rng.random() < 0.4 else 0.0,
        gain_db=gain_db,
        equaliser_db=draw_equaliser(rng, 3.0),
        swap=bool(rng.random() < 0.5),
        mono=bool(rng.random() < 0.08),
    )


def draw_equaliser(rng: np.random.Generator, spread_db: float) -> tuple[float, ...]:
    """Gains in dB at the knots, flat in a third of the draws."""
    if rng.random() < 1 / 3:
        return (0.0,) * BANDS
    return tuple(float(gain) for gain in rng.normal(0, spread_db, BANDS))


def render(mix: Mix, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, vocals), each float32 `[2, samples]` at 44.1 kHz."""
    vocals = np.zeros((2, samples), np.float32)
    for voice in mix.voices:
        vocals += render_voice(voice, samples)
    backing = np.zeros((2, samples), np.float32)
    for part in mix.backings:
        backing += render_backing(part, samples)
    gain = np.float32(decibels(mix.gain_db))
    return gain * (vocals + backing), gain * vocals


def render_voice(voice: Voice, samples: int) -> np.ndarray:
    """float32 `[2, samples]`."""
    audio = change_speed(voice.track, voice.start, voice.semitones, samples)
    if audio.shape[0] == 2:  # a finished stem: keep its stereo picture
        return audio * np.float32(decibels(voice.gain_db) * LEVEL / loudness(audio))
    voiced = audio[0] / loudness(audio)
    if voice.compression:
        power = ndimage.uniform_filter1d(np.square(voiced), RATE // 20)
        envelope = np.sqrt(np.maximum(power, 0)) + 0.05  # the running sum can round below zero
        voiced = voiced * envelope**-voice.compression
    if voice.drive:
        voiced = np.tanh(voice.drive * voiced) / voice.drive
    first, last = (int(edge * samples) for edge in voice.silence)
    voiced[first:last] = 0
    spectrum = fft.rfft(voiced.astype(np.float32))
    response = (equaliser(voice.equaliser_db, samples) * rumble_filter(samples)).astype(np.complex64)
    if voice.echo_db > -np.inf:
        response *= 1 + decibels(voice.echo_db) * delay(voice.echo_seconds, samples)
    sides = np.stack([response, response])
    if voice.wet_db > -np.inf:
        sides *= 1 + np.complex64(decibels(voice.wet_db)) * room(voice.room, samples)
    if voice.double_seconds:  # the same line sung twice, to the left and to the right
        sides[0] *= 1 + np.complex64(0.7) * delay(voice.double_seconds, samples)
        sides[1] *= 1 + np.complex64(0.7) * delay(voice.double_seconds * 1.7, samples)
    placed = np.sqrt([[1 - voice.pan], [1 + voice.pan]]).astype(np.float32)
    stereo = placed * fft.irfft(spectrum * sides, n=samples)
    return stereo * np.float32(decibels(voice.gain_db) * LEVEL / loudness(stereo))


def render_backing(backing: Backing, samples: int) -> np.ndarray:
    """float32 `[2, samples]`."""
    audio = change_speed(backing.track, backing.start, backing.semitones, samples)
    if any(backing.equaliser_db):
        audio = fft.irfft(fft.rfft(audio) * equaliser(backing.equaliser_db, samples), n=samples)
    if backing.mono:
        audio = audio.mean(axis=0, keepdims=True)
    stereo = np.broadcast_to(audio, (2, samples))
    stereo = stereo[::-1] if backing.swap else stereo
    return stereo * np.float32(decibels(backing.gain_db) * LEVEL / loudness(stereo))


def change_speed(track: Track, start: float, semitones: float, samples: int) -> np.ndarray:
    """float32 `[channels, samples]` of the track, sped up or slowed down like a tape."""
    if not semitones:
        return track.crop(start, samples)
    played_at = round(RATE * 2 ** (semitones / 12))
    taken = track.crop(start, samples * played_at // RATE + 2)
    blocks = resample([torch.from_numpy(taken)], played_at, RATE)
    return torch.cat(list(blocks), dim=-1)[:, :samples].numpy()


def loudness(audio: np.ndarray) -> float:
    """RMS of the louder half of the tenths of a second, so that pauses do not count; at least -60 dBFS."""
    power = np.square(audio).mean(axis=0)
    parts = power[: power.size // 4410 * 4410].reshape(-1, 4410).mean(axis=1)
    return float(np.sqrt(np.sort(parts)[parts.size // 2 :].mean())) + 1e-3


def decibels(gain_db: float) -> float:
    """dB -> factor; minus infinity is silence."""
    return float(10 ** (gain_db / 20))


def equaliser(gains_db: tuple[float, ...], samples: int) -> np.ndarray:
    """float32 `[samples // 2 + 1]`: the gains, joined by straight lines over octaves."""
    octaves = np.log2(fft.rfftfreq(samples, 1 / RATE).astype(np.float32) + 1)
    knots = np.linspace(np.log2(40), np.log2(20000), BANDS)
    return (10 ** (np.interp(octaves, knots, gains_db) / 20)).astype(np.float32)


def rumble_filter(samples: int) -> np.ndarray:
    """float32 `[samples // 2 + 1]`: what every vocal track passes, since below the voice there is only the room."""
    hertz = fft.rfftfreq(samples, 1 / RATE).astype(np.float32)
    return 1 / np.sqrt(1 + (70 / np.maximum(hertz, 1)) ** 8)


def delay(seconds: float, samples: int) -> np.ndarray:
    """complex64 `[samples // 2 + 1]`: the response of a delay."""
    return np.exp(-2j * np.pi * seconds * fft.rfftfreq(samples, 1 / RATE)).astype(np.complex64)


@lru_cache(maxsize=ROOMS)
def room(number: int, samples: int) -> np.ndarray:
    """complex64 `[2, samples // 2 + 1]`: a synthetic hall, noise that decays, of unit energy; `number` tells which."""
    rng = np.random.Generator(np.random.PCG64(number))
    length = min(samples, int(2.0 * RATE))
    seconds = np.arange(length, dtype=np.float32) / RATE
    decay = 10 ** (-3 * seconds / rng.uniform(0.25, 2.5))  # -60 dB after the drawn reverberation time
    tail = (rng.standard_normal((2, length)) * decay).astype(np.float32)
    tail[:, : int(rng.uniform(0, 0.04) * RATE)] = 0
    tail = ndimage.uniform_filter1d(tail, int(rng.integers(1, 8)), axis=1)  # walls swallow the highs first
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True))
    return fft.rfft(tail, n=samples).astype(np.complex64)
