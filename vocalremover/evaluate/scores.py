"""A folder of songs with known stems and a separator (or another tool's stems) -> scores per song and their medians.

Songs are read, separated and measured block by block, by the same `Separator` that a user runs, in memory that does not
depend on how long they are. Every song is also scored with the untouched mixture in place of each stem, the floor, and
with the ideal ratio mask, the ceiling.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from vocalremover.audio import Reader
from vocalremover.chunks import Queue
from vocalremover.errors import AudioError, InputError
from vocalremover.evaluate.metrics import Meter, Scores, ideal_vocals
from vocalremover.evaluate.multitracks import (
    Multitrack,
    Parts,
    audio_files,
    blocks,
    find_multitracks,
    read_manifest,
    role_of,
)
from vocalremover.streams import abreast

STEMS = ("vocals", "instrumental")
KINDS = ("estimate", "floor", "ceiling")
ALIKE = 0.5  # seconds by which the lengths of a song's files may differ without a word
Blocks = Iterator[Tensor]


class Separates(Protocol):
    """The face of `Separator` and `Ensemble`, as far as scoring needs it."""

    def peak(self, blocks: Iterable[Tensor], rate: int) -> float | None:
        """What `stream` wants to know of the whole song first."""

    def stream(self, blocks: Iterable[Tensor], rate: int, peak: float | None) -> Iterator[Mapping[str, Tensor]]:
        """The stems, block by block."""


Estimate = Callable[[Multitrack, int], Iterator[Mapping[str, Tensor]]]
"""(song, rate) -> blocks of what is taken for its vocals and its instrumental."""


@dataclass(frozen=True)
class SongScores:
    """Scores of one song, each by stem. seconds: how long it is."""

    song: str
    seconds: float
    estimate: dict[str, Scores]
    floor: dict[str, Scores]
    ceiling: dict[str, Scores]


def find_songs(folder: Path) -> list[Multitrack]:
    """The songs to measure on: those whose lines in manifest.csv say validation, without one all that have their stems.

    Raises InputError where there is none, and for a manifest that names files elsewhere.
    """
    manifest = folder / "manifest.csv"
    files = None
    if manifest.exists():
        files = [folder / row["path"] for row in read_manifest(manifest) if row["kind"] == "validation"]
        for path in files:
            if not path.is_relative_to(folder):
                raise InputError(f"{manifest} names {path}, which is not below {folder}; write paths from there on.")
    elif not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    songs = find_multitracks(folder, files)
    if not songs:
        kind = "" if files is None else " of kind validation in its manifest.csv"
        raise InputError(
            f"{folder}: no song with its stems was found{kind}; name them as in SONG/mixture.wav and SONG/vocals.wav."
        )
    return songs


def separated(separator: Separates) -> Estimate:
    """What a separator makes of a song's mixture."""

    def estimate(song: Multitrack, rate: int) -> Iterator[Mapping[str, Tensor]]:
        peak = separator.peak(_stereo(blocks(song.mixture, rate)), rate)
        return separator.stream(_stereo(blocks(song.mixture, rate)), rate, peak)

    return estimate


def found(folder: Path, songs: Iterable[Multitrack]) -> Estimate:
    """What another tool left in a folder, arranged as `multitracks` knows, by the songs' names.

    A missing stem is the mixture minus the other one. Raises InputError where one of the songs has neither.
    """
    files: dict[str, dict[str, Path]] = {}
    for path in audio_files(folder):
        name, role = role_of(path, folder)
        if role in STEMS:
            files.setdefault(name, {})[role] = path
    stems = {song.name: _named_like(song, files) for song in songs}
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    for name, mine in stems.items():
        if not mine:
            raise InputError(f"{folder}: holds no stem of {name}; name it {Path(name).name}/vocals.wav.")

    def estimate(song: Multitrack, rate: int) -> Iterator[Mapping[str, Tensor]]:
        parts = {stem: _part(song, stems[song.name], stem) for stem in STEMS}
        yield from _together({stem: blocks(part, rate) for stem, part in parts.items()})

    return estimate


def score(song: Multitrack, estimate: Estimate) -> SongScores:
    """Measure one song at the rate of its first file. Raises AudioError for what cannot be read."""
    rate = _rate(song.mixture)
    meters = {kind: Meter(rate) for kind in KINDS}
    streams = {f"reference {stem}": _stereo(blocks(getattr(song, stem), rate)) for stem in STEMS}
    streams["mixture"] = _stereo(blocks(song.mixture, rate))
    streams |= _columns(estimate(song, rate), {stem: f"estimate {stem}" for stem in STEMS})
    references = _together({stem: _stereo(blocks(getattr(song, stem), rate)) for stem in STEMS}, STEMS)
    streams["ceiling vocals"] = ideal_vocals(torch.stack([parts[stem] for stem in STEMS]) for parts in references)
    samples = 0
    for parts in _together(streams, leading=("reference vocals", "reference instrumental", "mixture")):
        references = {stem: parts[f"reference {stem}"] for stem in STEMS}
        meters["estimate"].add({stem: parts[f"estimate {stem}"] for stem in STEMS}, references)
        meters["floor"].add(dict.fromkeys(STEMS, parts["mixture"]), references)
        vocals = parts["ceiling vocals"]
        meters["ceiling"].add({"vocals": vocals, "instrumental": sum(references.values()) - vocals}, references)
        samples += vocals.shape[-1]
    if not samples:
        raise AudioError(f"{song.name}: its stems hold no samples.")
    return SongScores(song.name, samples / rate, **{kind: meter.scores() for kind, meter in meters.items()})


def unlike(song: Multitrack) -> Iterator[str]:
    """A sentence where the files of a song are not equally long: they are scored as far as the shortest goes."""
    lengths = {}
    for path, _ in dict.fromkeys((*song.mixture, *song.vocals, *song.instrumental)):
        with Reader(path) as reader:
            if reader.samples:
                lengths[path] = reader.samples / reader.rate
    if not lengths:
        return
    short, long = (end(lengths, key=lengths.get) for end in (min, max))
    if lengths[long] - lengths[short] > ALIKE:
        told = f"{short.name} lasts {lengths[short]:.2f} s and {long.name} {lengths[long]:.2f} s"
        yield f"{song.name}: {told}: one of them is of another song, or cut"


def medians(scores: Sequence[SongScores]) -> dict[str, dict[str, dict[str, float]]]:
    """kind -> stem -> measure -> the median over the songs, those without a number left out."""
    return {
        kind: {
            stem: {
                measure: _median(getattr(getattr(song, kind)[stem], measure) for song in scores)
                for measure in ("sdr", "seconds", "si_sdr")
            }
            for stem in STEMS
        }
        for kind in KINDS
    }


def as_record(scores: Sequence[SongScores]) -> dict[str, object]:
    """All of it for JSON, rounded to 0.001 dB; infinite and missing numbers are null."""
    return plain({"songs": [asdict(song) for song in scores], "median": medians(scores)})


def plain(value: object, digits: int = 3) -> object:
    """The same as JSON has it: numbers rounded, infinite and missing ones null."""
    if isinstance(value, Mapping):
        return {key: plain(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, digits) for each in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def _median(numbers: Iterable[float]) -> float:
    known = [number for number in numbers if not math.isnan(number)]
    return median(known) if known else math.nan


def _rate(parts: Parts) -> int:
    with Reader(parts[0][0]) as reader:
        return reader.rate


def _stereo(audio: Iterable[Tensor]) -> Blocks:
    """Mono is heard on both sides."""
    for block in audio:
        yield block.expand(2, -1) if block.shape[0] == 1 else block


def _named_like(song: Multitrack, files: dict[str, dict[str, Path]]) -> dict[str, Path]:
    """The files of the song's whole name, else of its last part, whatever the case."""
    if song.name in files:
        return files[song.name]
    last = Path(song.name).name.lower()
    return next((mine for name, mine in files.items() if Path(name).name.lower() == last), {})


def _part(song: Multitrack, mine: dict[str, Path], stem: str) -> Parts:
    if stem in mine:
        return ((mine[stem], 1),)
    (other,) = mine.values()
    return (*song.mixture, (other, -1))


def _columns(rows: Iterator[Mapping[str, Tensor]], names: dict[str, str]) -> dict[str, Blocks]:
    """Blocks of several stems -> each stem's blocks; what one of them has not asked for yet waits."""
    waiting = {stem: Queue() for stem in names}

    def column(stem: str) -> Blocks:
        while True:
            if not waiting[stem].held and not fill():
                return
            yield from waiting[stem].take(waiting[stem].held)

    def fill() -> bool:
        row = next(rows, None)
        for stem in names if row is not None else ():
            waiting[stem].push(row[stem].cpu())
        return row is not None

    return {names[stem]: _stereo(column(stem)) for stem in names}


def _together(streams: dict[str, Blocks], leading: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
    """Streams of blocks -> rows of equally long blocks, until the first of the leading ones (or of all) has ended.

    Streams that do not lead and end earlier are silent from there on, as museval has it.
    """
    names = list(streams)
    for row in abreast(list(streams.values()), [names.index(name) for name in leading or names]):
        yield dict(zip(names, row, strict=True))
