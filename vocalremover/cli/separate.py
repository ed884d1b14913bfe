"""`vocalremover separate INPUT...`: songs in, a file for each stem out."""

import logging
import re
from pathlib import Path

import click

from vocalremover.cli.output import Report, say

FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
STEMS = ("vocals", "instrumental")


def _bitrate(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """`192k`, `192` and `192000` are all 192000 bits per second."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(k?)", text.strip().lower())
    if not match:
        raise click.BadParameter(f"{text!r} is no bit rate; write 192k or 192000", context, parameter)
    number = int(match[1])
    return number * 1000 if match[2] or number < 1000 else number


def _device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise click.BadParameter(f"{name!r} is none of auto, cpu, cuda, cuda:N, mps", context, parameter)
    return name


def _choice(*names: str) -> click.Choice:
    return click.Choice(names, case_sensitive=False)


@click.command("separate")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path(path_type=Path))
@click.option("-m", "--model", default="default", metavar="NAME|PATH", help="A known model or a file of weights.")
@click.option(
    "-o", "--out", "--output", metavar="DIR", type=click.Path(path_type=Path),
    help="Where the stems go.  [default: beside the input]",
)
@click.option(
    "--template", default="{track}_{stem}.{ext}", show_default=True, help="The stems' names; {model} is known too."
)
@click.option(
    "--stem", "--single-stem", type=_choice("both", *STEMS), default="both", show_default=True, help="What to write."
)
@click.option("--two-stems", type=_choice("both", *STEMS), help="Both stems, whichever is named; as --stem both.")
@click.option("-f", "--format", type=_choice(*FORMATS), default="wav", show_default=True, help="The stems' format.")
@click.option("--bits", type=_choice("16", "24", "32f"), help="wav: 16, 24 or 32f; flac: 16 or 24.  [default: 24]")
@click.option("--bitrate", callback=_bitrate, metavar="RATE", help="For mp3, ogg, opus and m4a, such as 192k.")
@click.option(
    "--clip", "--clip-mode", type=_choice("none", "rescale", "clamp"), default="none", show_default=True,
    help="What to do where a stem exceeds full scale: leave its level alone, turn all stems down alike, or limit it.",
)
@click.option(
    "-d", "--device", default="auto", show_default=True, callback=_device, metavar="auto|cpu|cuda[:N]|mps",
    help="What computes.",
)
@click.option("-g", "--gpu", type=click.IntRange(min=-1), metavar="N", help="As -d cuda:N; -1 is -d cpu.")
@click.option("--precision", type=_choice("auto", "fp32", "bf16", "fp16"), default="auto", show_default=True)
@click.option(
    "-c", "--cropsize", type=click.IntRange(min=1), metavar="FRAMES",
    help="How much of the song is computed at once.  [default: the model's]",
)
@click.option(
    "--padding", type=click.IntRange(min=0), metavar="FRAMES",
    help="How much more of it the network sees on each side.  [default: the model's]",
)
@click.option(
    "-b", "-B", "--batch-size", "--batchsize", type=click.IntRange(min=1), metavar="N",
    help="How many crops go through the network together.",
)
@click.option("--overwrite", is_flag=True, help="Replace stems that exist.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per input on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing but errors.")
@click.option("-v", "--verbose", count=True, help="Tell more; -vv adds the tracebacks of unexpected errors.")
@click.pass_context
def command(
    context: click.Context, inputs: tuple[Path, ...], model: str, out: Path | None, template: str, stem: str,
    two_stems: str | None, format: str, bits: str | None, bitrate: int | None, clip: str, device: str, gpu: int | None,
    precision: str, cropsize: int | None, padding: int | None, batch_size: int | None, overwrite: bool, as_json: bool,
    quiet: bool, verbose: int,
) -> None:  # fmt: skip
    """Splits songs into vocals and instrumental.

    An INPUT is an audio or video file, or a folder of them. The stems keep the input's sample rate, channels and
    length, and together they are the song again. stdout gets the paths of the stems and nothing else.
    """
    if two_stems and stem != "both":
        raise click.UsageError(f"--two-stems writes both stems and --stem {stem} one of them; choose")
    if gpu is not None:
        if device != "auto":
            raise click.UsageError(f"--gpu {gpu} and --device {device} both choose a device; give one of them")
        device = "cpu" if gpu < 0 else f"cuda:{gpu}"
    verbosity = -1 if quiet else min(verbose, 2)
    if verbosity > 0:
        logging.basicConfig(format="%(message)s", level=logging.INFO)
        logging.getLogger("vocalremover").setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)

    from vocalremover import batch, checkpoint
    from vocalremover.audio import Encoding
    from vocalremover.separate import Inference, Separator

    settings = batch.Settings(
        out=out, template=template, stems=STEMS if stem == "both" else (stem,), clip=clip, overwrite=overwrite,
        encoding=Encoding(format, bits, bitrate), model=model,
    )  # fmt: skip
    jobs = batch.plan(inputs, settings)
    inference = Inference(precision, batch_size, size=cropsize, context=padding)
    separator = Separator.load(model, device, inference)
    if device == "auto":
        say(f"device: {separator.device} (chosen by auto; -d chooses another)", verbosity)
    for warning in separator.warnings:
        say(f"warning: {warning}", verbosity)
    weights = checkpoint.find(model)
    say(f"weights: {weights}", verbosity - 1)
    about = {"device": str(separator.device), "model": separator.spec.name}
    about["sha256"] = checkpoint.sha256(weights) if as_json else None
    report = Report(verbosity, as_json, jobs, about)
    failed = False
    for result in batch.run(jobs, separator, settings, report.progress):
        report.result(result)
        failed = failed or result.error is not None
    if failed:
        context.exit(1)
