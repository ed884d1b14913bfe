"""`vocalremover separate INPUT...`: songs in, a file for each stem out."""

from dataclasses import replace
from pathlib import Path

import click

from vocalremover.cli import running
from vocalremover.cli.options import Batch, Computing, Filing, Telling, grouped
from vocalremover.cli.running import Run
from vocalremover.cli.sections import Command, option


@click.command("separate", cls=Command)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@option("Models", "-m", "--model", default="default", metavar="NAME|PATH", help="A known model or a file of weights.")
@option(
    "Models", "--config", metavar="FILE.yaml", type=click.Path(path_type=Path),
    help="What a RoFormer was trained with.  [default: the yaml beside its weights]",
)
@grouped(Filing, Batch, Computing, Telling)
def command(
    filing: Filing, batch: Batch, computing: Computing, telling: Telling, inputs: tuple[str, ...], model: str,
    config: Path | None,
) -> int | None:  # fmt: skip
    """Splits songs into vocals and instrumental, or into the stems of a model.

    An INPUT is an audio or video file, a folder of them, a pattern such as '*.mp3', @list.txt for a list of them, or -
    for stdin, whose one stem goes to stdout. The stems keep the input's sample rate, channels and length, and together
    they are the song again. stdout gets the paths of the stems and nothing else.
    """
    run = Run(inputs, filing, batch, telling)
    run.check()
    streams = run.is_stream()
    running.listen(telling.verbosity)
    running.load_libraries()

    from vocalremover.separate import Separator

    settings, inference = filing.settings(model, batch.skip_existing), computing.inference()
    separators = [
        Separator.load(model, device, inference, config, filing.stems()) for device in computing.devices()
    ]
    running.introduce([model], computing.chosen, separators, telling.verbosity)
    if streams:
        return running.stream(run, separators[0], settings)

    from vocalremover.batch import run as separate

    settings = replace(settings, stems=separators[0].stems)
    jobs = running.plan(run, settings)
    describe = separators[0].describe
    if batch.dry_run:
        return running.preview(run, jobs, settings, describe)
    return running.work(
        run, jobs, lambda: {name: describe()[name] for name in ("model", "sha256")}, describe,
        lambda progress: separate(jobs, separators, settings, progress, batch.jobs), settings,
    )  # fmt: skip
