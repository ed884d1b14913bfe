"""Training audio: what is found in folders, what the cache keeps, and what it notices."""

import csv
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vocalremover.audio import write
from vocalremover.dataset import Catalogue, Sources, prepare
from vocalremover.dataset.cache import RATE, Cache, Recording, entry_of, melody_name, write_entry
from vocalremover.dataset.parcels import pack, unpack
from vocalremover.dataset.pool import make_pool
from vocalremover.errors import InputError
from vocalremover.evaluate.multitracks import blocks, find_multitracks

SAMPLES = 2 * RATE


def noise(seed: int, channels: int = 2, samples: int = SAMPLES) -> Tensor:
    return 0.1 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))


def save(path: Path, audio: Tensor, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, audio, rate)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folders with a voice and two backings, one of them at another rate, and what cannot be used."""
    root = tmp_path / "data"
    save(root / "voices/anna.flac", noise(1, 1))
    save(root / "backings/drums.flac", noise(2))
    save(root / "backings/more/bass.wav", noise(3, 2, 2 * 22050), 22050)
    return root


@pytest.fixture
def sources(data: Path) -> Sources:
    return Sources(instrumentals=(data / "backings",), vocals=(data / "voices",))


def times(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")}


def gather(sources: Sources, cache: Path, **settings: object) -> Catalogue:
    return prepare(sources, cache, workers=0, **settings)


def samples_of(catalogue: Catalogue) -> dict[str, np.ndarray]:
    tracks = (*catalogue.voices, *catalogue.backings)
    return {track.source: np.load(track.path) for track in tracks}


def test_folders_are_decoded_to_one_rate(sources: Sources, tmp_path: Path) -> None:
    found = samples_of(gather(sources, tmp_path / "cache"))
    assert {source: audio.shape for source, audio in found.items()} == {
        "voices/anna.flac": (1, SAMPLES), "backings/drums.flac": (2, SAMPLES), "backings/more/bass.wav": (2, SAMPLES),
    }  # fmt: skip
    np.testing.assert_allclose(found["backings/drums.flac"] / 32767, noise(2).numpy(), atol=1 / 32767)


def test_what_is_decoded_is_kept(sources: Sources, tmp_path: Path) -> None:
    first = gather(sources, tmp_path / "cache")
    before = times(tmp_path / "cache")
    assert gather(sources, tmp_path / "cache", verify=True) == first
    assert times(tmp_path / "cache") == before


def test_workers_decode_the_same(sources: Sources, tmp_path: Path) -> None:
    alone, together = gather(sources, tmp_path / "a"), prepare(sources, tmp_path / "b", workers=2)
    for one, other in zip(samples_of(alone).items(), samples_of(together).items(), strict=True):
        assert one[0] == other[0] and np.array_equal(one[1], other[1])


def test_a_changed_source_is_decoded_again(sources: Sources, data: Path, tmp_path: Path) -> None:
    gather(sources, tmp_path / "cache")
    before = times(tmp_path / "cache")
    drums = data / "backings/drums.flac"
    os.utime(drums, ns=(1, 1))  # touched, but the same content
    gather(sources, tmp_path / "cache")
    assert times(tmp_path / "cache") == before
    save(drums, noise(9))
    found = samples_of(gather(sources, tmp_path / "cache"))
    np.testing.assert_allclose(found["backings/drums.flac"] / 32767, noise(9).numpy(), atol=1 / 32767)
    assert [path.name for path, time in times(tmp_path / "cache").items() if before[path] != time] == [
        "backings__drums.flac.npy"
    ]


def test_a_damaged_entry_is_noticed_and_made_again(sources: Sources, tmp_path: Path) -> None:
    whole = samples_of(gather(sources, tmp_path / "cache"))
    entry = tmp_path / "cache/backings__drums.flac.npy"
    status = entry.stat()
    content = bytearray(entry.read_bytes())
    content[5000] ^= 1
    entry.write_bytes(content)
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns))  # a disk that rots tells no time
    gather(sources, tmp_path / "cache")
    assert entry.read_bytes() == content, "size and time are the quick look"
    assert np.array_equal(samples_of(gather(sources, tmp_path / "cache", verify=True))["backings/drums.flac"],
                          whole["backings/drums.flac"])  # fmt: skip
    entry.write_bytes(content[:-1])
    assert np.array_equal(samples_of(gather(sources, tmp_path / "cache"))["backings/drums.flac"],
                          whole["backings/drums.flac"])  # fmt: skip


def test_a_run_that_was_cut_off_goes_on(sources: Sources, tmp_path: Path) -> None:
    def pulled(entries: object, count: int) -> object:
        assert count == 3
        for number, entry in enumerate(entries):
            if number == 2:
                raise KeyboardInterrupt
            yield entry

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        gather(sources, cache, progress=pulled)
    with (cache / "journal.jsonl").open("a") as journal:
        journal.write('{"name": "voices__anna.fl')  # the line that was being written
    done = set(Cache(cache).entries)
    before = {path: time for path, time in times(cache).items() if path.stem in done}
    assert len(before) == 2
    assert len(samples_of(gather(sources, cache))) == 3
    assert {path: time for path, time in times(cache).items() if path in before} == before
    assert len(Cache(cache).entries) == 3


def test_a_cache_of_decoded_files_is_adopted(sources: Sources, tmp_path: Path) -> None:
    gather(sources, tmp_path / "cache")
    (tmp_path / "cache/journal.jsonl").unlink()
    before = times(tmp_path / "cache")
    np.save(tmp_path / "cache/backings__drums.flac.npy", np.zeros((2, 100), np.int16))  # another file's, by its length
    assert samples_of(gather(sources, tmp_path / "cache"))["backings/drums.flac"].shape == (2, SAMPLES)
    kept = {path for path, time in times(tmp_path / "cache").items() if before[path] == time}
    assert {path.name for path in kept} == {"voices__anna.flac.npy", "backings__more__bass.wav.npy"}


def test_what_cannot_be_used_is_listed(sources: Sources, data: Path, tmp_path: Path) -> None:
    save(data / "voices/silent.wav", torch.zeros(1, SAMPLES))
    save(data / "voices/short.wav", noise(4, 1, 1000))
    (data / "voices/broken.mp3").write_bytes(b"no music at all" * 100)
    (data / "voices/notes.txt").write_text("not looked at")
    catalogue = gather(sources, tmp_path / "cache")
    assert {voice.source for voice in catalogue.voices} == {"voices/anna.flac"}
    problems = sorted(catalogue.problems)
    assert len(problems) == 3
    assert "broken.mp3" in problems[0] and "voices/short.wav: too short, 0.02 s." in problems
    assert "voices/silent.wav: silent." in problems
    before = (tmp_path / "cache/journal.jsonl").read_text()
    assert sorted(gather(sources, tmp_path / "cache").problems) == problems
    assert (tmp_path / "cache/journal.jsonl").read_text() == before, "refusals are remembered, too"
    save(data / "voices/silent.wav", noise(5, 1))
    assert len(gather(sources, tmp_path / "cache").problems) == 2


def test_a_file_that_cannot_be_opened_is_listed_like_any_other(data: Path, tmp_path: Path) -> None:
    """A folder where a file should be: nobody may read it, root neither."""
    lines = [("voices/anna.flac", "singing"), ("backings/drums.flac", "instrumental"), ("backings/more", "speech")]
    with (data / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "kind"), *lines])
    for _ in range(2):
        catalogue = gather(Sources(manifest=data), tmp_path / "cache")
        assert {track.source for track in (*catalogue.voices, *catalogue.backings)} == {line[0] for line in lines[:2]}
        assert len(catalogue.problems) == 1 and "more" in catalogue.problems[0]


def test_long_paths_have_entries_of_their_own(data: Path, tmp_path: Path) -> None:
    folder = data / "voices" / ("А" * 50) / ("Б" * 50)
    for number in (1, 2):
        save(folder / f"{'В' * 50}{number}.wav", noise(number, 1))
    sources = Sources(instrumentals=(data / "backings",), vocals=(data / "voices",))
    voices = [voice for voice in gather(sources, tmp_path / "cache").voices if voice.path.stem != "voices__anna.flac"]
    assert len({voice.path for voice in voices}) == 2
    for voice in voices:
        assert voice.path.name.startswith("voices__ААААА")
        write_entry(tmp_path / "cache", melody_name(voice.path.stem), noise(3, 1).numpy())


def test_paths_that_are_not_unicode_are_used_and_packed(sources: Sources, data: Path, tmp_path: Path) -> None:
    try:
        (data / "voices/anna.flac").rename(data / "voices" / os.fsdecode(b"caf\xe9.flac"))
    except OSError:
        pytest.skip("the file system takes Unicode only")
    before = samples_of(gather(sources, tmp_path / "cache"))
    pack(tmp_path / "cache", tmp_path / "parcels", 1 << 20)
    unpack(tmp_path / "parcels", tmp_path / "again", workers=0)
    assert samples_of(gather(Sources(), tmp_path / "again")).keys() == before.keys()


def test_an_entry_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO, audio: np.ndarray) -> None:
        file.write(b"half of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="full"):
        write_entry(tmp_path, "a", np.zeros((1, 9)))
    assert not list(tmp_path.iterdir())


def test_workers_leave_an_interrupt_to_the_program() -> None:
    with make_pool(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_a_full_cache_says_so_and_strangers_make_room(sources: Sources, data: Path, tmp_path: Path) -> None:
    cache, limit = tmp_path / "cache", 5 * 2 * SAMPLES + 1000  # the three files have five channels
    gather(sources, cache, limit_bytes=limit)
    assert Cache(cache).used() <= limit
    (data / "backings/drums.flac").rename(data / "backings/new.flac")
    catalogue = gather(sources, cache, limit_bytes=limit)
    assert {track.source for track in catalogue.backings} == {"backings/new.flac", "backings/more/bass.wav"}
    assert not (cache / "backings__drums.flac.npy").exists() and not catalogue.problems
    save(data / "voices/ben.flac", noise(6, 1))
    catalogue = gather(sources, cache, limit_bytes=limit)
    assert Cache(cache).used() <= limit
    assert {voice.source for voice in catalogue.voices} == {"voices/anna.flac"}
    assert any("the cache is full: 1 files" in problem for problem in catalogue.problems)
    assert "voices/ben.flac: no room in the cache." in catalogue.problems
    (data / "backings/drums.flac").symlink_to(data / "backings/new.flac")  # which the journal still knows
    catalogue = gather(sources, cache, limit_bytes=limit)
    assert "backings/drums.flac: no room in the cache." in catalogue.problems
    assert all(track.path.exists() for track in catalogue.voices + catalogue.backings)


def test_a_cache_serves_without_its_sources(sources: Sources, data: Path, tmp_path: Path) -> None:
    known = gather(sources, tmp_path / "cache")
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere")
    shutil.rmtree(data)
    moved = gather(Sources(), tmp_path / "elsewhere")
    assert [track.source for track in moved.voices + moved.backings] == [
        track.source for track in known.voices + known.backings
    ]
    assert moved.credits == known.credits and (moved.voices[0].crop(0, 100) == known_crop(tmp_path)).all()
    with pytest.raises(InputError, match="never prepared"):
        gather(Sources(), tmp_path / "nothing")


def test_what_is_left_out_is_left_out_of_a_prepared_cache_as_well(
    sources: Sources, data: Path, tmp_path: Path
) -> None:
    save(data / "voices/ben.flac", noise(4, 1))
    save(data / "voices/carl.flac", noise(5, 1))
    gather(sources, tmp_path / "cache")
    store = Cache(tmp_path / "cache")
    for name in ("voices__anna.flac", "voices__ben.flac"):  # with melodies made of them
        path = write_entry(store.folder, melody_name(name), noise(6, 1).numpy())
        store.note(entry_of(Recording(path.stem, "", "melody", ()), path, 1, SAMPLES))
    judged = frozenset({(data / "voices/ben.flac").resolve()})
    for named in (Sources(), sources):
        catalogue = gather(replace(named, held_out=("voices/anna",), judged=judged), tmp_path / "cache")
        assert {voice.source for voice in catalogue.voices} == {"voices/carl.flac"}
        assert catalogue.problems == ("voices/ben.flac: left out, because it is validated on.",)
    with pytest.raises(InputError, match="no usable voice"):
        gather(Sources(held_out=("voices/",)), tmp_path / "cache")


def test_a_copy_of_what_is_judged_is_left_out(sources: Sources, data: Path, tmp_path: Path) -> None:
    """On another machine all paths are others."""
    save(data / "voices/ben.flac", noise(4, 1))
    gather(sources, tmp_path / "cache")
    copy = shutil.copy(data / "voices/ben.flac", tmp_path / "elsewhere.flac")
    for named in (Sources(), sources):
        catalogue = gather(replace(named, judged=frozenset({copy})), tmp_path / "cache")
        assert {voice.source for voice in catalogue.voices} == {"voices/anna.flac"}


def test_melodies_are_owed_to_who_spoke(data: Path, tmp_path: Path) -> None:
    save(data / "vocals/anna.flac", noise(4, 1))
    (data / "manifest.csv").write_text(
        "path,kind,artist,licence\nvocals/anna.flac,speech,Anna,CC BY 4.0\nbackings/drums.flac,instrumental,Bob,CC0\n"
    )
    named = Sources(manifest=data / "manifest.csv")
    gather(named, tmp_path / "cache")
    store = Cache(tmp_path / "cache")
    path = write_entry(store.folder, melody_name("vocals__anna.flac"), noise(6, 1).numpy())
    store.note(entry_of(Recording(path.stem, "", "melody", ()), path, 1, SAMPLES))
    catalogue = gather(named, tmp_path / "cache")
    assert {voice.kind for voice in catalogue.voices} == {"speech", "melody"}
    assert "unknown" not in catalogue.credits and catalogue.credits.count("CC BY 4.0") == 1


def test_stems_with_other_channels_than_the_song_are_told(sources: Sources, data: Path, tmp_path: Path) -> None:
    (data / "songs/six").mkdir(parents=True)
    write(data / "songs/six/mixture.wav", noise(1).repeat(3, 1), 44100)
    write(data / "songs/six/vocals.wav", noise(2), 44100)
    catalogue = gather(replace(sources, pairs=(data / "songs",)), tmp_path / "cache")
    assert any("channels" in problem for problem in catalogue.problems) and catalogue.voices


def test_some_are_drawn_more_often_and_others_less(sources: Sources, data: Path, tmp_path: Path) -> None:
    for name in ("anna", "ben", "carl"):
        save(data / f"voices/{name}.flac", noise(1, 1, 24 * RATE))
    often = (("voices/anna", 3), ("voices/", 2), ("voices/ben", 0.25), ("backings/", 4), ("voices/nobody", 2))
    sections = {"anna": 24, "ben": 2, "carl": 8, "drums": 4, "bass": 4}
    for named in (sources, Sources()):
        catalogue = gather(replace(named, often=often), tmp_path / "cache")
        assert Counter(Path(track.source).stem for track in catalogue.voices + catalogue.backings) == sections
        assert catalogue.problems == ("voices/nobody: no recording begins so, to be drawn more often or less.",)


def known_crop(folder: Path) -> np.ndarray:
    return np.load(folder / "elsewhere/voices__anna.flac.npy")[:, :100].astype(np.float32) / 32767


def test_folders_of_one_name_do_not_share_entries(data: Path, tmp_path: Path) -> None:
    save(data / "again/voices/anna.flac", noise(7, 1))
    sources = Sources(instrumentals=(data / "backings",), vocals=(data / "voices", data / "again/voices"))
    voices = gather(sources, tmp_path / "cache").voices
    assert len({voice.path for voice in voices}) == 2
    assert not np.array_equal(*(np.load(voice.path) for voice in voices))


def test_a_manifest_tells_kinds_flags_and_what_is_held_out(data: Path, tmp_path: Path) -> None:
    save(data / "vocals/wide.flac", noise(8, 2))
    lines = [("vocals/wide.flac", "singing", ""), ("backings/drums.flac", "instrumental", "mono voice-like-lead"),
             ("backings/more/bass.wav", "instrumental", ""), ("gone.flac", "speech", ""),
             ("validation/x/vocals.flac", "validation", "")]  # fmt: skip
    lines += [("voices/anna.flac", "vocals", ""), ("voices/ben.flac",), ("song/mixture.flac", "multitrack", "")]
    with (data / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "kind", "flags"), *lines])
    sources = Sources(manifest=data, held_out=("backings/more",))
    catalogue = gather(sources, tmp_path / "cache")
    assert [(voice.source, voice.kind) for voice in catalogue.voices] == [("vocals/wide.flac", "singing")]
    assert {track.flags for track in catalogue.backings} == {("mono", "voice-like-lead")}
    assert np.load(catalogue.voices[0].path).shape == (1, SAMPLES), "voices are mono"
    told = {problem.split(":")[0].removeprefix(f"{data}/"): problem for problem in catalogue.problems}
    assert told.keys() == {"gone.flac", "voices/anna.flac", "voices/ben.flac", "song/mixture.flac"}
    assert "of kind vocals" in told["voices/anna.flac"] and "of kind nothing" in told["voices/ben.flac"]
    assert "drums" in catalogue.credits and "bass" not in catalogue.credits


def test_missing_folders_and_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        gather(Sources(vocals=(tmp_path / "nowhere",)), tmp_path / "cache")
    with pytest.raises(InputError, match=r"manifest\.csv"):
        gather(Sources(manifest=tmp_path), tmp_path / "cache")


def test_long_tracks_and_hard_ones_have_more_sections(tmp_path: Path) -> None:
    save(tmp_path / "v/a.wav", 0.1 * torch.ones(1, 24 * RATE))
    save(tmp_path / "i/b.wav", noise(1))
    catalogue = gather(Sources(vocals=(tmp_path / "v",), instrumentals=(tmp_path / "i",)), tmp_path / "cache")
    assert [voice.part for voice in catalogue.voices] == [0, 1, 2, 3]
    firsts = [voice.first(start, RATE, 24 * RATE) for voice in catalogue.voices for start in (0.0, 0.999)]
    assert firsts == sorted(firsts) and firsts[0] == 0 and 22.9 * RATE < firsts[-1] < 23 * RATE


PARTS = {"vocals": 1, "drums": 2, "bass": 3}


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """The same song in every arrangement, and files that are no song."""
    root = tmp_path / "songs"
    stems = {name: noise(seed) for name, seed in PARTS.items()}
    mixture, instrumental = sum(stems.values()), stems["drums"] + stems["bass"]
    for name, audio in {**stems, "mixture": mixture}.items():
        save(root / f"train/a musdb song/{name}.wav", audio)
    save(root / "pairs/mixtures/b.wav", mixture)
    save(root / "pairs/instrumentals/b.wav", instrumental)
    save(root / "made/c_(Vocals).wav", stems["vocals"])
    save(root / "made/c_Instrumental.wav", instrumental)
    save(root / "made/d_Vocals.wav", stems["vocals"])
    save(root / "lonely.wav", mixture)
    return root


def test_songs_are_found_in_every_arrangement(songs: Path) -> None:
    found = find_multitracks(songs)
    assert [song.name for song in found] == ["made/c", "pairs/b", "train/a musdb song"]
    expected = {"vocals": noise(1), "instrumental": noise(2) + noise(3), "mixture": noise(1) + noise(2) + noise(3)}
    for song in found:
        for stem, audio in expected.items():
            decoded = torch.cat(list(blocks(getattr(song, stem), RATE)), dim=-1)
            assert_close(decoded, audio, atol=4 / 32767, rtol=0)  # up to three files of 16 bits


def test_pairs_are_voices_backings_and_songs(songs: Path, tmp_path: Path) -> None:
    catalogue = gather(Sources(pairs=(songs,)), tmp_path / "cache")
    assert {voice.source for voice in catalogue.voices} == {
        "songs/made/c/vocals", "songs/pairs/b/vocals", "songs/train/a musdb song/vocals",
    }  # fmt: skip
    assert len(catalogue.songs) == 3
    for vocals, instrumental in catalogue.songs:
        assert Path(vocals.source).parent == Path(instrumental.source).parent
        np.testing.assert_allclose(np.load(vocals.path) / 32767, noise(1).numpy(), atol=4 / 32767)


def test_songs_of_one_name_in_folders_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    folders = tuple(tmp_path / name / "train" for name in "ab")
    for seed, folder in enumerate(folders):
        save(folder / "song/vocals.wav", noise(seed, 2, SAMPLES + seed * RATE))
        save(folder / "song/instrumental.wav", noise(seed + 5, 2, SAMPLES + seed * RATE))
    catalogue = gather(Sources(pairs=folders), tmp_path / "cache")
    assert [(vocals.samples, backing.samples) for vocals, backing in catalogue.songs] == [
        (SAMPLES, SAMPLES), (SAMPLES + RATE, SAMPLES + RATE),
    ]  # fmt: skip
    for seed, song in enumerate(catalogue.songs):
        for track, number in zip(song, (seed, seed + 5), strict=True):
            expected = noise(number, 2, track.samples).numpy()
            np.testing.assert_allclose(np.load(track.path) / 32767, expected, atol=2 / 32767)
    assert gather(Sources(), tmp_path / "cache") == catalogue
    with pytest.raises(InputError, match="no usable voice"):
        gather(Sources(held_out=("train/song/",)), tmp_path / "cache")


def test_the_journal_is_lines_of_json(sources: Sources, tmp_path: Path) -> None:
    gather(sources, tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "cache/journal.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {path.stem for path in times(tmp_path / "cache")}
