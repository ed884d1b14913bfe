"""Scores as a picture: an SVG that any browser shows, written by hand.

A row a song: a line from the floor (the untouched mixture) to the ceiling (the ideal ratio mask), on it a dot for each
model or tool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from vocalremover.cli.output import printable

if TYPE_CHECKING:
    from vocalremover.evaluate.scores import SongScores

MARK = "<!-- scores of vocalremover evaluate -->"
COLOURS = ("#0b6e99", "#c4551b", "#3d7a35", "#8a3f8f", "#a67c00", "#444444")
NAMES, PANEL, ROW, TOP = 190, 330, 24, 64  # pixels: the songs' names, one stem, one song, the heading
STEMS = ("vocals", "instrumental")


def draw(results: Mapping[str, Sequence[SongScores]], measure: str = "sdr") -> str:
    """Scores of the same songs by the name of what made the stems -> the text of an SVG file.

    measure: a field of `evaluate.Scores`. What is infinite or missing is left out.
    """
    songs = next(iter(results.values()))
    width, height = NAMES + len(STEMS) * PANEL + 20, TOP + len(songs) * ROW + 40
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        MARK,
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_key(results),
    ]
    for row, song in enumerate(songs):
        drawn.append(_text(NAMES - 12, _y(row) + 4, _short(song.song), "end"))
    for panel, stem in enumerate(STEMS):
        drawn.extend(_panel(results, stem, NAMES + panel * PANEL, measure))
    return "\n".join([*drawn, "</svg>\n"])


def _panel(results: Mapping[str, Sequence[SongScores]], stem: str, left: int, measure: str) -> list[str]:
    songs = next(iter(results.values()))
    bounds = [(_of(song.floor, stem, measure), _of(song.ceiling, stem, measure)) for song in songs]
    values = [[_of(song.estimate, stem, measure) for song in scores] for scores in results.values()]
    known = [value for column in (*bounds, *values) for value in column if value is not None] or [0.0]
    low = 5 * math.floor(min(known) / 5)
    high = max(5 * math.ceil(max(known) / 5), low + 5)
    bottom = _y(len(songs)) - ROW // 2

    def x(value: float) -> float:
        return left + 12 + (value - low) / (high - low) * (PANEL - 36)

    drawn = [_text(x((low + high) / 2), TOP - 14, f"{stem}, dB", "middle")]
    for value in range(low, high + 1, 5 if high - low <= 40 else 10):
        drawn.append(f'<path d="M{x(value):.1f} {TOP - 6}V{bottom}" stroke="#e4e4e4"/>')
        drawn.append(_text(x(value), bottom + 16, str(value), "middle"))
    for row, ends in enumerate(bounds):
        places = [x(value) for value in ends if value is not None]
        path = "".join(f"M{place:.1f} {_y(row) - 5}v10" for place in places)
        if len(places) == 2:
            path += f"M{places[0]:.1f} {_y(row)}H{places[1]:.1f}"
        drawn.append(f'<path d="{path}" stroke="#b0b0b0" stroke-width="2"/>')
    for number, column in enumerate(values):
        colour = COLOURS[number % len(COLOURS)]
        for row, value in enumerate(column):
            if value is not None:
                drawn.append(f'<circle cx="{x(value):.1f}" cy="{_y(row)}" r="4.5" fill="{colour}"/>')
    return drawn


def _key(results: Mapping[str, Sequence[SongScores]]) -> list[str]:
    drawn, x = [], NAMES + 12
    for number, name in enumerate(results):
        drawn.append(f'<circle cx="{x}" cy="18" r="4.5" fill="{COLOURS[number % len(COLOURS)]}"/>')
        drawn.append(_text(x + 10, 22, _short(name)))
        x += 30 + 7 * len(_short(name))
    drawn.append(_text(x, 22, "| grey: the mixture itself to the ideal ratio mask"))
    return drawn


def _of(scores: Mapping[str, object], stem: str, measure: str) -> float | None:
    value = getattr(scores[stem], measure)
    return value if math.isfinite(value) else None


def _y(row: int) -> int:
    return TOP + row * ROW + ROW // 2


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 28 else name[:27] + "…"


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="#333">{escape(words)}</text>'
