"""What can be drawn for training: tracks that are sections of recordings, sorted into voices, backings and songs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from vocalremover.dataset.cache import FULL_SCALE, RATE, Cache, Recording

# A recording is drawn once an epoch for every so many seconds: singing teaches most, so its sections are the shortest.
VOICE_SECONDS = {"singing": 6, "melody": 12, "syllables": 15, "speech": 15, "multitrack": 15}
BACKING_SECONDS = {"instrumental": 30, "multitrack": 30}
KINDS = tuple(VOICE_SECONDS | BACKING_SECONDS)  # of recordings
STEMS = ("vocals", "instrumental")  # of songs, by the names of their files
HARD = "voice-like-lead"  # the flag of instrumentals that are taken for voices; drawn HARD_SHARE times as often
HARD_SHARE = 2


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

    def crop(self, first: int, samples: int) -> np.ndarray:
        """float32 `[channels, samples]` from a sample on, which may lie before the track; zeros beyond its ends."""
        stored = np.load(self.path, mmap_mode="r")[:, : self.samples]
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


def arrange(
    recordings: Sequence[Recording], store: Cache, problems: tuple[str, ...], often: tuple[tuple[str, float], ...]
) -> Catalogue:  # fmt: skip
    """Sort recordings into voices, backings and songs, cut into sections; `often` as in Sources."""
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
        tuple(section for track in voices for section in sections(track, VOICE_SECONDS, often)),
        tuple(section for track in backings for section in sections(track, BACKING_SECONDS, often)),
        tuple(songs), problems + tuple(_unmatched(often, tracks)),
    )  # fmt: skip


def sections(track: Track, seconds: dict[str, int], often: tuple[tuple[str, float], ...]) -> Iterator[Track]:
    """The track in as many sections as it should be drawn in an epoch, at least one."""
    share = HARD_SHARE if HARD in track.flags else 1
    times = prod(times for beginning, times in often if track.source.startswith(beginning))
    parts = max(1, round(times * max(1, round(share * track.samples / RATE / seconds[track.kind]))))
    for part in range(parts):
        yield replace(track, part=part, parts=parts)


def _unmatched(often: tuple[tuple[str, float], ...], tracks: Sequence[Track]) -> Iterator[str]:
    for beginning, _ in often:
        if not any(track.source.startswith(beginning) for track in tracks):
            yield f"{beginning}: no recording begins so, to be drawn more often or less."


def _is_stem(track: Track, stem: str) -> bool:
    """Whether the track is this stem of a whole song."""
    return track.kind == "multitrack" and Path(track.source).stem == stem
