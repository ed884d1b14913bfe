"""`vocalremover train`: a folder of voices and backings in, a checkpoint out."""

from pathlib import Path

import click

from vocalremover.cli.output import say


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--cache", type=click.Path(path_type=Path),
    help="Where decoded audio is kept, about 10 MB a minute.  [default: OUT/cache]",
)
@click.option("--minutes", default=60.0, show_default=True, help="How long the whole run takes, over all its pieces.")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(min=1), help="Examples a step.")
@click.option("--frames", default=256, show_default=True, type=click.IntRange(min=8), help="Length of an example.")
@click.option("--learning-rate", default=1.5e-3, show_default=True)
@click.option("--held-out", multiple=True, metavar="PREFIX", help="Paths that begin so are kept for validation.")
@click.option("--seed", default=1, show_default=True)
@click.option("-d", "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps")
def command(
    data: Path, out: Path, cache: Path | None, minutes: float, batch: int, frames: int, learning_rate: float,
    held_out: tuple[str, ...], seed: int, device: str,
) -> None:  # fmt: skip
    """Trains the compact network on DATA and saves it in OUT, or goes on with what OUT holds.

    DATA holds audio and a manifest.csv with the columns path and kind: instrumental, singing, syllables, speech, or
    multitrack for a folder with vocals.* and instrumental.* of one song. OUT/best.safetensors works with separate -m.
    """
    from vocalremover.devices import choose_device
    from vocalremover.training.train import Training, train

    run = Training(
        data, cache or out / "cache", out, minutes=minutes, batch=batch, frames=frames, learning_rate=learning_rate,
        held_out=held_out, seed=seed, device=str(choose_device(device)),
    )  # fmt: skip
    for line in train(run):
        say(f"step {line['step']}, {line['minutes']:.1f} of {minutes:g} minutes, loss {line['loss']:.4f}")
    click.echo(out / "best.safetensors")
