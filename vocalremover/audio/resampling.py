"""Sample-rate conversion, block by block: `[channels, samples]` at one rate in, `[channels, samples]` at another out.

The filter is soxr's HQ recipe (linear phase, so without delay; pass band to about 0.91 of the lower Nyquist frequency).
Memory does not depend on how long the song is.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
import torch
from torch import Tensor

from vocalremover.audio.demands import demand_rate


class Resampler:
    """Converts a song that arrives in pieces.

    After `finish`, the pieces handed out hold exactly `round(samples * to_rate / from_rate)` samples, and equal
    `soxr.resample` of the whole song (which, where that number lies between two, may be a sample longer).
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        """Rates in Hz. Raises UsageError for what is none."""
        from_rate, to_rate = demand_rate(from_rate), demand_rate(to_rate)
        # A stream for each channel: soxr would want the channels in turns, and take them apart again.
        self._streams = [
            soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ") for _ in range(channels)
        ]
        self._from_rate = from_rate
        self._to_rate = to_rate
        self._taken = 0
        self._given = 0

    def push(self, block: Tensor) -> Tensor:
        """Takes `[channels, samples]` float32 and returns the samples that are ready, possibly none."""
        self._taken += block.shape[-1]
        return self._convert(block.detach().cpu().numpy(), last=False)

    def finish(self) -> Tensor:
        """Returns the rest, cut or filled with zeros to the exact total."""
        blank = np.zeros((len(self._streams), 0), np.float32)
        if self._taken == 0:
            return torch.from_numpy(blank)
        rest = self._convert(blank, last=True)
        missing = round(self._taken * self._to_rate / self._from_rate) - self._given
        self._given += missing
        return torch.nn.functional.pad(rest, (0, missing))

    def _convert(self, planes: np.ndarray, last: bool) -> Tensor:
        made = [
            stream.resample_chunk(np.ascontiguousarray(plane), last=last)
            for stream, plane in zip(self._streams, planes, strict=True)
        ]
        converted = torch.from_numpy(np.stack(made))
        self._given += converted.shape[-1]
        return converted


def resample(blocks: Iterable[Tensor], from_rate: int, to_rate: int) -> Iterator[Tensor]:
    """Converts a stream of blocks `[channels, samples]` from one rate in Hz to another.

    Together the results hold `round(samples * to_rate / from_rate)` samples; how the song was cut into blocks makes
    no difference. Equal rates hand every block through untouched. No block in, no block out.
    """
    if from_rate == to_rate:
        yield from blocks
        return
    resampler = None
    for block in blocks:
        resampler = resampler or Resampler(from_rate, to_rate, block.shape[0])
        converted = resampler.push(block)
        if converted.shape[-1]:
            yield converted
    if resampler is not None:
        yield resampler.finish()
