"""Networks that mask a spectrogram: samples `[pairs, 2, n]` at the model's rate -> the vocals of them.

The STFT, the crops, the mask and the inverse STFT of a whole song, streamed: the spectrogram waits until its mask is
there. The mask is averaged over the passes.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vocalremover.chunks import Chunking, Queue, at_most, blend, cut, group, tap
from vocalremover.models import ModelSpec
from vocalremover.separate import passes
from vocalremover.separate.passes import Pass
from vocalremover.separate.runner import Runner
from vocalremover.spectrogram import modulus

SIDES = -3  # the axis of left and right in `[..., 2, bins, frames]`
FEW = 64  # frames


class Spectra:
    """A spectrogram network with all that it takes to run it over songs."""

    def __init__(self, spec: ModelSpec, runner: Runner, ways: Sequence[Pass]) -> None:
        self._spec, self._runner, self._passes = spec, runner, ways

    def parts(self, blocks: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
        """Blocks `[pairs, 2, samples]` -> blocks of the vocals `[1, pairs, 2, samples]` in other sizes."""
        samples = 0
        waiting = Queue()  # the spectrogram until its mask is there

        def counted() -> Iterator[Tensor]:
            nonlocal samples
            for block in blocks:
                samples += block.shape[-1]
                yield block

        stft = self._spec.stft
        covered = stft.forward_blocks(counted(), cover=True)
        # The network sees the frames that librosa makes; the covering frame takes the mask of its neighbour.
        frames = at_most(tap(covered, waiting), lambda: stft.frames(samples))
        masked = self._masked(waiting, self.masks(frames, peak))
        for vocals in at_most(stft.inverse_blocks(masked), lambda: samples):
            yield vocals[None]

    def masks(self, spectrogram: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
        """Blocks `[..., 2, bins, frames]` -> blocks of the mask of the target, as many frames in all."""
        magnitudes = (modulus(block).div_(peak) if peak else modulus(block) for block in spectrogram)
        work = self._recurrent if self._spec.recurrent else self._windows
        return passes.run(magnitudes, self._passes, SIDES, work)

    def _masked(self, waiting: Queue, masks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The vocals of the spectrogram that waits in the queue, block by block."""
        for mask in masks:
            keep = mask if self._spec.target == "vocals" else 1 - mask
            # Most networks' masks have their frames side by side, the spectrogram its bins: across few frames both stay
            # in a processor's cache.
            step = FEW if mask.device.type == "cpu" else mask.shape[-1]
            start = 0
            for piece in waiting.take(keep.shape[-1]):
                for few in piece.split(step, dim=-1):
                    yield few * keep[..., start : start + few.shape[-1]]
                    start += few.shape[-1]
        for piece in waiting.take(waiting.held):
            yield piece * keep[..., -1:]

    def _windows(self, magnitudes: Iterable[Tensor], chunking: Chunking, shift: int) -> Iterator[Tensor]:
        """One pass: the masks of all windows, put together."""
        return passes.displace(magnitudes, shift, lambda blocks: self._blended(blocks, chunking))

    def _blended(self, magnitudes: Iterable[Tensor], chunking: Chunking) -> Iterator[Tensor]:
        batches = (
            ((places, contents.shape), contents.reshape(-1, *contents.shape[-3:]))
            for places, contents in group(cut(magnitudes, chunking), self._runner.batch)
        )
        windows = (
            pair
            for (places, shape), masks in self._runner.stream(batches, chunking)
            for pair in zip(places, masks.reshape(shape), strict=True)
        )
        return blend(windows, chunking)

    def _recurrent(self, magnitudes: Iterable[Tensor], chunking: Chunking, shift: int) -> Iterator[Tensor]:
        """For a network that reads the two crops before: X, PX, PY, PX2 and PY2 stacked along the channels.

        P is for the crop before, 2 for the one before that, X for its magnitudes and Y for what the mask left of them.
        Source: carperbr/frame-transformer, inference/inference.py at a6786372, for its model V9.
        """
        past: tuple[Tensor, ...] = ()
        for window, crop in cut(magnitudes, chunking):
            now = crop.reshape(-1, *crop.shape[-3:])
            past = tuple(before[..., : now.shape[-1]] for before in past) or (torch.zeros_like(now),) * 4
            mask = self._runner.once(torch.cat((now, *past), dim=1))
            past = (now, now * mask, past[0], past[1])
            yield mask.reshape(crop.shape)[..., : window.size]
