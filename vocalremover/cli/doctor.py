"""`vocalremover doctor`: whether this computer has what separating needs, a line for each check, and the way out."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.options import device_name
from vocalremover.cli.output import emit, printable
from vocalremover.cli.sections import Command, option

if TYPE_CHECKING:
    from vocalremover.doctor import Check

PATH = click.Path(path_type=Path)
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
STATE, NAME = 9, 14  # letters
MOST, LEAST = 100, 60  # letters of a line


@click.command("doctor", cls=Command)
@option(
    "Models", "-m", "--model", default="default", show_default=True, metavar="NAME|PATH",
    help="What the self-test runs: a known model or a file of weights.",
)
@option(
    "Models", "--config", metavar="FILE.yaml", type=PATH,
    help="What a RoFormer was trained with.  [default: the yaml called like its weights]",
)
@option("Files", "-o", "--out", type=PATH, default=".", metavar="DIR", help="Where stems are to go.  [default: here]")
@option(
    "Device", "-d", "--device", default="auto", show_default=True, callback=device_name, metavar="NAME",
    help="What the self-test runs on: auto, cpu, cuda, cuda:N, mps, or several with commas; all.",
)
@option("On the screen", "--json", "as_json", is_flag=True, help="One JSON object instead of the lines.")
def command(model: str, config: Path | None, out: Path, device: str, as_json: bool) -> int:
    """Checks libraries, devices, formats, model folders and disks, and runs one window of a model.

    The window's stems on the device are compared with those of the plainest code on the CPU. Nothing is downloaded. The
    exit code is 0 where all is well or worth a warning, 1 where something fails.
    """
    from vocalremover.doctor import Wanted, examine

    checks: list[Check] = []
    for check in examine(Wanted(model, device, config, out)):
        if not as_json:
            if not checks or checks[-1].group != check.group:
                click.echo(check.group)
            width = min(max(shutil.get_terminal_size().columns, LEAST), MOST)
            click.echo(lines(check, width), color=False if os.environ.get("NO_COLOR") else None)
        checks.append(check)
    counts = {state: sum(check.state == state for check in checks) for state in COLOURS}
    worst = next((state for state in reversed(COLOURS) if counts[state]), "ok")
    if as_json:
        emit(json.dumps({"state": worst, "checks": [check.record() for check in checks]}))
    else:
        click.echo(verdict(counts))
    return int(worst == "failed")


def lines(check: Check, width: int) -> str:
    """A check as lines of at most `width` letters, where no path is torn; the way out stands below what was found."""
    indent = " " * (2 + STATE + NAME)
    state = click.style(check.state.ljust(STATE), COLOURS[check.state])
    texts = [printable(text) for text in (check.found, check.advice) if text]
    wrapped = [
        line
        for text in texts
        for line in textwrap.wrap(text, width - len(indent), break_long_words=False, break_on_hyphens=False)
    ]
    name = printable(check.name)
    head = f"  {state}{name.ljust(NAME)}"
    if len(name) >= NAME:  # a path, which stands alone
        return "\n".join([head, *(indent + line for line in wrapped)])
    return "\n".join([head + wrapped[0], *(indent + line for line in wrapped[1:])])


def verdict(counts: dict[str, int]) -> str:
    """All of it in one sentence."""
    if counts["failed"]:
        return f"{counts['failed']} of {sum(counts.values())} checks failed; what helps stands below each."
    if counts["warning"]:
        return f"It works; {counts['warning']} of {sum(counts.values())} checks gave a warning."
    return f"All {counts['ok']} checks are well."
