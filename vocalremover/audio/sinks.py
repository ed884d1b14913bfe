"""The three encoders behind `Writer`: our own wav, libsndfile for ogg and opus, FFmpeg (PyAV) for flac, mp3 and m4a.

Each takes `[channels, samples]` float32 arrays of full scale 1 and writes into a file object that is open and empty.
The lossy formats cannot hold a song of no samples; it becomes one sample of silence.
"""

import struct
from contextlib import suppress
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
import soundfile
from av.container import InputContainer
from av.stream import Disposition

from vocalremover.audio import tags
from vocalremover.audio.integers import Quantiser, interleaved
from vocalremover.audio.layouts import NAMES, speakers
from vocalremover.audio.ogg import OggTagger
from vocalremover.audio.tags import Tags

PIECE = 1 << 14
# A RIFF counts its bytes in 32 bits; from here on a wav must be an RF64 (EBU Tech 3306).
RIFF_LIMIT = 0xFFFFFFFF
ENDLESS = RIFF_LIMIT.to_bytes(4, "little")
INFO_NAMES = {"title": b"INAM", "artist": b"IART", "album": b"IPRD", "track": b"IPRT", "date": b"ICRD"}
# Bits of the channel mask of WAVE_FORMAT_EXTENSIBLE, by FFmpeg's names of the loudspeakers.
SPEAKERS = {name: 1 << bit for bit, name in enumerate(NAMES[: NAMES.index("TBR") + 1])}
EXTENSIBLE_TAIL = bytes.fromhex("000000001000800000aa00389b71")
# Where each channel of ours goes in Vorbis I, 4.3.9, which libsndfile leaves to the caller.
VORBIS_ORDER = {
    3: (0, 2, 1),
    4: (0, 1, 2, 3),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 4, 5, 3),
    7: (0, 2, 1, 5, 6, 4, 3),
    8: (0, 2, 1, 6, 7, 4, 5, 3),
}
# Nominal kbit/s of stereo at 44.1 kHz for Vorbis' qualities 0, 0.1 ... 1.
VORBIS_KBITS = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 500)
# kbit/s of a channel for libsndfile's compression levels 1 and 0.
OPUS_KBITS = (6, 256)
CODECS = {"flac": ("flac", "flac"), "mp3": ("libmp3lame", "mp3"), "m4a": ("aac", "mp4")}
# The kinds of picture that each can carry as a cover, by FFmpeg's names; a cover of another kind is left out.
COVERS = {
    "flac": ("png", "mjpeg", "bmp", "tiff", "webp"),
    "mp3": ("png", "mjpeg", "bmp", "gif", "tiff", "webp"),
    "m4a": ("png", "mjpeg"),
}
# How samples are handed over, and what the codec is told to take: FFmpeg lays floats out anew, and changes no integer.
FLAC_FORMATS = {"16": "s16", "24": "s32"}


class Out:
    """A file object for libraries written in C, which lose exceptions: what they write waits for `check`.

    This one only goes forward, as a pipe does, and a pipe may take nothing for long.
    """

    rewinds = False
    error: BaseException | None = None

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._waiting.append(data)
        return len(data)

    def check(self) -> None:
        """Hands on what waits. Raises what the file raises."""
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self.file.write(data)


class OutFile(Out):
    """The same for a file on disk, which takes all at once: keeps the first exception, then writes nothing."""

    rewinds = True

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.closed_to_writing = False

    def write(self, data: bytes) -> int:
        if self.closed_to_writing:
            return len(data)
        try:
            return self.file.write(data)
        except BaseException as error:
            self._keep(error)
            return len(data)

    def check(self) -> None:
        """Raises the exception that a library has swallowed."""
        if self.error:
            raise self.error

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.file.seek(offset, whence)
        except BaseException as error:
            self._keep(error)
            return 0

    def _keep(self, error: BaseException) -> None:
        self.error = self.error or error
        self.closed_to_writing = True

    def tell(self) -> int:
        return self.file.tell()


class WavSink:
    """Wav of 16, 24 or 32 (float) bits with LIST INFO; a file that outgrows 4 GiB becomes an RF64 when it is closed.

    Into a pipe its sizes are told as 0xFFFFFFFF, which stands for "up to the end", as FFmpeg and sox have it.
    """

    def __init__(self, out: Out, rate: int, channels: int, layout: str, bits: str, words: dict[str, str]) -> None:
        self._out = out
        self._rate = rate
        self._channels = channels
        self._float = bits == "32f"
        self._bytes = 4 if self._float else int(bits) // 8
        self._quantise = Quantiser(8 * self._bytes)
        self._mask = channel_mask(layout)
        self._info = _info_chunk(words)
        self._samples = 0
        out.write(self._header())

    def write(self, samples: np.ndarray) -> None:
        self._samples += samples.shape[1]
        for start in range(0, samples.shape[1], PIECE):
            self._out.write(self._bytes_of(samples[:, start : start + PIECE]).data.cast("B"))

    def _bytes_of(self, samples: np.ndarray) -> np.ndarray:
        if self._float:
            return interleaved(samples).astype("<f4", copy=False)
        whole = self._quantise(samples)
        whole = whole.astype(whole.dtype.newbyteorder("<"), copy=False)
        if self._bytes == whole.itemsize:
            return whole
        lowest = np.empty((whole.size, self._bytes), np.uint8)
        for byte in range(self._bytes):
            lowest[:, byte] = whole.reshape(-1, 1).view(np.uint8)[:, byte]
        return lowest

    def finish(self) -> None:
        if self._samples * self._channels * self._bytes % 2:
            self._out.write(b"\0")
        if self._out.rewinds:
            self._out.seek(0)
            self._out.write(self._header())

    def abort(self) -> None:
        pass

    def _header(self) -> bytes:
        """All before the samples; as long at the end as at the start, when nothing is known of the length."""
        data = self._samples * self._channels * self._bytes
        frame = self._channels * self._bytes
        kind = 3 if self._float else 1
        extensible = self._channels > 2
        form = struct.pack(
            "<HHIIHH",
            0xFFFE if extensible else kind,
            self._channels,
            self._rate,
            self._rate * frame,
            frame,
            8 * self._bytes,
        )
        if extensible:
            form += struct.pack("<HHIH", 22, 8 * self._bytes, self._mask, kind) + EXTENSIBLE_TAIL
        elif self._float:
            form += struct.pack("<H", 0)
        fact = _chunk(b"fact", struct.pack("<I", min(self._samples, RIFF_LIMIT))) if self._float else b""
        middle = _chunk(b"fmt ", form) + fact + self._info
        # 12: RIFF and WAVE; 36: the place kept for ds64; 8: the head of the data chunk.
        riff = 12 + 36 + len(middle) + 8 + data + data % 2 - 8
        if not self._out.rewinds:
            return b"RIFF" + ENDLESS + b"WAVE" + middle + b"data" + ENDLESS
        if riff <= RIFF_LIMIT:
            head = b"RIFF" + struct.pack("<I", riff) + b"WAVE" + _chunk(b"JUNK", bytes(28))
            return head + middle + b"data" + struct.pack("<I", data)
        sizes = _chunk(b"ds64", struct.pack("<QQQI", riff, data, self._samples, 0))
        return b"RF64" + ENDLESS + b"WAVE" + sizes + middle + b"data" + ENDLESS


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _info_chunk(words: dict[str, str]) -> bytes:
    fields = b"".join(_chunk(INFO_NAMES[name], text.encode() + b"\0") for name, text in words.items())
    return _chunk(b"LIST", b"INFO" + fields) if fields else b""


def channel_mask(layout: str) -> int:
    """The bits of a layout's loudspeakers, 0 (unknown) where FFmpeg or the wav format has no name for one."""
    names = speakers(layout)
    return sum(SPEAKERS[name] for name in names) if all(name in SPEAKERS for name in names) else 0


class FFmpegSink:
    """Flac, mp3 and m4a with tags and cover.

    The delay of the encoder is told in the file (LAME header, edit list), so that decoders take it off; m4a counts
    its edit list in samples, so that its length is exact.
    """

    def __init__(
        self, out: Out, kind: str, rate: int, layout: str, bits: str | None, bitrate: int, words: Tags
    ) -> None:
        codec, muxer = CODECS[kind]
        self._rate = rate
        self._layout = layout
        self._format = FLAC_FORMATS[bits] if bits else "flt"
        self._quantise = Quantiser(int(bits)) if bits else None
        self._position = 0
        options = {"movie_timescale": str(rate), "brand": "M4A "} if kind == "m4a" else {}
        self._container = av.open(out, "w", format=muxer, options=options)
        self._stream = self._container.add_stream(codec, rate=rate, layout=layout)
        self._stream.codec_context.format = self._format if bits else "fltp"
        self._stream.time_base = Fraction(1, rate)
        if bitrate:
            self._stream.bit_rate = bitrate
        self._container.metadata.update(words.words())
        self._start(tags.picture_stream(words.cover, COVERS[kind]))

    def _start(self, picture: InputContainer | None) -> None:
        if picture is None:
            self._container.start_encoding()
            return
        with picture:
            target = self._container.add_stream_from_template(picture.streams.video[0])
            target.disposition = Disposition.attached_pic.value
            self._container.start_encoding()
            packet = next(packet for packet in picture.demux(video=0) if packet.size)
            packet.stream = target
            self._container.mux(packet)

    def write(self, samples: np.ndarray) -> None:
        for start in range(0, samples.shape[1], PIECE):
            piece = samples[:, start : start + PIECE]
            if self._quantise is None:
                self._encode(interleaved(piece))
            elif self._format == "s16":
                self._encode(self._quantise(piece))
            else:
                self._encode(self._quantise(piece) << 8)

    def _encode(self, samples: np.ndarray) -> None:
        # In turns, not in planes: PyAV cannot hold eight planes.
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format=self._format, layout=self._layout)
        frame.sample_rate = self._rate
        frame.time_base = Fraction(1, self._rate)
        frame.pts = self._position
        self._position += frame.samples
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        if not self._position and self._quantise is None:
            self._encode(np.zeros((1, av.AudioLayout(self._layout).nb_channels), np.float32))
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        with suppress(Exception):
            self._container.close()


class XiphSink:
    """Ogg Vorbis and Ogg Opus by libsndfile, that is libvorbis and libopus, with tags and cover.

    Not by FFmpeg: its Vorbis encoder is of another quality, and its Opus encoder (libavcodec 62) confuses the
    loudspeakers of 5.0 and 6.1.
    """

    def __init__(self, out: Out, kind: str, rate: int, channels: int, bitrate: int, words: Tags) -> None:
        self._out = out
        self._channels = channels
        self._samples = 0
        each = bitrate / channels / 1000
        if kind == "ogg":
            level = 1 - np.interp(2 * each, VORBIS_KBITS, np.linspace(0, 1, len(VORBIS_KBITS)))
        else:
            level = np.interp(each, OPUS_KBITS, (1, 0))
        self._song = soundfile.SoundFile(
            OggTagger(out, tags.comments(words)),
            "w",
            rate,
            channels,
            {"ogg": "VORBIS", "opus": "OPUS"}[kind],
            format="OGG",
            compression_level=float(level),
        )

    def write(self, samples: np.ndarray) -> None:
        self._samples += samples.shape[1]
        if self._channels in VORBIS_ORDER:
            samples = samples[list(VORBIS_ORDER[self._channels])]
        # libvorbis keeps a block on the stack, so blocks stay small.
        for start in range(0, samples.shape[1], PIECE):
            self._song.write(interleaved(samples[:, start : start + PIECE]))

    def finish(self) -> None:
        if not self._samples:
            self.write(np.zeros((self._channels, 1), np.float32))
        self._song.close()

    def abort(self) -> None:
        with suppress(Exception):
            self._song.close()
