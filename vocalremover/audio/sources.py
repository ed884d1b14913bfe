"""The two decoders behind `Reader`: libsndfile (soundfile) and FFmpeg (PyAV), both telling the kind by content.

Each is opened from a path and then yields `[channels, samples]` float32 arrays of full scale 1. Paths are opened by
the operating system and handed on as file descriptors, so a name may hold anything the system allows.
"""

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile
from av.audio import AudioStream
from av.audio.codeccontext import AudioCodecContext
from av.container import InputContainer

from vocalremover.audio.headers import mp3_told, mp4_ticks, tags_size
from vocalremover.audio.layouts import LAYOUTS, is_custom, layout_name
from vocalremover.audio.ogg import is_chained

# wav, RF64, W64, flac, ogg, aiff, caf, au.
SNDFILE_BEGINNINGS = {b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b"caff", b".snd"}
# FFmpeg's sample formats: their type and the value that is full scale; unsigned 8 bit is moved to the middle first.
SAMPLES = {
    "u8": (np.uint8, 2.0**7), "s16": (np.int16, 2.0**15), "s32": (np.int32, 2.0**31), "flt": (np.float32, 1.0),
    "dbl": (np.float64, 1.0),
}  # fmt: skip
# Containers whose header gives the number of samples, not only a rounded time.
COUNTED = {"mp3", "flac", "ogg", "wav", "w64", "aiff", "caf"}
# A header of a stream that was written into a pipe holds a size like these.
UNKNOWN_SIZE = 0x7FFF0000
# What libsndfile says of a flac whose length is not in its header.
UNKNOWN_COUNT = 2**62
# PyAV looks for the end of a list of this many planes behind it.
MOST_PLANES = 8


def open_bytes(path: Path) -> BinaryIO:
    """Opens by descriptor: PyAV takes the name of a file object for a hint, and a descriptor has none."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")


class SndfileSource:
    """libsndfile: wav in all its forms, flac, ogg, aiff, caf and au, with an exact length."""

    tolerance = 0

    def __init__(self, path: Path) -> None:
        """Raises `soundfile.LibsndfileError` where libsndfile cannot open the file."""
        self._path = path
        with self._open() as song:
            self.kind = song.format
            self.subtype = song.subtype
            self.rate = song.samplerate
            self.channels = song.channels
            self.samples: int | None = song.frames if song.frames < UNKNOWN_COUNT else None
            self.promised = self._promised(song)
            # A recorder that broke off left 0; the log comes to the end where only chunks follow, but not over sound.
            self.unfinished = "\ndata : 0\n" in song.extra_info and "\nEnd\n" not in song.extra_info
        self.expected = max(self.samples or 0, self.promised)
        self.layout = LAYOUTS[self.channels] if self.channels <= 2 else f"{self.channels} channels"
        self.problems: list[str] = []

    def blocks(self, block: int) -> Iterator[np.ndarray]:
        """Decodes from the start; ends early where the data are damaged."""
        self.problems = []
        # numpy makes floats of 16 bits in a third of libsndfile's time, save for flac, which is 32 bits to libsndfile.
        short = self.subtype == "PCM_16" and self.kind != "FLAC"
        with self._open() as song:
            while True:
                try:
                    samples = song.read(block, dtype="int16" if short else "float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    self.problems.append(error.error_string.rstrip("."))
                    return
                if not len(samples):
                    return
                planes = np.ascontiguousarray(samples.T)
                yield planes * np.float32(2**-15) if short else planes

    @contextmanager
    def _open(self) -> Iterator[soundfile.SoundFile]:
        # closefd: libsndfile would close the file, but on Windows not its descriptor.
        with open_bytes(self._path) as file, soundfile.SoundFile(file.fileno(), closefd=False) as song:
            yield song

    def _promised(self, song: soundfile.SoundFile) -> int:
        # libsndfile believes the size of a wav file over its header; only its log tells what the header said.
        told = re.search(r"^data : (\d+) \(should be (\d+)\)", song.extra_info, re.MULTILINE)
        if not told or int(told[1]) >= UNKNOWN_SIZE or not int(told[2]):
            return 0
        return round(song.frames * int(told[1]) / int(told[2]))


class Tank:
    """Gathers frames of one format as they are; all their samples become floats at once. `room` is what it yet takes.

    A codec's frames are small, and to make an array of each takes longer than to decode some of them.
    """

    def __init__(self, frame: av.AudioFrame, room: int) -> None:
        """For frames like this one. Raises ValueError for a format that is not known."""
        self.name = frame.format.name
        self.room = room
        self._channels = frame.layout.nb_channels
        kind, self._full = SAMPLES.get(self.name.removesuffix("p"), (None, 0.0))
        if kind is None:
            raise ValueError(f"its samples are of the unknown kind {self.name}")
        self._packed = frame.format.is_packed
        shape = (1, room * self._channels) if self._packed else (self._channels, room)
        self._memory = np.empty(shape, kind)
        self._rows = [memoryview(row).cast("B") for row in self._memory]
        self._bytes = self._memory.itemsize * (self._channels if self._packed else 1)
        self._end = 0

    def fill(self, frame: av.AudioFrame, start: int, stop: int) -> int:
        """Takes the samples from `start` to `stop`, as many as there is room for; returns how many."""
        count = min(stop - start, self.room)
        first, size = start * self._bytes, count * self._bytes
        for row, plane in zip(self._rows, frame.planes, strict=True):
            row[self._end : self._end + size] = memoryview(plane)[first : first + size]
        self._end += size
        self.room -= count
        return count

    def samples(self) -> np.ndarray:
        """All that was taken, `[channels, samples]` float32 of full scale 1."""
        held = self._end // self._bytes
        taken = self._memory[0, : held * self._channels].reshape(held, -1).T if self._packed else self._memory[:, :held]
        if self.name.startswith("u8"):
            taken = taken.astype(np.float32) - np.float32(self._full)
        return (taken / np.float32(self._full) if self._full != 1 else taken).astype(np.float32, copy=False)


class FFmpegSource:
    """FFmpeg: everything else, every codec that the wheel of PyAV holds, any channels, video files' sound tracks.

    Raises `av.error.FFmpegError` where the bytes are no media, `LookupError` where there is no sound among them, and
    `ValueError` where not one frame of it can be decoded.
    """

    # Some encoders count a frame too many; more than that is missing from a damaged file.
    tolerance = 2304

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_bytes(path) as file, self._open(file) as container:
            stream = self._stream(container)
            self.kind = container.format.name
            first = next(self._frames(container, stream), None)
            self._learn(first or stream.codec_context)
        self.samples = self._count()
        if first is None and (self.samples or self.problems):
            raise ValueError("its sound cannot be decoded")
        self.expected = self.samples or 0

    def blocks(self, block: int) -> Iterator[np.ndarray]:
        """Decodes from the start; steps over damaged packets and ends where the file does."""
        with open_bytes(self._path) as file, self._open(file) as container:
            yield from self._cut(self._frames(container, self._stream(container)), block)

    def _learn(self, known: av.AudioFrame | AudioCodecContext) -> None:
        self.rate: int = known.sample_rate
        self.channels: int = known.layout.nb_channels
        self.layout = layout_name(known.layout.name, self.channels)
        self.samples: int | None = None
        if not self.rate or not self.channels:
            raise ValueError("its sound cannot be decoded")

    def _cut(self, frames: Iterable[av.AudioFrame], block: int) -> Iterator[np.ndarray]:
        """The codec's frames in blocks of one size, save where their format changes."""
        tank, given = None, 0
        for frame in self._alike(frames):
            start, count = 0, frame.samples
            while start < count:
                if tank is None or not tank.room or tank.name != frame.format.name:
                    if tank:
                        given += (cut := self._trim(tank.samples(), given)).shape[1]
                        yield cut
                    tank = Tank(frame, block)
                start += tank.fill(frame, start, count)
        if tank:
            yield self._trim(tank.samples(), given)

    def _alike(self, frames: Iterable[av.AudioFrame]) -> Iterator[av.AudioFrame]:
        """The frames, all of the song's rate and channels: a broadcast may change midway; its beginning decides."""
        resamplers: dict[tuple, av.AudioResampler] = {}
        for frame in frames:
            changed = frame.sample_rate != self.rate or frame.layout.nb_channels != self.channels
            if not changed and (self.channels < MOST_PLANES or frame.format.is_packed):
                yield frame
                continue
            form = (frame.sample_rate, frame.layout.name, frame.format.name)
            if form not in resamplers:
                resamplers[form] = av.AudioResampler("flt", self.layout if changed else None, self.rate)
            yield from resamplers[form].resample(frame)

    def _open(self, file: BinaryIO) -> InputContainer:
        return av.open(file, metadata_errors="surrogateescape")

    def _stream(self, container: InputContainer) -> AudioStream:
        if not container.streams.audio:
            raise LookupError("it holds no sound track")
        stream = container.streams.best("audio") or container.streams.audio[0]
        if stream.codec_context is None:
            raise ValueError("its sound is locked or of an unknown codec")
        layout = stream.codec_context.layout
        if is_custom(layout.name):
            # PyAV (18.1) would free its list of loudspeakers twice, which ends the process; so it is never freed here.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
            raise ValueError("its loudspeakers lie in an order that cannot be read")
        return stream

    def _frames(self, container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
        self.problems: list[str] = []
        packets = container.demux(stream)
        tags_end = 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self.problems.append(str(error.strerror))
                return
            # Where mp3s were joined, FFmpeg takes the tags between them for sound.
            if self.kind == "mp3" and (size := tags_size(bytes(packet))):
                tags_end = (packet.pos or 0) + size
            try:
                yield from packet.decode()
            except av.error.FFmpegError as error:
                if (packet.pos or 0) >= tags_end:
                    self.problems.append(str(error.strerror))

    def _trim(self, samples: np.ndarray, given: int) -> np.ndarray:
        # An mp4 tells the padding at its end by its length only.
        return samples if self.samples is None else samples[:, : max(0, self.samples - given)]

    def _count(self) -> int | None:
        """The number of samples where the container knows it, else None."""
        with open_bytes(self._path) as file, self._open(file) as container:
            stream = self._stream(container)
            if not stream.duration:
                return None
            samples = round(stream.duration * stream.time_base * self.rate)
            if "mp4" in self.kind:
                return self._count_mp4(container, stream, samples)
            if self.kind == "mp3" or (self.kind == "wav" and stream.codec_context.name.startswith("mp3")):
                return self._count_mp3(container, stream, samples)
            # In a chain of songs the duration is the last one's.
            if self.kind not in COUNTED or is_chained(self._path):
                return None
            if stream.codec_context.name in ("opus", "libopus"):
                # The last page counts the pre-skip (RFC 7845, 4.2), which the decoder leaves out, and all that came
                # before a cut.
                samples -= int.from_bytes(bytes(stream.codec_context.extradata or b"")[10:12], "little")
                samples -= max(0, stream.start_time or 0)
            return max(0, samples)

    def _count_mp3(self, container: InputContainer, stream: AudioStream, told: int) -> int | None:
        """An mp3 may tell its frames at its beginning, which knows nothing of another mp3 that was joined to it."""
        with open_bytes(self._path) as file:
            frames, size, surplus = mp3_told(file) if self.kind == "mp3" else (0, 0, 0)
        if size and surplus > size // 16:
            # FFmpeg takes it for joined, too, and guesses from the bitrate.
            return None
        if frames and size and surplus * frames <= 2 * size:
            return told
        # The packets are counted without decoding them; those of tags begin otherwise.
        count = ticks = 0
        for packet in container.demux(stream):
            count += bytes(packet)[:1] == b"\xff"
            ticks += packet.duration or 0
        if not frames:
            # What FFmpeg told is a guess again.
            return round(ticks * stream.time_base * self.rate)
        return told if count <= frames + 2 else None

    def _count_mp4(self, container: InputContainer, stream: AudioStream, edited: int) -> int:
        """An mp4 tells its end thrice: in iTunes' comment, by the edit list and by its last packet."""
        told = re.match(r" ?\w+ \w+ \w+ ([0-9A-Fa-f]+)", container.metadata.get("iTunSMPB", ""))
        if told and 0 < (total := int(told[1], 16)) <= edited:
            return total
        last = None
        with suppress(av.error.FFmpegError):
            container.seek(stream.duration, stream=stream)
            for packet in container.demux(stream):
                last = packet if packet.duration and packet.pts is not None else last
        if last is None:
            return edited
        end = round((last.pts + last.duration - max(0, stream.start_time or 0)) * stream.time_base * self.rate)
        # What differs by less than a tick of the edit list's clock (often 1/600 or 1/1000 s) is the same end.
        with open_bytes(self._path) as file:
            ticks = mp4_ticks(file)
        return end if abs(end - edited) <= self.rate / ticks else min(end, edited)


def is_for_sndfile(path: Path) -> bool:
    """Whether a file begins like one that libsndfile decodes exactly; it warns on stderr when it tries others."""
    with open_bytes(path) as file:
        return file.read(4) in SNDFILE_BEGINNINGS
