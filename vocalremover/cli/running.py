"""What `separate` and `ensemble` do alike, their words once understood: a stream, a plan that is told, or a batch."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.options import Batch, Filing, Telling
from vocalremover.cli.output import emit, printable, say
from vocalremover.cli.screen import Screen

if TYPE_CHECKING:
    from vocalremover.batch import Job, Progress, Result, Settings
    from vocalremover.batch.ledger import Description
    from vocalremover.ensemble import Ensemble
    from vocalremover.separate import Separator

STREAM = "-"
# What becomes of a song, in the words of a plan.
FATES = {
    "new": "to do",
    "stale": "to do again: made otherwise",
    "replace": "to replace",
    "done": "done",
    "exists": "refused",
    "failed": "refused",
}


@dataclass(frozen=True)
class Run:
    """Everything a person asked for, but the model."""

    inputs: tuple[str, ...]
    filing: Filing
    batch: Batch
    telling: Telling

    def is_stream(self) -> bool:
        """Whether one song comes from stdin, or its stem goes to stdout. Raises UsageError for what cannot be then."""
        out = str(self.filing.out) == STREAM
        if not out and STREAM not in self.inputs:
            return False
        if len(self.inputs) > 1:
            raise click.UsageError("- stands for one song, in place of all other inputs")
        unfit = {
            "--out": self.filing.out is not None and not out, "--recursive": self.batch.recursive,
            "--skip-existing": self.batch.skip_existing, "--dry-run": self.batch.dry_run, "--shard": self.batch.shard,
            "--json": self.telling.as_json, "--report": self.telling.report,
        }  # fmt: skip
        for name, given in unfit.items():
            if given:
                raise click.UsageError(f"{name} does not go with -: the stem is written to stdout and nothing else")
        if len(self.filing.stems() or ()) != 1:
            raise click.UsageError("stdout takes one stem; choose it, such as --stem instrumental")
        for name in ("stdin", "stdout"):
            if getattr(sys, name) is None:
                raise click.UsageError(f"{name} is closed")
        if sys.stdout.isatty():
            raise click.UsageError("the stem would be written to this terminal; send it on with | or >")
        return True

    def check(self) -> None:
        """Raises UsageError for what contradicts itself, before a model is read."""
        if not self.inputs:
            raise click.UsageError("name an INPUT: a file, a folder, @list.txt, or - for stdin")
        if self.batch.dry_run and self.telling.report:
            raise click.UsageError("--dry-run makes nothing that a --report could show; choose")


class _Echo(logging.Handler):
    """Writes to what stderr is at the moment: while there are bars, above them."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def listen(verbosity: int) -> None:
    """Lets the library's log be seen."""
    if verbosity > 0:
        logging.basicConfig(level=logging.INFO, handlers=[_Echo()])
        logging.getLogger("vocalremover").setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


def load_libraries() -> None:
    """Imports what separates, for a command whose words have been understood."""
    gc.disable()
    try:
        import vocalremover.batch  # noqa: F401
    finally:
        # What was imported stays to the end: to look through its half a million objects for garbage, now and again at
        # the end, would take a fifth of the start.
        gc.freeze()
        gc.enable()


def stream(run: Run, separator: Separator | Ensemble, settings: Settings) -> None:
    """One song from stdin or a file, one stem to stdout."""
    from vocalremover import batch

    (song,) = run.inputs
    with ExitStack() as stack:
        source = sys.stdin.buffer if song == STREAM else Path(song)
        job = batch.Job(Path(song), {})
        screen = stack.enter_context(Screen(run.telling.verbosity, [job]))
        settings = replace(settings, out=None, stems=separator.stems)
        result = batch.pipe(source, sys.stdout.buffer, separator, settings, screen.progress)
    for warning in result.warnings:
        say(f"warning: {warning}", run.telling.verbosity)


def plan(run: Run, settings: Settings) -> list[Job]:
    """The jobs; see batch.plan."""
    from vocalremover import batch

    return batch.plan(run.inputs, settings, run.batch.recursive, run.batch.shard)


def preview(run: Run, jobs: Sequence[Job], settings: Settings, describe: Description) -> int:
    """Tells what would be done with each song; the exit code that doing it would have."""
    from vocalremover import batch

    refused = False
    for step in batch.preview(jobs, settings, describe):
        refused = refused or step.state in ("exists", "failed")
        if run.telling.as_json:
            emit(json.dumps(step.record()))
            continue
        emit(f"{FATES[step.state]}: {printable(str(step.job.input))}")
        for line in [printable(step.reason)] if step.reason else map(printable, map(str, step.job.outputs.values())):
            emit(f"    {line}")
    return int(refused)


def work(
    run: Run, jobs: Sequence[Job], about: Description, describe: Description,
    results: Callable[[Progress], Generator[Result, None, None]], settings: Settings, passes: int = 1,
) -> int:  # fmt: skip
    """Does the jobs, whose results come from `results`, and tells of them; the exit code, 1 where songs failed for
    several kinds of reasons.

    about: what every JSON object repeats. describe: what a report tells of the models. They are asked where they are
    shown, since they may read all weights.
    """
    from vocalremover.batch import Summary

    telling = run.telling
    failed: set[int] = set()
    with ExitStack() as stack:
        page = None
        if telling.report:
            from vocalremover.report import Page

            page = stack.enter_context(Page(telling.report, _shown(settings, describe()), settings.overwrite))
        summary = Summary()
        screen = Screen(telling.verbosity, jobs, about if telling.as_json else None, passes)
        stack.enter_context(screen)
        # Whatever ends the loop ends the work, too.
        for result in stack.enter_context(closing(results(screen.progress))):
            screen.result(result)
            summary.add(result)
            if result.state == "failed":
                failed.add(result.exit_code)
            if page:
                page.add(result)
        screen.sum(summary)
    if telling.report:
        say(f"report: {telling.report}", telling.verbosity)
    return failed.pop() if len(failed) == 1 else int(bool(failed))


def introduce(names: Iterable[str], device: str, separators: Sequence[Separator | Ensemble], verbosity: int) -> None:
    """Says what was chosen by itself, and what is worth knowing of the models."""
    from vocalremover import checkpoint

    if device == "auto":
        say(f"device: {separators[0].device} (chosen by auto; -d chooses another)", verbosity)
    for warning in dict.fromkeys(warning for separator in separators for warning in separator.warnings):
        say(f"warning: {warning}", verbosity)
    for name in names:
        say(f"weights: {checkpoint.find(name)}", verbosity - 1)


def _shown(settings: Settings, description: Mapping[str, object]) -> dict[str, object]:
    """What a report tells of how its stems were made."""
    encoding = settings.encoding
    return {
        **description, "format": encoding.format, "bits": encoding.bits, "bitrate": encoding.bitrate,
        "clip": settings.clip, "out": str(settings.out or "beside the input"), "template": settings.template,
    }  # fmt: skip
