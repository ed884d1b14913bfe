"""`vocalremover train pack`, `unpack` and `piece`: training where there is a machine for minutes at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vocalremover.cli.output import emit, say
from vocalremover.cli.train import Size, counted, end, often_option, plain, polite_signals, silent

FOLDER = click.Path(path_type=Path)
MEBI = 1 << 20


@click.command("pack")
@click.argument("cache", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--piece-mib", default=50.0, show_default=True, type=Size(min=0.1), help="The most of a file.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def pack_command(cache: Path, out: Path, piece_mib: float, quiet: bool) -> None:
    """Packs a prepared CACHE into files of a limited size in OUT, to be unpacked on another machine.

    They hold the recordings as they were found where these are compressed, and Opus where they are not.
    """
    from vocalremover.dataset.parcels import pack

    for path in pack(cache, out, int(piece_mib * MEBI), lambda items, count: counted(items, count, "packed", quiet)):
        emit(path)


@click.command("unpack")
@click.argument("parcels", type=FOLDER)
@click.argument("cache", type=FOLDER)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=0), help="Processes that decode.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def unpack_command(parcels: Path, cache: Path, workers: int, quiet: bool) -> None:
    """Unpacks what `pack` made, as much as there is of it, into a CACHE to train from; again as more arrives."""
    unpack(parcels, cache, workers, quiet)
    emit(cache)


@click.command("piece")
@click.option("--cache", required=True, type=FOLDER, metavar="DIR", help="What prepare or unpack has filled.")
@click.option(
    "--out", required=True, type=FOLDER, metavar="DIR", help="Folder of the run; a run that is in it goes on."
)
@click.option("--minutes", required=True, type=click.FloatRange(min=0.05), help="All that this command may take.")
@click.option("--total-minutes", type=click.FloatRange(min=0), help="Of the whole run.  [default: the recipe's]")
@click.option("--unpack", "parcels", type=FOLDER, metavar="DIR", help="First unpack what is there into the cache.")
@click.option("--join", "parts", type=FOLDER, metavar="DIR", help="First join the state that a piece has shipped.")
@click.option("--ship", type=FOLDER, metavar="DIR", help="For what travels on: state, weights, log and report.")
@click.option("--part-mib", default=15.0, show_default=True, type=Size(min=0.01), help="The most of a file.")
@click.option("--recipe", metavar="NAME|FILE", help="As train takes it.")
@click.option("--model", metavar="NAME", help="As train takes it.")
@click.option("--set", "changes", multiple=True, metavar="SETTING=VALUE", help="Any setting of the recipe.")
@click.option("--start", metavar="NAME|FILE", help="Weights to begin with.")
@often_option
@click.option("--validation", type=FOLDER, metavar="DIR", help="Whole songs with their stems, to be judged by.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), help="Measure this size, too.")
@click.option("--measure", default=5.0, show_default=True, type=click.FloatRange(min=0), help="Seconds each; 0: none.")
@click.option(
    "--compile-limit", default=90.0, show_default=True, type=click.FloatRange(min=0), help="Seconds; 0: never."
)
@click.option("--save-minutes", default=1.0, show_default=True, type=click.FloatRange(min=0.01), help="Between saves.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=0), help="Processes for the audio.")
@click.option("--mixing", type=click.Choice(["auto", "workers", "device"]), default="auto", show_default=True)
@click.option("-d", "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def piece_command(
    cache: Path, out: Path, minutes: float, total_minutes: float | None, parcels: Path | None, parts: Path | None,
    ship: Path | None, part_mib: float, recipe: str | None, model: str | None, changes: tuple[str, ...],
    start: str | None, often: tuple[tuple[str, float], ...], validation: Path | None, batches: tuple[int, ...],
    measure: float, compile_limit: float, save_minutes: float, workers: int, mixing: str, device: str, quiet: bool,
) -> None:  # fmt: skip
    """Trains for some minutes on a machine that is there no longer, and saves often; the same again goes on.

    Measures first how fast examples are mixed and learnt from, and compiles if that pays. Prints the report as JSON.
    """
    began = time.monotonic()
    from vocalremover.dataset import Sources, load
    from vocalremover.devices import choose_device
    from vocalremover.evaluate.scores import find_songs
    from vocalremover.training.distributed import alone
    from vocalremover.training.piece import SHIPPED, Piece, run_piece
    from vocalremover.training.recipe import read_recipe
    from vocalremover.training.shipping import join
    from vocalremover.training.train import Run
    from vocalremover.training.validation import files_of

    world = alone(choose_device(device))
    if parcels is not None:
        unpack(parcels, cache, workers, quiet)
    if parts is not None and not (out / "last.pt").exists():
        last = sorted(SHIPPED, key=lambda name: name == "last.pt")  # by which one knows that all of them are there
        joined = [name for name in last if join(parts, out / name)]
        say(f"joined {', '.join(joined) or 'nothing'}", -1 if quiet else 0)
        if "last.pt" not in joined and "last.safetensors" in joined:
            say("warning: the state did not travel: the run goes on with its averaged weights and a new optimiser")
            start = str(out / "last.safetensors")
    how = read_recipe(recipe, model, changes, minutes=total_minutes)
    how = replace(how, save_minutes=save_minutes)
    songs = tuple(find_songs(validation) if validation else ())
    with polite_signals() as received:
        on_device = mixing == "device" or (mixing == "auto" and world.device.type == "cuda")
        catalogue = load(cache, Sources(often=often, judged=files_of(songs)))
        run = Run(how, out, catalogue, songs, start, workers, on_device=on_device)
        piece = Piece(run, began + 60 * minutes, ship, int(part_mib * MEBI), batches, measure, compile_limit)
        told: list[dict[str, Any]] = []
        lines = run_piece(piece, world, lambda: bool(received))
        (silent if quiet else plain)(reports_aside(lines, told), how)
        emit(json.dumps(told[0], indent=1))
    end(received[0] if received else 0, not quiet)


def reports_aside(lines: Iterable[dict[str, Any]], told: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of the log; the report goes to `told`."""
    for line in lines:
        if "report" in line:
            told.append(line)
        else:
            yield line


def unpack(parcels: Path, cache: Path, workers: int, quiet: bool) -> None:
    """Unpack, saying how far it is and what is missing."""
    from vocalremover.dataset.parcels import unpack

    done = unpack(parcels, cache, workers, lambda entries, count: counted(entries, count, "decoded", quiet))
    for problem in done.problems:
        say(f"warning: {problem}")
    missing = f"; parcels {', '.join(map(str, done.missing))} are missing" if done.missing else ""
    say(f"{done.entries} of {done.of} recordings are there{missing}", -1 if quiet else 0)
