"""Audio `[..., samples]` to complex spectrogram `[..., bins, frames]` and back: the only STFT of the project.

Frame `t` is centred on sample `t * hop`. The numbers are those of `librosa.stft` and `librosa.istft`, which the
checkpoints were made with, computed by torch on whatever device the audio is on, whole or block by block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vocalremover.errors import UsageError

WINDOWS = {"hann": torch.hann_window, "hamming": torch.hamming_window}
PAD_MODES = ("constant", "reflect")


@lru_cache(maxsize=32)
def _window(name: str, n_fft: int, win_length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    blank = n_fft - win_length
    # A tensor made under inference mode could never be used in training later, and this one is kept.
    with torch.inference_mode(False):
        window = WINDOWS[name](win_length, periodic=True, dtype=dtype, device=device)
        return F.pad(window, (blank // 2, blank - blank // 2))


def modulus(spectrogram: Tensor) -> Tensor:
    """The absolute values of a complex spectrogram, without a gradient."""
    if spectrogram.device.type != "cpu":
        return spectrogram.abs()
    # Exact to the same last bit or two, in a sixth of the time that torch takes on a processor with AVX2.
    return torch.from_numpy(np.abs(spectrogram.detach().resolve_conj().numpy()))


@dataclass(frozen=True)
class STFT:
    """A short-time Fourier transform of `n_fft` samples a frame and `n_fft // 2 + 1` bins.

    Its periodic window has `win_length` samples in the middle of a frame, all of the frame by default.

    `pad_mode` says what lies beyond the ends of the audio: "constant" is zeros (librosa >= 0.9), "reflect" mirrors the
    audio (librosa <= 0.8). Audio of `n_fft // 2` samples or fewer is too short to mirror and gets zeros in both modes.
    Raises UsageError for settings that make no transform.
    """

    n_fft: int = 2048
    hop: int = 1024
    window: str = "hann"
    pad_mode: str = "constant"
    win_length: int | None = None

    def __post_init__(self) -> None:
        if self.n_fft < 2 or self.n_fft % 2:
            raise UsageError(f"n_fft must be an even number of samples, not {self.n_fft}")
        if not 1 <= self.hop <= self.n_fft:
            raise UsageError(f"hop must be 1 to n_fft ({self.n_fft}) samples, not {self.hop}")
        if not self.hop <= (self.win_length or self.n_fft) <= self.n_fft:
            raise UsageError(f"win_length must be hop ({self.hop}) to n_fft ({self.n_fft}), not {self.win_length}")
        if self.window not in WINDOWS:
            raise UsageError(f"window must be one of {', '.join(WINDOWS)}, not {self.window!r}")
        if self.pad_mode not in PAD_MODES:
            raise UsageError(f"pad_mode must be one of {', '.join(PAD_MODES)}, not {self.pad_mode!r}")

    @property
    def bins(self) -> int:
        """The rows of a spectrogram, DC and Nyquist included."""
        return self.n_fft // 2 + 1

    def frames(self, samples: int) -> int:
        """How many frames `forward` makes of so many samples; never less than one."""
        return 1 + samples // self.hop

    def forward(self, audio: Tensor) -> Tensor:
        """Audio `[..., samples]` -> complex spectrogram `[..., bins, frames(samples)]`, equal to `librosa.stft`."""
        samples = audio.shape[-1]
        head, tail = self._head(audio, samples), self._tail(audio, samples, cover=False)
        return self._analyse(torch.cat((head, audio, tail), dim=-1))

    def inverse(self, spectrogram: Tensor, samples: int) -> Tensor:
        """Complex spectrogram `[..., bins, frames]` -> audio `[..., samples]`, equal to `librosa.istft` of that length.

        Samples that no frame reaches are zero.
        """
        audio = torch.cat(list(self.inverse_blocks([spectrogram])), dim=-1)[..., :samples]
        return F.pad(audio, (0, samples - audio.shape[-1]))

    def forward_blocks(self, blocks: Iterable[Tensor], cover: bool = False) -> Iterator[Tensor]:
        """Blocks of audio `[..., samples]` of any sizes -> blocks of its spectrogram `[..., bins, frames]`.

        Together they are `forward` of the whole; no more than one block and `2 * n_fft` samples are held. No block at
        all gives no frame, an empty one gives what `forward` gives.

        The last samples of audio that is no multiple of `hop` long lie under the slope of one frame only, and the
        inverse has to divide by that slope: exact while nothing changes the frame, a click once a mask does.
        `cover=True` adds one more frame in that case, so that every sample lies under as many frames as in the middle.
        """
        held: Tensor | None = None  # samples that coming frames need, the head included once it is known
        last: Tensor | None = None  # the newest samples, which the tail may mirror
        samples, started = 0, False
        for block in blocks:
            samples += block.shape[-1]
            held = block if held is None else torch.cat((held, block), dim=-1)
            reach = self.n_fft // 2 + self.hop
            last = block[..., -reach:] if last is None else torch.cat((last, block[..., -reach:]), dim=-1)[..., -reach:]
            if not started and samples > self.n_fft // 2:
                held, started = torch.cat((self._head(held, samples), held), dim=-1), True
            if started and held.shape[-1] >= self.n_fft:
                yield self._analyse(held)
                held = held[..., self._advance(held) :]
        if held is None:
            return
        head = held[..., :0] if started else self._head(held, samples)
        held = torch.cat((head, held, self._tail(last, samples, cover)), dim=-1)
        if held.shape[-1] >= self.n_fft:
            yield self._analyse(held)

    def inverse_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks of a spectrogram `[..., bins, frames]` of any sizes -> blocks of audio `[..., samples]`.

        Every sample comes as soon as no later frame can change it. In all there are
        `(frames - 1) * hop + n_fft // 2` samples, the reach of the last frame, which is never less than
        `librosa.istft` gives; cut them to the song's length.
        """
        overlap: Tensor | None = None  # `[..., steps - 1, hop]`: sums of windowed frames that later frames still add to
        surplus = self.n_fft // 2  # samples before the song, in front of the first frame's centre
        frames = 0
        for block in blocks:
            count = block.shape[-1]
            if not count:
                continue
            sums = self._overlap_add(block)
            if overlap is not None:
                sums[..., : overlap.shape[-2], :] += overlap
            done = self._normalise(sums[..., :count, :], frames).flatten(-2)
            overlap, frames = sums[..., count:, :], frames + count
            if done.shape[-1] > surplus:
                yield done[..., surplus:]
            surplus = max(surplus - done.shape[-1], 0)
        if overlap is None:
            return
        reach = self.n_fft - self.hop  # where the last frame ends
        if reach > surplus:
            yield self._normalise(overlap, frames, frames).flatten(-2)[..., surplus:reach]

    def _head(self, first: Tensor, samples: int) -> Tensor:
        """The `n_fft // 2` samples before the song, whose first samples are `first`."""
        half = self.n_fft // 2
        if self.pad_mode == "constant" or samples <= half:
            return first.new_zeros(*first.shape[:-1], half)
        return first[..., 1 : half + 1].flip(-1)

    def _tail(self, last: Tensor, samples: int, cover: bool) -> Tensor:
        """The samples after a song of `samples` that ends with `last`, up to the reach of the last frame."""
        half = self.n_fft // 2
        reach = half + (-samples % self.hop if cover else 0)
        if self.pad_mode == "constant" or samples <= half:
            return last.new_zeros(*last.shape[:-1], reach)
        mirrored = last[..., -(reach + 1) : -1].flip(-1)
        return F.pad(mirrored, (0, reach - mirrored.shape[-1]))

    def _advance(self, padded: Tensor) -> int:
        """How far the frames that fit into `[..., samples]` move on."""
        return ((padded.shape[-1] - self.n_fft) // self.hop + 1) * self.hop

    def _analyse(self, padded: Tensor) -> Tensor:
        """All frames that fit into `[..., samples]`, the first starting at its first sample."""
        window = self._weights(padded)
        rows = padded.reshape(-1, padded.shape[-1])
        frames = torch.stft(rows, self.n_fft, self.hop, window=window, center=False, return_complex=True)
        return frames.unflatten(0, padded.shape[:-1]) if padded.dim() > 1 else frames[0]

    def _weights(self, like: Tensor) -> Tensor:
        return _window(self.window, self.n_fft, self.win_length or self.n_fft, like.dtype, like.device)

    def _overlap_add(self, spectrogram: Tensor) -> Tensor:
        """Sums of the windowed, overlapping frames, `[..., frames + steps - 1, hop]`; a frame has `steps` hops."""
        frames = torch.fft.irfft(spectrogram.mT, n=self.n_fft)
        window, count, steps = self._weights(frames), frames.shape[-2], -(-self.n_fft // self.hop)
        sums = frames.new_zeros(*frames.shape[:-2], count + steps - 1, self.hop)
        for step, start in enumerate(range(0, self.n_fft, self.hop)):
            part = frames[..., start : start + self.hop]
            sums[..., step : step + count, : part.shape[-1]].addcmul_(part, window[start : start + self.hop])
        return sums

    def _normalise(self, sums: Tensor, first: int, frames: int | None = None) -> Tensor:
        """Divides rows `[..., rows, hop]` of sums, of which `first` is the first, by the squared windows upon them.

        frames: how many there are in all, None where there are enough. Where no window reaches, the sums are zero.
        """
        # Farther from the ends of the song than a frame reaches, all rows lie under the same windows.
        steps = -(-self.n_fft // self.hop)
        first, frames = min(first, steps - 1), None if frames is None else min(frames, steps - 1)
        rows = sums.shape[-2]
        told = rows if frames is not None else min(rows, steps - first)
        divisors = _divisors(self._weights(sums), self.hop, first, told, frames)
        if 1 < told < rows:
            divisors = torch.cat([divisors, divisors[-1:].expand(rows - told, -1)])
        return sums / divisors


@lru_cache(maxsize=32)
def _divisors(window: Tensor, hop: int, first: int, rows: int, frames: int | None) -> Tensor:
    """`[rows, hop]`: the sums of the squared windows upon each row, 1 where there is none."""
    with torch.inference_mode(False):
        squares = F.pad(window**2, (0, -len(window) % hop)).unflatten(-1, (-1, hop))
        last = first + rows if frames is None else frames
        divisors = torch.stack([squares[max(row + 1 - last, 0) : row + 1].sum(0) for row in range(first, first + rows)])
        return torch.where(divisors > torch.finfo(window.dtype).tiny, divisors, 1)
