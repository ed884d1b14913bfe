"""`vocalremover ensemble INPUT... --models A B C`: several models' answers made one; or stems made elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePath
from time import perf_counter
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from vocalremover.cli import running
from vocalremover.cli.options import Batch, Computing, Filing, Telling, grouped, several
from vocalremover.cli.output import say
from vocalremover.cli.running import Run
from vocalremover.cli.screen import Screen
from vocalremover.cli.sections import Command, choice, option
from vocalremover.errors import VocalRemoverError

if TYPE_CHECKING:
    from torch import Tensor

    from vocalremover.batch import Job, Progress, Result, Settings
    from vocalremover.ensemble import Ensemble, Rule, Turns

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".th", ".bin")
FLAGS = ("-m", "--models")
# What --files understands; all else tells how songs are separated.
COMBINING = (
    "files", "method", "domain", "weights", "out", "format", "bits", "int24", "float32", "bitrate", "overwrite",
    "as_json", "quiet", "verbose",
)  # fmt: skip


class ModelsCommand(Command):
    """A command whose `--models` takes words up to the next option, or to the first that names no model."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Writes `--models a b c` as `--models a --models b --models c`, which click understands."""
        return super().parse_args(context, list(_spread(args)))


def _spread(words: Sequence[str]) -> Iterator[str]:
    words = list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word == "--" or flag not in FLAGS or not (equals or words):
            yield word
            if word == "--":
                yield from words
                return
            continue
        yield from (flag, value if equals else words.pop(0))
        for model in list(takewhile(_names_model, words)):
            yield from (flag, model)
            words.pop(0)


def _names_model(word: str) -> bool:
    """Whether a word after a model is one more of them, and not a song: a bare name, or a file of weights."""
    if word.startswith(("-", "@")) or re.search(r"[*?\[]", word):
        return False
    parts = [part for part in word.split(",") if part]
    if any(PurePath(part).suffix.lower() in WEIGHTS_SUFFIXES for part in parts):
        return True
    if not all(re.fullmatch(r"\w+", part) for part in parts):
        return False
    if not Path(word).exists():
        return True
    from vocalremover.models import MODELS  # takes a while, for the few folders that are called like a model

    return word in MODELS


def _weights(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[float, ...] | None:
    try:
        return tuple(map(float, several(context, parameter, words))) or None
    except ValueError:
        raise click.BadParameter(f"{' '.join(words)!r} are no numbers; write 2,1,1", context, parameter) from None


@click.command("ensemble", cls=ModelsCommand)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@option(
    "Models", "-m", "--models", multiple=True, callback=several, metavar="NAME|PATH...",
    help="Several, with spaces or commas between them, of any families.",
)
@option(
    "Models", "--method", default=None, metavar="RULE",
    help="min (the quietest instrumental), max, avg, median, or original (as the original project has it); or with "
    "its domain: avg_wave, min_fft.  [default: min; avg with --files]",
)
@option("Models", "--domain", type=choice("spec", "wave"), help="Where they are compared.  [default: spec]")
@option("Models", "--weights", multiple=True, callback=_weights, metavar="2,1,1", help="Of the models in an average.")
@option(
    "Models", "--config", multiple=True, metavar="[MODEL=]FILE.yaml",
    help="What a RoFormer was trained with: one for each model, or for the one that is named.",
)
@option("Models", "--in-turn", is_flag=True, help="Never two models in memory; by itself where they need most of it.")
@option("Files", "--files", is_flag=True, help="Combine the INPUTs, one stem made by several programs, into -o FILE.")
@grouped(Filing, Batch, Computing, Telling)
def command(
    filing: Filing, batch: Batch, computing: Computing, telling: Telling, inputs: tuple[str, ...],
    models: tuple[str, ...], method: str | None, domain: str | None, weights: tuple[float, ...] | None,
    config: tuple[str, ...], in_turn: bool, files: bool,
) -> int | None:  # fmt: skip
    """Separates songs with several models at once, or combines stems made elsewhere.

    \b
    vocalremover ensemble song.mp3 --models v1 v2b v10
    vocalremover ensemble --files a_Vocals.wav b_Vocals.wav -o vocals.wav

    An INPUT is what `vocalremover separate` takes, and the stems are what it makes. Each model is loaded once. With
    --files every INPUT is the name of one file.
    """
    run = Run(inputs, filing, batch, telling)
    run.check()
    running.listen(telling.verbosity)
    running.load_libraries()

    from vocalremover.ensemble import Rule

    if files:
        return _combine(run, Rule.parse(method or "avg", domain, weights))
    if not models:
        raise click.UsageError("name the models, such as --models v1 v2b v10")
    rule = Rule.parse(method or "min", domain, weights)
    rule.check(len(models))
    return _separate(run, models, rule, computing, _configs(models, config), in_turn)


def _configs(models: Sequence[str], words: Sequence[str]) -> list[Path | None] | None:
    """One yaml for each model, None where none is given. Raises UsageError."""
    if not words:
        return None
    named = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0] in models)
    plain = [word for word in words if word.split("=", 1)[0] not in named]
    if plain and (named or len(plain) != len(models)):
        raise click.UsageError(
            f"there are {len(models)} models and {len(plain)} --config: give one for each, or name its model as in "
            "--config MODEL=FILE.yaml"
        )
    return [Path(word) for word in plain] or [Path(named[name]) if name in named else None for name in models]


def _separate(
    run: Run, models: Sequence[str], rule: Rule, computing: Computing, configs: list[Path | None] | None,
    in_turn: bool,
) -> int | None:  # fmt: skip
    from vocalremover.batch import run as separate
    from vocalremover.ensemble import Turns, load_all

    streams = run.is_stream()
    if streams and in_turn:
        raise click.UsageError("--in-turn does not go with -, whose song all models have to hear at once")
    settings = run.filing.settings(_joined(models), run.batch.skip_existing)
    inference, stems, devices = computing.inference(), run.filing.stems(), computing.devices()

    def load(device: str, one_by_one: bool | None) -> Ensemble | Turns:
        return load_all(models, device, rule, inference, configs, stems, one_by_one)

    # The first device decides: models that take turns do so on one.
    loaded = [load(devices[0], False if streams else in_turn or None)]
    if isinstance(loaded[0], Turns):
        _tell_unused(devices, run)
    else:
        loaded += [load(device, False) for device in devices[1:]]
    running.introduce(models, computing.chosen, loaded, run.telling.verbosity)
    if streams:
        return running.stream(run, loaded[0], settings)
    settings = replace(settings, stems=loaded[0].stems)
    jobs = running.plan(run, settings)
    describe = loaded[0].describe
    if run.batch.dry_run:
        return running.preview(run, jobs, settings, describe)

    def about() -> dict[str, object]:
        description = describe()
        return {"model": description["model"], "sha256": [model["sha256"] for model in description["models"]]}

    def results(progress: Progress) -> Iterator[Result]:
        if isinstance(loaded[0], Turns):
            return _in_turn(loaded[0], jobs, settings, progress)
        return separate(jobs, loaded, settings, progress, run.batch.jobs)

    passes = len(set(models)) if isinstance(loaded[0], Turns) else 1
    return running.work(run, jobs, about, describe, results, settings, passes)


def _tell_unused(devices: Sequence[str], run: Run) -> None:
    """Says what models that take turns leave alone."""
    jobs = run.batch.jobs or 1
    unused = [*devices[1:], *([f"--jobs {jobs}"] if jobs > 1 else [])]
    if unused:
        sentence = f"models that take turns hear one song at a time on {devices[0]}, without {', '.join(unused)}"
        say(f"warning: {sentence}", run.telling.verbosity)


def _in_turn(turns: Turns, jobs: Sequence[Job], settings: Settings, progress: Progress) -> Iterator[Result]:
    """The results of models that take turns: first of the songs that need no model, then of all the others."""
    from vocalremover.batch import preview
    from vocalremover.batch import run as separate

    wanted = {
        step.job.input: step.job
        for step in preview(jobs, settings, turns.describe)
        if step.state in ("new", "stale", "replace")
    }
    yield from separate([job for job in jobs if job.input not in wanted], turns, settings, progress)
    spent = dict.fromkeys(wanted, 0.0)  # seconds

    def timed(blocks: Iterable[Tensor], song: Path, stage: str, samples: int | None) -> Iterator[Tensor]:
        began = perf_counter()
        yield from progress(blocks, wanted[song], stage, samples)
        spent[song] += perf_counter() - began

    if not wanted:
        return
    # What waits until all models have been heard lies where the stems will.
    with turns.spooling(settings.home(next(iter(wanted)))):
        told = len(turns.warnings)
        for songs in turns.portions(wanted):
            turns.hear(songs, timed)
            for song in songs:
                result = _played(turns, wanted[song], settings)
                # What concerns all that was heard is told with the first of it.
                warnings = (*turns.warnings[told:], *result.warnings)
                told = len(turns.warnings)
                yield replace(result, seconds=result.seconds + spent[song], warnings=warnings)


def _played(turns: Turns, job: Job, settings: Settings) -> Result:
    """The result of a song that all models have heard."""
    from vocalremover.batch import Result
    from vocalremover.batch import run as separate

    try:
        (result,) = separate([job], turns.play(job.input), settings)
    except VocalRemoverError as failure:
        result = Result(job, 0.0, error=str(failure), state="failed", exit_code=failure.exit_code)
    except Exception as failure:  # one song in a thousand must not stop the rest
        error = f"{job.input} failed unexpectedly: {type(failure).__name__}: {failure}"
        result = Result(job, 0.0, error=error, state="failed")
    turns.forget(job.input)
    return result


def _combine(run: Run, rule: Rule) -> int:
    """Files of one stem -> one file."""
    from vocalremover.audio import Encoding, Reader
    from vocalremover.batch import Job, Result
    from vocalremover.ensemble import combine_files

    out, telling = run.filing.out, run.telling
    if out is None or str(out) == running.STREAM:
        raise click.UsageError("--files needs the name of the file to write, such as -o vocals.wav")
    given = _given()
    for name, flag in given.items():
        if name not in COMBINING:
            raise click.UsageError(f"{flag} does not go with --files, which makes one file of the stems that are there")
    rule.check(len(run.inputs), "files")
    named = Encoding.of(out).format
    if "format" in given and run.filing.format != named:
        raise click.UsageError(f"--format {run.filing.format} contradicts the name {out}; leave it out")
    encoding = replace(run.filing, format=named).encoding()
    job = Job(Path(run.inputs[0]), {"combined": out})
    began = perf_counter()
    with Screen(telling.verbosity, [job], (lambda: {"method": rule.name}) if telling.as_json else None) as screen:
        try:
            warnings = combine_files(
                run.inputs, out, rule, encoding, run.filing.overwrite,
                progress=lambda blocks, stage, samples: screen.progress(blocks, job, stage, samples),
            )  # fmt: skip
            with Reader(out) as reader:
                duration = (reader.samples or 0) / reader.rate
        except VocalRemoverError as failure:
            screen.result(Result(job, 0.0, error=str(failure), state="failed"))
            return failure.exit_code
        screen.result(Result(job, perf_counter() - began, duration, tuple(warnings)))
    return 0


def _given() -> dict[str, str]:
    """The options that were typed, each with its long word."""
    context = click.get_current_context()
    return {
        told.name: next(word for word in told.opts if word.startswith("--"))
        for told in context.command.params
        if isinstance(told, click.Option) and context.get_parameter_source(told.name) == ParameterSource.COMMANDLINE
    }


def _joined(models: Sequence[str]) -> str:
    """What a template's {model} becomes."""
    return "+".join(PurePath(model).stem.replace(".", "_") for model in models)
