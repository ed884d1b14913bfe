"""Rows of a benchmark as a table for a reader."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.rows import Row

HUES = {"done": "", "absent": "dim", "failed": "red"}
WORDS = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}


def show(rows: Iterable[Row] | Iterable[tuple[str, Row]], console: Console | None = None) -> None:
    """Prints rows, or pairs of a benchmark's name and a row."""
    console = console or Console()
    console.width = max(console.width, 120)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("what", "measured", "against", "ratio", "target", "met?", "wall s", "CPU s"):
        table.add_column(head, justify="left" if head in ("what", "against", "met?") else "right")
    before = ""
    named = [one if isinstance(one, tuple) else ("", one) for one in rows]
    for name, row in named:
        if name != before:
            table.add_row(f"[bold]{name}[/]")
            before = name
        table.add_row(*cells(row), style=HUES[row.state])
    console.print(table)
    for name, row in named:
        if row.state != "done":
            where = ": ".join(dict.fromkeys(filter(None, (name, row.what))))
            console.print(escape(f"{row.state}: {where}: {row.note}"), style=HUES[row.state])


def cells(row: Row) -> list[str]:
    """A row's cells, in the table's order."""
    if row.state != "done":
        return [escape(row.what), row.state]
    peer = "" if row.against is None else escape(f"{row.peer} ({number(row.against)})")
    what = escape(row.what) + (f"\n[dim]{escape(row.note)}[/]" if row.note else "")
    bounds = [f"{sign} {number(bound)}" for sign, bound in (("≤", row.most), ("≥", row.least)) if bound is not None]
    times = [number(row.timing.wall), number(row.timing.cpu)] if row.timing else ["", ""]
    return [what, f"{number(row.value)} {row.unit}", peer, number(row.ratio), " ".join(bounds), WORDS[row.met], *times]


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
