"""Decoded audio on disk: one `.npy` a recording, int16 `[channels, samples]` at 44.1 kHz, and a journal of all.

`journal.jsonl` gets a line for everything that was decoded or refused; the last line of a name counts, and a line that
was cut off counts for nothing, so that a run that is killed goes on where it was. A line tells the sources' size, time
and sha256, and the entry's size, time and checksum: a source that was replaced and an entry that was damaged are both
noticed and decoded again.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vocalremover import checkpoint
from vocalremover.audio import Reader
from vocalremover.errors import AudioError, VocalRemoverError
from vocalremover.evaluate.multitracks import Parts, blocks

RATE = 44100
FULL_SCALE = 32767
SHORTEST = 1.0  # seconds; what is shorter teaches nothing
SILENCE = 1e-3  # a peak of -60 dBFS
LARGER = 12  # times as large as a compressed file is its audio, as a rule
PIECE = 1 << 24  # bytes read at once where a file is only added up
LONGEST = 200  # bytes of an entry's name: file systems take 255 with what comes before and after it
DIGITS = 16  # of a digest that tells two names apart
MELODY = "melody/"  # before the source of a voice: what was made of it


@dataclass(frozen=True)
class Recording:
    """What an entry is made of. name: the entry's, without `.npy`; parts: files that are added; mono: or not."""

    name: str
    source: str
    kind: str
    parts: Parts
    mono: bool = False
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file as it was when it was decoded. time: in nanoseconds."""

    path: str
    size: int
    time: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A line of the journal. refused: why there is no audio, or empty; size, time, crc32: of the file in the cache."""

    name: str
    sources: tuple[Source, ...]
    refused: str = ""
    channels: int = 0
    samples: int = 0
    size: int = 0
    time: int = 0
    crc32: int = 0


class Cache:
    """A folder of decoded audio that remembers what it was made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = folder / "journal.jsonl"
        self.entries = {entry.name: entry for entry in self._lines()}

    def path(self, name: str) -> Path:
        """Where the audio of an entry lies."""
        return self.folder / f"{name}.npy"

    def used(self) -> int:
        """Bytes of audio in the folder."""
        return sum(path.stat().st_size for path in self.folder.glob("*.npy"))

    def find(self, recording: Recording, verify: bool = False) -> Entry | None:
        """The entry of a recording if it can be relied on; None where it has to be decoded.

        Sources of equal size and time are taken for unchanged, others are compared by content. Entries likewise are
        taken by size and time, with `verify` by checksum. An entry that the journal does not know, but which is as long
        as its source, is adopted.
        """
        entry = self.entries.get(recording.name)
        if entry is None:
            return self._adopted(recording)
        sources = _unchanged(entry, recording)
        if sources is None:
            return None
        audio = _stat(self.path(entry.name))
        if not entry.refused and (verify or audio != (entry.size, entry.time)) and not self._is_whole(entry, audio):
            return None
        current = Entry(**vars(entry) | {"sources": sources, "time": audio[1] if audio else 0})
        if current != entry:
            self.note(current)
        return current

    def note(self, entry: Entry) -> None:
        """Remember an entry, now and on disk."""
        self.entries[entry.name] = entry
        with self._journal.open("a+b") as file:
            held = file.seek(0, os.SEEK_END)
            file.seek(max(held - 1, 0))
            ended = file.read(1) in (b"", b"\n")  # else the last line was cut off
            file.write((b"" if ended else b"\n") + json.dumps(asdict(entry)).encode() + b"\n")

    def evict(self, keep: Iterable[str]) -> int:
        """Delete the audio of everything but `keep`; returns the bytes that were freed."""
        wanted = {self.path(name) for name in keep}
        strangers = [path for path in self.folder.glob("*.npy") if path not in wanted]
        freed = sum(path.stat().st_size for path in strangers)
        for path in strangers:
            path.unlink()
            self.entries.pop(path.stem, None)
        return freed

    def _adopted(self, recording: Recording) -> Entry | None:
        path = self.path(recording.name)
        if not path.exists() or len(recording.parts) != 1:
            return None
        try:
            audio = np.load(path, mmap_mode="r")
            with Reader(recording.parts[0][0]) as reader:
                expected = reader.samples and round(reader.samples * RATE / reader.rate)
        except (AudioError, ValueError, OSError):
            return None
        as_ours = audio.ndim == 2 and audio.dtype == np.int16
        if not as_ours or expected is None or abs(audio.shape[1] - expected) > RATE // 100:
            return None
        entry = entry_of(recording, path, *audio.shape)
        self.note(entry)
        return entry

    def _is_whole(self, entry: Entry, audio: tuple[int, int] | None) -> bool:
        return audio is not None and audio[0] == entry.size and checksum(self.path(entry.name)) == entry.crc32

    def _lines(self) -> Iterable[Entry]:
        if not self._journal.exists():
            return
        for line in self._journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                yield Entry(**values | {"sources": tuple(Source(**source) for source in values["sources"])})
            except (ValueError, TypeError, KeyError):
                continue  # cut off by a full disk or a kill: as if it had not been written


def entry_name(source: str) -> str:
    """The entry of a source: its path in one word, of which a digest stands for the end where it is too long."""
    name = source.replace("/", "__")
    held = os.fsencode(name)
    if len(held) <= LONGEST:
        return name
    return held[: LONGEST - DIGITS].decode(errors="ignore") + digest(name)


def digest(text: str) -> str:
    """Hexadecimal digits that stand for a text, which may be a path that is not Unicode."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGITS]


def melody_name(name: str) -> str:
    """The entry of what `melody.add_melodies` makes of another entry."""
    return f"melody__{name}"


def decode(recording: Recording, folder: Path) -> Entry:
    """Decode a recording into the folder; what cannot be used gives an entry that says why."""
    try:
        audio = torch.cat(list(mixed_down(recording)) or [torch.zeros(1, 0)], dim=-1)
    except VocalRemoverError as error:
        return entry_of(recording, refused=str(error))
    seconds, peak = audio.shape[1] / RATE, audio.abs().max().item() if audio.numel() else 0.0
    if seconds < SHORTEST:
        return entry_of(recording, refused=f"{recording.source}: too short, {seconds:.2f} s.")
    if peak < SILENCE:
        return entry_of(recording, refused=f"{recording.source}: silent.")
    return entry_of(recording, write_entry(folder, recording.name, audio.numpy()), *audio.shape)


def write_entry(folder: Path, name: str, audio: np.ndarray) -> Path:
    """Save float `[channels, samples]` -1..1 as an entry's file, whole or not at all."""
    path = folder / f"{name}.npy"
    partial = folder / f"{name}.part"
    try:
        with partial.open("wb") as file:
            np.save(file, quantise(audio))
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def entry_of(
    recording: Recording, path: Path | None = None, channels: int = 0, samples: int = 0, refused: str = ""
) -> Entry:
    """The line of the journal for audio that lies at `path`, or for a refusal."""
    sources = tuple(_source(part) for part, _ in recording.parts)
    if path is None:
        return Entry(recording.name, sources, refused)
    size, time = _stat(path) or (0, 0)
    return Entry(recording.name, sources, "", channels, samples, size, time, checksum(path))


def expected_bytes(recording: Recording) -> int:
    """What a recording will take in the cache: a guess by its size where its files do not tell how long they are."""
    try:
        readers = [Reader(path) for path, _ in recording.parts]
    except VocalRemoverError:
        return 0
    channels = 1 if recording.mono else max(reader.channels for reader in readers)
    told = [round(reader.samples * RATE / reader.rate) for reader in readers if reader.samples is not None]
    if told:
        return 2 * channels * min(told)
    return LARGER * min(path.stat().st_size for path, _ in recording.parts)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            value = zlib.crc32(piece, value)
    return value


def quantise(audio: np.ndarray) -> np.ndarray:
    """float32 -1..1 -> int16."""
    return np.round(np.clip(audio, -1, 1) * FULL_SCALE).astype(np.int16)


def mixed_down(recording: Recording) -> Iterable[Tensor]:
    """Blocks of one channel where that is all there is or all that is asked for, of two otherwise."""
    for block in blocks(recording.parts, RATE):
        if recording.mono:
            yield block.mean(dim=0, keepdim=True)
        else:
            yield block if block.shape[0] <= 2 else block[:2]


def _source(path: Path) -> Source:
    """A file as it is; one that is missing or cannot be read is as if it were nothing."""
    found = _stat(path)
    with suppress(OSError):
        if found:
            return Source(str(path), *found, checkpoint.sha256(path))
    return Source(str(path), 0, 0, "")


def _unchanged(entry: Entry, recording: Recording) -> tuple[Source, ...] | None:
    """The entry's sources as they are named today, None if one of them is another file than it was."""
    if len(entry.sources) != len(recording.parts):
        return None
    sources = []
    for known, (path, _) in zip(entry.sources, recording.parts, strict=True):
        current = known
        if _stat(path) != (known.size, known.time):
            current = _source(path)
            if current.sha256 != known.sha256:
                return None
        sources.append(Source(str(path), current.size, current.time, current.sha256))
    return tuple(sources)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
