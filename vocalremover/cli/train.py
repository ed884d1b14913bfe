"""`vocalremover train`: audio and a recipe in, a checkpoint out; `vocalremover train prepare`: only decode the audio.

Under torchrun every process runs this command; only the first one speaks.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from vocalremover.cli.output import PLAIN_SECONDS, emit, say
from vocalremover.durations import clock

if TYPE_CHECKING:
    from vocalremover.dataset import Catalogue, Sources
    from vocalremover.training.distributed import World
    from vocalremover.training.recipe import Recipe
    from vocalremover.training.train import Run

FOLDER = click.Path(path_type=Path)
MOST_OFTEN = 1000


class Size(click.FloatRange):
    """A number of GB or MiB; nan, inf and what is as good as inf in bytes are refused."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, as click asks for it."""
        size = super().convert(value, param, ctx)
        if not math.isfinite(size * 1e9):
            self.fail(f"{size} is no size; write a number, or leave it out", param, ctx)
        return size


class Often(click.ParamType):
    """PREFIX=TIMES: the beginning of a path and a number of times above 0."""

    name = "prefix=times"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Both, as click asks for them."""
        beginning, _, times = str(value).rpartition("=")
        try:
            number = float(times)
        except ValueError:
            number = math.nan
        if not beginning or not 0 < number <= MOST_OFTEN:
            self.fail(f"{value!r} is no PREFIX=TIMES such as vocals/anna=4; up to {MOST_OFTEN} times", param, ctx)
        return beginning, number


often_option = click.option(
    "--often", multiple=True, type=Often(), metavar="PREFIX=TIMES",
    help="Draw paths that begin so that many times as often, and at least once in turn.",
)  # fmt: skip


def audio_options(command: Callable[..., None]) -> Callable[..., None]:
    """What names the audio to train on."""
    options = (
        click.option("--instrumentals", multiple=True, type=FOLDER, metavar="DIR", help="Songs without a voice."),
        click.option("--vocals", multiple=True, type=FOLDER, metavar="DIR", help="Voices without instruments."),
        click.option(
            "--pairs", multiple=True, type=FOLDER, metavar="DIR",
            help="Songs with their stems, such as SONG/mixture.wav and SONG/vocals.wav.",
        ),
        click.option(
            "--data", type=FOLDER, metavar="DIR", help="A folder with a manifest.csv: columns path, kind and others."
        ),
        click.option("--held-out", multiple=True, metavar="PREFIX", help="Leave out paths that begin so: vocals/anna."),
        click.option("--cache", type=FOLDER, metavar="DIR", help="For decoded audio, about 10 MB a minute."),
        click.option("--cache-gb", type=Size(min=0), help="The most the cache may take.  [default: any]"),
        click.option("--workers", default=2, show_default=True, type=click.IntRange(min=0), help="For the audio."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group("train", invoke_without_command=True)
@click.option("--model", metavar="NAME", help="What to train.  [default: the recipe's]")
@click.option("--recipe", metavar="NAME|FILE", help="How: a recipe that comes along, or YAML.  [default: the model's]")
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder of the run; a run that is in it goes on.")
@click.option("--start", metavar="NAME|FILE", help="Weights to begin with, as separate -m takes them.")
@audio_options
@often_option
@click.option("--validation", type=FOLDER, metavar="DIR", help="Whole songs with their stems, to be judged by.")
@click.option("--steps", type=click.IntRange(min=1), help="End after so many.  [default: the recipe's]")
@click.option("--minutes", type=click.FloatRange(min=0), help="End after so long, all pieces of the run together.")
@click.option(
    "--mixing", type=click.Choice(["auto", "workers", "device"]), default="auto", show_default=True,
    help="Who mixes examples: the workers, or, as they draw them, the device; auto is the device for CUDA.",
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="[default: the recipe's]")
@click.option("--seed", type=int, help="[default: the recipe's]")
@click.option("--compile/--no-compile", "compiled", default=None, help="Use torch.compile.")
@click.option("--set", "changes", multiple=True, metavar="SETTING=VALUE", help="Any setting: optimiser.clip=0.5")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard, too.")
@click.option("-d", "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.pass_context
def command(
    context: click.Context, model: str | None, recipe: str | None, out: Path | None, start: str | None,
    instrumentals: tuple[Path, ...], vocals: tuple[Path, ...], pairs: tuple[Path, ...], data: Path | None,
    held_out: tuple[str, ...], often: tuple[tuple[str, float], ...], cache: Path | None, cache_gb: float | None,
    workers: int, validation: Path | None,
    steps: int | None, minutes: float | None, mixing: str, precision: str | None, seed: int | None,
    compiled: bool | None, changes: tuple[str, ...], tensorboard: bool, device: str, quiet: bool,
) -> None:  # fmt: skip
    """Trains a model on your audio and saves it in the folder of the run, or goes on with what the folder holds.

    Example: vocalremover train --model v10 --instrumentals DIR --vocals DIR --validation DIR --out runs/mine

    runs/mine/best.safetensors is for separate -m. ^C or a kill saves; the same command goes on.
    """
    if context.invoked_subcommand is not None:
        return
    from vocalremover.dataset import Sources
    from vocalremover.devices import choose_device
    from vocalremover.evaluate.scores import find_songs
    from vocalremover.training.distributed import join_world
    from vocalremover.training.recipe import read_recipe
    from vocalremover.training.train import Run
    from vocalremover.training.validation import files_of

    if out is None:
        raise click.UsageError("--out is missing: the folder of the run")
    how = read_recipe(
        recipe, model, changes, steps=steps, minutes=minutes, precision=precision, seed=seed, compile=compiled
    )
    songs = tuple(find_songs(validation) if validation else ())
    sources = Sources(instrumentals, vocals, pairs, data, held_out, often, judged=files_of(songs))
    with join_world(choose_device(device)) as world:
        speaking = world.first and not quiet
        catalogue = decode_together(sources, cache or out / "cache", cache_gb, workers, world, speaking)
        on_device = mixing == "device" or (mixing == "auto" and world.device.type == "cuda")
        run = Run(how, out, catalogue, songs, start, workers, tensorboard, on_device)
        stopped = follow(run, world, speaking)
        if speaking and not stopped:
            emit(out / "best.safetensors")
    end(stopped, speaking)


@command.command("prepare")
@audio_options
@click.option("--verify", is_flag=True, help="Compare the checksums of what is decoded already.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def prepare_command(
    instrumentals: tuple[Path, ...], vocals: tuple[Path, ...], pairs: tuple[Path, ...], data: Path | None,
    held_out: tuple[str, ...], cache: Path | None, cache_gb: float | None, workers: int, verify: bool, quiet: bool,
) -> None:  # fmt: skip
    """Decodes audio into --cache once, so that no training has to wait for it, and says what cannot be used."""
    from vocalremover.dataset import Sources

    if cache is None:
        raise click.UsageError("--cache is missing: the folder for decoded audio")
    sources = Sources(instrumentals, vocals, pairs, data, held_out)
    decode(sources, cache, cache_gb, workers, not quiet, verify)
    emit(cache)


def decode_together(
    sources: Sources, cache: Path, gigabytes: float | None, workers: int, world: World, speaking: bool
) -> Catalogue:
    """The catalogue in every process; the first one decodes what is missing, the others read what it left."""
    from vocalremover.dataset import load

    catalogue = decode(sources, cache, gigabytes, workers, speaking) if world.first else None
    world.wait()
    return catalogue or load(cache, sources)


def decode(
    sources: Sources, cache: Path, gigabytes: float | None, workers: int, speaking: bool, verify: bool = False
) -> Catalogue:
    """Prepare the audio, saying how far it is and what was left out."""
    from vocalremover.dataset import prepare

    limit = None if gigabytes is None else int(gigabytes * 1e9)
    catalogue = prepare(
        sources, cache, limit, verify, workers, lambda entries, count: counted(entries, count, "decoded", not speaking)
    )
    if speaking:
        for problem in catalogue.problems:
            say(f"warning: {problem}")
        voices, backings, songs = map(len, (catalogue.voices, catalogue.backings, catalogue.songs))
        say(f"{voices} voices, {backings} instrumentals and {songs} whole songs to draw from")
    return catalogue


def counted(items: Iterable[Any], count: int, word: str, quiet: bool) -> Iterator[Any]:
    """The items, with a line now and then and at the end that says how many were done."""
    told = perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        if not quiet and (done == count or perf_counter() - told >= PLAIN_SECONDS):
            told = perf_counter()
            say(f"{word} {done} of {count}")


def follow(run: Run, world: World, speaking: bool) -> int:
    """Train and tell how it goes; the number of the signal that ended it, or 0."""
    from vocalremover.training.train import train

    with polite_signals() as received:
        lines = train(run, world, lambda: bool(received))
        show = silent if not speaking else bar if sys.stderr.isatty() else plain
        show(lines, run.recipe)
    return received[0] if received else 0


def end(stopped: int, speaking: bool) -> None:
    """Ends the program as the signal says that stopped the run, if one did."""
    if stopped:
        say("vocalremover: stopped; the run is saved, and the same command goes on", 0 if speaking else -1)
        sys.exit(128 + stopped)


def silent(lines: Iterable[dict[str, Any]], recipe: Recipe) -> None:
    """Nothing to see."""
    for _ in lines:
        pass


def plain(lines: Iterable[dict[str, Any]], recipe: Recipe) -> None:
    """A line now and then, for a log; every validation."""
    told = -PLAIN_SECONDS
    for line in lines:
        if "loss" not in line or perf_counter() - told >= PLAIN_SECONDS:
            told = perf_counter() if "loss" in line else told
            say(sentence(line, recipe))


def bar(lines: Iterable[dict[str, Any]], recipe: Recipe) -> None:
    """A bar on the terminal with loss, examples a second and the time left; validations stay above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("preparing", total=1.0)
        for line in lines:
            if "loss" in line:
                done = share_done(line, recipe)
                progress.update(task, completed=done, description=sentence(line, recipe))
            else:
                console.print(sentence(line, recipe), markup=False, highlight=False)


def sentence(line: dict[str, Any], recipe: Recipe) -> str:
    """A line of the log for people."""
    if "score" in line:
        unit = "" if recipe.kind == "pretrain" else " dB"
        return f"step {line['step']}: validation {line['score']:.3f}{unit}, best {line['best']:.3f}{unit}"
    if "mixes" in line:
        return f"step {line['step']}: skipped, its loss is not finite (examples {line['examples']})"
    if "silent" in line:
        return f"step {line['step']}: nothing reaches {', '.join(line['silent'])} any more: lower the learning rate"
    done = share_done(line, recipe)
    left = f", {clock(60 * line['minutes'] * (1 - done) / done)} left" if done else ""
    speed = f"{line['examples_per_second']:.1f} examples/s"
    return f"step {line['step']}, {clock(60 * line['minutes'])}, loss {line['loss']:.4f}, {speed}{left}"


def share_done(line: dict[str, Any], recipe: Recipe) -> float:
    """How far the run is, 0..1, by whichever limit comes first."""
    steps = line["step"] / recipe.steps if recipe.steps else 0.0
    minutes = line["minutes"] / recipe.minutes if recipe.minutes else 0.0
    return min(max(steps, minutes), 1.0)


@contextmanager
def polite_signals() -> Iterator[list[int]]:
    """While it lasts, ^C, a kill or a closed terminal are only noted, so that a step is finished and the run saved.

    A second one ends at once.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            sys.exit(128 + number)
        received.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A signal that is ignored from the start (nohup) stays so.
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    replaced = {number: signal.signal(number, note) for number in heard}
    try:
        yield received
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
