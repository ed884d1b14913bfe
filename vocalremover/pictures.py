"""A song to what one sees of it: path in, levels and two PNG pictures (waveform, spectrogram) out.

Songs are read in blocks, and what is kept of one is at most 2 * WIDTH columns of its waveform and its spectrogram and
two bytes a millisecond for its loudness, whatever its length.
"""

import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from vocalremover.audio import Reader
from vocalremover.spectrogram import STFT

Progress = Callable[[Iterable[Tensor]], Iterable[Tensor]]

WIDTH = 480  # columns; a picture has up to twice as many and is stretched to the page
WAVE_HEIGHT = 72
ROWS = 96  # of a spectrogram's picture, evenly spaced over the octaves from LOWEST to HIGHEST Hz
LOWEST, HIGHEST = 40.0, 20_000.0
BLOCK = 1 << 14  # samples; what is larger is slower, since its buffers are asked anew from the system each time
PIECES = 86  # a second: the finest columns, and the frames of the spectrogram
RANGE = 75.0  # dB from the loudest place of the mixture down to black
SHADES = 48  # fewer than 256, since noise in the last bits would double a picture's bytes
SILENCE = 1e-12  # of a power: -120 dB
# The corners of a colour scale from black over violet and orange to pale yellow, evenly spaced.
SCALE = ((0, 0, 4), (40, 17, 89), (114, 31, 129), (183, 55, 121), (241, 96, 93), (254, 160, 109), (252, 253, 191))


class Columns:
    """Statistics over time in at most 2 * WIDTH columns: where they grow too many, neighbours are merged.

    `merge` is the ufunc that makes one column of two (np.maximum, np.add); `values` is how many numbers a column has.
    """

    def __init__(self, merge: np.ufunc, values: int) -> None:
        self._merge = merge
        self._span = 1  # pieces that a column holds
        self._full = np.zeros((0, values))  # [columns, values]
        self._rest = np.zeros((0, values))  # [pieces, values], fewer than fill a column

    def add(self, pieces: np.ndarray) -> None:
        """Takes pieces `[pieces, values]`, each as long in time as every other."""
        while len(pieces):
            missing = (2 * WIDTH - len(self._full)) * self._span - len(self._rest)
            waiting, pieces = np.concatenate((self._rest, pieces[:missing])), pieces[missing:]
            whole = len(waiting) // self._span * self._span
            self._full = np.concatenate((self._full, self._merged(waiting[:whole], self._span)))
            self._rest = waiting[whole:]
            if len(self._full) == 2 * WIDTH:
                self._full, self._span = self._merged(self._full, 2), 2 * self._span

    def get(self) -> tuple[np.ndarray, np.ndarray]:
        """The columns `[columns, values]`, and how many pieces each of them holds `[columns, 1]`."""
        counts = [[self._span]] * len(self._full) + [[len(self._rest)]] * bool(len(self._rest))
        last = self._merged(self._rest, len(self._rest)) if len(self._rest) else self._rest
        return np.concatenate((self._full, last)), np.array(counts).reshape(-1, 1)

    def _merged(self, pieces: np.ndarray, span: int) -> np.ndarray:
        return self._merge.reduce(rearrange(pieces, "(columns span) values -> columns span values", span=span), axis=1)


@dataclass(frozen=True)
class Sound:
    """What is kept of a mixture or a stem.

    extremes `[columns, 2]`: the largest excursions below and above zero. squares `[columns, 1]` and powers
    `[columns, ROWS]`: means; the lowest pitch comes first. rms is a ratio to full scale, loudness is in LUFS.
    """

    seconds: float
    extremes: np.ndarray
    squares: np.ndarray
    powers: np.ndarray
    rms: float
    loudness: float

    @property
    def peak(self) -> float:
        """The largest absolute sample."""
        return float(self.extremes.max(initial=0.0))


def measure(path: Path, progress: Progress = iter) -> Sound:
    """Reads a song in blocks and keeps what its pictures and levels need. Raises AudioError.

    progress: any wrapper of the blocks `[channels, samples]`.
    """
    extremes, squares, powers = Columns(np.maximum, 2), Columns(np.add, 1), Columns(np.add, ROWS)
    energies = [np.zeros(0, np.float32)]
    samples = 0

    def seen(blocks: Iterable[Tensor], hop: int) -> Iterator[Tensor]:
        nonlocal samples
        for block in _cut(blocks, hop):
            samples += block.shape[-1]
            size = min(hop, block.shape[-1])
            pieces = rearrange(block.numpy(), "channels (pieces size) -> pieces (channels size)", size=size)
            extremes.add(np.stack((-pieces.min(1), pieces.max(1)), axis=1))
            squares.add(np.square(pieces, dtype=np.float64).mean(1, keepdims=True))
            yield block

    with Reader(path, BLOCK) as reader:
        hop = max(1, round(reader.rate / PIECES))
        stft = STFT(n_fft=4 * hop, hop=hop)
        rows, weights = (torch.from_numpy(of(stft, reader.rate)) for of in (_rows, _weights))
        for spectrogram in stft.forward_blocks(seen(progress(reader.blocks()), hop)):
            parts = torch.view_as_real(spectrogram).numpy()
            # torch's threads sleep while they wait; those of numpy's products made this ten times slower.
            power = torch.from_numpy(np.einsum("cbtp,cbtp->tb", parts, parts))
            powers.add((power @ rows).numpy())
            energies.append((power @ weights).numpy())
    totals, counts = squares.get()
    pitches, frames = powers.get()
    return Sound(
        seconds=samples / reader.rate,
        extremes=extremes.get()[0].clip(0),
        squares=totals / counts,
        powers=pitches / frames,
        rms=math.sqrt(totals.sum() / counts.sum()) if samples else 0.0,
        loudness=loudness(np.concatenate(energies)),
    )


def loudness(energies: np.ndarray) -> float:
    """Weighted energies `[frames]`, PIECES a second, -> LUFS, gated as ITU-R BS.1770-4 says; -inf for silence.

    An estimate: the blocks of 0.4 s do not overlap, and all channels weigh alike.
    """
    size = min(round(0.4 * PIECES), max(len(energies), 1))
    whole = len(energies) // size * size
    blocks = reduce(energies[:whole].astype(np.float64), "(blocks size) -> blocks", "mean", size=size)
    blocks = blocks[blocks > 10 ** ((-70 + 0.691) / 10)]
    if not len(blocks):
        return -math.inf
    return -0.691 + 10 * math.log10(blocks[blocks >= blocks.mean() / 10].mean())


def waveform(sound: Sound, top: float, hue: tuple[int, int, int]) -> bytes:
    """A PNG: excursions in a pale `hue`, their effective value in a full one, on nothing. `top` is the upper edge."""
    heights = np.linspace(top, -top, WAVE_HEIGHT)[:, None]
    low, high = sound.extremes[:, 0], sound.extremes[:, 1]
    edge = top / WAVE_HEIGHT  # a line of one point where there is silence
    inside = (heights <= np.maximum(high, edge)) & (heights >= -np.maximum(low, edge))
    core = np.abs(heights) <= np.sqrt(sound.squares[:, 0])
    palette = [(*hue, 0), (*hue, 110), (*hue, 255)]
    return png(np.where(inside & core, 2, inside.astype(np.uint8)), palette)


def spectrogram(sound: Sound, top: float) -> bytes:
    """A PNG of the powers over time, high pitches above; `top` is the power that is brightest."""
    decibels = 10 * np.log10(np.maximum(sound.powers, SILENCE) / max(top, SILENCE))
    shades = np.clip((decibels / RANGE + 1) * SHADES, 0, SHADES - 1).astype(np.uint8)
    places = np.linspace(0, len(SCALE) - 1, SHADES)
    levels = [np.interp(places, range(len(SCALE)), [colour[part] for colour in SCALE]) for part in range(3)]
    palette = [(*map(round, colour), 255) for colour in zip(*levels, strict=True)]
    return png(np.ascontiguousarray(shades.T[::-1]), palette)


def png(pixels: np.ndarray, palette: list[tuple[int, int, int, int]]) -> bytes:
    """Indices `[height, width]` into a palette of red, green, blue and opacity -> the bytes of a PNG file, which has to
    be a pixel wide.

    Source: the PNG specification, third edition: IHDR, PLTE, tRNS, IDAT with filter 0, IEND.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = pixels if pixels.shape[1] else np.zeros((len(pixels), 1), np.uint8)
    height, width = pixels.shape
    lines = np.pad(pixels.astype(np.uint8), ((0, 0), (1, 0)))  # every line begins with its filter
    colours = np.array(palette, np.uint8)
    return b"".join((
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        chunk(b"PLTE", colours[:, :3].tobytes()),
        chunk(b"tRNS", colours[:, 3].tobytes()),
        chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
        chunk(b"IEND", b""),
    ))  # fmt: skip


def _cut(blocks: Iterable[Tensor], hop: int) -> Iterator[Tensor]:
    """The same samples in blocks of whole hops; what is left at the end comes as one shorter block."""
    rest = None
    for block in blocks:
        block = block if rest is None else torch.cat((rest, block), dim=-1)
        whole = block.shape[-1] // hop * hop
        if whole:
            yield block[:, :whole]
        rest = block[:, whole:]
    if rest is not None and rest.shape[-1]:
        yield rest


def _scale(stft: STFT) -> np.ndarray:
    """`[bins]`: what turns a bin's squared magnitude into its share of the frame's mean square."""
    window = np.hanning(stft.n_fft + 1)[:-1]
    share = np.full(stft.bins, 2 / (stft.n_fft * np.square(window).sum()), np.float32)
    share[[0, -1]] /= 2
    return share


def _rows(stft: STFT, rate: int) -> np.ndarray:
    """`[bins, ROWS]`: the mean power between evenly spaced pitches, bins taken as bars of one bin's width."""
    highest = min(HIGHEST, rate / 2)
    edges = np.geomspace(min(LOWEST, highest / 2), highest, ROWS + 1) * stft.n_fft / rate + 0.5
    bins = np.arange(stft.bins)[:, None]
    inside = np.minimum(edges[1:], bins + 1) - np.maximum(edges[:-1], bins)
    return (inside.clip(0) / np.diff(edges) * _scale(stft)[:, None]).astype(np.float32)


def _weights(stft: STFT, rate: int) -> np.ndarray:
    """`[bins]`: the share of a bin in the loudness, the two filters of ITU-R BS.1770-4 (given at 48 kHz) included."""
    hertz = np.minimum(np.arange(stft.bins) * rate / stft.n_fft, 24_000)
    delay = np.exp(-2j * np.pi * hertz / 48_000)
    shelf = np.polyval((1.19839281085285, -2.69169618940638, 1.53512485958697), delay)
    shelf = shelf / np.polyval((0.73248077421585, -1.69065929318241, 1), delay)
    high_pass = np.polyval((1, -2, 1), delay) / np.polyval((0.99007225036621, -1.99004745483398, 1), delay)
    return (np.abs(shelf * high_pass) ** 2 * _scale(stft)).astype(np.float32)
