"""A song in, its stems out: audio `[channels, samples]` at any rate -> {"vocals": same, "instrumental": same}.

Blocks of the song run through resampling, the STFT, windows of the network, the inverse STFT and resampling back; a
few windows are held, whatever the song's length. The network's mask gives the vocals. The instrumental is the song
minus the vocals, taken from the song's own samples, so the stems sum to the song and nothing beyond the model's band
is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from vocalremover import checkpoint
from vocalremover.audio import resample
from vocalremover.audio.layouts import pairs_of, sides_of
from vocalremover.chunks import Queue, at_most, blend, cut, group, tap
from vocalremover.devices import choose_device, choose_precision
from vocalremover.errors import AudioError, ModelError, UsageError
from vocalremover.inference import Inference, choose_batch, choose_chunking
from vocalremover.models import JUDGES, ModelSpec
from vocalremover.runner import Runner

Stems = dict[str, Tensor]
Progress = Callable[[Iterable[Stems]], Iterable[Stems]]

BLOCK = 1 << 16  # samples; larger blocks of a caller are cut, so that memory does not depend on him
DEFAULTS = Inference()


class Separator:
    """A model that is ready to separate songs, any number of them.

    `stems` are what it gives. The batch and the windows shrink for good when the device runs out of memory. `warnings`
    collects a sentence for everything that did not go as asked.
    """

    def __init__(
        self, spec: ModelSpec, network: nn.Module, device: str | torch.device = "cpu",
        inference: Inference = DEFAULTS, stems: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """`network` in eval mode, on any device; `stems`: those of `spec.stems` that are wanted, by default all.

        Raises UsageError for settings that contradict each other or the model.
        """
        if spec.network in JUDGES:
            raise ModelError(f"{spec.name} judges separations and makes none: choose the generator it was trained with")
        self.spec = spec
        self.inference = inference
        self.device = torch.device(device)
        self.stems = _choose_stems(spec, stems)
        self.chunking = choose_chunking(spec, self.device, inference)
        precision, batch = choose_precision(inference.precision, self.device), choose_batch(inference, self.device)
        self._runner = Runner(network.to(self.device).eval(), self.device, precision, batch, spec.name)
        # Apple's GPUs lack some complex operations, so there only the network runs on the device.
        self._signal_device = torch.device("cpu") if self.device.type == "mps" else self.device

    @classmethod
    def load(
        cls, name_or_path: str | Path = "default", device: str = "auto", inference: Inference = DEFAULTS,
        config: Path | None = None, stems: Sequence[str] | None = None,
    ) -> "Separator":  # fmt: skip
        """A name in MODELS or the path of a checkpoint -> a Separator on the device.

        device: see `choose_device`. config: the yaml that a checkpoint was trained with, where its author published
        one. Raises ModelError, DeviceError and UsageError.
        """
        chosen = choose_device(device)
        choose_precision(inference.precision, chosen)  # a wrong word is told before the weights are read
        more = {} if config is None else {"config": config}
        spec, network = checkpoint.load(name_or_path, chosen, **more)
        return cls(spec, network, chosen, inference, stems)

    @property
    def measures(self) -> bool:
        """Whether `peak` needs a first pass over a song before `stream`."""
        return self.spec.peak

    @property
    def warnings(self) -> list[str]:
        """A sentence for everything that did not go as asked, in order."""
        return self._runner.warnings

    @property
    def batch(self) -> int:
        """How many windows go through the network together."""
        return self._runner.batch

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return self._runner.precision

    @property
    def network(self) -> nn.Module:
        """The network on its device."""
        return self._runner.network

    def describe(self) -> dict[str, object]:
        """Everything that decides what the stems are and how they are made, in words and numbers that JSON knows."""
        return {
            "model": self.spec.name,
            "network": self.spec.network,
            "stems": list(self.stems),
            "device": str(self.device),
            "precision": self.precision,
            "batch": self.batch,
            "chunking": asdict(self.chunking),
            "stft": asdict(self.spec.stft),
            "rate": self.spec.rate,
            "quality": self.inference.quality,
            "tta": self.inference.tta,
        }

    def separate(self, audio: Tensor, rate: int, layout: str | None = None, progress: Progress = iter) -> Stems:
        """Audio `[channels, samples]` -> every stem, same shape and device. Raises AudioError for NaN and infinity."""
        peak = self.peak([audio], rate)
        stems = {stem: torch.empty(audio.shape, device=audio.device) for stem in self.stems}
        done = 0
        for blocks in self.stream([audio], rate, peak, layout, progress):
            stop = done + blocks[self.stems[0]].shape[-1]
            for stem, block in blocks.items():
                stems[stem][:, done:stop] = block
            done = stop
        return stems

    def peak(self, blocks: Iterable[Tensor], rate: int) -> float | None:
        """The largest STFT magnitude of a song at the model's rate over all channels and frames: the first pass.

        0.0 for silence; None for a model that takes magnitudes as they are, without reading any block.
        """
        if not self.spec.peak:
            return None
        audio = resample(_checked(blocks), rate, self.spec.rate)
        largest = torch.zeros((), device=self._signal_device)
        for spectrogram in self.spec.stft.forward_blocks(block.to(self._signal_device) for block in audio):
            largest = torch.maximum(largest, spectrogram.abs().amax())
        return largest.item()

    def stream(
        self, blocks: Iterable[Tensor], rate: int, peak: float | None = None, layout: str | None = None,
        progress: Progress = iter,
    ) -> Iterator[Stems]:  # fmt: skip
        """Blocks of a song `[channels, samples]` of any sizes -> blocks of every stem, equally long, as many samples.

        rate: Hz. peak: what `peak` says of the same song. layout: FFmpeg's name for the order of more than two
        channels, "5.1" for example; without it the usual order for so many. Mono is heard on both sides, more than
        two channels are separated in pairs. progress: any wrapper of the answer, such as a bar that counts.
        """
        if self.spec.peak and peak is None:
            raise UsageError(f"{self.spec.name} measures a song against its peak: pass what Separator.peak returns")
        return iter(progress(self._stems(blocks, rate, peak, layout)))

    def masks(self, spectrogram: Iterable[Tensor], peak: float | None = None) -> Iterator[Tensor]:
        """Blocks of a spectrogram `[..., 2, bins, frames]` -> blocks of the network's mask, as many frames in all.

        The mask is 0..1 and keeps the stem that `spec.target` names. Leading axes are independent songs (or pairs of
        channels); magnitudes are divided by `peak`, unless it is None or 0.
        """
        magnitudes = (block.abs() / peak if peak else block.abs() for block in spectrogram)
        if self.spec.recurrent:
            return self._recurrent_masks(magnitudes)
        batches = group(cut(magnitudes, self.chunking), self._runner.batch)
        windows = (pair for places, contents in batches for pair in zip(places, self._apply(contents), strict=True))
        return blend(windows, self.chunking)

    def _stems(self, blocks: Iterable[Tensor], rate: int, peak: float | None, layout: str | None) -> Iterator[Stems]:
        song = Queue()
        audio = resample(tap(_checked(blocks), song), rate, self.spec.rate)
        for vocals in resample(self._vocals(audio, peak, layout), self.spec.rate, rate):
            start = 0
            for piece in song.take(vocals.shape[-1]):
                part = vocals[:, start : start + piece.shape[-1]]
                yield self._named(part, piece)
                start += piece.shape[-1]
        # There and back, resampling may round a sample or two away.
        for piece in song.take(song.held):
            yield self._named(torch.zeros_like(piece), piece)

    def _named(self, vocals: Tensor, song: Tensor) -> Stems:
        """The wanted stems of a block; none is a view of the song."""
        return {stem: vocals if stem == "vocals" else song - vocals for stem in self.stems}

    def _vocals(self, blocks: Iterable[Tensor], peak: float | None, layout: str | None) -> Iterator[Tensor]:
        """Blocks `[channels, samples]` at the model's rate -> the same blocks of the vocals, in other sizes."""
        samples, channels = 0, 0
        waiting = Queue()  # the spectrogram until its mask is there

        def pairs() -> Iterator[Tensor]:
            nonlocal samples, channels
            for block in blocks:
                channels = block.shape[0]
                samples += block.shape[-1]
                yield block[pairs_of(channels, layout)].to(self._signal_device)

        stft = self.spec.stft
        covered = stft.forward_blocks(pairs(), cover=True)
        # The network sees the frames that librosa makes; the covering frame takes the mask of its neighbour.
        frames = at_most(tap(covered, waiting), lambda: stft.frames(samples))
        masked = self._masked(waiting, self.masks(frames, peak))
        for vocals in at_most(stft.inverse_blocks(masked), lambda: samples):
            flat = rearrange(vocals, "pairs sides samples -> (pairs sides) samples").cpu()
            first, second = sides_of(channels, layout)
            yield (flat[first] + flat[second]) / 2

    def _masked(self, waiting: Queue, masks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The vocals of the spectrogram that waits in the queue, block by block."""
        for mask in masks:
            keep = mask if self.spec.target == "vocals" else 1 - mask
            start = 0
            for piece in waiting.take(keep.shape[-1]):
                yield piece * keep[..., start : start + piece.shape[-1]]
                start += piece.shape[-1]
        for piece in waiting.take(waiting.held):
            yield piece * keep[..., -1:]

    def _apply(self, contents: Tensor) -> Tensor:
        """Windows `[..., channels, bins, frames]` -> their masks."""
        return self._runner(contents.reshape(-1, *contents.shape[-3:]), self.chunking).reshape(contents.shape)

    def _recurrent_masks(self, magnitudes: Iterable[Tensor]) -> Iterator[Tensor]:
        """For a network that reads the two crops before: X, PX, PY, PX2 and PY2 stacked along the channels.

        P is for the crop before, 2 for the one before that, X for its magnitudes and Y for what the mask left of them.
        Source: carperbr/frame-transformer, inference/inference.py at a6786372, for its model V9.
        """
        past: tuple[Tensor, ...] = ()
        for window, crop in cut(magnitudes, self.chunking):
            now = crop.reshape(-1, *crop.shape[-3:])
            past = tuple(before[..., : now.shape[-1]] for before in past) or (torch.zeros_like(now),) * 4
            mask = self._runner.once(torch.cat((now, *past), dim=1))
            past = (now, now * mask, past[0], past[1])
            yield mask.reshape(crop.shape)[..., : window.size]


def _choose_stems(spec: ModelSpec, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The stems asked for, in the model's order; UsageError for one that it does not give."""
    for stem in asked or ():
        if stem not in spec.stems:
            raise UsageError(f"{spec.name} gives {', '.join(spec.stems)}; it gives no {stem}")
    return tuple(stem for stem in spec.stems if not asked or stem in asked)


def _checked(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The blocks of a song in float32 on the CPU, none longer than BLOCK samples; AudioError for what is no audio."""
    for block in blocks:
        if block.dim() != 2 or not block.shape[0] or not block.is_floating_point():
            raise AudioError(
                f"a song is a tensor [channels, samples] of floating point numbers, not {list(block.shape)} of "
                f"{block.dtype}"
            )
        for part in block.detach().split(BLOCK, dim=-1):
            part = part.to("cpu", torch.float32)
            if not part.isfinite().all():
                raise AudioError("the song holds samples that are not finite (NaN or infinity): replace them first")
            yield part
