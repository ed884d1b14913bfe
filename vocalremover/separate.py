"""A song in, its stems out: audio `[channels, samples]` at any rate -> {"vocals": same, "instrumental": same}.

Blocks of the song run through resampling, the STFT, windows of the network, the inverse STFT and resampling back; a
few windows are held, whatever the song's length. The network's mask gives the vocals. The instrumental is the song
minus the vocals, taken from the song's own samples, so the stems sum to the song and nothing beyond the model's band
is lost.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from vocalremover import checkpoint
from vocalremover.audio import resample
from vocalremover.audio.layouts import pairs_of, sides_of
from vocalremover.chunks import Chunking, Queue, at_most, blend, cut, group, join, resize, split, tap
from vocalremover.errors import AudioError, DeviceError, ModelError, UsageError
from vocalremover.models import JUDGES, ModelSpec

Stems = dict[str, Tensor]
Progress = Callable[[Iterable[Stems]], Iterable[Stems]]

BLOCK = 1 << 16  # samples; larger blocks of a caller are cut, so that memory does not depend on him
CPU_FRAMES = 1024  # wider windows are slower on a CPU (their buffers leave its caches) and need more memory
CPU_CONTEXT = 64  # what a crop that was made smaller for a CPU sees of its neighbours, so that no seam is heard
BATCH = {"cuda": 4}  # on a CPU a batch costs speed: measured +45 % time for 4 windows at once
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF_CAPABILITY = (7, 0)  # the first generation of NVIDIA GPUs that is faster in half than in single precision


class Separator:
    """A model that is ready to separate songs, any number of them.

    `batch` and the crops shrink for good when the device runs out of memory. `warnings` collects a sentence for
    everything that did not go as asked.
    """

    stems: tuple[str, ...] = ("vocals", "instrumental")

    def __init__(
        self, spec: ModelSpec, network: nn.Module, device: str | torch.device = "cpu", precision: str = "auto",
        size: int | None = None, context: int | None = None, batch: int | None = None,
    ) -> None:  # fmt: skip
        """`network` in eval mode, on any device; `size` and `context` replace the recipe's, in frames.

        Raises UsageError for settings that contradict each other or the model.
        """
        if spec.network in JUDGES:
            raise ModelError(f"{spec.name} judges separations and makes none: choose the generator it was trained with")
        self.spec = spec
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.precision = _choose_precision(precision, self.device)
        self.chunking = _choose_chunking(spec, self.device, size, context)
        self.batch = BATCH.get(self.device.type, 1) if batch is None else batch
        self.warnings: list[str] = []
        if self.batch < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch}")
        # Apple's GPUs lack some complex operations, so there only the network runs on the device.
        self._signal_device = torch.device("cpu") if self.device.type == "mps" else self.device
        self._core = self.chunking.size  # frames; the largest core known to fit into memory

    @classmethod
    def load(
        cls, name_or_path: str | Path = "default", device: str = "auto", precision: str = "auto",
        size: int | None = None, context: int | None = None, batch: int | None = None,
    ) -> "Separator":  # fmt: skip
        """A name in MODELS or the path of a checkpoint -> a Separator on the device.

        device: see `choose_device`. precision: "auto", "fp32", "bf16" or "fp16". size, context: frames of a crop's
        core and of the padding on either side; by default the recipe's, on a CPU no more than CPU_FRAMES. batch: crops
        at once. Raises ModelError, DeviceError and UsageError.
        """
        chosen = choose_device(device)
        _choose_precision(precision, chosen)  # a wrong word is told before the weights are read
        spec, network = checkpoint.load(name_or_path, chosen)
        return cls(spec, network, chosen, precision, size, context, batch)

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
        batches = group(cut(magnitudes, self.chunking), self.batch)
        windows = (pair for places, contents in batches for pair in zip(places, self._apply(contents), strict=True))
        return blend(windows, self.chunking)

    def _stems(self, blocks: Iterable[Tensor], rate: int, peak: float | None, layout: str | None) -> Iterator[Stems]:
        song = Queue()
        audio = resample(tap(_checked(blocks), song), rate, self.spec.rate)
        for vocals in resample(self._vocals(audio, peak, layout), self.spec.rate, rate):
            start = 0
            for piece in song.take(vocals.shape[-1]):
                part = vocals[:, start : start + piece.shape[-1]]
                yield {"vocals": part, "instrumental": piece - part}
                start += piece.shape[-1]
        # There and back, resampling may round a sample or two away.
        for piece in song.take(song.held):
            yield {"vocals": torch.zeros_like(piece), "instrumental": piece.clone()}

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
        """Windows `[..., channels, bins, frames]` -> their masks, in parts that the device has memory for."""
        magnitudes = contents.reshape(-1, *contents.shape[-3:])
        return self._fit(magnitudes).reshape(contents.shape)

    def _fit(self, magnitudes: Tensor) -> Tensor:
        while True:
            if magnitudes.shape[0] > self.batch:
                return torch.cat([self._fit(part) for part in magnitudes.split(self.batch)])
            halves = split(magnitudes, self.chunking)
            core = magnitudes.shape[-1] - 2 * self.chunking.context
            if core > self._core and halves:
                return join(*(self._fit(half) for half in halves), self.chunking)
            try:
                return self._run(magnitudes)
            except torch.cuda.OutOfMemoryError:
                pass  # what the traceback holds is freed before the next try
            self._shrink(magnitudes.shape[0], core, halves)

    def _shrink(self, batch: int, core: int, halves: tuple[Tensor, Tensor] | None) -> None:
        """Halves the batch or, where that is 1, the crop."""
        if batch > 1:
            self.batch = batch // 2
            self.warnings.append(f"{self.device} ran out of memory: the batch size is now {self.batch}")
        elif halves:
            self._core = halves[1].shape[-1] - 2 * self.chunking.context
            self.warnings.append(f"{self.device} ran out of memory: the crop size is now {self._core} frames")
        else:
            raise self._too_small(core)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_small(self, frames: int) -> DeviceError:
        return DeviceError(
            f"{self.device} has too little memory for {self.spec.name} even with a crop of {frames} frames: "
            "choose a smaller crop size or padding, or --device cpu"
        )

    def _recurrent_masks(self, magnitudes: Iterable[Tensor]) -> Iterator[Tensor]:
        """For a network that reads the two crops before: X, PX, PY, PX2 and PY2 stacked along the channels.

        P is for the crop before, 2 for the one before that, X for its magnitudes and Y for what the mask left of them.
        Source: carperbr/frame-transformer, inference/inference.py at a6786372, for its model V9.
        """
        past: tuple[Tensor, ...] = ()
        for window, crop in cut(magnitudes, self.chunking):
            now = crop.reshape(-1, *crop.shape[-3:])
            past = tuple(before[..., : now.shape[-1]] for before in past) or (torch.zeros_like(now),) * 4
            try:
                mask = torch.cat([self._run(pair) for pair in torch.cat((now, *past), dim=1).split(1)])
            except torch.cuda.OutOfMemoryError:
                raise self._too_small(now.shape[-1]) from None
            past = (now, now * mask, past[0], past[1])
            yield mask.reshape(crop.shape)[..., : window.size]

    @torch.inference_mode()
    def _run(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes `[batch, channels, bins, frames]` -> finite masks `[batch, 2, bins, frames]` in float32.

        What overflows in half precision is computed again in single precision.
        """
        source, magnitudes = magnitudes.device, magnitudes.to(self.device)
        half = self.precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[self.precision]) if half else nullcontext():
            mask = self.network(magnitudes).float()
        finite = mask.isfinite().flatten(1).all(dim=1)
        if half and not finite.all():
            mask[~finite] = self.network(magnitudes[~finite]).float()
            finite = mask.isfinite().flatten(1).all(dim=1)
            note = f"{self.precision} overflowed: the crops concerned were computed again in fp32"
            if note not in self.warnings:
                self.warnings.append(note)
        if not finite.all():
            raise ModelError(
                f"the network of {self.spec.name} gives numbers that are not finite: its weights are damaged, "
                "get the file again"
            )
        return mask.to(source)


def choose_device(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:N" or "mps"; "auto" is the first of cuda, mps and cpu that is there.

    Raises DeviceError for an unknown name and for a device that was asked for and is absent.
    """
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and number.isascii() and number.isdigit()):
        raise DeviceError(f"there is no device {name!r}: choose auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"{name} is not there: PyTorch sees no CUDA GPU on this machine (its driver or PyTorch itself may lack "
            "CUDA); choose --device cpu or auto"
        )
    if colon and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise DeviceError(f"{name} is not there: this machine's GPUs are cuda:0 to cuda:{last}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("mps is not there: it needs a Mac with Apple's own chip; choose --device cpu or auto")
    return torch.device(name)


def _choose_precision(name: str, device: torch.device) -> str:
    if name not in ("auto", *PRECISIONS):
        raise UsageError(f"the precision must be auto, {', '.join(PRECISIONS)}, not {name!r}")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("fp16 is for GPUs; on a CPU choose bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HALF_CAPABILITY:
        return "fp16"  # three more bits of a mask than bf16; what overflows runs again in fp32
    return "fp32"


def _choose_chunking(spec: ModelSpec, device: torch.device, size: int | None, context: int | None) -> Chunking:
    """The recipe's chunking with what the caller, or a CPU's caches, want instead."""
    recipe, asked = spec.chunking, size
    if size is None:
        size = recipe.size
        if device.type == "cpu" and not spec.recurrent:
            step = 1 if recipe.equal else recipe.multiple
            size = min(recipe.size, max(CPU_FRAMES // step, 1) * step)
            fits = size + 2 * CPU_CONTEXT <= (spec.most_frames or recipe.size)
            if context is None and size < recipe.size and fits:
                context = max(recipe.context, CPU_CONTEXT)
    if spec.recurrent and context:
        raise UsageError(f"{spec.name} passes its output from crop to crop, so its padding must be 0, not {context}")
    if spec.most_frames is not None:
        padding = 2 * max(recipe.context if context is None else context, 0)
        if (asked or 1) + padding > spec.most_frames:
            raise UsageError(
                f"{spec.name} has positions for {spec.most_frames} frames, too few for a crop of {asked or 1} with "
                f"{padding} frames of padding: choose a smaller crop size or padding"
            )
        size = min(size, spec.most_frames - padding)
    return resize(recipe, size, context)


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
