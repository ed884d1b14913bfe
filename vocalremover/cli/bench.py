"""`vocalremover bench`: how fast a model is on this computer, where its time goes, and which settings are best."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.options import device_name
from vocalremover.cli.output import emit, printable, say
from vocalremover.cli.sections import Command, option

if TYPE_CHECKING:
    from rich.table import Table

    from vocalremover.bench import Bench, Stage, Trial

PATH = click.Path(path_type=Path)
WIDTH = 80
MIB = 2**20
BUSY = 0.5  # of the processors taken by others, and
UNEVEN = 0.25  # of a run more in the longest than in the shortest: from there on the numbers are called rough


@click.command("bench", cls=Command)
@option(
    "Models", "-m", "--model", default="default", show_default=True, metavar="NAME|PATH",
    help="A known model or a file of weights.",
)
@option(
    "Models", "--config", metavar="FILE.yaml", type=PATH,
    help="What a RoFormer was trained with.  [default: the yaml called like its weights]",
)
@option("Files", "--song", type=PATH, metavar="FILE", help="Measure with this song.  [default: a synthesised mp3]")
@option(
    "Device", "-d", "--device", default="auto", show_default=True, callback=device_name, metavar="NAME",
    help="auto, cpu, cuda, cuda:N or mps.",
)
@option(
    "On the screen", "--seconds", type=click.FloatRange(min=0, min_open=True), default=45.0, show_default=True,
    metavar="N", help="How long to measure, about.",
)
@option("On the screen", "--json", "as_json", is_flag=True, help="One JSON object instead of the tables.")
@option("On the screen", "-q", "--quiet", is_flag=True, help="Nothing but the result and errors.")
def command(
    model: str, config: Path | None, song: Path | None, device: str, seconds: float, as_json: bool, quiet: bool
) -> None:
    """Measures a model on this computer: each stage, then batch sizes, precisions, threads and qualities.

    Everything is what `separate` does, with the time as the median of several runs. It says beforehand how long it will
    take; ^C ends it with what is known by then. Nothing is written beside your songs.
    """
    from vocalremover.bench import Bench, Wanted

    verbosity = -1 if quiet else 0
    bench = Bench(Wanted(model, device, config, song, seconds))
    say(f"device: {bench.device} (chosen by auto; -d chooses another)" * (device == "auto"), verbosity)
    plan = bench.prepare()
    say(announcement(plan.seconds, seconds, len(plan.changes), plan.runs), verbosity)
    try:
        with noted(verbosity) as note:
            for found in bench.run():
                if isinstance(found, str):
                    note(f"measuring {found}")
    finally:  # ^C, too
        emit(json.dumps(bench.record()) if as_json else shown(bench))


@contextmanager
def noted(verbosity: int) -> Iterator[Callable[[str], None]]:
    """Where to say what is being done: in one line of a terminal, which vanishes at the end, or a line each."""
    if verbosity < 0 or not sys.stderr.isatty():
        yield lambda text: say(text, verbosity)
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(printable(text))


def announcement(expected: float, limit: float, trials: int, runs: int) -> str:
    """How long it will take, and why it takes longer than was asked."""
    often = f"{trials} settings, {runs} run{'s' * (runs != 1)} each" if trials > 1 else "no settings but its own"
    sentence = f"this takes about {max(round(expected), 1)} s: the stages, and {often}"
    if expected > limit:
        sentence += f" (more than --seconds {limit:g}: a window of this model takes so long)"
    return sentence


def shown(bench: Bench) -> str:
    """The tables and the sentence at the end."""
    parts = []
    if bench.stages:
        parts += [drawn(stage_table(bench.stages)), ""]
    if bench.trials:
        parts += [drawn(trial_table(bench.trials, bench.best)), *reasons(bench.trials), ""]
    resident = bench.most_resident
    memory = f"Peak memory: {resident / MIB:.0f} MiB resident" if resident else "Peak memory: not told by this system"
    held = max((trial.device_bytes or 0 for trial in bench.trials), default=0)
    memory += f", {held / MIB:.0f} MiB on the device" if held else ""
    parts.append(f"{memory}. Loading the model took {bench.load_seconds:.1f} s.")
    parts += doubts(bench)
    last = sentence(bench)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        last = textwrap.fill(last, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*parts, last])


def doubts(bench: Bench) -> list[str]:
    """Why the numbers may be rough, a line each."""
    found = []
    if bench.load is not None and bench.load > BUSY * bench.processors:
        found.append(f"Other programs are at work (load {bench.load:.1f}, cores {bench.processors}): it can be faster.")
    uneven = max((trial.spread for trial in bench.trials), default=0.0)
    if uneven > UNEVEN:
        found.append(f"Runs of one setting differ by up to {uneven:.0%}: the numbers are rough.")
    return found


def sentence(bench: Bench) -> str:
    """What to type on this computer, and what that gives."""
    best = bench.best
    if best is None:
        return "It was ended before any setting had been measured."
    words = bench.words(best.setting)
    command = shlex.join(words)
    if os.name != "posix":  # whose shells take no variable before the command
        variables = [word for word in words[:1] if "=" in word]
        command = " with ".join((subprocess.list2cmdline(words[len(variables) :]), *variables))
    base = bench.wholes.get(bench.base)
    whole = bench.wholes.get(best.setting)
    if whole is None:
        return f"On this machine: {printable(command)} is fastest, at {best.real_time_factor:.3g}x real time in memory."
    text = f"On this machine: {printable(command)} gives {whole:.3g}x real time"
    if best.setting == bench.base:
        return f"{text}, which is what it does without them, too."
    return f"{text}; without them it is {base:.3g}x." if base else f"{text}."


def stage_table(stages: Sequence[Stage]) -> Table:
    """How fast each stage is, and its seconds for a minute of song."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from vocalremover.bench import STAGES

    song = stages[0].song
    title = f"Stages, over {song:.0f} s of song, by default"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head, justify in (("stage", "left"), ("x real time", "right"), ("s for a minute", "right")):
        table.add_column(head, justify=justify, no_wrap=True)
    for stage in stages:
        if stage.name == "whole":
            table.add_section()
        table.add_row(STAGES[stage.name], factor(stage.real_time_factor), f"{60 * stage.seconds / stage.song:.3f}")
    return table


def trial_table(trials: Sequence[Trial], best: Trial | None) -> Table:
    """How each setting did; the best is marked."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="Settings, from memory to memory", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # A GPU computes without threads, so that one of the two columns is always missing.
    threaded = any(trial.setting.threads for trial in trials)
    heads = ["quality", "batch", "precision", *(["threads"] if threaded else []), "x real time", "host MiB"]
    for head in (*heads, *([] if threaded else ["device MiB"])):
        table.add_column(head, justify="left" if head in ("quality", "precision") else "right", no_wrap=True)
    table.add_column("")
    for trial in trials:
        setting = trial.setting
        row = [setting.quality, str(setting.batch), setting.precision, *([str(setting.threads)] if threaded else [])]
        row += [factor(trial.real_time_factor), mebibytes(trial.host_bytes)]
        row += [] if threaded else [mebibytes(trial.device_bytes)]
        table.add_row(*row, remark(trial, best), style="bold" if trial is best else "")
    return table


def remark(trial: Trial, best: Trial | None) -> str:
    """What there is to say about a setting in a word or two."""
    if trial is best:
        return "best"
    if trial.state == "ok" and trial.setting.quality == "balanced" and not trial.is_fit:
        return f"inexact ({trial.sdr:.0f} dB)"
    return "" if trial.state == "ok" else trial.state


def reasons(trials: Sequence[Trial]) -> list[str]:
    """Why settings did not run, a line each."""
    return [
        printable(f"batch {trial.setting.batch}, {trial.setting.precision}, {trial.setting.quality}: {trial.note}")
        for trial in trials
        if trial.note and trial.state != "ok"
    ]


def factor(number: float | None) -> str:
    """`31.4`, `1230`; a dash for what was not measured."""
    if number is None:
        return "-"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def mebibytes(count: int | None) -> str:
    """Bytes in MiB."""
    return "-" if count is None else f"{count / MIB:.0f}"


def drawn(table: Table) -> str:
    """A table as lines, with colours on a terminal only."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, file=sys.stdout)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
