"""What several models say, in; one answer, out: per bin of a spectrogram or per sample.

`min` is the rule of the original ensembles: of what the models leave of a song without its voice, the quietest. The
words are also those of UVR, MSST (ZFTurbo/Music-Source-Separation-Training) and audio-separator: `avg_wave`, `min_fft`,
`uvr_max_spec` and so on.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vocalremover.chunks import at_most
from vocalremover.errors import UsageError
from vocalremover.spectrogram import STFT

DOMAINS = {"spec": "spec", "fft": "spec", "wave": "wave"}
WORDS = {"average": "avg", "mean": "avg", "minimum": "min", "maximum": "max"}


def _extreme(beats: Callable[[Tensor, Tensor], Tensor], stacked: Tensor, shares: Tensor) -> Tensor:
    kept = stacked[0]
    for other in stacked[1:]:
        kept = torch.where(beats(other.abs(), kept.abs()), other, kept)
    return kept


_quietest, _loudest = partial(_extreme, torch.lt), partial(_extreme, torch.gt)


def _mean(stacked: Tensor, shares: Tensor) -> Tensor:
    return torch.tensordot(shares.to(stacked), stacked, dims=1)


def _median(stacked: Tensor, shares: Tensor) -> Tensor:
    """Of complex numbers the median of either part: for multiples of one number that of the factors."""
    if stacked.is_complex():
        return torch.view_as_complex(_median(torch.view_as_real(stacked), shares))
    ordered = stacked.sort(dim=0).values
    return (ordered[(len(stacked) - 1) // 2] + ordered[len(stacked) // 2]) / 2


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "min": _quietest,
    "max": _loudest,
    "avg": _mean,
    "median": _median,
    "original": _quietest,
}


@dataclass(frozen=True)
class Rule:
    """How answers are made one: a method of METHODS, in the domain "spec" (per bin) or "wave" (per sample).

    "min" and "max" keep the number with the smallest or largest magnitude. "avg" takes `weights`, one for each model,
    by default equal ones. "original" is "min" with one slip of the original project (carperbr/frame-transformer at
    a6786372): its vocals are those of the last model alone, so that stems do not sum to the song.
    Raises UsageError.
    """

    method: str = "min"
    domain: str = "spec"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"the method of an ensemble is one of {', '.join(METHODS)}, not {self.method!r}")
        if self.domain not in DOMAINS.values():
            raise UsageError(f"the domain of an ensemble is spec or wave, not {self.domain!r}")
        if self.method == "original" and self.domain == "wave":
            raise UsageError("the original's rule is one of spectrograms: leave out the domain wave or choose min")
        if self.weights is None:
            return
        try:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"the weights of an ensemble are numbers, not {self.weights!r}") from error
        if self.method != "avg":
            raise UsageError(f"weights count in an average only: leave them out or choose avg instead of {self.method}")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights) or not sum(self.weights) > 0:
            raise UsageError("the weights of an ensemble are numbers from 0 on, at least one of them above 0")

    @classmethod
    def parse(cls, words: str, domain: str | None = None, weights: Sequence[float] | None = None) -> "Rule":
        """A method ("min") or a joint name ("min_fft", "avg_wave", "uvr_max_spec") -> the rule. Raises UsageError.

        fft is another word for spec. A domain that contradicts the joint name is refused.
        """
        parts = re.split(r"[-_ ]", words.strip().lower())
        parts = parts[1:] if parts[0] == "uvr" else parts
        method = WORDS.get(parts[0], parts[0]) if parts else ""
        if method not in METHODS or len(parts) > 2 or (len(parts) == 2 and parts[1] not in DOMAINS):
            raise UsageError(
                f"there is no ensemble rule {words!r}: choose {', '.join(METHODS)}, or one with its domain, such as "
                "avg_wave or min_fft"
            )
        if domain is not None and domain not in DOMAINS:
            raise UsageError(f"the domain of an ensemble is spec or wave, not {domain!r}")
        said = {DOMAINS[word] for word in (*parts[1:], domain) if word is not None}
        if len(said) > 1:
            raise UsageError(f"the rule {words!r} contradicts the domain {domain}: leave one of them out")
        return cls(method, said.pop() if said else "spec", None if weights is None else tuple(weights))

    @property
    def name(self) -> str:
        """The joint name, such as "min_spec"."""
        return f"{self.method}_{self.domain}"

    def check(self, count: int, things: str = "models") -> None:
        """Raises UsageError where the weights are not one for each."""
        if self.weights is not None and len(self.weights) != count:
            raise UsageError(f"there are {count} {things} and {len(self.weights)} weights: give one for each")

    def combine(self, stacked: Tensor) -> Tensor:
        """`[models, ...]`, samples, bins or masks of 0..1 -> `[...]`."""
        weights = torch.tensor(self.weights or (1.0,) * len(stacked))
        return METHODS[self.method](stacked, weights / weights.sum())

    def combine_audio(self, stacked: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
        """Blocks `[models, ..., samples]` at a rate in Hz -> blocks `[..., samples]` of other sizes, equally long."""
        if self.domain == "wave" or self.method == "avg":  # a mean of spectrograms is that of the waves
            yield from map(self.combine, stacked)
            return
        samples = 0

        def counted() -> Iterator[Tensor]:
            nonlocal samples
            for block in stacked:
                samples += block.shape[-1]
                yield block

        stft = common_grid(rate)
        combined = map(self.combine, stft.forward_blocks(counted(), cover=True))
        yield from at_most(stft.inverse_blocks(combined), lambda: samples)


def common_grid(rate: int) -> STFT:
    """The grid on which audio at a rate in Hz is combined: that of the frame transformers at CD rate.

    2048 samples at 44.1 and 48 kHz; at other rates the power of two that lasts about as long.
    """
    n_fft = 2 ** max(round(math.log2(2048 * rate / 44100)), 5)
    return STFT(n_fft, n_fft // 2)
