"""A song in, its stems out: audio `[channels, samples]` at any rate -> {"vocals": same, "instrumental": same, ...}.

Blocks of the song run through resampling, windows of the network and resampling back; a few windows are held, whatever
the song's length. `spectra` runs networks that mask a spectrogram, `waves` those that are shown windows of samples. The
instrumental is the song minus the vocals, taken from the song's own samples, so the two sum to the song and nothing
beyond the model's band is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from vocalremover import checkpoint
from vocalremover.audio import resample
from vocalremover.audio.demands import demand_audio, demand_song
from vocalremover.audio.layouts import pairs_of, sides_of
from vocalremover.chunks import Queue, tap
from vocalremover.devices import choose_device, choose_precision, fetch, send
from vocalremover.errors import AudioError, ModelError, UsageError
from vocalremover.models import JUDGES, ModelSpec
from vocalremover.separate.inference import Inference, channels_read, choose_batch, choose_chunking, choose_passes
from vocalremover.separate.runner import Runner
from vocalremover.separate.spectra import Spectra
from vocalremover.separate.waves import Waves

Stems = dict[str, Tensor]
Progress = Callable[[Iterable[Stems]], Iterable[Stems]]

BLOCK = 1 << 16  # samples; larger blocks of a caller are cut, so that memory does not depend on him
LOUDEST = 1e15  # of a sample: what is louder is damaged, and its energy beyond float32
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

        Raises UsageError for settings that contradict each other or the model, ModelError for one that makes no stems.
        """
        if spec.network in JUDGES:
            raise ModelError(f"{spec.name} judges separations and makes none: choose the generator it was trained with")
        self.spec = spec
        self.inference = inference
        self.device = torch.device(device)
        self.stems = _choose_stems(spec, stems)
        self.passes = choose_passes(spec, choose_chunking(spec, self.device, inference), inference)
        self.chunking = self.passes[0].chunking
        precision = choose_precision(inference.precision, self.device, spec.coarsest)
        batch = choose_batch(inference, self.device)
        cast = spec.domain == "waveform"
        self._runner = Runner(
            network.to(self.device).eval(), self.device, precision, batch, spec.name,
            cast=cast, acceleration=inference.acceleration,
        )  # fmt: skip
        self._runner.warnings.extend(spec.warnings)
        # Apple's GPUs lack some complex operations, so there only the network runs on the device.
        self._signal_device = torch.device("cpu") if self.device.type == "mps" else self.device
        self._parts, self._rests = _plan_stems(spec, self.stems)
        self._domain = self._choose_domain()

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
        spec, network = checkpoint.load(name_or_path, chosen, config)
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
            "sha256": self.spec.digest,
            "stems": list(self.stems),
            "device": str(self.device),
            "precision": self.precision,
            "batch": self.batch,
            "compiled": self.inference.acceleration == "compile",
            "quality": self.inference.quality,
            "unit": self._runner.unit,
            "overlap": round(self.chunking.overlap, 4),
            "passes": [asdict(each) for each in self.passes],
            "stft": asdict(self.spec.stft),
            "rate": self.spec.rate,
        }

    def separate(self, audio: Tensor, rate: int, layout: str | None = None, progress: Progress = iter) -> Stems:
        """Audio `[channels, samples]` -> every stem, same shape and device. Raises AudioError for NaN and infinity."""
        demand_song(audio)
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
        largest = torch.zeros((), device=self._signal_device)
        for level in self.levels(blocks, rate):
            largest = torch.maximum(largest, level)
        return largest.item()

    def levels(self, blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
        """The largest magnitude in every block of a song's spectrogram, of which `peak` is the largest."""
        audio = resample(checked(blocks), rate, self.spec.rate)
        for spectrogram in self.spec.stft.forward_blocks(send(block, self._signal_device) for block in audio):
            yield spectrogram.abs().amax()

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
        channels); magnitudes are divided by `peak`, unless it is None or 0. UsageError for a waveform model.
        """
        if self.spec.domain == "waveform":
            raise UsageError(f"{self.spec.name} makes no mask of a whole song: combine its stems as waves")
        return self._domain.masks(spectrogram, peak)

    def _choose_domain(self) -> Spectra | Waves:
        if self.spec.domain == "spectrogram":
            return Spectra(self.spec, self._runner, self.passes)
        outputs = self.spec.outputs
        # Of a pair the vocals are computed, so that what the model's band lacks stays in the instrumental.
        rest = outputs == ("instrumental",)
        heads = [outputs.index(part) for part in self._parts] if len(self._parts) < len(outputs) else None
        waves = Waves(self.spec, self._runner, self.passes, heads, rest)
        self._runner.unit, self._runner.around = "samples", waves.around
        return waves

    def _stems(self, blocks: Iterable[Tensor], rate: int, peak: float | None, layout: str | None) -> Iterator[Stems]:
        song = Queue()
        audio = resample(tap(checked(blocks), song), rate, self.spec.rate)
        for parts in resample(self._computed(audio, peak, layout), self.spec.rate, rate):
            start = 0
            for piece in song.take(parts.shape[-1]):
                yield self._named(parts[:, start : start + piece.shape[-1]], piece)
                start += piece.shape[-1]
        # There and back, resampling may round a sample or two away.
        for piece in song.take(song.held):
            yield self._named(piece.new_zeros(len(self._parts) * piece.shape[0], piece.shape[-1]), piece)

    def _computed(self, blocks: Iterable[Tensor], peak: float | None, layout: str | None) -> Iterator[Tensor]:
        """Blocks `[channels, samples]` at the model's rate -> what the network gives, in other sizes.

        `[parts * channels, samples]`; a channel that was heard on both sides is the mean of them.
        """
        channels = 0

        def pairs() -> Iterator[Tensor]:
            nonlocal channels
            for block in blocks:
                channels = block.shape[0]
                yield send(self._pair(block, layout), self._signal_device)

        for parts in fetch(self._domain.parts(pairs(), peak)):
            flat = parts.flatten(1, 2)  # [parts, channels of all pairs, samples]
            first, second = sides_of(channels, layout) if parts.shape[2] == 2 else (list(range(channels)),) * 2
            if first != second:
                flat = (flat[:, first] + flat[:, second]) / 2
            elif first != list(range(flat.shape[1])):
                flat = flat[:, first]
            if flat.is_inference():  # which a caller could not change
                flat = flat.clone()
            yield flat.flatten(0, 1)

    def _pair(self, block: Tensor, layout: str | None) -> Tensor:
        """`[channels, samples]` -> `[pairs, sides, samples]`: as many sides as the network reads."""
        if channels_read(self.spec) == 1:
            return rearrange(block, "channels samples -> channels 1 samples")
        if block.shape[0] == 2:
            return rearrange(block, "sides samples -> 1 sides samples")
        return block[pairs_of(block.shape[0], layout)]

    def _named(self, parts: Tensor, song: Tensor) -> Stems:
        """The wanted stems of a block from `[parts * channels, samples]`; none is a view of the song."""
        made = dict(zip(self._parts, parts.unflatten(0, (len(self._parts), -1)), strict=True))
        return {stem: made[stem] if stem in made else song - made[self._rests[stem]] for stem in self.stems}


def _choose_stems(spec: ModelSpec, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The stems asked for, in the model's order; UsageError for one that it does not give."""
    asked = (asked,) if isinstance(asked, str) else asked
    for stem in asked or ():
        if stem not in spec.stems:
            raise UsageError(f"{spec.name} gives {', '.join(spec.stems)}; it gives no {stem}")
    return tuple(stem for stem in spec.stems if not asked or stem in asked)


def _plan_stems(spec: ModelSpec, stems: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """What the network has to give for these stems, and of which of these the others are what the song has more."""
    if set(spec.stems) == {"vocals", "instrumental"}:
        return ("vocals",), {"instrumental": "vocals"}
    rests = dict.fromkeys(spec.stems, "vocals" if "vocals" in spec.outputs else spec.target)
    rests = {stem: part for stem, part in rests.items() if stem not in spec.outputs}
    needed = {rests.get(stem, stem) for stem in stems}
    return tuple(output for output in spec.outputs if output in needed), rests


def checked(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The blocks of a song in float32 on the CPU, none longer than BLOCK samples; AudioError for what is no audio."""
    for block in blocks:
        demand_audio(block)
        for part in block.detach().split(BLOCK, dim=-1):
            part = part.to("cpu", torch.float32)
            low, high = map(float, part.aminmax()) if part.numel() else (0.0, 0.0)
            peak = max(-low, high)
            if not peak < float("inf"):
                raise AudioError("the song holds samples that are not finite (NaN or infinity): replace them first")
            if peak > LOUDEST:
                raise AudioError(f"the song holds samples beyond {LOUDEST:g}, where full scale is 1: it is damaged")
            yield part
