"""The encoders of libraries behind `Writer`: libsndfile for ogg and opus, FFmpeg (PyAV) for flac, mp3 and m4a.

Each takes `[channels, samples]` float32 arrays of full scale 1 and writes into a file object that is open and empty, as
that of `wav` does. The lossy formats cannot hold a song of no samples; it becomes one sample of silence.
"""

from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import soundfile
from av.container import InputContainer
from av.stream import Disposition

from vocalremover.audio import tags
from vocalremover.audio.integers import Quantiser, interleaved
from vocalremover.audio.ogg import OggTagger
from vocalremover.audio.outs import Out
from vocalremover.audio.tags import Tags

PIECE = 1 << 14  # samples that are handed over at once
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
