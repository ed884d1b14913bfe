"""A song's file to samples: path in, float32 blocks `[channels, samples]`, rate, layout and tags out.

What the file is, is told from its content, never from its name. Mono and stereo of wav, flac, ogg and aiff are
decoded by libsndfile, everything else by FFmpeg. The delay and padding that lossy encoders add are taken off, as far
as the file tells them, so that what comes back has the length and position of what was encoded. Opus is always
48 kHz. The one thing repaired is a sample that is not a number.
"""

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import soundfile
import torch
from torch import Tensor

from vocalremover.audio import tags
from vocalremover.audio.ogg import is_chained, is_ended
from vocalremover.audio.sources import FFmpegSource, SndfileSource, is_for_sndfile, open_bytes
from vocalremover.audio.tags import Tags
from vocalremover.errors import AudioError


class Reader:
    """Decodes a song block by block, in memory that does not depend on how long it is.

    `rate` is in Hz; `samples` is the length per channel, where the file tells it exactly, else None; `layout` names
    the loudspeakers in order ("mono", "stereo", "5.1", ...). `warnings` grows while blocks are read.
    Raises AudioError where there is nothing that could be decoded.
    """

    def __init__(self, path: str | os.PathLike, block: int = 1 << 16) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self._block = block
        self._running: list[Generator[Tensor, None, None]] = []
        check(self.path)
        self._source = _open(self.path)
        self.rate: int = self._source.rate
        self.channels: int = self._source.channels
        self.samples: int | None = self._source.samples
        self.layout: str = self._source.layout

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            self._running.pop().close()

    @cached_property
    def tags(self) -> Tags:
        """What the file says about its song; empty where FFmpeg cannot read it."""
        try:
            with open_bytes(self.path) as file, av.open(file, metadata_errors="surrogateescape") as container:
                return tags.from_container(container)
        except (OSError, ValueError, av.error.FFmpegError):
            return Tags()

    def blocks(self) -> Iterator[Tensor]:
        """Yields `[channels, n]` float32, `n` at most the block size; every call starts at the beginning again.

        Damage and a missing end are told in `warnings` once all has been read. Raises AudioError where a song with
        sound in it yields not one sample.
        """
        self._running.append(self._blocks())
        return self._running[-1]

    def _blocks(self) -> Generator[Tensor, None, None]:
        decoded = repaired = 0
        for samples in self._decoded():
            # The sum costs little and is finite for all sound, save of samples near the largest float.
            with np.errstate(over="ignore", invalid="ignore"):
                total = samples.sum()
            if not np.isfinite(total):
                bad = ~np.isfinite(samples)
                repaired += int(bad.sum())
                samples = np.where(bad, np.float32(0), samples)
            decoded += samples.shape[1]
            yield torch.from_numpy(np.ascontiguousarray(samples))
        if not decoded and (self._source.expected or self._source.problems):
            raise AudioError(f"{self.path}: nothing in this file could be decoded; it is damaged or cut short.")
        self._report(decoded, repaired)

    def _decoded(self) -> Iterator[np.ndarray]:
        decoded = 0
        try:
            for samples in self._source.blocks(self._block):
                decoded += samples.shape[1]
                if samples.shape[1]:
                    yield samples
            damaged = self._source.problems or decoded < self._source.expected
            if damaged and isinstance(self._source, SndfileSource):
                yield from self._rescued(decoded)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise AudioError(f"{self.path}: reading broke off: {getattr(error, 'strerror', error)}.") from error

    def _rescued(self, decoded: int) -> Iterator[np.ndarray]:
        # libsndfile drops the whole block in which damage lies, FFmpeg only the damaged frame.
        try:
            source = FFmpegSource(self.path)
        except (OSError, ValueError, LookupError, av.error.FFmpegError):
            return
        if (source.rate, source.channels) != (self.rate, self.channels):
            return
        skip = decoded
        for samples in source.blocks(self._block):
            fresh = samples[:, min(skip, samples.shape[1]) :]
            skip -= samples.shape[1] - fresh.shape[1]
            if fresh.shape[1]:
                yield fresh
        self._source.problems = source.problems

    def _report(self, decoded: int, repaired: int) -> None:
        found = []
        if repaired:
            found.append(f"{repaired} samples that were not numbers (NaN or infinite) were set to 0")
        missing = self._source.expected - decoded
        if missing > self._source.tolerance:
            seconds = [count / self.rate for count in (decoded, self._source.expected, missing)]
            found.append("truncated: decoded {:.1f} s of {:.1f} s, {:.1f} s are missing".format(*seconds))
        elif not self._is_ended():
            found.append("truncated: the end of the stream is missing")
        elif self._source.problems:
            found.append(f"damaged: {len(self._source.problems)} times a piece of the file could not be decoded")
        self.warnings.extend(warning for warning in found if warning not in self.warnings)

    def _is_ended(self) -> bool:
        return is_ended(self.path)


def read(path: str | os.PathLike) -> tuple[Tensor, int]:
    """Reads a whole song: `[channels, samples]` float32 and its rate in Hz. Raises AudioError."""
    with Reader(path) as reader:
        blocks = list(reader.blocks())
        return torch.cat([torch.zeros(reader.channels, 0), *blocks], dim=1), reader.rate


def check(path: Path) -> None:
    """Raises AudioError for what is no file, is empty or cannot be opened."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path}: this is a folder, not a file.")
        if not stat.S_ISREG(mode):  # opening a pipe waits until somebody writes into it, and it can be read only once
            raise AudioError(f"{path}: this is a pipe or a device, not a file; read it as standard input: - < {path}.")
        with open_bytes(path) as file:
            if not file.read(1):
                raise AudioError(f"{path}: the file is empty.")
    except FileNotFoundError as error:
        raise AudioError(f"{path}: there is no such file.") from error
    except PermissionError as error:
        raise AudioError(f"{path}: no permission to read this file.") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}.") from error


def _open(path: Path) -> SndfileSource | FFmpegSource:
    plain = None
    if is_for_sndfile(path):
        # What libsndfile cannot open, FFmpeg may.
        with suppress(soundfile.SoundFileError):
            plain = SndfileSource(path)
    # FFmpeg decodes Opus at its own 48 kHz, names the loudspeakers, brings Vorbis' channels into the usual order and
    # reads a chain of songs, an mp3 inside a wav and a wav without a size to their end.
    exact = plain and plain.subtype not in ("OPUS", "MPEG_LAYER_III") and not plain.unfinished
    if exact and plain.channels <= 2 and not is_chained(path):
        return plain
    try:
        source = FFmpegSource(path)
    except (OSError, ValueError, LookupError, av.error.FFmpegError) as error:
        if plain:
            return plain
        # FFmpeg's own words are for programmers.
        ours = type(error) in (ValueError, LookupError)
        reason = error.args[0] if ours else "it is not audio, or its beginning or index is missing"
        raise AudioError(f"{path}: cannot be decoded: {reason}.") from error
    if plain:
        source.expected = max(source.expected, plain.promised)
    return source
