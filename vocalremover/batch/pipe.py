"""One song, from a stream of bytes or a file, and one of its stems streamed out.

A model that needs no first look at the song works on it as it comes, in memory that does not depend on its length. Any
other has to hear the song's end before it can begin: the bytes wait in a temporary file.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import BinaryIO

from torch import Tensor

from vocalremover.audio import OneWay, PipeReader, PipeWriter, Reader, needs_index
from vocalremover.batch.jobs import Job
from vocalremover.batch.results import Progress, Result, levels, silent
from vocalremover.batch.settings import Settings
from vocalremover.errors import AudioError, UsageError
from vocalremover.separate import Separator

SPOOL_BLOCK = 1 << 20


def pipe(
    source: BinaryIO | str | Path, sink: BinaryIO, separator: Separator, settings: Settings, progress: Progress = silent
) -> Result:
    """Separates the song that `source` gives, up to its end, and writes the one stem of `settings` into `sink`.

    The source is a file object or a path; no file object needs to be able to seek. What is ready is flushed at once. Of
    the settings only the stem, the encoding and `clip` count. Where the separator measures songs, and for a caf or mp4,
    whose end may tell how to read it, the bytes of a file object are first copied into a temporary folder (TMPDIR).
    Raises UsageError for settings that no stream can follow, AudioError where the song cannot be read or the stem not
    be written, and BrokenPipeError where nobody reads it any more.
    """
    if len(settings.stems) != 1:
        raise UsageError("standard output takes one stem: choose it with --stem")
    (stem,) = settings.stems
    settings.check(separator.stems)
    if settings.clip == "rescale":
        raise UsageError("--clip rescale needs the whole song before the first sample: choose none or clamp")
    named = isinstance(source, str | Path)
    job = Job(Path(source) if named else Path("-"), {stem: Path("-")})
    began, told, samples, peak = perf_counter(), len(separator.warnings), 0, 0.0
    with ExitStack() as stack:
        reader = stack.enter_context(Reader(source) if named else _streamed(OneWay(source), separator, stack))
        tags = reader.tags.for_stem(stem)
        writer = PipeWriter(sink, reader.rate, reader.channels, settings.encoding, tags, reader.layout)
        stack.enter_context(writer)
        for block in progress(_stem(stem, reader, separator, job, progress), job, "separating", reader.samples):
            peak = max(peak, float(block.abs().max())) if block.numel() else peak
            samples += block.shape[-1]
            writer.write(block.clamp(-1, 1) if settings.clip == "clamp" else block)
    warnings = (*reader.warnings, *separator.warnings[told:], *levels(job, {stem: peak}, settings))
    return Result(
        job, perf_counter() - began, samples / reader.rate, warnings, device=str(separator.device), peaks={stem: peak}
    )


def _streamed(song: OneWay, separator: Separator, stack: ExitStack) -> Reader:
    spools = song.head and (separator.measures or needs_index(song.head))
    return _spooled(song, stack) if spools else PipeReader(song)


def _spooled(song: OneWay, stack: ExitStack) -> Reader:
    try:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vocalremover-")))
        with open(folder / "song", "wb") as spool:
            shutil.copyfileobj(song, spool, SPOOL_BLOCK)
    except OSError as error:
        raise AudioError(f"standard input cannot be kept in a temporary folder: {error.strerror}") from error
    try:
        song.check()
        return Reader(folder / "song")
    except OSError as error:
        raise AudioError(f"standard input cannot be read: {error.strerror}") from error
    except AudioError as error:
        raise AudioError(str(error).replace(str(folder / "song"), "standard input")) from error


def _stem(
    stem: str, reader: Reader | PipeReader, separator: Separator, job: Job, progress: Progress
) -> Iterator[Tensor]:
    peak = None
    if separator.measures:
        peak = separator.peak(progress(reader.blocks(), job, "measuring", reader.samples), reader.rate)
    for stems in separator.stream(reader.blocks(), reader.rate, peak, reader.layout):
        yield stems[stem]
