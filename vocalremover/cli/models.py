"""`vocalremover models list`: which networks are known, whether their weights are here, and where to get them."""

import click


@click.group("models")
def group() -> None:
    """Lists the known models."""


@group.command("list")
def list_models() -> None:
    """One line a model: its name, and the file of its weights or where its author published them."""
    from vocalremover import checkpoint
    from vocalremover.errors import ModelError
    from vocalremover.models import MODELS

    width = max(map(len, MODELS))
    for name, spec in MODELS.items():
        try:
            state, where = "here", str(checkpoint.find(name))
        except ModelError:
            state, where = "absent", spec.url or "no link to its weights is known"
        click.echo(f"{name:<{width}}  {state:<6}  {where}")
