"""What a person or a script sees: a bar on a terminal, plain lines otherwise, JSON where it was asked for.

stdout carries results only: the path of each stem, one a line, or one JSON object an input. All else goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from torch import Tensor

    from vocalremover.batch import Job, Result

PLAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Report:
    """`verbosity` is -1 (errors only), 0, 1 (more) or 2 (tracebacks); `about` is what every JSON object repeats."""

    verbosity: int
    as_json: bool
    jobs: list[Job]
    about: dict[str, str | None]

    def progress(self, blocks: Iterable[Tensor], job: Job, stage: str, samples: int | None) -> Iterable[Tensor]:
        """`blocks` as they are, seen on stderr as they pass."""
        if self.verbosity < 0:
            return blocks
        name = printable(job.input.name)
        if len(self.jobs) > 1:
            name = f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {name}"
        draw = _bar if sys.stderr.isatty() else _lines
        return draw(blocks, f"{name}: {stage}", samples)

    def result(self, result: Result) -> None:
        """The results of one input on stdout, how it went on stderr."""
        job = result.job
        for warning in result.warnings:
            say(f"warning: {warning}", self.verbosity)
        if result.error is not None:
            say(f"error: {result.error}")
        elif not self.as_json:
            for output in job.outputs.values():
                click.echo(os.fsencode(output) if os.name == "posix" else str(output))
        if result.error is None:
            speed = f"{result.real_time_factor:.1f}x real time"
            say(f"{job.input.name}: {clock(result.duration)} in {result.seconds:.1f} s ({speed})", self.verbosity)
        if self.as_json:
            click.echo(json.dumps(self._record(result)))

    def _record(self, result: Result) -> dict[str, object]:
        done = result.error is None
        return {
            "input": str(result.job.input),
            "outputs": {stem: str(path) for stem, path in result.job.outputs.items()} if done else {},
            "duration": round(result.duration, 3),
            "seconds": round(result.seconds, 3),
            "real_time_factor": round(result.real_time_factor, 2),
            **self.about,
            "warnings": list(result.warnings),
            "error": result.error,
        }


def say(sentence: str, verbosity: int = 0) -> None:
    """One line on stderr, unless `verbosity` is below 0."""
    if verbosity >= 0:
        click.echo(printable(sentence), err=True)


def printable(text: str) -> str:
    """A file may be called anything: line breaks, control characters and undecodable bytes are shown as escapes."""
    odd = ("Cc", "Cs")
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in odd else letter for letter in text)


def clock(seconds: float) -> str:
    """`205.4` is `3:25`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _lines(blocks: Iterable[Tensor], title: str, samples: int | None) -> Iterator[Tensor]:
    """A line now and then, for a log."""
    done, told = 0, perf_counter()
    for block in blocks:
        done += block.shape[-1]
        if perf_counter() - told >= PLAIN_SECONDS:
            told = perf_counter()
            say(f"{title} {done / samples:.0%}" if samples else title)
        yield block


def _bar(blocks: Iterable[Tensor], title: str, samples: int | None) -> Iterator[Tensor]:
    """One line on the terminal that is gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # The name gives way to the rest where the terminal is narrow. A redirected stdout must not end up on stderr.
    text = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (text, BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, expand=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task(title, total=samples)
        for block in blocks:
            bar.advance(task, block.shape[-1])
            yield block
