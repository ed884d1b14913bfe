"""Training audio: a folder with a manifest -> tracks that can be cut anywhere at once.

`manifest.csv` names each file below its folder: `path` and `kind` (instrumental, singing, syllables, speech,
multitrack, validation); further columns are for `credits`. Every track is decoded once into `cache` as 16-bit samples
at 44.1 kHz, so that a crop costs one read of memory-mapped samples. Voices are kept in mono: where a voice stands in
the stereo picture is the mix's to decide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vocalremover.audio import Reader, resample
from vocalremover.errors import AudioError, InputError
from vocalremover.training.credits import read_rows

RATE = 44100
FULL_SCALE = 32767

# How often a voice of each kind is drawn: singing teaches most, and a whole song is long but only one file.
VOICE_WEIGHTS = {"singing": 3, "syllables": 3, "speech": 2, "multitrack": 20}
BACKING_WEIGHTS = {"instrumental": 1, "multitrack": 8}


@dataclass(frozen=True)
class Track:
    """A decoded file. path: its samples in the cache (.npy, int16, `[channels, samples]`); source: in the manifest."""

    path: Path
    source: str
    kind: str

    def crop(self, start: float, samples: int) -> np.ndarray:
        """float32 `[channels, samples]` from `start` (0..1 of what can be chosen); zeros fill up a shorter track."""
        stored = np.load(self.path, mmap_mode="r")
        first = int(start * max(stored.shape[1] - samples, 0))
        taken = stored[:, first : first + samples].astype(np.float32) / FULL_SCALE
        return np.pad(taken, ((0, 0), (0, samples - taken.shape[1])))


@dataclass(frozen=True)
class Catalogue:
    """voices, backings: each track as often as it should be drawn; songs: vocals and instrumental of one song."""

    voices: tuple[Track, ...]
    backings: tuple[Track, ...]
    songs: tuple[tuple[Track, Track], ...]


def prepare(folder: Path, cache: Path, held_out: Sequence[str] = ()) -> Catalogue:
    """Decode what is not decoded yet and list it; paths that begin with one of `held_out` are left out.

    InputError without a manifest. An unreadable file raises AudioError with its name.
    """
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        raise InputError(f"{manifest} is missing: it must list the training files with the columns path and kind.")
    cache.mkdir(parents=True, exist_ok=True)
    tracks = [decode(folder, row["path"], row["kind"], cache) for row in read_rows(manifest, tuple(held_out))]
    vocals = {Path(track.source).parent: track for track in tracks if is_song(track, "vocals")}
    backings = {Path(track.source).parent: track for track in tracks if is_song(track, "instrumental")}
    songs = tuple((vocals[song], backings[song]) for song in vocals if song in backings)
    voices = [track for track in tracks if track.kind in VOICE_WEIGHTS and not is_song(track, "instrumental")]
    instrumentals = [track for track in tracks if track.kind in BACKING_WEIGHTS and not is_song(track, "vocals")]
    return Catalogue(
        voices=tuple(repeat(voices, VOICE_WEIGHTS)), backings=tuple(repeat(instrumentals, BACKING_WEIGHTS)), songs=songs
    )


def is_song(track: Track, stem: str) -> bool:
    """Whether the track is this stem of a whole song."""
    return track.kind == "multitrack" and Path(track.source).stem == stem


def repeat(tracks: Sequence[Track], weights: dict[str, int]) -> Iterator[Track]:
    """Each track as often as its kind weighs."""
    for track in tracks:
        yield from [track] * weights[track.kind]


def decode(folder: Path, source: str, kind: str, cache: Path) -> Track:
    """The track of `folder / source`, decoded to 16 bits at 44.1 kHz unless the cache has it already."""
    target = cache / (source.replace("/", "__") + ".npy")
    if not target.exists():
        with Reader(folder / source) as reader:
            blocks = list(resample(reader.blocks(), reader.rate, RATE))
        if not blocks:
            raise AudioError(f"{folder / source} holds no samples; take its line out of the manifest.")
        audio = torch.cat(blocks, dim=-1)  # [channels, samples]
        if source.startswith("vocals/"):
            audio = audio.mean(dim=0, keepdim=True)
        partial = target.with_suffix(".part")
        with partial.open("wb") as file:
            np.save(file, quantise(audio))
        partial.rename(target)
    return Track(target, source, kind)


def quantise(audio: Tensor) -> np.ndarray:
    """float32 -1..1 -> int16."""
    return (audio.clamp(-1, 1) * FULL_SCALE).round().to(torch.int16).numpy()
