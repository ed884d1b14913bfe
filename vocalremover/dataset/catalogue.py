"""Training audio: folders, or a folder with a manifest -> tracks that can be cut anywhere at once.

Every recording is decoded once into a cache of 16-bit samples, so that a crop costs one read of memory-mapped samples.
Voices of a manifest are kept in mono: where a voice stands in the stereo picture is the mix's to decide. What cannot be
used (missing, unreadable, silent, too short, beyond the cache's limit) is listed and left out.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vocalremover.dataset.cache import (
    FULL_SCALE,
    RATE,
    Cache,
    Entry,
    Recording,
    decode,
    digest,
    entry_name,
    expected_bytes,
    melody_name,
)
from vocalremover.dataset.credits import credit, read_rows
from vocalremover.dataset.pool import make_pool
from vocalremover.errors import InputError
from vocalremover.evaluate.multitracks import audio_files, find_multitracks

# A recording is drawn once an epoch for every so many seconds: singing teaches most, so its sections are the shortest.
VOICE_SECONDS = {"singing": 6, "melody": 12, "syllables": 15, "speech": 15, "multitrack": 15}
BACKING_SECONDS = {"instrumental": 30, "multitrack": 30}
HARD = "voice-like-lead"  # the flag of instrumentals that are taken for voices; drawn HARD_SHARE times as often
HARD_SHARE = 2

Progress = Callable[[Iterable[Entry], int], Iterable[Entry]]


@dataclass(frozen=True)
class Sources:
    """Where training audio lies: folders of any formats, folders of songs with their stems, a manifest.csv.

    held_out: beginnings of paths, as the manifest names them (or `folder/path` for folders), that are left out.
    judged: files of the songs to validate on, resolved; recordings made of them are left out as well.
    melodies: whether voices are joined by what `melody.add_melodies` made of them.
    Without any source, what the cache was last prepared for is taken, but for what is left out.
    """

    instrumentals: tuple[Path, ...] = ()
    vocals: tuple[Path, ...] = ()
    pairs: tuple[Path, ...] = ()
    manifest: Path | None = None
    held_out: tuple[str, ...] = ()
    melodies: bool = True
    judged: frozenset[Path] = frozenset()

    @property
    def given(self) -> bool:
        """Whether anything is named."""
        return bool(self.instrumentals or self.vocals or self.pairs or self.manifest)


EVERYTHING = Sources()


@dataclass(frozen=True)
class Track:
    """One of `parts` sections of a decoded recording.

    path: its samples in the cache (.npy, int16, `[channels, samples]`); source: where they come from; kind: singing,
    melody, syllables, speech, instrumental or multitrack; flags: what the manifest remarks; samples: how many of them
    count, all by default.
    """

    path: Path
    source: str
    kind: str
    flags: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1
    samples: int | None = None

    def first(self, start: float, samples: int, total: int) -> int:
        """Where a crop begins: `start` is 0..1 of the section's share of all places, negative in a track too short."""
        return int((self.part + start) / self.parts * (total - samples))

    def crop(self, start: float, samples: int) -> np.ndarray:
        """float32 `[channels, samples]`; a track that is shorter lies somewhere in zeros."""
        stored = np.load(self.path, mmap_mode="r")
        stored = stored[:, : self.samples]
        first = self.first(start, samples, stored.shape[1])
        taken = stored[:, max(first, 0) : max(first, 0) + samples].astype(np.float32) / FULL_SCALE
        before = max(-first, 0)
        return np.pad(taken, ((0, 0), (before, samples - before - taken.shape[1])))


@dataclass(frozen=True)
class Catalogue:
    """What can be drawn: sections of voices and backings, and songs as (vocals, instrumental).

    problems: a sentence for every file that was left out; credits: whom the audio is owed to, as a Markdown page.
    """

    voices: tuple[Track, ...]
    backings: tuple[Track, ...]
    songs: tuple[tuple[Track, Track], ...]
    problems: tuple[str, ...] = ()
    credits: str = ""

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The files of all tracks, each once."""
        tracks = (*self.voices, *self.backings, *(track for song in self.songs for track in song))
        return tuple(dict.fromkeys(track.path for track in tracks))

    @cached_property
    def partners(self) -> dict[Path, Track]:
        """The instrumental of every song by the path of its vocals."""
        return {vocals.path: instrumental for vocals, instrumental in self.songs}

    @cached_property
    def singers(self) -> tuple[Track, ...]:
        """The sections of the songs' vocals."""
        return tuple(track for track in self.voices if track.path in self.partners)


def prepare(
    sources: Sources, cache: Path, limit_bytes: int | None = None, verify: bool = False, workers: int = 1,
    progress: Progress | None = None,
) -> Catalogue:  # fmt: skip
    """Decode what is not decoded yet and list it.

    limit_bytes: what the cache may take on disk; audio that no source names any more makes room first. verify: compare
    the checksums of all that is there. workers: processes that decode; 0 decodes in this one. progress: a wrapper of
    the entries that are being decoded, given their number. Raises InputError where no voice or no backing is found.
    """
    store = Cache(cache)
    if not sources.given:
        return _drawable(load(cache, sources))
    recordings, problems = list_recordings(sources)
    missing = [recording for recording in recordings if store.find(recording, verify) is None]
    chosen = list(_fitting(missing, recordings, store, limit_bytes, problems))
    entries = _decoded(chosen, cache, workers)
    for entry in progress(entries, len(chosen)) if progress else entries:
        store.note(entry)
    usable = [recording for recording in recordings if _is_usable(recording, store, problems)]
    usable.extend(_melodies(usable, store) if sources.melodies else ())
    catalogue = arrange(usable, store, tuple(problems))
    page = credit(_rows(usable, sources))
    _save(cache / "catalogue.json", usable, problems, page)
    return _drawable(replace(catalogue, credits=page))


def load(cache: Path, leaving: Sources = EVERYTHING) -> Catalogue:
    """The catalogue that the cache was last prepared for, without a look at the sources. Raises InputError.

    leaving: whose `held_out` and `judged` are left out, as are the melodies made of them.
    """
    saved, recordings = read_catalogue(cache), saved_recordings(cache)
    store, problems = Cache(cache), list(saved["problems"])
    recordings.extend(melody for melody in _melodies(recordings, store) if melody not in recordings)
    out = set()
    for recording in recordings:
        entry = store.entries.get(recording.name)
        files = (Path(source.path) for source in entry.sources) if entry else ()
        if _is_left(recording, files, leaving, problems):
            out |= {recording.name, melody_name(recording.name)}
    left = [recording for recording in recordings if recording.name not in out]
    gone = [recording for recording in left if not store.path(recording.name).exists()]
    problems.extend(f"{recording.source}: gone from the cache." for recording in gone)
    usable = [recording for recording in left if recording not in gone]
    return replace(arrange(usable, store, tuple(problems)), credits=saved["credits"])


def _drawable(catalogue: Catalogue) -> Catalogue:
    """The same; InputError where it has no voice or no backing."""
    if not (catalogue.voices and catalogue.backings):
        lacking = "backing" if catalogue.voices else "voice"
        raise InputError("; ".join([f"there is no usable {lacking} in the training audio", *catalogue.problems[:3]]))
    return catalogue


def saved_recordings(cache: Path) -> list[Recording]:
    """What the cache was last prepared for, without the files it was made of. Raises InputError."""
    lines = read_catalogue(cache)["recordings"]
    return [Recording(**line | {"parts": (), "flags": tuple(line["flags"])}) for line in lines]


def arrange(recordings: Sequence[Recording], store: Cache, problems: tuple[str, ...] = ()) -> Catalogue:
    """Sort recordings into voices, backings and songs, cut into sections."""
    lengths: dict[Path, int] = {}  # of songs: their stems are cut alike, so they have to be equally long
    for recording in recordings:
        if recording.kind == "multitrack":
            song, samples = Path(recording.source).parent, store.entries[recording.name].samples
            lengths[song] = min(samples, lengths.get(song, samples))
    tracks = []
    for r in recordings:
        samples = lengths.get(Path(r.source).parent, store.entries[r.name].samples)
        tracks.append(Track(store.path(r.name), r.source, r.kind, r.flags, samples=samples))
    voices = [track for track in tracks if track.kind in VOICE_SECONDS and not _is_stem(track, "instrumental")]
    backings = [track for track in tracks if track.kind in BACKING_SECONDS and not _is_stem(track, "vocals")]
    partners = {Path(track.source).parent: track for track in backings if _is_stem(track, "instrumental")}
    singers = [track for track in voices if _is_stem(track, "vocals")]
    songs = [(track, partners[Path(track.source).parent]) for track in singers if Path(track.source).parent in partners]
    return Catalogue(
        tuple(section for track in voices for section in sections(track, VOICE_SECONDS)),
        tuple(section for track in backings for section in sections(track, BACKING_SECONDS)),
        tuple(songs), problems,
    )  # fmt: skip


def sections(track: Track, seconds: dict[str, int]) -> Iterator[Track]:
    """The track in as many sections as it should be drawn in an epoch, at least one."""
    share = HARD_SHARE if HARD in track.flags else 1
    parts = max(1, round(share * track.samples / RATE / seconds[track.kind]))
    for part in range(parts):
        yield replace(track, part=part, parts=parts)


def list_recordings(sources: Sources) -> tuple[list[Recording], list[str]]:
    """What the sources name, and sentences about what they name in vain."""
    recordings: dict[str, Recording] = {}
    problems: list[str] = []
    for recording in _listed(sources, problems):
        if _is_left(recording, (path for path, _ in recording.parts), sources, problems):
            continue
        if recording.name in recordings:
            # The full path tells two files apart whose folders have the same name.
            recording = replace(recording, name=entry_name(recording.parts[0][0].absolute().as_posix()).strip("_"))
        recordings[recording.name] = recording
    return list(recordings.values()), problems


def _is_left(recording: Recording, files: Iterable[Path], sources: Sources, problems: list[str]) -> bool:
    """Whether a recording made of these files is left out; a sentence where nobody has asked for that by its name."""
    if recording.source.startswith(sources.held_out):
        return True
    judged = bool(sources.judged) and any(path.resolve() in sources.judged for path in files)
    if judged:
        problems.append(f"{recording.source}: left out, because it is validated on.")
    return judged


def _listed(sources: Sources, problems: list[str]) -> Iterator[Recording]:
    if sources.manifest:
        yield from _from_manifest(sources.manifest, sources.held_out)
    for folders, kind in ((sources.vocals, "singing"), (sources.instrumentals, "instrumental")):
        for folder in folders:
            files = _present(folder, problems)
            for path in files:
                yield _recording(f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}", kind, path)
    taken: set[str] = set()
    for folder in sources.pairs:
        songs = find_multitracks(folder, _present(folder, problems))
        if not songs:
            problems.append(f"{folder}: holds no song with its stems.")
        for song in songs:
            place = f"{folder.resolve().name}/{song.name}"
            if place in taken:  # by a folder of the same name; what holds out one song holds out the other
                place = f"{place}/{digest(str(folder.resolve()))}"
            taken.add(place)
            for stem, parts in (("vocals", song.vocals), ("instrumental", song.instrumental)):
                yield Recording(entry_name(f"{place}/{stem}"), f"{place}/{stem}", "multitrack", parts)


def _from_manifest(manifest: Path, held_out: tuple[str, ...]) -> Iterator[Recording]:
    path = manifest / "manifest.csv" if manifest.is_dir() else manifest
    if not path.exists():
        raise InputError(f"{path} is missing: it must list the training files with the columns path and kind.")
    for row in read_rows(path, held_out):
        mono = row["path"].startswith("vocals/")
        yield _recording(row["path"], row["kind"], path.parent / row["path"], mono, tuple(row.get("flags", "").split()))


def _recording(source: str, kind: str, path: Path, mono: bool = False, flags: tuple[str, ...] = ()) -> Recording:
    return Recording(entry_name(source), source, kind, ((path, 1),), mono, flags)


def _present(folder: Path, problems: list[str]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    files = audio_files(folder)
    if not files:
        problems.append(f"{folder}: holds no audio.")
    return files


def _fitting(
    missing: list[Recording], wanted: list[Recording], store: Cache, limit: int | None, problems: list[str]
) -> Iterator[Recording]:
    """Those that the cache has room for; a sentence for the others."""
    if limit is None:
        yield from missing
        return
    used, out = store.used(), []
    for recording in missing:
        size = expected_bytes(recording) or 0
        if used + size > limit:
            used -= store.evict(name for each in wanted for name in (each.name, melody_name(each.name)))
        if used + size > limit:
            out.append((recording, size))
            continue
        used += size
        yield recording
    if out:
        more = sum(size for _, size in out) / 1e9
        problems.append(f"the cache is full: {len(out)} files need {more:.2f} GB more than its {limit / 1e9:.2f} GB.")
        problems.extend(f"{recording.source}: no room in the cache." for recording, _ in out)


def _decoded(recordings: list[Recording], folder: Path, workers: int) -> Iterator[Entry]:
    if workers == 0 or len(recordings) < 2:
        yield from (decode(recording, folder) for recording in recordings)
        return
    with make_pool(workers) as pool:
        yield from pool.map(decode, recordings, [folder] * len(recordings))


def _is_usable(recording: Recording, store: Cache, problems: list[str]) -> bool:
    entry = store.entries.get(recording.name)
    if entry is not None and entry.refused:
        problems.append(entry.refused)
    return entry is not None and not entry.refused


def _melodies(recordings: Iterable[Recording], store: Cache) -> Iterator[Recording]:
    """What was made of these voices: the same people, so what holds one out holds out the other."""
    for recording in recordings:
        entry = store.entries.get(melody_name(recording.name))
        if entry and not entry.refused and store.path(entry.name).exists():
            yield Recording(entry.name, f"melody/{recording.source}", "melody", (), True)


def read_catalogue(cache: Path) -> dict:
    """What `prepare` wrote of a cache: recordings, problems and credits. Raises InputError."""
    path = cache / "catalogue.json"
    if not path.exists():
        raise InputError(f"{cache} was never prepared: name the training audio once.")
    return json.loads(path.read_text(encoding="utf-8"))


def _is_stem(track: Track, stem: str) -> bool:
    """Whether the track is this stem of a whole song."""
    return track.kind == "multitrack" and Path(track.source).stem == stem


def _rows(recordings: Iterable[Recording], sources: Sources) -> list[dict[str, str]]:
    """The manifest's lines of what is used; files of plain folders have no more than their path."""
    known = {}
    if sources.manifest:
        path = sources.manifest / "manifest.csv" if sources.manifest.is_dir() else sources.manifest
        known = {row["path"]: row for row in read_rows(path, sources.held_out)}
    plain = ({"path": r.source, "kind": r.kind, "source": r.source.split("/")[0]} for r in recordings)
    return [known.get(row["path"], row) for row in plain]


def _save(path: Path, recordings: Iterable[Recording], problems: list[str], page: str) -> None:
    lines = [{key: value for key, value in asdict(r).items() if key != "parts"} for r in recordings]
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"recordings": lines, "problems": problems, "credits": page}), encoding="utf-8")
    partial.replace(path)
