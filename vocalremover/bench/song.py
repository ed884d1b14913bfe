"""The song that is measured with: somebody's own or a synthesised one, as a file of a chosen length."""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from vocalremover.audio import FORMATS, Encoding, Reader, Writer
from vocalremover.errors import AudioError, UsageError

RATE = 44100
BLOCK = 1 << 16  # samples, as a Reader's
BEAT = 0.5  # seconds


def synthesise(seconds: float) -> Iterator[Tensor]:
    """Blocks `[2, samples]` of a gliding voice over chords and a beat, the same every time."""
    generator = torch.Generator().manual_seed(0)
    samples = round(seconds * RATE)
    for start in range(0, samples, BLOCK):
        time = torch.arange(start, min(start + BLOCK, samples), dtype=torch.float64) / RATE
        phase = 2 * math.pi * (220 * time + 3 * torch.sin(2 * math.pi * 0.7 * time))
        voice = sum(torch.sin(number * phase) / number for number in range(1, 16)) * 0.2
        chords = sum(torch.sin(2 * math.pi * pitch * time) for pitch in (110, 139, 165, 277)) * 0.06
        hits = torch.exp(-20 * (time % BEAT)) * 0.4
        noise = torch.rand(2, len(time), generator=generator, dtype=torch.float64) - 0.5
        yield (voice + torch.stack((chords, chords.roll(7))) + hits * noise).float()


def length(song: Path) -> float | None:
    """The seconds of a song, where its file tells them. Raises AudioError."""
    with Reader(song) as reader:
        return reader.samples / reader.rate if reader.samples else None


def beginning(song: Path | None, seconds: float) -> tuple[int, str, list[Tensor]]:
    """The rate, the layout and the first blocks of a song, or of a synthesised one. Raises AudioError."""
    if song is None:
        return RATE, "stereo", list(synthesise(seconds))
    with Reader(song) as reader:
        blocks = list(_first(reader, math.ceil(seconds * reader.rate)))
        if not any(block.shape[1] for block in blocks):
            raise AudioError(f"{song}: there is no sound to measure with.")
        return reader.rate, reader.layout, blocks


def prepare(song: Path | None, seconds: float, folder: Path) -> Path:
    """The first seconds of a song as a file of its own kind, or else a flac; without a song an mp3.

    Raises AudioError.
    """
    if song is None:
        return _written(folder / "song.mp3", synthesise(seconds), RATE, 2, Encoding("mp3"))
    suffix = song.suffix.lower()
    kind = next((name for name, known in FORMATS.items() if known.extension == suffix), "flac")
    with Reader(song) as reader:
        for name in dict.fromkeys((kind, "flac", "wav")):
            try:
                path = folder / f"song{FORMATS[name].extension}"
                blocks = _first(reader, round(seconds * reader.rate))
                return _written(path, blocks, reader.rate, reader.channels, Encoding(name), reader.layout)
            except UsageError:
                continue  # the format knows no such rate or channels; wav knows all
    raise AudioError(f"{song}: no file can be made of its {reader.channels} channels at {reader.rate} Hz.")


def _first(reader: Reader, samples: int) -> Iterator[Tensor]:
    with closing(reader.blocks()) as blocks:
        for block in blocks:
            yield block[:, :samples]
            samples -= block.shape[1]
            if samples <= 0:
                return


def _written(
    path: Path, blocks: Iterator[Tensor], rate: int, channels: int, encoding: Encoding, layout: str | None = None
) -> Path:
    with Writer(path, rate, channels, encoding, layout=layout) as writer:
        for block in blocks:
            writer.write(block)
    return path
