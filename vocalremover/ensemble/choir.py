"""Separators of one grid (STFT and rate) as one Separator: one spectrogram in, one mask of all of them out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import tee

import torch
from torch import Tensor, nn

from vocalremover.chunks import Chunking
from vocalremover.ensemble.rules import Rule
from vocalremover.models import ModelSpec
from vocalremover.separate import Separator
from vocalremover.separate.runner import Runner
from vocalremover.separate.spectra import Spectra
from vocalremover.spectrogram import STFT
from vocalremover.streams import abreast

Masks = Callable[[Iterable[Tensor], float | None], Iterator[Tensor]]

PAIR = ("vocals", "instrumental")


def grid(spec: ModelSpec) -> tuple[STFT, int] | None:
    """What models must have in common to sing in one choir; None for one that sings alone."""
    alone = spec.domain != "spectrogram" or spec.stems != PAIR
    return None if alone else (spec.stft, spec.rate)


class Masked(Separator):
    """A Separator whose masks come from elsewhere than a network of its own: `masks(spectrogram, peak)`."""

    def __init__(
        self, spec: ModelSpec, masks: Masks, device: str | torch.device = "cpu", stems: Sequence[str] | None = None
    ) -> None:
        """spec: what is said of the masks (which stem they keep, whether they need the peak) and of the STFT."""
        # Who makes the masks cuts the windows; nothing of that is left to do here.
        plain = replace(spec, instruments=(), recurrent=False, args={}, chunking=Chunking(1))
        super().__init__(plain, nn.Identity(), device, stems=stems)
        self._domain = _Given(plain, self._runner, masks)


class _Given(Spectra):
    """The way of a song around masks that are given."""

    def __init__(self, spec: ModelSpec, runner: Runner, masks: Masks) -> None:
        super().__init__(spec, runner, ())
        self._given = masks

    def masks(self, spectrogram: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
        return self._given(spectrogram, peak)


class Choir(Masked):
    """Models with one `grid`: the song is transformed once, and the rule is one of their masks.

    Masks are multiples of one spectrogram, so the smallest mask is the instrumental with the smallest magnitude.
    """

    def __init__(self, members: Sequence[Separator], rule: Rule, stems: Sequence[str] | None = None) -> None:
        measured = any(member.measures for member in members)
        spec = replace(members[0].spec, target="instrumental", peak=measured)
        super().__init__(spec, self._combined, members[0].device, stems)
        self.members, self.rule = tuple(members), rule

    def _combined(self, spectrogram: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
        feeds = tee(spectrogram, len(self.members))
        kept = [instrumental(*pair, peak) for pair in zip(self.members, feeds, strict=True)]
        return (self.rule.combine(torch.stack(masks)) for masks in abreast(kept))


def instrumental(member: Separator, spectrogram: Iterable[Tensor], peak: float | None) -> Iterator[Tensor]:
    """The masks of a model, turned where they keep the vocals."""
    masks = member.masks(spectrogram, peak if member.measures else None)
    return (1 - mask for mask in masks) if member.spec.target == "vocals" else masks
