"""What the heads of mp3s and mp4s tell that FFmpeg does not hand on."""

import os
import re
from typing import BinaryIO

# What an mp3 may begin with, after what another may have ended with.
TAGS = re.compile(rb"(?:TAG.{125})?(ID3.{7})", re.DOTALL)


def id3_size(head: bytes) -> int:
    """How many bytes the ID3 tag takes that begins so, 0 where it is none."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def tags_size(head: bytes) -> int:
    """How many bytes the tags take that an mp3 begins with, an old one of the mp3 before it included; 0 where none."""
    found = TAGS.match(head)
    return found.start(1) + id3_size(found[1]) if found else 0


def mp3_told(file: BinaryIO) -> tuple[int, int, int]:
    """The frames and bytes that the first frame of an mp3 tells (the Xing or Info header), and how many bytes are more.

    What it does not tell is 0.
    """
    start = id3_size(file.read(10))
    file.seek(start)
    frame = file.read(4096)
    there = file.seek(0, os.SEEK_END) - start
    found = re.search(rb"(?:Xing|Info)...(.)(.{4})(.{4})", frame, re.DOTALL)
    if not found or not found[1][0] & 1:
        return 0, 0, 0
    size = int.from_bytes(found[3], "big") if found[1][0] & 2 else 0
    return int.from_bytes(found[2], "big"), size, there - size


def mp4_ticks(file: BinaryIO) -> int:
    """Ticks per second of the clock in which the edit lists of an mp4 count (its box mvhd), 1 where there is none."""
    position, end = 0, file.seek(0, os.SEEK_END)
    while position + 8 <= end:
        file.seek(position)
        box = file.read(128)
        size, kind, header = int.from_bytes(box[:4], "big"), box[4:8], 8
        if size == 1:
            size, header = int.from_bytes(box[8:16], "big"), 16
        if kind == b"moov" and box[header + 4 : header + 8] == b"mvhd":
            # Version 1 has dates of 64 bits before the clock.
            start = header + (28 if box[header + 8] else 20)
            return int.from_bytes(box[start : start + 4], "big") or 1
        if size < header:
            break
        position += size
    return 1
