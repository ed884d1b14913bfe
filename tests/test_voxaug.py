"""Laws of voxaug: what meets what, on any number of ranks and workers, and what a drawn mix sounds like."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from vocalremover.dataset import Catalogue, Track
from vocalremover.dataset.cache import RATE
from vocalremover.errors import UsageError
from vocalremover.voxaug import OURS, Mix, Mixes, Part, Strengths, draw, render, render_batch, strengths_of
from vocalremover.voxaug.plans import fast_length
from vocalremover.voxaug.rendering import LEVEL, Tapes
from vocalremover.voxaug.strengths import ORIGINAL, Dose

PAIRED = replace(ORIGINAL, no_voice=0.0)


def tracks(letter: str, count: int, kind: str) -> tuple[Track, ...]:
    return tuple(Track(Path(f"{letter}{number}"), f"{letter}{number}", kind) for number in range(count))


SILENT = Catalogue(tracks("v", 7, "singing"), tracks("b", 5, "instrumental"), ())  # has no audio


def pair(mix: Mix) -> tuple[str, str]:
    return mix.voices[0].track.source, mix.backings[0].track.source


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """A mono voice, a stereo one, one song, one instrumental: noise of two seconds each."""
    folder = tmp_path_factory.mktemp("tapes")
    rng = np.random.default_rng(0)

    def track(source: str, kind: str, channels: int) -> Track:
        path = folder / f"{source.replace('/', '__')}.npy"
        np.save(path, (3000 * rng.standard_normal((channels, 2 * RATE))).astype(np.int16))
        return Track(path, source, kind, samples=2 * RATE)

    song = track("song/vocals", "multitrack", 2), track("song/instrumental", "multitrack", 2)
    return Catalogue((track("anna", "singing", 1), song[0]), (track("drums", "instrumental", 2), song[1]), (song,))


def test_no_pair_repeats_until_every_voice_met_every_backing() -> None:
    met = [pair(draw(SILENT, 3, epoch, index, PAIRED)) for epoch in range(7) for index in range(5)]
    assert len(set(met)) == len(met) == 7 * 5
    again = [pair(draw(SILENT, 3, epoch, index, PAIRED)) for epoch in range(7, 14) for index in range(5)]
    assert set(again) == set(met)


def test_an_epoch_is_every_backing_once_in_an_order_of_its_own() -> None:
    orders = [[pair(draw(SILENT, 3, epoch, index, PAIRED))[1] for index in range(5)] for epoch in range(20)]
    assert all(sorted(order) == [f"b{number}" for number in range(5)] for order in orders)
    assert len({tuple(order) for order in orders}) > 10


def test_drawing_is_pure_and_depends_on_the_seed() -> None:
    assert draw(SILENT, 1, 2, 1) == draw(SILENT, 1, 2, 1)
    assert draw(SILENT, 1, 2, 1) != draw(SILENT, 2, 2, 1)


class Pairs(Mixes):
    """Only who meets whom."""

    def __getitem__(self, number: int) -> tuple[int, str]:
        return number, "+".join(pair(self.mix(number)))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (3, 2), (4, 0)])
def test_ranks_and_workers_hear_together_what_one_alone_hears(ranks: int, workers: int) -> None:
    mixes = Pairs(SILENT, 3, 1, PAIRED)
    heard = {}
    for rank in range(ranks):
        loader = DataLoader(mixes, 2, sampler=range(rank, 36, ranks), num_workers=workers)
        for numbers, pairs in loader:
            heard |= dict(zip(numbers.tolist(), pairs, strict=True))
    assert [heard[number] for number in range(36)] == [mixes[number][1] for number in range(36)]
    assert Counter(heard[number] for number in range(35)).most_common(1)[0][1] == 1


def test_no_effect_changes_who_meets_whom() -> None:
    """The law holds for the strengths that training uses, where voices are left out and others are added."""
    ours = [draw(SILENT, 3, epoch, index, OURS) for epoch in range(7) for index in range(5)]
    plain = [draw(SILENT, 3, epoch, index, PAIRED) for epoch in range(7) for index in range(5)]
    whole = [(pair(mix), pair(other)) for mix, other in zip(ours, plain, strict=True) if mix.voices and mix.backings]
    assert len(whole) > 25 and all(one == other for one, other in whole)


def test_the_original_changes_gains_and_channels_and_nothing_else() -> None:
    mixes = list(islice((draw(SILENT, 1, epoch, index, ORIGINAL) for epoch in range(400) for index in range(5)), 2000))
    voices = [part for mix in mixes for part in mix.voices]
    shares = {
        "gain": np.mean([part.gain_db != 0 for part in voices]),
        "voice swapped": np.mean([part.swap for part in voices]),
        "dropped": np.mean([part.drop >= 0 for part in voices]),
        "silent": np.mean([not mix.voices for mix in mixes]),
        "swapped": np.mean([mix.swap for mix in mixes]),
    }
    # Four standard deviations of 2000 draws.
    expected = {"gain": 0.5, "voice swapped": 0.5, "dropped": 0.025, "silent": 0.025, "swapped": 0.5}
    for name, chance in expected.items():
        assert abs(shares[name] - chance) < 4 * np.sqrt(chance * (1 - chance) / 2000), name
    assert all(-6.03 < part.gain_db < 3.53 for part in voices), "0.5 to 1.5 as a factor"
    drawn = {"track", "start", "gain_db", "swap", "drop", "noise", "room", "echo_seconds", "gap", "loop_begin"}
    for part in voices:
        plain = Part(part.track, part.start)
        assert replace(part, **{name: getattr(plain, name) for name in drawn}) == plain
        assert part.gap[0] == part.gap[1]
    assert all(mix.level == "none" and len(mix.voices) <= 1 and mix.codec == inf for mix in mixes)


def test_a_mix_is_its_voices_plus_its_backings(catalogue: Catalogue) -> None:
    for index in range(24):
        mix = replace(draw(catalogue, 5, index, 0), codec=inf, level="parts")
        mixture, vocals = render(mix, RATE)
        alone, nothing = render(replace(mix, voices=()), RATE)
        assert mixture.shape == vocals.shape == (2, RATE) and mixture.dtype == np.float32
        assert not nothing.any()
        np.testing.assert_allclose(mixture - vocals, alone, atol=1e-5)


def test_nothing_drawn_leaves_the_audio_as_it_was_recorded(catalogue: Catalogue) -> None:
    song = [Part(track, 0.25) for track in catalogue.songs[0]]
    first = song[0].track.first(0.25, RATE, 2 * RATE)
    mixture, vocals = render(Mix((song[0],), (song[1],), level="none"), RATE)
    np.testing.assert_allclose(vocals, catalogue.songs[0][0].crop(first, RATE), atol=1e-7)
    np.testing.assert_allclose(mixture - vocals, catalogue.songs[0][1].crop(first, RATE), atol=1e-7)


def test_a_song_meets_its_own_backing_at_the_same_place(catalogue: Catalogue) -> None:
    songs = [mix for mix in (draw(catalogue, 2, epoch, 0, replace(OURS, song=1.0)) for epoch in range(30))
             if mix.level == "song" and mix.voices and mix.backings]  # fmt: skip
    assert len(songs) > 5
    for mix in songs:
        voice, backing = mix.voices[0], mix.backings[0]
        assert (voice.track, backing.track.path) == (catalogue.songs[0][0], catalogue.songs[0][1].path)
        assert (voice.start, voice.speed, voice.equaliser_db) == (backing.start, backing.speed, backing.equaliser_db)


def test_voices_stand_as_loud_as_drawn(catalogue: Catalogue) -> None:
    """Effects change how a voice sounds, not the balance that was drawn."""
    for epoch in range(30):
        mix = draw(catalogue, 7, epoch, 1, replace(OURS, song=0.0, codec=Dose(), high_cut=Dose()))
        if len(mix.voices) == 1 and mix.voices[0].drop < 0:
            _, vocals = render(replace(mix, level="parts"), RATE)
            tenths = np.sort(np.square(vocals[:, : 10 * 4410]).reshape(2, 10, 4410).mean(axis=(0, 2)))[5:]
            level = 20 * np.log10(np.sqrt(tenths.mean()) / LEVEL)
            assert level == pytest.approx(mix.gain_db + mix.voices[0].gain_db, abs=0.1)


def test_a_batch_is_its_examples(catalogue: Catalogue) -> None:
    mixes = [draw(catalogue, 11, epoch, index) for epoch in range(6) for index in range(2)]
    mixtures, vocals = render_batch(mixes, RATE)
    for number, mix in enumerate(mixes):
        alone = render(mix, RATE)
        np.testing.assert_allclose(mixtures[number], alone[0], atol=1e-5)
        np.testing.assert_allclose(vocals[number], alone[1], atol=1e-5)


def test_tapes_hold_what_the_cache_holds(catalogue: Catalogue) -> None:
    mixes = [draw(catalogue, 12, epoch, 0) for epoch in range(6)]
    assert_close(render_batch(mixes, RATE, tapes=Tapes(catalogue, "cpu")), render_batch(mixes, RATE))


def test_a_track_that_is_too_short_lies_in_silence(catalogue: Catalogue) -> None:
    voice = catalogue.voices[0]
    crop = voice.crop(voice.first(0.5, 3 * RATE, 2 * RATE), 3 * RATE)
    assert crop.shape == (1, 3 * RATE)
    assert not crop[:, : RATE // 2].any() and not crop[:, -RATE // 2 :].any() and crop[:, RATE : 2 * RATE].any()


def test_a_harmony_sings_at_the_same_time(catalogue: Catalogue) -> None:
    only = replace(ORIGINAL, voice=replace(ORIGINAL.voice, harmony=Dose(1, -6, -6)), level=True, no_voice=0.0)
    mix = draw(catalogue, 1, 0, 0, only)
    lead, harmony = mix.voices
    assert harmony.start == lead.start and harmony.gain_db == pytest.approx(lead.gain_db - 6)
    assert harmony.tempo * 2 ** (harmony.speed / 12) == pytest.approx(1), "as long as the lead"
    assert harmony.speed != lead.speed


@pytest.mark.parametrize("interval", [-5, 0.1, 4, 12])
def test_a_harmony_is_heard_where_the_lead_is(tmp_path: Path, interval: float) -> None:
    """A burst of noise late in a recording, whatever the harmony needs beside what is heard of it."""
    tape = np.zeros((1, 30 * RATE), np.int16)
    tape[:, 20 * RATE : 20 * RATE + RATE // 10] = 5000 * np.sign(np.random.default_rng(0).standard_normal(RATE // 10))
    np.save(tmp_path / "burst.npy", tape)
    lead = Part(Track(tmp_path / "burst.npy", "burst", "singing", samples=tape.shape[1]), start=0.7)
    heard = []
    for part in (lead, replace(lead, speed=interval, tempo=2 ** (-interval / 12))):
        sound = np.abs(render(Mix((part,), ()), 4 * RATE)[1]).sum(axis=0)
        heard.append(np.average(np.arange(sound.size), weights=sound**2) / RATE)
    assert heard[0] == pytest.approx(20.05 - 0.7 * 26, abs=0.01)
    assert heard[1] == pytest.approx(heard[0], abs=0.05), "of which the vocoder makes some"


def test_examples_have_numbers(catalogue: Catalogue) -> None:
    mixes = Mixes(catalogue, 4, RATE // 2)
    assert mixes.mix(5) == draw(catalogue, 4, 2, 1)
    assert mixes[5].shape == (2, 2, RATE // 2) and torch.equal(mixes[5], mixes[5])
    assert torch.isfinite(torch.stack([mixes[number] for number in range(30)])).all()


def test_strengths_are_read_from_a_recipe() -> None:
    strengths = strengths_of({"preset": "original", "no_voice": 0.5, "voice": {"speed": [0.5, -6, 6]}})
    assert strengths == replace(ORIGINAL, no_voice=0.5, voice=replace(ORIGINAL.voice, speed=Dose(0.5, -6, 6)))
    assert strengths_of({}) == OURS and isinstance(OURS, Strengths)


@pytest.mark.parametrize(
    "settings",
    [{"preset": "theirs"}, {"vioce": {}}, {"voice": {"spede": [1]}}, {"voice": {"speed": "fast"}}, {"voice": 3}],
)
def test_strengths_that_do_not_exist_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError):
        strengths_of(settings)


def test_a_share_of_the_examples_is_sung_by_the_songs() -> None:
    tracks = [Track(Path(f"{name}.npy"), f"{name}.flac", "singing") for name in "abcdefghij"]
    songs = ((tracks[0], Track(Path("backing.npy"), "backing.flac", "multitrack")),)
    backings = tuple(Track(Path(f"{name}.npy"), f"{name}.flac", "instrumental") for name in "klm")
    catalogue = Catalogue(tuple(tracks), backings, songs)
    plain, favoured = (
        [draw(catalogue, 1, epoch, 0, replace(OURS, songs=share, no_voice=0.0)) for epoch in range(400)]
        for share in (0.0, 0.5)
    )
    counts = [sum(mix.voices[0].track is tracks[0] for mix in mixes) for mixes in (plain, favoured)]
    # A tenth in turn, and half of the rest: 400 draws of these chances have deviations of 6 and 10.
    assert 16 < counts[0] < 64 and 180 < counts[1] < 260
    # Whoever sings as before sings the same.
    same = [(a, b) for a, b in zip(plain, favoured, strict=True) if b.voices[0].track is not tracks[0]]
    assert all(a == b for a, b in same)


def test_fast_lengths_are_the_next_products_of_small_primes() -> None:
    def rest(number: int) -> int:
        for prime in (2, 3, 5):
            while number % prime == 0:
                number //= prime
        return number

    smooth = [number for number in range(1, 1300) if rest(number) == 1]
    for least in range(1, 1201):
        assert fast_length(least) == next(number for number in smooth if number >= least)
    assert fast_length(130049) == 131072 and rest(fast_length(10**8 + 1)) == 1
