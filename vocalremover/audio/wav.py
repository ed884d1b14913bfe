"""Our own encoder, that of wav: no library writes one into a pipe, past 4 GiB and with a channel mask."""

import struct

import numpy as np

from vocalremover.audio.integers import Quantiser, interleaved
from vocalremover.audio.layouts import NAMES, speakers
from vocalremover.audio.outs import Out

PIECE = 1 << 14  # samples that are converted at once
# A RIFF counts its bytes in 32 bits; from here on a wav must be an RF64 (EBU Tech 3306).
RIFF_LIMIT = 0xFFFFFFFF
ENDLESS = RIFF_LIMIT.to_bytes(4, "little")
INFO_NAMES = {"title": b"INAM", "artist": b"IART", "album": b"IPRD", "track": b"IPRT", "date": b"ICRD"}
# Bits of the channel mask of WAVE_FORMAT_EXTENSIBLE, by FFmpeg's names of the loudspeakers.
SPEAKERS = {name: 1 << bit for bit, name in enumerate(NAMES[: NAMES.index("TBR") + 1])}
EXTENSIBLE_TAIL = bytes.fromhex("000000001000800000aa00389b71")


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
