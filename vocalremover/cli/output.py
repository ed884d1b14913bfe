"""What a person or a script sees: bars on a terminal, plain lines otherwise, JSON where it was asked for.

stdout carries results only: the path of each stem, one a line, or one JSON object an input. All else goes to stderr.
"""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress

import click

PLAIN_SECONDS = 30.0


def say(sentence: str, verbosity: int = 0) -> None:
    """One line on stderr, unless `verbosity` is below 0; a disk that is too full for it stops no work."""
    if verbosity >= 0:
        with suppress(OSError):
            click.echo(printable(sentence), err=True)


def printable(text: str) -> str:
    """A file may be called anything: line breaks, control characters and undecodable bytes are shown as escapes."""
    odd = ("Cc", "Cs")
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in odd else letter for letter in text)


def emit(line: str | os.PathLike) -> None:
    """One line on stdout; a path keeps its bytes, whatever they are."""
    click.echo(os.fsencode(line) if os.name == "posix" else str(line))


def shorten(name: str, width: int) -> str:
    """At most `width` letters: what is too long loses its middle, since songs differ at their ends."""
    if len(name) <= width:
        return name
    kept = max(width - 1, 0)
    return name[: (kept + 1) // 2] + "…" * (width > 0) + name[len(name) - kept // 2 :]
