"""Melodies from speech: what the pitch, the throat and the words become."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from vocalremover.audio import write
from vocalremover.cli import main
from vocalremover.dataset import Sources, prepare
from vocalremover.dataset.cache import RATE
from vocalremover.dataset.melody import Style, _load_world, add_melodies, draw_style, midi, sing
from vocalremover.errors import InputError

needs_world = pytest.mark.skipif(find_spec("pyworld") is None, reason="pyworld is not installed")
STYLE = Style(centre=57, key=0, scale=(0, 2, 4, 5, 7, 9, 11), glide=0.05, vibrato_cents=30, vibrato_hertz=5.5,
              drift_cents=5, notes=(0.3, 1.0))  # fmt: skip
FORMANTS = (700.0, 1220.0, 2600.0)


def speech(seconds: float = 3.0) -> np.ndarray:
    """Syllables of one vowel at a pitch that slides, with pauses: pulses through three resonances."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(125 + 20 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    pulses = np.diff(np.floor(phase / (2 * np.pi)), prepend=0)
    spectrum = np.fft.rfft(pulses)
    hertz = np.fft.rfftfreq(time.size, 1 / RATE)
    throat = sum(1 / (1 + ((hertz - formant) / 90) ** 2) for formant in FORMANTS) + 0.003
    voiced = np.fft.irfft(spectrum * throat, n=time.size) * ((time % 0.5) < 0.35)
    return (0.2 * voiced / np.abs(voiced).max()).astype(np.float32)


@pytest.fixture(scope="module")
def sung() -> np.ndarray:
    if find_spec("pyworld") is None:
        pytest.skip("pyworld is not installed")
    return sing(speech(), np.random.default_rng(3), STYLE)


def pitch(audio: np.ndarray) -> np.ndarray:
    """MIDI notes of the voiced frames, by another tracker than the one that the melody was made with."""
    hertz, _ = _load_world().harvest(audio.astype(np.float64), RATE)
    return 69 + 12 * np.log2(hertz[hertz > 0] / 440)


def envelope(audio: np.ndarray) -> np.ndarray:
    """Mean of the voiced frames' throat in decibels below 5 kHz."""
    world = _load_world()
    wave = audio.astype(np.float64)
    hertz, places = world.harvest(wave, RATE)
    throat = world.cheaptrick(wave, hertz, places, RATE)[hertz > 0]
    return 10 * np.log10(throat.mean(axis=0))[: int(5000 / RATE * 2048)]


def test_the_pitch_lies_on_notes(sung: np.ndarray) -> None:
    notes = pitch(sung)
    off = 100 * np.abs(notes - notes.round())
    assert np.mean(off < 30) > 0.7, "glides and vibrato leave a note only for moments"
    spoken = pitch(speech())
    assert np.mean(100 * np.abs(spoken - spoken.round()) < 30) < np.mean(off < 30) - 0.05
    assert np.mean(np.isin(notes.round() % 12, STYLE.scale)) > 0.85
    assert len(set(notes.round())) > 2 and abs(np.median(notes) - STYLE.centre) < 8


def test_the_throat_stays(sung: np.ndarray) -> None:
    """The envelope has its peaks where it had them, an octave below the new pitch or not."""
    before, after = envelope(speech()), envelope(sung)
    assert np.corrcoef(before, after)[0, 1] > 0.9
    hertz = np.arange(before.size) * RATE / 2048
    for formant in FORMANTS:
        near = np.abs(hertz - formant) < 250
        assert abs(hertz[near][after[near].argmax()] - formant) < 130, "a harmonic of 220 Hz is never farther off"


def test_vowels_last_and_loudness_stays(sung: np.ndarray) -> None:
    assert sung.size > 1.15 * speech().size
    level = 10 * np.log10(np.square(sung).mean() / np.square(speech()).mean())
    assert abs(level) < 1 and np.abs(sung).max() <= 1


@needs_world
def test_the_seed_decides_and_silence_does_not_sing() -> None:
    one, same, other = (sing(speech(1.5), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert one.size != other.size or not np.allclose(one, other)
    assert sing(np.zeros(RATE), np.random.default_rng(1)).size == 0


def test_registers_are_within_reach_of_a_voice() -> None:
    for spoken in (90.0, 140.0, 220.0, 350.0):
        centres = {draw_style(np.random.default_rng(seed), spoken).centre for seed in range(60)}
        assert len(centres) > 1 and all(-7 <= centre - midi(spoken) <= 16 for centre in centres)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A prepared cache with one speaker, one singer and one instrumental."""
    rows = {"vocals/speaker.wav": "speech", "vocals/singer.wav": "singing", "instrumentals/drums.wav": "instrumental"}
    for path in rows:
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "data" / path, torch.from_numpy(speech(2.0))[None], RATE)
    lines = ["path,kind", *(f"{path},{kind}" for path, kind in rows.items())]
    (tmp_path / "data/manifest.csv").write_text("\n".join(lines))
    prepare(Sources(manifest=tmp_path / "data"), tmp_path / "cache", workers=0)
    return tmp_path / "cache"


@needs_world
def test_melodies_become_voices_of_the_cache(cache: Path) -> None:
    (entry,) = add_melodies(cache, workers=0)
    assert add_melodies(cache, workers=0) == [], "what is there stays"
    sources = Sources(manifest=cache.parent / "data")
    for catalogue in (prepare(sources, cache, workers=0), prepare(Sources(), cache)):
        melodies = [voice for voice in catalogue.voices if voice.kind == "melody"]
        assert {voice.source for voice in melodies} == {"melody/vocals/speaker.wav"}
        assert melodies[0].crop(0, 100).shape == (1, 100) and melodies[0].samples == entry.samples
    held_out = Sources(manifest=cache.parent / "data", held_out=("vocals/speaker",))
    assert all(voice.kind == "singing" for voice in prepare(held_out, cache, workers=0).voices)
    without = Sources(manifest=cache.parent / "data", melodies=False)
    assert all(voice.kind != "melody" for voice in prepare(without, cache, workers=0).voices)


@needs_world
def test_another_seed_sings_anew_and_a_full_cache_takes_none(cache: Path) -> None:
    assert add_melodies(cache, workers=0, limit_bytes=1000) == []
    first = add_melodies(cache, seed=1, workers=0)
    second = add_melodies(cache, seed=2, workers=0)
    assert [entry.crc32 for entry in first] != [entry.crc32 for entry in second]


def test_a_cache_that_was_never_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never prepared"):
        add_melodies(tmp_path / "cache")


@needs_world
def test_the_command_tells_what_it_made(cache: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "melodies", "--cache", str(cache), "--workers", "0", "--json"])
    assert ended.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert told["melodies"] == 1 and told["hours"] > 0
