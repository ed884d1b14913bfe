"""`vocalremover evaluate`: songs whose stems are known, and models or other tools' stems -> scores in dB."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.options import Computing, grouped
from vocalremover.cli.output import emit, printable, say, shorten
from vocalremover.cli.sections import Command, option

if TYPE_CHECKING:
    from vocalremover.evaluate.multitracks import Multitrack
    from vocalremover.evaluate.scores import Estimate, SongScores

PATH = click.Path(path_type=Path)
MEASURES = {"sdr": "SDR", "seconds": "SDR, median over seconds", "si_sdr": "SI-SDR"}
KINDS = {"floor": "floor", "estimate": "score", "ceiling": "ceiling"}
COLUMNS = tuple((stem, kind) for stem in ("vocals", "instrumental") for kind in KINDS)
NAME, NUMBER = 28, 10  # letters


@click.command("evaluate", cls=Command)
@option("Models", "-m", "--model", "models", multiple=True, metavar="NAME|PATH", help="What to score; several times.")
@option(
    "Models", "--stems", multiple=True, type=PATH, metavar="DIR",
    help="Stems that any tool made, such as SONG/vocals.wav or SONG_Vocals.wav; several times.",
)
@option("Models", "--config", type=PATH, metavar="FILE.yaml", help="What a RoFormer was trained with.")
@option(
    "Files", "--data", required=True, type=PATH, metavar="DIR",
    help="Songs with their stems, such as SONG/mixture.wav and SONG/vocals.wav; of a manifest.csv its validation.",
)
@option("Files", "--plot", type=PATH, metavar="FILE.svg", help="Draw the scores.")
@option("On the screen", "--json", "as_json", is_flag=True, help="One JSON object instead of the tables.")
@option("On the screen", "-q", "--quiet", is_flag=True, help="Nothing but the scores and errors.")
@grouped(Computing)
def command(
    computing: Computing, models: tuple[str, ...], stems: tuple[Path, ...], config: Path | None, data: Path,
    plot: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Scores models on songs whose stems are known: SDR over whole songs, its median over seconds, and SI-SDR.

    Each song is separated as `separate` does it. The floor is the untouched mixture taken for each stem, the ceiling
    the ideal ratio mask. Without a model and without stems, the default model is scored.
    """
    from vocalremover.cli.chart import MARK, draw
    from vocalremover.staging import Staging, bears

    if plot and plot.suffix.lower() != ".svg":
        raise click.UsageError(f"--plot {plot}: the picture is an SVG; name it {plot.with_suffix('.svg').name}")
    if plot and not plot.parent.is_dir():
        raise click.UsageError(f"--plot {plot}: there is no folder {plot.parent}")
    if plot and plot.exists() and not bears(plot, MARK):
        raise click.UsageError(f"--plot {plot} exists and is no picture of scores; choose another name")
    device, *others = computing.devices()
    if others:
        raise click.UsageError("--device names several: songs are scored on one")
    from vocalremover.evaluate.scores import as_record, find_songs, score, unlike

    songs = find_songs(data)
    results: dict[str, list[SongScores]] = {}
    records, tables = [], []
    chosen = models if models or stems else ("default",)
    try:
        for name, describe, estimate in contestants(chosen, stems, songs, config, device, computing):
            results[name] = scores = []
            try:
                for number, song in enumerate(songs, 1):
                    say(f"{name} [{number}/{len(songs)}] {song.name}", -1 if quiet else 0)
                    scores.append(score(song, estimate))
                    for warning in unlike(song):
                        say(f"warning: {warning}", -1 if quiet else 0)
            finally:
                if as_json and scores:
                    records.append({"name": name, "settings": describe(), **as_record(scores)})
                elif scores:
                    tables.extend(table(name, scores, measure) for measure in MEASURES)
    finally:  # what has been scored is told, whatever stopped the rest
        if records:
            emit(json.dumps({"data": str(data), "results": records}))
        elif tables:
            emit("\n\n".join(tables))
    if plot:
        with Staging(plot.parent) as folder:
            (folder / "plot").write_text(draw(results), encoding="utf-8")
            (folder / "plot").replace(plot)


def contestants(
    models: Sequence[str], stems: Sequence[Path], songs: Sequence[Multitrack], config: Path | None, device: str,
    computing: Computing,
) -> Iterator[tuple[str, Callable[[], dict[str, object]], Estimate]]:
    """(name, what tells its settings, what gives its stems) of each; a model is loaded when its turn comes.

    Raises ModelError and InputError for weights and stems that are missing, before the first.
    """
    from vocalremover import checkpoint
    from vocalremover.evaluate.scores import STEMS, found, separated
    from vocalremover.separate import Separator

    for model in models:
        checkpoint.find(model)
    others = {str(folder): found(folder, songs) for folder in stems}
    for model in models:
        separator = Separator.load(model, device, computing.inference(), config, STEMS)
        yield model, separator.describe, separated(separator)
    for name, estimate in others.items():
        yield name, dict, estimate


def table(name: str, scores: Sequence[SongScores], measure: str) -> str:
    """Lines of text: a song each, then the medians."""
    from vocalremover.evaluate.scores import medians

    stems = "".join(f"{stem:>{3 * NUMBER}}" for stem in ("vocals", "instrumental"))
    lines = [
        f"{MEASURES[measure]} in dB: {printable(name)}",
        f"{'':{NAME}}{stems}",
        f"{'song':{NAME}}" + "".join(f"{KINDS[kind]:>{NUMBER}}" for _, kind in COLUMNS),
    ]
    for song in scores:
        numbers = [getattr(getattr(song, kind)[stem], measure) for stem, kind in COLUMNS]
        lines.append(_line(song.song, numbers))
    middle = medians(scores)
    return "\n".join([*lines, _line("median", [middle[kind][stem][measure] for stem, kind in COLUMNS])])


def _line(name: str, numbers: Sequence[float]) -> str:
    shown = ("-" if math.isnan(number) else f"{number:.2f}" for number in numbers)
    return f"{shorten(printable(name), NAME - 2):{NAME}}" + "".join(f"{text:>{NUMBER}}" for text in shown)
