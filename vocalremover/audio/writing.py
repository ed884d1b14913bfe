"""Samples to a file: float32 blocks `[channels, samples]` in, wav, flac, mp3, ogg, opus or m4a out.

Levels are never changed. Integer formats saturate beyond full scale; `Writer.peak` tells whether that happened. What
is written appears under its name only when it is whole: until then it is a hidden file `.*.part` beside it.
"""

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import TracebackType
from typing import BinaryIO

import av
import soundfile
import torch
from torch import Tensor

from vocalremover.audio.demands import demand_audio, demand_rate, demand_song
from vocalremover.audio.layouts import LAYOUTS
from vocalremover.audio.outs import OutFile
from vocalremover.audio.resampling import Resampler
from vocalremover.audio.sinks import FFmpegSink, XiphSink
from vocalremover.audio.tags import Tags
from vocalremover.audio.wav import WavSink
from vocalremover.errors import AudioError, UsageError
from vocalremover.threads import Aside

OPUS_RATE = 48000
# Bytes: more than the encoders' small pages, and less than a piece of a wav, which then goes to the disk uncopied.
BUFFER = 1 << 16
FASTEST = 10_000_000  # Hz; what a wav says of a second has to fit into 32 bits
LOUDEST = 1000  # of a sample in a format that loses something, where full scale is 1
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
AAC_RATES = (7350, *MP3_RATES, 64000, 88200, 96000)
# The layouts of Vorbis I, 4.3.9, which opus has too, and what may be called so without moving a loudspeaker.
XIPH_LAYOUTS = {name: name for name in LAYOUTS.values()} | {"5.0(side)": "5.0", "5.1(side)": "5.1"}
# Others come back from FFmpeg's AAC encoder with loudspeakers moved or called otherwise.
AAC_LAYOUTS = XIPH_LAYOUTS | {name: name for name in ("2.1", "3.0(back)", "4.0")}


@dataclass(frozen=True)
class Format:
    """What a file format can hold; `bits` and `bitrate` (bits per second and channel) begin with the default."""

    extension: str
    channels: int
    bits: tuple[str, ...] = ()
    bitrate: int | None = None
    rates: tuple[int, ...] = ()
    layouts: dict[str, str] | None = None


FORMATS = {
    "wav": Format(".wav", 1024, bits=("24", "16", "32f")),
    "flac": Format(".flac", 8, bits=("24", "16")),
    "mp3": Format(".mp3", 2, bitrate=160_000, rates=MP3_RATES),
    "ogg": Format(".ogg", 8, bitrate=112_000, rates=(8000, 200_000), layouts=XIPH_LAYOUTS),
    "opus": Format(".opus", 8, bitrate=96_000, layouts=XIPH_LAYOUTS),
    "m4a": Format(".m4a", 8, bitrate=128_000, rates=AAC_RATES, layouts=AAC_LAYOUTS),
}
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file grew larger than this disk or user may have",
    errno.EACCES: "no permission to write into this folder",
    errno.EPERM: "no permission to write into this folder",
    errno.EROFS: "this disk is read-only",
    errno.ENOENT: "the folder does not exist",
    errno.ENOTDIR: "the folder does not exist",
    errno.ENAMETOOLONG: "the name is too long for this disk",
    errno.EISDIR: "a folder has this name",
}


@dataclass(frozen=True)
class Encoding:
    """How a song is written: a format of FORMATS, its bits ("16", "24", "32f") or its bitrate in bits per second.

    Bits are 24 where nothing is said. Vorbis takes the bitrate as the average to aim at.
    Raises UsageError where the format has no such setting.
    """

    format: str = "wav"
    bits: str | None = None
    bitrate: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"There is no format {self.format!r}; choose one of {', '.join(FORMATS)}.")
        known = FORMATS[self.format]
        if self.bits is None and known.bits:
            object.__setattr__(self, "bits", known.bits[0])
        if self.bits is not None and self.bits not in known.bits:
            having = ", ".join(f"{name}: {' '.join(sorted(of.bits))}" for name, of in FORMATS.items() if of.bits)
            raise UsageError(f"{self.format} has no choice of {self.bits} bits ({having}).")
        if self.bitrate is not None and not known.bitrate:
            raise UsageError(f"{self.format} is lossless and takes no bitrate; choose another format or leave it out.")
        if self.bitrate is not None and not 4000 <= self.bitrate <= 4_000_000:
            raise UsageError(f"A bitrate of {self.bitrate} bits per second is out of range; 192000 is a usual one.")

    @classmethod
    def of(cls, path: str | os.PathLike) -> "Encoding":
        """The default encoding of the format that a name ends with. Raises UsageError where that is none of ours."""
        suffix = Path(path).suffix.lower()
        for name, known in FORMATS.items():
            if suffix == known.extension:
                return cls(name)
        endings = ", ".join(known.extension for known in FORMATS.values())
        raise UsageError(f"{path}: the name tells no format that can be written; let it end with one of {endings}.")


class Writer:
    """Writes a song block by block; used as a context manager.

    Leaving the block normally makes the file durable and gives it its name in one step, replacing what had it. Any
    exception, ^C included, removes what was written. `layout` names the loudspeakers of more than two channels and is
    the usual one ("5.1" for six) where it is not said. `peak` is the largest absolute sample so far.

    Raises UsageError where the format cannot hold this rate or these channels, AudioError where the file cannot be
    written. Opus exists at 48 kHz only: another rate is converted to it, the duration kept.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        rate: int,
        channels: int,
        encoding: Encoding | None = None,
        tags: Tags | None = None,
        layout: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.rate = demand_rate(rate)
        self.channels = channels
        self.encoding = encoding or Encoding()
        self.peak = 0.0
        self._tags = tags or Tags()
        self._layout = self._check(layout)
        self._part: Path | None = None
        convert = self.encoding.format == "opus" and self.rate != OPUS_RATE
        self._resampler = Resampler(self.rate, OPUS_RATE, channels) if convert else None

    def __enter__(self) -> "Writer":
        try:
            if self.path.is_dir():
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            # Refuses a name that is too long before the work is done.
            self.path.exists()
            file = self._create()
        except OSError as error:
            raise self._failure(error) from error
        self._out = OutFile(file)
        try:
            self._start()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, block: Tensor) -> None:
        """Appends `[channels, samples]`. Raises AudioError where the disk does not take it or it is not a number."""
        demand_audio(block)
        if block.shape[0] != self.channels:
            raise ValueError(f"a block of shape {tuple(block.shape)} is not [{self.channels}, samples]")
        if not block.shape[1]:
            return
        block = block.detach().to("cpu", torch.float32).contiguous()
        low, high = block.aminmax()
        peak = max(-float(low), float(high))
        if not peak < float("inf"):
            raise AudioError(f"{self.path}: the samples to be written are not all numbers (NaN or infinite).")
        if FORMATS[self.encoding.format].bitrate and peak > LOUDEST:  # LAME would end the program, and Opus be silent
            raise AudioError(
                f"{self.path}: samples reach {peak:g}, where full scale is 1: {self.encoding.format} cannot hold that."
            )
        self.peak = max(self.peak, peak)
        try:
            self._aside(self._sink.write, (self._resampler.push(block) if self._resampler else block).numpy())
            self._out.check()
        except Exception as error:
            raise self._translated(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abort()
            return
        try:
            self._finish()
            self._out.file.flush()
            os.fsync(self._out.file.fileno())
            self._out.file.close()
            os.replace(self._part, self.path)
        except BaseException as failure:
            self._abort()
            raise self._translated(failure) from failure
        _sync_folder(self.path.parent)

    def _start(self) -> None:
        self._thread = Aside()
        try:
            self._sink = self._aside(self._open)
            self._out.check()
        except BaseException as error:
            self._thread.end()
            raise self._translated(error) from error

    def _aside(self, call: Callable, *arguments: object) -> object:
        """Calls the encoder anywhere but in the main thread: what a signal raises there, its callbacks lose."""
        if current_thread() is not main_thread():
            return call(*arguments)
        return self._thread.begin(call, *arguments)()

    def _finish(self) -> None:
        if self._resampler:
            self._aside(self._sink.write, self._resampler.finish().numpy())
        self._aside(self._sink.finish)
        self._thread.end()
        self._out.check()

    def _check(self, layout: str | None) -> str:
        """The layout to write; raises UsageError where the format cannot hold the song."""
        name, known = self.encoding.format, FORMATS[self.encoding.format]
        if self.channels < 1 or self.rate > FASTEST:
            raise UsageError(f"{self.path}: {self.channels} channels at {self.rate} Hz are no sound.")
        if self.channels > known.channels:
            able = ", ".join(other for other, of in FORMATS.items() if of.channels >= self.channels)
            raise UsageError(
                f"{self.path}: {name} holds at most {known.channels} channels, not {self.channels}; "
                f"choose one of {able or 'the other formats after a down-mix'}."
            )
        between = name == "ogg" and known.rates[0] <= self.rate <= known.rates[1]
        if known.rates and self.rate not in known.rates and not between:
            raise UsageError(f"{self.path}: {name} has no sample rate of {self.rate} Hz; choose wav or flac.")
        layout = layout or LAYOUTS.get(self.channels, f"{self.channels} channels")
        if known.layouts and known.layouts.get(layout) is None:
            raise UsageError(f"{self.path}: {name} has no channel layout {layout}; choose wav or flac.")
        return known.layouts[layout] if known.layouts else layout

    def _create(self) -> BinaryIO:
        while True:
            # Short, whatever the name: the longest name allowed must still be writable.
            part = self.path.parent / f".{secrets.token_hex(8)}.part"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            try:
                descriptor = os.open(part, flags, 0o666)
            except FileExistsError:
                continue
            self._part = part
            return os.fdopen(descriptor, "w+b", buffering=BUFFER)

    def _open(self) -> WavSink | FFmpegSink | XiphSink:
        kind, bits = self.encoding.format, self.encoding.bits
        bitrate = self.encoding.bitrate or (FORMATS[kind].bitrate or 0) * self.channels
        if kind == "wav":
            return WavSink(self._out, self.rate, self.channels, self._layout, bits, self._tags.words())
        if kind in ("ogg", "opus"):
            rate = OPUS_RATE if kind == "opus" else self.rate
            return XiphSink(self._out, kind, rate, self.channels, bitrate, self._tags)
        return FFmpegSink(self._out, kind, self.rate, self._layout, bits, bitrate, self._tags)

    def _abort(self) -> None:
        # The encoders flush when they are closed; that must go nowhere.
        self._out.closed_to_writing = True
        self._thread.end()
        self._sink.abort()
        self._discard()

    def _discard(self) -> None:
        # What the buffer still holds has no place on a full disk, and the file is removed anyhow.
        with suppress(OSError):
            self._out.file.close()
        self._part.unlink(missing_ok=True)

    def _translated(self, error: BaseException) -> BaseException:
        """An error of the system or an encoder as one of ours; ^C and the like as they are."""
        error = self._out.error or error
        if isinstance(error, av.error.FFmpegError | soundfile.SoundFileError | ValueError):
            return AudioError(f"{self.path}: the {self.encoding.format} encoder refused this song: {error}")
        return self._failure(error) if isinstance(error, OSError) else error

    def _failure(self, error: OSError) -> AudioError:
        reason = REASONS.get(error.errno, error.strerror or str(error))
        return AudioError(f"{self.path}: cannot be written, {reason}; nothing was left behind.")


def write(
    path: str | os.PathLike, audio: Tensor, rate: int, encoding: Encoding | None = None, tags: Tags | None = None
) -> None:
    """Writes a whole song `[channels, samples]`, over what had the name; that tells the format without an encoding.

    Raises UsageError and AudioError as Writer does.
    """
    demand_song(audio)
    with Writer(path, rate, audio.shape[0], encoding or Encoding.of(path), tags) as writer:
        for block in audio.split(1 << 16, dim=1):
            writer.write(block)


def _sync_folder(folder: Path) -> None:
    # The rename is durable once the folder is; Windows cannot open one, and needs not.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)
