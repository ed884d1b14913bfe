"""What a model says of a song, kept on disk: a Separator and a song in, a file out; that file as a Separator again.

A spool is a wav of 32-bit floats. Of a model that makes masks it holds these, the bins of a frame one after the other
and a channel for each side of every pair of the song's; of any other model it holds stems, on the song's channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from vocalremover.audio import Encoding, Reader, Writer
from vocalremover.audio.layouts import pairs_of
from vocalremover.chunks import Queue
from vocalremover.ensemble.choir import Masked, Masks, grid, instrumental
from vocalremover.ensemble.ensemble import parts_of
from vocalremover.errors import AudioError
from vocalremover.models import ModelSpec
from vocalremover.separate import Progress, Separator, Stems

FLOATS = Encoding("wav", "32f")


def record(
    separator: Separator, song: Reader, blocks: Iterable[Tensor], peak: float | None, spool: Path
) -> Iterator[Tensor]:
    """Writes the spool of a song, whose `blocks` are read; yields a block of a stem for every one that is done.

    The spool appears whole or not at all. Raises AudioError.
    """
    if grid(separator.spec):
        channels = 2 * len(pairs_of(song.channels, song.layout))
        with Writer(spool, separator.spec.rate, channels, FLOATS) as writer:
            for stems in _recorder(separator, writer).stream(blocks, song.rate, peak, song.layout):
                yield stems["vocals"]
        return
    kept = kept_stems(separator.spec, separator.stems)
    with Writer(spool, song.rate, len(kept) * song.channels, FLOATS) as writer:
        for stems in separator.stream(blocks, song.rate, peak, song.layout):
            writer.write(torch.cat([stems[stem] for stem in kept]))
            yield stems[kept[0]]


def kept_stems(spec: ModelSpec, stems: Sequence[str]) -> list[str]:
    """The stems from which, and the song, those that are wanted of a model follow."""
    return [rest if rest in spec.stems else part for part, rest in parts_of([spec], stems)]


def played(spec: ModelSpec, spool: Path, stems: Sequence[str]) -> Separator:
    """A model that has been heard: it says of that one song what the spool holds, whatever the device was."""
    if grid(spec):
        return Masked(replace(spec, target="instrumental", peak=False), _player(spool), stems=stems)
    return Played(spec, spool, stems)


class Played(Separator):
    """A model without masks that has been heard."""

    def __init__(self, spec: ModelSpec, spool: Path, stems: Sequence[str]) -> None:
        super().__init__(replace(spec, peak=False, recurrent=False), nn.Identity(), stems=stems)
        self._spool = spool

    def stream(
        self, blocks: Iterable[Tensor], rate: int, peak: float | None = None, layout: str | None = None,
        progress: Progress = iter,
    ) -> Iterator[Stems]:  # fmt: skip
        """As Separator.stream, of the song that was heard."""
        return iter(progress(self._said(blocks)))

    def _said(self, blocks: Iterable[Tensor]) -> Iterator[Stems]:
        kept = kept_stems(self.spec, self.stems)
        with Reader(self._spool) as reader:
            tape = _Tape(reader)
            for block in filter(Tensor.numel, blocks):
                said = dict(zip(kept, tape.take(block.shape[-1]).chunk(len(kept)), strict=True))
                for part, rest in parts_of([self.spec], self.stems):
                    if rest in said:
                        said[part] = block.to("cpu", torch.float32) - said[rest]
                yield {stem: said[stem] for stem in self.stems}


def _recorder(separator: Separator, writer: Writer) -> Masked:
    """The model, whose masks are also written, the instrumental's."""

    def masks(spectrogram: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
        for mask in instrumental(separator, spectrogram, peak):
            writer.write(rearrange(mask, "pairs sides bins frames -> (pairs sides) (frames bins)"))
            yield mask

    return Masked(replace(separator.spec, target="instrumental"), masks, separator.device)


def _player(spool: Path) -> Masks:
    """The masks of a spool, for the spectrogram of the song that was heard."""

    def masks(spectrogram: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
        with Reader(spool) as reader:
            tape = _Tape(reader)
            for block in filter(Tensor.numel, spectrogram):
                *_, bins, frames = block.shape
                flat = tape.take(frames * bins)
                yield rearrange(flat, "(pairs sides) (frames bins) -> pairs sides bins frames", sides=2, bins=bins)

    return masks


class _Tape:
    """A spool from its beginning, as much of it at a time as is asked for."""

    def __init__(self, reader: Reader) -> None:
        self._path, self._blocks, self._held = reader.path, reader.blocks(), Queue()

    def take(self, samples: int) -> Tensor:
        """`[channels, samples]`; AudioError where the spool ends before."""
        while self._held.held < samples:
            block = next(self._blocks, None)
            if block is None:
                raise AudioError(f"{self._path} ends before its song, which was changed in the meantime: start again")
            self._held.push(block)
        return self._held.piece(samples)
