"""`vocalremover convert IN OUT.safetensors`: a checkpoint in, one that explains itself out."""

from pathlib import Path

import click

from vocalremover.cli.models import CONFIG


@click.command("convert")
@click.argument("model", metavar="IN")
@click.argument("out", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(("float32", "float16", "keep")), default="keep", show_default=True,
    help="How the weights are stored; float16 halves the file and rounds them.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@CONFIG
def command(model: str, out: Path, dtype: str, overwrite: bool, config: Path | None) -> None:
    """Writes the weights IN, a known model or a file, as a file that says what it is.

    OUT carries the architecture, its arguments, the STFT, the windows, the names of the stems, the licence and the
    sha256 of IN. It holds the same numbers, loads without recognition and needs no yaml beside it.
    """
    import torch

    from vocalremover import checkpoint
    from vocalremover.cli.output import emit, say

    chosen = None if dtype == "keep" else getattr(torch, dtype)
    spec = checkpoint.convert(model, out, chosen, overwrite, config)
    arguments = ", ".join(f"{key}={value}" for key, value in spec.args.items())
    say(f"{model}: {spec.name}, the network {spec.network} with {arguments}")
    for warning in spec.warnings:
        say(f"warning: {warning}")
    say(f"sha256 of {model}: {spec.sha256}")
    emit(out)
