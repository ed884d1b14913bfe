"""A run as it goes: what is at work and how long it will take, then what became of every song, then the sum.

On a terminal two bars stand below what is told, one for all songs and one for the song at work. A log gets a line now
and then.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from vocalremover.cli import output
from vocalremover.cli.output import emit, printable, say, shorten
from vocalremover.durations import clock

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table
    from torch import Tensor

    from vocalremover.batch import Job, Result, Summary

BAR = 16  # letters
ENOUGH = 2.0  # seconds of work, before which nobody can tell how long the rest takes
# A guess of a song's length is its file's size; what is not compressed counts less.
DENSITY = dict.fromkeys((".wav", ".wave", ".aif", ".aiff", ".aifc", ".caf", ".w64", ".rf64"), 8) | {".flac": 5}


@dataclass(eq=False)
class Pass:
    """One walk over a song: `done` of `samples` samples (None if unknown), at `rate` samples a second (or None)."""

    job: Job
    stage: str
    samples: int | None
    rate: int | None
    started: float
    done: int = 0

    @property
    def separates(self) -> bool:
        return self.stage.startswith("separating")

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.samples) if self.samples else 0.0

    @property
    def seconds(self) -> float:
        return self.done / self.rate if self.rate else 0.0


class Screen:
    """Tells of the jobs of one run; used as a context manager.

    verbosity: -1 (errors only), 0, 1 (more) or 2 (tracebacks). about: what every JSON object repeats, asked for then;
    with None no JSON is written. passes: how often the models walk over a song until it is separated.
    """

    def __init__(
        self, verbosity: int, jobs: Sequence[Job], about: Callable[[], Mapping[str, object]] | None = None,
        passes: int = 1,
    ) -> None:  # fmt: skip
        self.verbosity = verbosity
        self._jobs = {job.input: number for number, job in enumerate(jobs, 1)}
        self._about = about
        self._passes = passes
        self._weights = {job.input: _weight(job.input) for job in jobs}
        self._walked: dict[Path, int] = {}  # whole passes over songs that are not finished
        self._open: list[Pass] = []
        self._finished, self._failed, self._weight, self._duration = 0, 0, 0.0, 0.0
        self._started = self._told = perf_counter()
        self._lock = Lock()
        drawn = verbosity >= 0 and _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._live = _live(self._table) if drawn else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def progress(self, blocks: Iterable[Tensor], job: Job, stage: str, samples: int | None) -> Iterable[Tensor]:
        """`blocks` as they are, seen as they pass; in any thread."""
        return self._seen(blocks, job, stage, samples) if self.verbosity >= 0 else blocks

    def result(self, result: Result) -> None:
        """The results of one input on stdout, how it went on stderr."""
        with self._lock:
            self._finished += 1
            self._failed += result.state == "failed"
            self._walked.pop(result.job.input, None)
            weight = self._weights.pop(result.job.input, 0.0)
            # What was left out took no time, and says nothing about the rest.
            self._weight += weight * (result.state == "done")
            self._duration += result.duration * (result.state == "done")
        if self._live and (self.verbosity > 0 or result.state != "skipped" or _is_terminal(sys.stdout)):
            self._live.stop()
            self._tell(result)
            self._live = _live(self._table)  # a stopped one would draw over what was told
            self._live.start(refresh=True)
        else:
            self._tell(result)

    def sum(self, summary: Summary) -> None:
        """What became of several songs, as a table."""
        record = summary.record()
        if self._live:
            self._live.stop()
        if len(self._jobs) < 2:
            return
        facts = f"{clock(record['duration'])} of audio in {clock(record['seconds'])}"
        facts += f" ({record['real_time_factor']:.1f}x real time)"
        say(f"done     {record['done']:6}   {facts if record['done'] else ''}".rstrip(), self.verbosity)
        for state in ("skipped", "failed"):
            if record[state]:
                say(f"{state:8} {record[state]:6}", self.verbosity)
        for _, reason in summary.failures:
            say(f"  {reason}", self.verbosity)

    def rows(self, width: int) -> list[tuple[str, float | None, str, str]]:
        """The bars: a name of at most `width` letters, the share that is done, the speed, the time that is left."""
        now = perf_counter()
        with self._lock:
            rows = [self._song_row(now)] if self._open else []
            if len(self._jobs) > 1:
                rows.append(self._whole_row(now))
        return [(shorten(name, width), *rest) for name, *rest in rows]

    def _seen(self, blocks: Iterable[Tensor], job: Job, stage: str, samples: int | None) -> Iterator[Tensor]:
        walk = Pass(job, stage, samples, _rate(job.input), perf_counter())
        with self._lock:
            self._open.append(walk)
        try:
            for block in blocks:
                with self._lock:
                    walk.done += block.shape[-1]
                if not self._live:
                    self._line(walk)
                yield block
            with self._lock:
                if walk.separates:
                    self._walked[job.input] = self._walked.get(job.input, 0) + 1
        finally:
            with self._lock:
                self._open.remove(walk)

    def _tell(self, result: Result) -> None:
        job, alone = result.job, len(self._jobs) < 2
        for warning in result.warnings:
            say(f"warning: {warning if alone else job.told(warning)}", self.verbosity)
        if result.error is not None:
            say(f"error: {result.error if alone else job.told(result.error)}")
        if self._about is not None:
            emit(json.dumps({**result.record(), **self._about()}))
        elif result.error is None:
            for path in job.outputs.values():
                emit(path)
        if result.state == "done":
            speed = f"{result.real_time_factor:.1f}x real time"
            say(f"{_title(job)}: {clock(result.duration)} in {result.seconds:.1f} s ({speed})", self.verbosity)
        elif result.state == "skipped":
            say(f"{_title(job)}: done before", self.verbosity - 1)

    def _line(self, walk: Pass) -> None:
        """A line now and then, for a log."""
        now = perf_counter()
        with self._lock:
            if now - self._told < output.PLAIN_SECONDS:
                return
            self._told = now
            name = f"{self._name(walk.job)}: {walk.stage}"
            line = f"{name} {walk.share:.0%}" if walk.samples else name
            if len(self._jobs) > 1:
                _, share, speed, left = self._whole_row(now)
                line = ", ".join(filter(None, (f"{line}; of all {share:.0%}", speed, left)))
        say(line)

    def _name(self, job: Job) -> str:
        return f"[{self._jobs[job.input]}/{len(self._jobs)}] {_title(job)}" if len(self._jobs) > 1 else _title(job)

    def _song_row(self, now: float) -> tuple[str, float | None, str, str]:
        walk = next((walk for walk in self._open if walk.separates), self._open[0])
        elapsed = now - walk.started
        left = _left(elapsed, walk.share)
        share = walk.share if walk.samples else None
        stage = walk.stage.removeprefix("separating")
        name = f"{_title(walk.job)}{':' * (stage == walk.stage)} {stage.strip()}"
        return name.strip(), share, _speed(walk.seconds, elapsed), left

    def _whole_row(self, now: float) -> tuple[str, float, str, str]:
        elapsed = now - self._started
        walks = [walk for walk in self._open if walk.separates]
        at_work = dict(self._walked)
        for walk in walks:
            at_work[walk.job.input] = at_work.get(walk.job.input, 0) + walk.share
        begun = sum(self._weights.get(song, 0.0) * min(1.0, of / self._passes) for song, of in at_work.items())
        share = (self._weight + begun) / ((self._weight + sum(self._weights.values())) or 1.0)
        heard = self._duration + sum(walk.seconds for walk in walks) / self._passes
        name = f"{self._finished} of {len(self._jobs)} songs" + f", {self._failed} failed" * bool(self._failed)
        return name, share, _speed(heard, elapsed), _left(elapsed, share)

    def _table(self, width: int) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = BAR if width >= 70 else 0
        width -= len("^C") + 1  # which a terminal writes behind the bars, and which must not begin a new line
        table = Table.grid(padding=(0, 1))
        table.width = width
        table.add_column(ratio=1, no_wrap=True)
        for letters in filter(None, (bar, 4, 6, 12)):
            table.add_column(width=letters, no_wrap=True, justify="right")
        for name, share, speed, left in self.rows(width - (bar + bool(bar)) - 4 - 6 - 12 - 3):
            drawn = [ProgressBar(total=None if share is None else 1.0, completed=share or 0.0, width=bar)] * bool(bar)
            table.add_row(Text(name), *drawn, "" if share is None else f"{share:.0%}", speed, left)
        return table


def _live(table: Callable[[int], Table]) -> Live:
    """What draws a table that is so many letters wide; what else writes to stderr comes out above it."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    return Live(
        get_renderable=lambda: table(console.width), console=console, refresh_per_second=5, transient=True,
        redirect_stdout=False, redirect_stderr=True,
    )  # fmt: skip


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches; a stream that was closed from the start is None."""
    return stream is not None and stream.isatty()


def _title(job: Job) -> str:
    return printable(job.input.name) if str(job.input) != "-" else "standard input"


def _weight(song: Path) -> float:
    """About how long a song is, compared with others; 1 for what cannot be seen."""
    try:
        return max(1, song.stat().st_size) / DENSITY.get(song.suffix.lower(), 1)
    except OSError:
        return 1.0


def _rate(song: Path) -> int | None:
    from vocalremover.audio import Reader
    from vocalremover.errors import AudioError

    if str(song) == "-":
        return None
    with suppress(AudioError), Reader(song) as reader:
        return reader.rate
    return None


def _speed(heard: float, elapsed: float) -> str:
    return f"{heard / elapsed:.1f}x" if heard and elapsed > ENOUGH else ""


def _left(elapsed: float, share: float) -> str:
    return f"{clock(elapsed * (1 - share) / share)} left" if share and elapsed > ENOUGH else ""
