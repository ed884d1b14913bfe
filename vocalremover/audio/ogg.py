"""Ogg pages (RFC 3533): puts our comments into the Vorbis or Opus stream that libsndfile writes, on the way out.

libsndfile can write few comments and no picture. What comes in are the bytes of its file, in order; what goes out is
the same stream with the comment packet replaced, its pages counted and summed anew.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Protocol

HEADER = struct.Struct("<4sBBqIIIB")
CONTINUED, LAST = 1, 4
# No page is larger than this.
LARGEST = HEADER.size + 255 + 255 * 255
# The comment packet of either codec: how it begins, what ends it, and how many header packets there are.
KINDS = {b"\x01vorbis": (b"\x03vorbis", b"\x01", 3), b"OpusHead": (b"OpusTags", b"", 2)}
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class ByteSink(Protocol):
    """Whatever takes bytes."""

    def write(self, data: bytes) -> int:
        """Takes all of `data`."""
        ...


class OggTagger:
    """A file object to write an ogg into, which hands it on to `out` with `comments` in place of its own."""

    def __init__(self, out: ByteSink, comments: dict[str, str]) -> None:
        self._out = out
        self._comments = comments
        self._waiting = bytearray()
        self._position = 0
        self._packets: list[bytes] = []
        self._open = b""
        self._headers = 0
        self._sequence = 0
        self._serial = 0

    def write(self, data: bytes) -> int:
        self._waiting += data
        self._position += len(data)
        while page := self._next_page():
            self._take(page)
        return len(data)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        # An encoder only goes forward; it asks for the place it is at.
        return self._position

    def read(self, size: int = -1) -> bytes:
        return b""

    def _next_page(self) -> bytes:
        if len(self._waiting) < HEADER.size:
            return b""
        lacing = self._waiting[HEADER.size : HEADER.size + self._waiting[HEADER.size - 1]]
        size = HEADER.size + self._waiting[HEADER.size - 1] + sum(lacing)
        if len(lacing) < self._waiting[HEADER.size - 1] or len(self._waiting) < size:
            return b""
        page = bytes(self._waiting[:size])
        del self._waiting[:size]
        return page

    def _take(self, page: bytes) -> None:
        if self._headers and len(self._packets) == self._headers:
            self._put(renumbered(page, self._sequence))
            return
        count = page[HEADER.size - 1]
        start = HEADER.size + count
        for size in page[HEADER.size : HEADER.size + count]:
            self._open += page[start : start + size]
            start += size
            if size < 255:
                self._packets.append(self._open)
                self._open = b""
        if not self._headers:
            self._serial = HEADER.unpack_from(page)[4]
            self._headers = next(kind[2] for head, kind in KINDS.items() if self._packets[0].startswith(head))
            self._put(page)
        elif len(self._packets) == self._headers:
            rest = [comment_packet(self._packets[0], self._packets[1], self._comments), *self._packets[2:]]
            for fresh in pages(rest, self._serial, self._sequence):
                self._put(fresh)

    def _put(self, page: bytes) -> None:
        self._sequence += 1
        self._out.write(page)


def comment_packet(head: bytes, old: bytes, comments: dict[str, str]) -> bytes:
    """The comment packet (Vorbis I, 5; RFC 7845, 5.2) with the encoder's name out of the old one."""
    start, end, _ = next(kind for begin, kind in KINDS.items() if head.startswith(begin))
    vendor_size = int.from_bytes(old[len(start) : len(start) + 4], "little")
    vendor = old[len(start) : len(start) + 4 + vendor_size]
    lines = [f"{name}={text}".encode() for name, text in comments.items()]
    body = b"".join(struct.pack("<I", len(line)) + line for line in lines)
    return start + vendor + struct.pack("<I", len(lines)) + body + end


def pages(packets: list[bytes], serial: int, sequence: int) -> list[bytes]:
    """Lays header packets out in pages of at most 255 segments."""
    lacing, data = bytearray(), b"".join(packets)
    for packet in packets:
        lacing += b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    made = []
    start = 0
    for first in range(0, len(lacing), 255):
        part = lacing[first : first + 255]
        flags = CONTINUED if first and lacing[first - 1] == 255 else 0
        # A page on which no packet ends has no position.
        granule = 0 if min(part) < 255 else -1
        head = HEADER.pack(b"OggS", 0, flags, granule, serial, sequence + len(made), 0, len(part))
        made.append(summed(head + bytes(part) + data[start : start + sum(part)]))
        start += sum(part)
    return made


def renumbered(page: bytes, sequence: int) -> bytes:
    """The page with another place in the order of pages."""
    return summed(page[:18] + struct.pack("<I", sequence) + page[22:])


def summed(page: bytes) -> bytes:
    """The page with its checksum, a CRC-32 whose bits run the other way than zlib's, without its inversions."""
    blank = page[:22] + bytes(4) + page[26:]
    backward = zlib.crc32(blank.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[:22] + struct.pack(">I", backward).translate(REVERSED) + page[26:]


def is_ended(path: Path) -> bool:
    """Whether a file is no ogg, or one whose last page says that it is the last: false for one cut short."""
    _, last = _ends(path)
    return len(last) <= 5 or bool(last[5] & LAST)


def is_chained(path: Path) -> bool:
    """Whether a file is an ogg of several streams, one after the other: its last page is not of the first stream."""
    first, last = _ends(path)
    return len(last) >= 18 and first[14:18] != last[14:18]


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The heads of an ogg's first and last page, as far as they are there; nothing for another file."""
    with open(path, "rb") as file:
        first = file.read(HEADER.size)
        if first[:4] != b"OggS":
            return b"", b""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LARGEST))
        tail = file.read()
    start = tail.rfind(b"OggS")
    return first, tail[start : start + HEADER.size] if start >= 0 else b""
