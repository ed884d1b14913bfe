"""Networks that are shown windows of samples: samples `[pairs, sides, n]` at the model's rate -> some of its stems.

Every window has an STFT of its own, the network's complex masks multiply it, and what the inverse STFT makes of that is
overlapped and added on the device. The windows lie where those of `demix` lie in ZFTurbo's Music-Source-Separation-
Training (utils/model_utils.py at ccc011ab) and weigh the same, so that with its settings the samples are the same,
farther than a window from both ends. Elsewhere they differ on purpose:

| | demix | here |
|---|---|---|
| weights of a window | one for a whole batch: seams where its first or last is not the song's | of the window alone |
| before and after the song | the song mirrored | zeros |
| at its ends | windows that show nothing but the mirror count too | every window's core holds some of the song |
| a last window less than half full | zeros after the song | the same, however full |
| no overlap | zeros at the edges of windows, where all weights are 0 | hard crops |
| a song no longer than a window | windows from its start; in a batch the first sample is 0 | one window |
| NaN of a network | becomes 0 | computed again in float32, or refused |
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vocalremover.chunks import Chunking, Queue, blend, cut, group
from vocalremover.models import ModelSpec
from vocalremover.separate import passes
from vocalremover.separate.passes import Pass
from vocalremover.separate.runner import Network, Runner

SIDES = -2  # the axis of left and right in `[..., sides, samples]`


class Waves:
    """A waveform network with all that it takes to run it over songs."""

    def __init__(
        self, spec: ModelSpec, runner: Runner, ways: Sequence[Pass], heads: Sequence[int] | None, rest: bool
    ) -> None:
        """heads: the outputs to compute, None for all. rest: True to give the song less the output in its place."""
        self._spec, self._runner, self._passes, self._heads, self._rest = spec, runner, ways, heads, rest

    def parts(self, blocks: Iterable[Tensor], peak: float | None = None) -> Iterator[Tensor]:
        """Blocks `[pairs, sides, samples]` -> blocks `[heads, pairs, sides, samples]` in other sizes."""
        for block in passes.run(blocks, self._passes, SIDES, self._windows):
            yield rearrange(block, "pairs heads sides samples -> heads pairs sides samples")

    def around(self, windows: Tensor, network: Network) -> Tensor:
        """Windows `[batch, sides, samples]` -> `[batch, heads, sides, samples]`; all but the network in float32."""
        stft = self._spec.stft
        spectrogram = stft.forward(windows)
        masks = network(torch.view_as_real(spectrogram), stems=self._heads)
        masked = torch.view_as_complex(masks.contiguous()) * rearrange(spectrogram, "batch ... -> batch 1 ...")
        audio = stft.inverse(masked, windows.shape[-1])
        return rearrange(windows, "batch ... -> batch 1 ...") - audio if self._rest else audio

    def _windows(self, blocks: Iterable[Tensor], chunking: Chunking, shift: int) -> Iterator[Tensor]:
        """One pass. A song that a window holds whole is shown so; a shift then moves it inside the window."""
        source, start = iter(blocks), Queue()
        for block in source:
            start.push(block)
            if start.held > chunking.whole:
                break
        if not start.held:
            return
        if start.held <= chunking.whole:
            song = start.peek(start.held)
            spare = chunking.whole - song.shape[-1]
            lead = spare * shift // chunking.size
            window = F.pad(song, (lead, spare - lead))
            yield self._runner(window, _halved(chunking))[..., lead : lead + song.shape[-1]]
            return
        # The first window of the reference begins a whole border before the song, of which half is context here.
        lead = (chunking.context + shift) % chunking.size
        song = chain(start.take(start.held), source)
        yield from passes.displace(song, lead, lambda led: self._blended(led, chunking))

    def _blended(self, blocks: Iterable[Tensor], chunking: Chunking) -> Iterator[Tensor]:
        batches = (
            ((places, contents.shape[:2]), rearrange(contents, "windows pairs ... -> (windows pairs) ..."))
            for places, contents in group(cut(blocks, chunking), self._runner.batch)
        )
        windows = (
            pair
            for (places, shape), answer in self._runner.stream(batches, _halved(chunking))
            for pair in zip(places, answer.unflatten(0, shape), strict=True)
        )
        return blend(windows, chunking)


def _halved(chunking: Chunking) -> Chunking:
    """The same windows `[batch, sides, samples]`; where memory is short, they may be cut in halves of any width."""
    return replace(chunking, multiple=1)
