"""A song that has no name: bytes that come or go once, in order, through a pipe.

`PipeReader` and `PipeWriter` are a Reader and a Writer on a file object that cannot seek.
"""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
from torch import Tensor

from vocalremover.audio.outs import Out
from vocalremover.audio.reading import Reader
from vocalremover.audio.streams import FFmpegStream, OneWay
from vocalremover.audio.tags import Tags
from vocalremover.audio.writing import REASONS, Encoding, Writer
from vocalremover.errors import AudioError, UsageError

STREAMABLE = ("wav", "flac", "mp3", "ogg", "opus")


def needs_index(head: bytes) -> bool:
    """Whether bytes that begin so may tell only at their end what they hold, as caf, mp4 and its kind do."""
    return head[:4] == b"caff" or head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free")


class PipeReader(Reader):
    """Decodes a song as its bytes come, in memory that does not depend on how many there are.

    `samples` is None, `tags` has no cover, and `blocks` can be had once. Raises AudioError where there is nothing that
    could be decoded so.
    """

    def __init__(self, file: BinaryIO | OneWay, block: int = 1 << 16) -> None:
        self.path = Path("standard input")
        self.warnings = []
        self._block = block
        self._running = []
        one_way = file if isinstance(file, OneWay) else OneWay(file)
        if not one_way.head:
            raise AudioError(f"{self.path}: nothing came.")
        try:
            self._source = FFmpegStream(one_way)
        except (OSError, ValueError, LookupError, av.error.FFmpegError) as error:
            ours = type(error) in (ValueError, LookupError)
            reason = error.args[0] if ours else "it is not audio, or a kind that cannot be read from a pipe"
            raise AudioError(f"{self.path}: cannot be decoded: {reason}.") from error
        self.rate = self._source.rate
        self.channels = self._source.channels
        self.samples = None
        self.layout = self._source.layout

    @property
    def tags(self) -> Tags:
        """What the stream's beginning says about its song."""
        return self._source.tags

    def _is_ended(self) -> bool:
        return True  # what has come is all there is


class PipeWriter(Writer):
    """Writes a song into a file object that only goes forward; what is ready is flushed after every block.

    Raises UsageError for a format that has to go back, AudioError where nothing can be written, and BrokenPipeError
    where nobody reads any more.
    """

    def __init__(
        self, file: BinaryIO, rate: int, channels: int, encoding: Encoding | None = None, tags: Tags | None = None,
        layout: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__("standard output", rate, channels, encoding, tags, layout)
        if self.encoding.format not in STREAMABLE:
            able = ", ".join(STREAMABLE)
            raise UsageError(f"{self.encoding.format} cannot be written into a pipe; choose one of {able}.")
        self._file = file

    def __enter__(self) -> "PipeWriter":
        self._out = Out(self._file)
        self._start()
        return self

    def write(self, block: Tensor) -> None:
        super().write(block)
        self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abort()
            return
        try:
            self._finish()
        except BaseException as failure:
            self._abort()
            raise self._translated(failure) from failure
        self._flush()

    def _abort(self) -> None:
        # What went out is out, and there is no file to remove.
        self._thread.end()
        self._sink.abort()

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> Exception:
        if isinstance(error, BrokenPipeError):
            return error
        return AudioError(f"{self.path}: cannot be written, {REASONS.get(error.errno, error.strerror or str(error))}.")
