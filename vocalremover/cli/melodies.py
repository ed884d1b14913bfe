"""`vocalremover train melodies`: more singers for a prepared cache, out of those who speak."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.output import emit, say
from vocalremover.cli.train import Size

if TYPE_CHECKING:
    from vocalremover.dataset.cache import Entry


@click.command("melodies")
@click.option("--cache", required=True, type=click.Path(path_type=Path), metavar="DIR", help="What prepare has filled.")
@click.option("--cache-gb", type=Size(min=0), help="The most the cache may take.  [default: any]")
@click.option(
    "--kind", "kinds", multiple=True, default=("speech", "syllables"), show_default=True, metavar="KIND",
    help="Whose voices sing; several times.",
)
@click.option(
    "--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Another one makes other melodies."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=0), help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def command(
    cache: Path, cache_gb: float | None, kinds: tuple[str, ...], seed: int, workers: int, as_json: bool, quiet: bool
) -> None:
    """Turns the speech and the syllables of a prepared cache into sung melodies, further voices to train on.

    Needs the package pyworld. A run that is stopped goes on where it was; training finds the melodies in the cache.
    """
    from vocalremover.dataset.cache import RATE
    from vocalremover.dataset.melody import add_melodies

    def told(entries: Iterable[Entry], count: int) -> Iterator[Entry]:
        for number, entry in enumerate(entries, 1):
            say(f"[{number}/{count}] {entry.refused or entry.name}", -1 if quiet else 0)
            yield entry

    limit = None if cache_gb is None else round(cache_gb * 1e9)
    made = [entry for entry in add_melodies(cache, seed, kinds, workers, limit, told) if not entry.refused]
    hours = sum(entry.samples for entry in made) / RATE / 3600
    if as_json:
        emit(json.dumps({"melodies": len(made), "hours": round(hours, 4)}))
    else:
        say(f"{len(made)} melodies, {hours:.2f} hours", -1 if quiet else 0)
