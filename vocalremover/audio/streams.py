"""The decoder behind `PipeReader`: FFmpeg (PyAV) on bytes that come once and in order."""

from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

import numpy as np

from vocalremover.audio import tags
from vocalremover.audio.sources import UNKNOWN_SIZE, FFmpegSource

# So many bytes tell whether a stream can be decoded as it comes, and hold the header of most wavs.
HEAD = 4096


class OneWay:
    """A file object that can only be read forwards. `head` is its first bytes, which are read all the same."""

    def __init__(self, file: BinaryIO) -> None:
        """Waits for the first bytes."""
        # What has come is handed on at once, not only when a buffer is full.
        self._read = getattr(file, "read1", file.read)
        self.head = b""
        while len(self.head) < HEAD and (more := self._read(HEAD - len(self.head))):
            self.head += more
        self._ahead = self.head
        self._error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end, and none after an exception, which FFmpeg would lose."""
        if not self._ahead:
            try:
                return b"" if self._error else self._read(size)
            except BaseException as error:
                self._error = error
                return b""
        ahead, self._ahead = (self._ahead, b"") if size < 0 else (self._ahead[:size], self._ahead[size:])
        return ahead

    def check(self) -> None:
        """Raises the exception that `read` has kept."""
        if self._error:
            raise self._error


class FFmpegStream(FFmpegSource):
    """FFmpeg on bytes that come once and in order, as from a pipe; how many there will be, only some headers tell."""

    def __init__(self, file: OneWay) -> None:
        """Raises what FFmpegSource raises."""
        self._file = file
        try:
            self._begin()
        finally:
            file.check()

    def _begin(self) -> None:
        self._container = self._open(self._file)
        stream = self._stream(self._container)
        self.kind = self._container.format.name
        self.tags = tags.from_container(self._container, cover=False)
        frames = self._frames(self._container, stream)
        first = next(frames, None)
        self._learn(first or stream.codec_context)
        self._coming = chain([first] if first else [], frames)
        told = stream.duration * stream.time_base if self.kind in ("flac", "wv") and stream.duration else 0
        self.expected = round(told * self.rate) or _promised(self._file.head, stream.codec_context.name)

    def blocks(self, block: int) -> Iterator[np.ndarray]:
        """Decodes what has not been decoded yet."""
        came = 0
        for samples in self._cut(self._coming, block):
            self._file.check()
            came += samples.shape[1]
            yield samples
        self._file.check()
        if 0 < self.expected <= came:
            # What could not be read are tags at the end, which FFmpeg looks for before it reads a file.
            self.problems.clear()
        self._container.close()


def _promised(head: bytes, codec: str) -> int:
    """How many samples the header of a wav promises, 0 where it does not know and for anything else."""
    if head[:4] != b"RIFF" or not codec.startswith("pcm_"):
        return 0
    place, frame = 12, 0
    while place + 8 <= len(head):  # from chunk to chunk: a title may hold the word "data"
        name, size = head[place : place + 4], int.from_bytes(head[place + 4 : place + 8], "little")
        if name == b"data":
            return size // frame if frame and size < UNKNOWN_SIZE else 0
        if name == b"fmt ":
            frame = int.from_bytes(head[place + 20 : place + 22], "little")
        place += 8 + size + size % 2
    return 0
