"""Pictures of a run: curves of its losses and spectrograms of a song, as PNG files without a plotting library."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from vocalremover.pictures import SCALE, SILENCE, png
from vocalremover.spectrogram import STFT

WIDTH, HEIGHT, MARGIN = 900, 400, 56  # points
SHADES = 64
RANGE = 75.0  # dB from the loudest place of the mixture down to black
GRID = 4
PALETTE = [(255, 255, 255, 255), (0, 0, 0, 255), (216, 216, 216, 255), (150, 170, 215, 255), (20, 60, 160, 255)]
PAPER, INK, RULE, PALE, FULL = range(5)
# Three columns of five rows for every sign of a number, the top row in the highest bits.
SIGNS = {
    "0": 0b111_101_101_101_111, "1": 0b010_110_010_010_111, "2": 0b111_001_111_100_111, "3": 0b111_001_111_001_111,
    "4": 0b101_101_111_001_001, "5": 0b111_100_111_001_111, "6": 0b111_100_111_101_111, "7": 0b111_001_001_001_001,
    "8": 0b111_101_111_101_111, "9": 0b111_101_111_001_111, ".": 0b000_000_000_000_010, "-": 0b000_000_111_000_000,
    "e": 0b000_111_111_100_111, "+": 0b000_010_111_010_000,
}  # fmt: skip


def draw_curve(path: Path, points: Sequence[tuple[float, float]]) -> None:
    """Values over steps: each value pale, their running mean dark, the numbers of the edges written at the axes."""
    if len(points) < 2:
        return
    steps, values = np.array(points, float).T
    span = max(1, len(values) // 25)
    ends = np.cumsum(np.concatenate(([0.0], values)))
    starts = np.maximum(np.arange(len(values)) + 1 - span, 0)
    means = (ends[1:] - ends[starts]) / (np.arange(len(values)) + 1 - starts)
    low, high = np.quantile(values, [0.0, 0.99])
    high = max(high, low + 1e-9)
    page = np.full((HEIGHT, WIDTH), PAPER, np.uint8)
    for line in range(GRID + 1):
        row = MARGIN // 2 + round(line / GRID * (HEIGHT - MARGIN))
        page[row, MARGIN:] = RULE
        write_number(page, row - 5, 2, high - line / GRID * (high - low))
    write_number(page, HEIGHT - 14, MARGIN, steps[0])
    write_number(page, HEIGHT - 14, WIDTH - MARGIN, steps[-1])
    columns = np.arange(MARGIN, WIDTH)
    places = steps[0] + (columns - MARGIN) / (WIDTH - MARGIN - 1) * (steps[-1] - steps[0])
    for curve, colour in ((values, PALE), (means, FULL)):
        heights = (high - np.interp(places, steps, curve).clip(low, high)) / (high - low)
        rows = MARGIN // 2 + np.round(heights * (HEIGHT - MARGIN)).astype(int)
        for column, row, before in zip(columns, rows, np.roll(rows, 1), strict=True):
            before = row if column == MARGIN else before
            page[min(row, before) : max(row, before) + 2, column] = colour
    path.write_bytes(png(page, PALETTE))


def write_number(page: np.ndarray, row: int, column: int, number: float) -> None:
    """Four significant digits, each sign twice as large as its pattern."""
    for sign in f"{number:.4g}":
        bits = [[SIGNS[sign] >> (14 - 3 * line - place) & 1 for place in range(3)] for line in range(5)]
        glyph = np.kron(np.array(bits), np.ones((2, 2), int)).astype(bool)
        page[row : row + 10, column : column + 6][glyph] = INK
        column += 8


def draw_spectrograms(path: Path, songs: Sequence[Tensor], stft: STFT) -> None:
    """Audio `[channels, samples]`, all equally long, one below the other on one scale; high frequencies above."""
    powers = []
    for song in songs:
        power = reduce(stft.forward(song.cpu()).abs().square(), "c f t -> 1 1 f t", "mean")
        powers.append(F.adaptive_avg_pool2d(power, (192, min(WIDTH, power.shape[-1])))[0, 0].flip(0).numpy())
    decibels = 10 * np.log10(np.maximum(powers, SILENCE) / max(np.max(powers[0]), SILENCE))
    shades = np.clip((decibels / RANGE + 1) * (SHADES - 1), 0, SHADES - 1).astype(np.uint8)
    page = np.concatenate([np.pad(picture, ((0, 4), (0, 0)), constant_values=SHADES) for picture in shades])
    places = np.linspace(0, len(SCALE) - 1, SHADES)
    levels = [np.interp(places, range(len(SCALE)), [colour[part] for colour in SCALE]) for part in range(3)]
    palette = [(*map(round, colour), 255) for colour in zip(*levels, strict=True)] + [(255, 255, 255, 255)]
    path.write_bytes(png(page, palette))
