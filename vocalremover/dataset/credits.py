"""Whom a checkpoint owes its voice to: a manifest's credits as a Markdown page to stand beside the weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from vocalremover.evaluate.multitracks import read_manifest


def read_rows(manifest: Path, held_out: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """The lines of a manifest that a training run reads: no validation files, no path with a held-out beginning."""
    return [
        row for row in read_manifest(manifest) if row["kind"] != "validation" and not row["path"].startswith(held_out)
    ]


def credit(rows: Iterable[Mapping[str, str]]) -> str:
    """A page that names every title, by where it came from; columns beyond path and kind may be missing.

    Titles of one artist from one place under one licence share a line.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        place = row.get("repository") or row.get("source") or ""
        key = place, row.get("artist") or "unknown", row.get("licence") or "not stated"
        groups.setdefault(key, []).append(row.get("title") or Path(row["path"]).stem)
    lines = ["| from | by | licence | titles |", "|---|---|---|---|"]
    for (place, artist, licence), titles in sorted(groups.items()):
        cells = place, artist, licence, ", ".join(dict.fromkeys(titles))
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
