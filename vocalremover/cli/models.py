"""`vocalremover models`: which networks are known, whether their weights are here and whole, where to get them."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.output import printable

if TYPE_CHECKING:
    from vocalremover.models import ModelSpec

WIDTH = 80


@click.group("models")
def group() -> None:
    """Tells about the known models and checks their weights."""


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per model.")
def list_models(as_json: bool) -> None:
    """What each model is, and the file of its weights or where its author published them."""
    from vocalremover.models import MODELS

    records = [_record(spec, _find(name)[0]) for name, spec in MODELS.items()]
    if as_json:
        for record in records:
            click.echo(json.dumps(record))
        return
    rows = [("NAME", "FAMILY", "PARAMETERS", "WEIGHTS", "LICENCE")]
    places = [""]
    for record in records:
        parameters = f"{record['parameters'] / 1e6:.1f} M".rjust(len(rows[0][2]))
        licence = record["license"].partition(" (")[0]
        rows.append((record["name"], record["family"], parameters, "here" if record["file"] else "absent", licence))
        places.append(record["file"] or record["url"] or "no link to its weights is known")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, place in zip(rows, places, strict=True):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if place:  # on a line of its own, or a link would be torn at 80 columns
            click.echo(f"    {printable(place)}")
    others = _others({record["file"] for record in records})
    if others:
        click.echo("\nIn other programs' folders; `models info` tells what is in one, -m takes its name:")
        for path in others:
            click.echo(f"    {printable(str(path))}")


CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE.yaml",
    help="The yaml that belongs to a RoFormer's checkpoint, where it does not lie beside it.",
)  # fmt: skip


@group.command("info")
@click.argument("model", metavar="NAME|PATH")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show_info(model: str, config: Path | None, as_json: bool) -> None:
    """All that is known of one model, or what a file of weights was recognised as."""
    from vocalremover import checkpoint
    from vocalremover.models import MODELS

    path, missing = _find(model)
    spec = MODELS[model] if model in MODELS and not config else checkpoint.load(model, config=config)[0]
    record = _record(spec, path) | {
        "arguments": dict(spec.args),
        "stft": asdict(spec.stft),
        "rate": spec.rate,
        "chunking": asdict(spec.chunking),
        "recurrent": spec.recurrent,
        "most_frames": spec.most_frames,
        "sha256": checkpoint.sha256(path) if path else None,
        "origin_sha256": spec.sha256,
        "note": spec.note,
        "warnings": list(spec.warnings),
    }
    if as_json:
        click.echo(json.dumps(record))
        return
    unit = "samples" if spec.domain == "waveform" else "frames"
    rows = {
        "name" if model in MODELS else "recognised as": spec.name,
        "architecture": spec.network,
        "arguments": ", ".join(f"{key}={value}" for key, value in spec.args.items()),
        "parameters": f"{record['parameters']:,}",
        "STFT": ", ".join(f"{key} {value}" for key, value in record["stft"].items() if value) + f", {spec.rate} Hz",
        "target": f"{', '.join(spec.outputs)} (what it makes itself)",
        "stems": ", ".join(spec.stems),
        "windows": f"{spec.chunking.whole} {unit}, {spec.chunking.overlap:.0%} of them shared with the next",
        "licence": spec.license,
        "recommended": " ".join(record["recommended"]),
        "file": str(path or missing),
        "sha256": record["sha256"] or "",
        "origin's sha256": spec.sha256 or "",
        "link": spec.url or "none known",
        "note": "" if spec.warnings else spec.note,
        "warning": " ".join(spec.warnings),
    }
    indent = max(map(len, rows)) + 2
    for name, value in rows.items():
        # Sentences go on below; a path or a link, which people copy, stays as it is.
        lines = textwrap.wrap(printable(value), WIDTH - indent, break_long_words=False, break_on_hyphens=False)
        if value == str(path):
            lines = [printable(value)]
        if lines:
            click.echo(name.ljust(indent) + f"\n{' ' * indent}".join(lines))


@group.command("verify")
@click.argument("models", nargs=-1, metavar="[NAME|PATH]...")
@CONFIG
@click.pass_context
def verify_models(context: click.Context, models: tuple[str, ...], config: Path | None) -> None:
    """Loads weights strictly, looks for numbers that are not finite, compares the sha256 where it is known.

    Without a NAME or PATH all known models are checked, and absent weights are no failure.
    """
    from vocalremover import checkpoint
    from vocalremover.errors import ModelError
    from vocalremover.models import MODELS

    if config and len(models) != 1:
        raise click.UsageError("--config is the yaml of one model: name that one")
    failed = False
    for model in models or MODELS:
        path, missing = _find(model)
        if path is None:
            failed = failed or bool(models)
            click.echo(f"absent  {printable(model)}  {printable(missing)}")
            continue
        try:
            click.echo(f"ok      {printable(model)}  {printable(str(checkpoint.verify(model, config)))}")
        except ModelError as error:
            failed = True
            click.echo(f"FAIL    {printable(model)}  {printable(str(error))}")
    if failed:
        context.exit(ModelError.exit_code)


@group.command("path")
@click.argument("model", required=False, metavar="[NAME]")
def show_path(model: str | None) -> None:
    """The file of a model's weights; without NAME the folders where weights are looked for, in that order.

    Your own folder comes first of those that may be missing; those of audio-separator (AUDIO_SEPARATOR_MODEL_DIR), UVR
    (UVR_HOME) and MSST (MSST_HOME) follow where there are any. Nothing is ever written there.
    """
    from vocalremover import checkpoint
    from vocalremover.checkpoint import neighbours

    for place in (checkpoint.find(model),) if model else (*checkpoint.folders(), *neighbours.folders()):
        click.echo(os.fsencode(place) if os.name == "posix" else str(place))


def _find(model: str) -> tuple[Path | None, str]:
    """The file of a model, or else what is missing and where to get it."""
    from vocalremover import checkpoint
    from vocalremover.errors import ModelError

    try:
        return checkpoint.find(model), ""
    except ModelError as error:
        return None, str(error)


def _others(known: set[str | None]) -> list[Path]:
    """Checkpoints in other programs' folders that are not of a known model."""
    from vocalremover.checkpoint import neighbours

    found = (path for folder in neighbours.folders() for path in sorted(folder.glob("*.ckpt")) if path.is_file())
    return [path for path in found if str(path) not in known]


def _record(spec: ModelSpec, path: Path | None) -> dict[str, object]:
    """What `list` tells of a model. Its parameters are counted where they take no memory."""
    recommended = ["--cropsize", str(spec.chunking.size), "--padding", str(spec.chunking.context)]
    if spec.domain == "waveform":
        recommended = ["--segment", f"{spec.chunking.whole / spec.rate:g}", "--overlap", f"{spec.chunking.overlap:g}"]
    return {
        "name": spec.name,
        "family": spec.network,
        "parameters": sum(parameter.numel() for parameter in spec.build("meta").parameters()),
        "target": spec.target,
        "stems": list(spec.stems),
        "license": spec.license,
        "recommended": recommended,
        "file": str(path) if path else None,
        "url": spec.url,
    }
