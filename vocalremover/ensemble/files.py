"""Stems made elsewhere, in; one file of what they have in common, out.

The first file says where the others belong: it gives the rate, the length and the tags. Another rate is converted; a
constant lag up to LAG seconds, such as an encoder's delay, is found and undone; ends that differ by up to LAG seconds
are cut or filled with zeros. What differs more is not the same song and refused.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from vocalremover.audio import Encoding, Reader, Writer, resample
from vocalremover.ensemble.rules import Rule
from vocalremover.errors import AudioError, UsageError
from vocalremover.streams import abreast, placed

LAG = 0.1  # seconds
STRETCH = 1 << 16  # samples that are compared at a time, much more than LAG
FAINT = 1e-8  # of the power of the loudest bin; below, there is more rounding than sound
CERTAIN = 0.1  # of a perfect match; songs that have nothing in common reach 0.02

# Wraps the blocks `[channels, samples]` of one pass: (blocks, what is done, how many samples).
Progress = Callable[[Iterable[Tensor], str, int | None], Iterable[Tensor]]


def combine_files(
    paths: Sequence[str | os.PathLike], out: str | os.PathLike, rule: Rule | str = "avg",
    encoding: Encoding | None = None, overwrite: bool = False, align: bool = True,
    progress: Progress = lambda blocks, stage, samples: blocks,
) -> list[str]:  # fmt: skip
    """Two or more files of one stem -> `out`, by the rule; the answer is a sentence for all that is worth telling.

    The rule is applied to what the files hold: `min` keeps the quietest of them, be they vocals or instrumentals.
    encoding: by default the one that the name of `out` tells. align: whether a lag is looked for. `out` appears whole
    or not at all. Raises UsageError, and AudioError where a file cannot be read or written or is not of the same song.
    """
    rule = Rule.parse(rule) if isinstance(rule, str) else rule
    songs, out = [Path(path) for path in paths], Path(out)
    _check(songs, out, rule, overwrite)
    encoding = encoding or Encoding.of(out)
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(song)) for song in songs]
        first = readers[0]
        warnings = list(_compare(readers))
        lengths, lags = _measure(readers, align, progress)
        warnings += _place(readers, lengths, lags)

        def stacked() -> Iterator[Tensor]:
            placed_ones = [
                placed(_converted(reader, first.rate), lag, lengths[0])
                for reader, lag in zip(readers, lags, strict=True)
            ]
            yield from map(torch.stack, abreast(placed_ones))

        with suppress(OSError):
            out.parent.mkdir(parents=True, exist_ok=True)  # the writer tells why it could not be made
        with Writer(out, first.rate, first.channels, encoding, first.tags, first.layout) as writer:
            for block in progress(rule.combine_audio(stacked(), first.rate), "combining", lengths[0]):
                writer.write(block)
        warnings += (f"{reader.path}: {warning}" for reader in readers for warning in reader.warnings)
    if writer.peak > 1 and encoding.bits != "32f":
        over = 20 * math.log10(writer.peak)
        clipped = "was clipped" if encoding.bits else "may be clipped by a player"
        warnings.append(f"{out} exceeds full scale by {over:.2f} dB and {clipped}; wav with 32f bits keeps it whole")
    return warnings


def _check(songs: list[Path], out: Path, rule: Rule, overwrite: bool) -> None:
    """Refuses what could not be combined, whatever the files hold."""
    if len(songs) < 2:
        raise UsageError(f"an ensemble takes two files or more, not {len(songs)}")
    rule.check(len(songs), "files")
    if rule.method == "original":
        raise UsageError("the original's rule needs the models themselves: choose min for files")
    for song in songs:
        if out.exists() and song.exists() and out.samefile(song):
            raise UsageError(f"the output {out} is one of the files to combine; give the result another name")
    if os.path.lexists(out) and not overwrite:
        raise AudioError(f"{out} exists already; --overwrite replaces it")


def _compare(readers: Sequence[Reader]) -> Iterator[str]:
    """Refuses other channels; a sentence for every other rate."""
    first = readers[0]
    for reader in readers[1:]:
        if reader.channels != first.channels:
            raise AudioError(
                f"{reader.path} has {reader.channels} channels and {first.path} has {first.channels}: "
                "bring them to the same number of channels first"
            )
        if reader.rate != first.rate:
            yield f"{reader.path} was converted from {reader.rate} to {first.rate} Hz, the rate of {first.path}"


def _converted(reader: Reader, rate: int) -> Iterator[Tensor]:
    return resample(reader.blocks(), reader.rate, rate)


def _measure(readers: Sequence[Reader], align: bool, progress: Progress) -> tuple[list[int], list[int]]:
    """The samples of every file and how many of them lie before the first file's beginning, all at the first's rate."""
    rate, lengths = readers[0].rate, [0] * len(readers)

    def counted(number: int) -> Iterator[Tensor]:
        for block in _converted(readers[number], rate):
            lengths[number] += block.shape[-1]
            yield block

    streams = [counted(number) for number in range(len(readers))]
    streams[0] = progress(streams[0], "measuring", readers[0].samples)
    match = torch.zeros(len(readers), STRETCH + 1, dtype=torch.complex128)
    held = torch.zeros(len(readers), readers[0].channels, 0)
    for blocks in abreast(streams):
        held = torch.cat((held, torch.stack(blocks)), dim=-1)
        while held.shape[-1] >= STRETCH:
            match += _match(held[..., :STRETCH])
            held = held[..., STRETCH:]
    match += _match(held)
    return lengths, [_lag(one, rate) if align else 0 for one in match]


def _match(stretch: Tensor) -> Tensor:
    """Stretches `[files, channels, samples]` -> the cross-spectrum of each file with the first `[files, bins]`."""
    # Without slopes the cuts, which are no sound, would be heard in all the bins that hold little else.
    slopes = torch.hann_window(stretch.shape[-1], dtype=torch.float64)
    spectra = torch.fft.rfft(stretch * slopes, n=2 * STRETCH)
    return (spectra * spectra[:1].conj()).sum(dim=1)


def _lag(match: Tensor, rate: int) -> int:
    """How many samples later than in the first file the same sound comes; 0 where that is not certain."""
    # Only the phase counts: the loudest notes, which sound alike at many lags, would drown the answer otherwise.
    loudness = match.abs()
    phases = torch.where(loudness > FAINT * loudness.max(), match / loudness, 0)
    correlation = torch.fft.irfft(phases)
    most = min(round(LAG * rate), STRETCH - 1)
    near = torch.cat((correlation[-most:], correlation[: most + 1]))
    best = int(near.argmax())
    return best - most if near[best] > CERTAIN else 0


def _place(readers: Sequence[Reader], lengths: Sequence[int], lags: Sequence[int]) -> Iterator[str]:
    """Refuses a file that ends elsewhere than the first; a sentence for every one that is moved, cut or filled up."""
    first, rate = readers[0], readers[0].rate
    for reader, samples, lag in zip(readers[1:], lengths[1:], lags[1:], strict=True):
        if abs(samples - lengths[0]) > LAG * rate:
            raise AudioError(
                f"{reader.path} lasts {samples / rate:.2f} s and {first.path} {lengths[0] / rate:.2f} s: they are not "
                "stems of the same song, or one of them is cut"
            )
        if lag:
            side = "behind" if lag > 0 else "ahead of"
            yield f"{reader.path} lay {abs(lag)} samples ({1000 * abs(lag) / rate:.1f} ms) {side} {first.path}: moved"
        missing = lengths[0] - (samples - lag)
        if missing:
            done = f"filled with {missing} zeros" if missing > 0 else f"cut by {-missing} samples"
            yield f"{reader.path} was {done} at its end, to the length of {first.path}"
