"""How a model is run on a song: what a person asks for -> how its windows are cut, and how often.

| quality | a waveform model's overlap | a spectrogram model's overlap | shifts |
|---|---|---|---|
| fast | FAST_OVERLAP | the recipe's, at most FAST_OVERLAP | 1 |
| balanced | OVERLAP | the recipe's | 1 |
| best | BEST_OVERLAP | the recipe's, at least BEST_OVERLAP | 2 |

A recurrent model knows one way to be run, whatever the quality.
"""

from dataclasses import dataclass, replace

import torch

from vocalremover.chunks import Chunking, overlapped, resize, trapezoid
from vocalremover.errors import UsageError
from vocalremover.models import ModelSpec
from vocalremover.separate.passes import Pass

CPU_FRAMES = 1024  # wider windows are slower on a CPU (their buffers leave its caches) and need more memory
CPU_CONTEXT = 64  # what a crop that was made smaller for a CPU sees of its neighbours, so that no seam is heard
MOST_CONTEXT = 100_000  # frames beside a window
LONGEST = 3600  # seconds of a window that is asked for
BATCH = {"cuda": 4}  # on a CPU a batch costs speed: measured +45 % time for 4 windows at once

# Measured by benchmarks/overlap.py; the curves are in benchmarks/curves. What the edge of a window costs ends 25 to 50
# ms from it: half a frame of its mirrored STFT and some hops. At 0.1 windows of eight seconds fade over 0.4 s on either
# side of a seam, ten times that. The default model, whose attention is trained, then gives what it gives at 15/16 to 54
# dB and more, and its SDR against the true vocals is the same to 0.002 dB. More only averages windows that disagree.
OVERLAP = 0.1
FAST_OVERLAP = 0.05  # the least without loss there: at 0.02 and below it was up to 0.07 dB
BEST_OVERLAP = 0.5

ORIGINAL_TTA = ((64, 128), (128, 256), (256, 512), (512, 1024), (1024, 2048))
"""Crop sizes and paddings of the original's test-time augmentation.

carperbr/frame-transformer, `separate_tta` in inference/inference.py at a6786372.
"""


@dataclass(frozen=True)
class Preset:
    """What a quality stands for: a waveform model's overlap, bounds for a spectrogram model's own, and shifts."""

    waveform: float
    least: float = 0.0
    most: float = 1.0
    shifts: int = 1


QUALITIES = {
    "fast": Preset(FAST_OVERLAP, most=FAST_OVERLAP),
    "balanced": Preset(OVERLAP),
    "best": Preset(BEST_OVERLAP, least=BEST_OVERLAP, shifts=2),
}


ACCELERATIONS = {
    "auto": "CUDA graphs for full batches on a CUDA device, which cost no time to begin with; nothing elsewhere",
    "none": "every kernel is started by itself",
    "compile": "the network's blocks compiled, too: a minute or more at the start, for many songs on a GPU",
}


@dataclass(frozen=True)
class Inference:
    """How a model is run, for every family. None is the preset's or the recipe's; what is given here wins.

    precision: auto, fp32, bf16 or fp16. batch: windows at once. quality: a key of QUALITIES. size: STFT frames of a
    window's core; of a waveform model the whole window, `(size - 1) * hop` samples. context: frames of padding on
    either side, for spectrogram models. segment: seconds of a whole window. overlap: 0..0.95, the share of a window
    that it shares with its neighbours. shifts: passes whose windows are displaced by k/shifts of a core, averaged.
    tta: more passes, with the sides swapped, the polarity inverted where that changes anything, and the windows
    displaced by half a core. crops: a pass for each pair of core and padding in frames instead, for spectrogram
    models, such as ORIGINAL_TTA. acceleration: a key of ACCELERATIONS.
    """

    precision: str = "auto"
    batch: int | None = None
    quality: str = "balanced"
    size: int | None = None
    context: int | None = None
    segment: float | None = None
    overlap: float | None = None
    shifts: int | None = None
    tta: bool = False
    crops: tuple[tuple[int, int], ...] = ()
    acceleration: str = "auto"

    def __post_init__(self) -> None:
        """Raises UsageError for settings that contradict each other, whatever the model."""
        if self.quality not in QUALITIES:
            raise UsageError(f"the quality must be {', '.join(QUALITIES)}, not {self.quality!r}")
        if self.acceleration not in ACCELERATIONS:
            raise UsageError(f"the acceleration must be {', '.join(ACCELERATIONS)}, not {self.acceleration!r}")
        for name, least in (("batch", 1), ("size", 1), ("context", 0), ("shifts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{WORDS[name]} must be at least {least}, not {value}")
        if self.segment is not None and not 0 < self.segment <= LONGEST:
            raise UsageError(f"the segment is a window in seconds, more than 0, up to {LONGEST}, not {self.segment:g}")
        if self.context is not None and self.context > MOST_CONTEXT:
            raise UsageError(f"the padding of a crop is at most {MOST_CONTEXT}, not {self.context}")
        if self.size is not None and self.segment is not None:
            raise UsageError("the crop size and the segment both say how wide a window is: give one of them")
        if self.context is not None and self.overlap is not None:
            raise UsageError("the padding and the overlap both say what windows share: give one of them")
        others = (self.size, self.context, self.segment, self.overlap, self.shifts)
        if self.crops and (self.tta or any(other is not None for other in others)):
            raise UsageError("several crops say all about the passes: give no other size, overlap, shifts or tta")


WORDS = {
    "batch": "the batch size",
    "size": "the crop size",
    "context": "the padding of a crop",
    "shifts": "the number of shifts",
}


def choose_batch(inference: Inference, device: torch.device) -> int:
    """How many windows go through the network together."""
    return BATCH.get(device.type, 1) if inference.batch is None else inference.batch


def choose_chunking(spec: ModelSpec, device: torch.device, inference: Inference) -> Chunking:
    """The recipe's chunking with what the caller, or a CPU's caches, want instead; UsageError for what cannot be."""
    if spec.domain == "waveform":
        return _of_samples(spec, inference)
    if spec.recurrent:
        return _of_crops(spec, inference)
    base = _of_frames(spec, device, inference)
    if inference.context is not None:
        return base
    preset = QUALITIES[inference.quality]
    overlap = min(max(base.overlap, preset.least), preset.most) if inference.overlap is None else inference.overlap
    return base if overlap == base.overlap else overlapped(base, overlap)


def choose_passes(spec: ModelSpec, chunking: Chunking, inference: Inference) -> tuple[Pass, ...]:
    """Every way over a song, the plain one first; their answers count alike.

    `shifts` displaces the windows by k/shifts of a core. `tta` adds the sides swapped, for a waveform model the
    polarity inverted, and half a core where the shifts do not pass over it.
    """
    if inference.crops:
        if spec.domain == "waveform" or spec.recurrent:
            raise UsageError(f"{spec.name} is not run with several crops: choose tta or shifts")
        for size, context in inference.crops:
            _check_positions(spec, size, 2 * context)
        return tuple(Pass(Chunking(size, context, multiple=size)) for size, context in inference.crops)
    shifts = inference.shifts or (1 if spec.recurrent else QUALITIES[inference.quality].shifts)
    starts = {number * chunking.size // shifts for number in range(shifts)}
    if not inference.tta:
        return tuple(Pass(chunking, start) for start in sorted(starts))
    turned = [Pass(chunking, 0, "swap")] if channels_read(spec) == 2 else []
    if spec.domain == "waveform":  # magnitudes know no polarity
        turned.append(Pass(chunking, 0, "invert"))
    if not spec.recurrent:
        starts.add(chunking.size // 2)
    return (*(Pass(chunking, start) for start in sorted(starts)), *turned)


def channels_read(spec: ModelSpec) -> int:
    """How many channels the network reads: 2, or 1 where its recipe says that it is not stereo."""
    return 2 if spec.domain == "spectrogram" or spec.args.get("stereo", False) else 1


def _of_samples(spec: ModelSpec, inference: Inference) -> Chunking:
    if inference.context is not None:
        raise UsageError(f"{spec.name} is cut in samples and knows no padding in frames: choose an overlap")
    whole, hop = spec.chunking.whole, spec.stft.hop
    if inference.size is not None:
        whole = (inference.size - 1) * hop
    if inference.segment is not None:
        whole = round(inference.segment * spec.rate / hop) * hop
    if whole < hop:
        raise UsageError(f"a window of {spec.name} has at least 2 frames, {hop / spec.rate:.3f} seconds")
    overlap = QUALITIES[inference.quality].waveform if inference.overlap is None else inference.overlap
    return trapezoid(whole, overlap)


def _of_crops(spec: ModelSpec, inference: Inference) -> Chunking:
    """For a network that passes its output from crop to crop."""
    if inference.context:
        raise UsageError(
            f"{spec.name} passes its output from crop to crop, so its padding must be 0, not {inference.context}"
        )
    if inference.overlap or (inference.shifts or 1) > 1:
        raise UsageError(f"{spec.name} passes its output from crop to crop, so it takes no overlap and no shifts")
    size = inference.size
    if inference.segment is not None:
        multiple = spec.chunking.multiple
        size = max(_frames(spec, inference.segment) // multiple, 1) * multiple
    return resize(spec.chunking, size)


def _of_frames(spec: ModelSpec, device: torch.device, inference: Inference) -> Chunking:
    recipe, size, context = spec.chunking, inference.size, inference.context
    if inference.segment is not None:
        whole = _frames(spec, inference.segment)
        if context is None:
            context = overlapped(replace(recipe, size=whole, context=0, multiple=1), recipe.overlap).context
        size = whole - 2 * context
        if size < 1:
            raise UsageError(f"a window of {whole} frames has no room for {context} frames of padding on either side")
    asked = size
    if size is None:
        size = recipe.size
        if device.type == "cpu":
            step = 1 if recipe.equal else recipe.multiple
            size = min(recipe.size, max(CPU_FRAMES // step, 1) * step)
            fits = size + 2 * CPU_CONTEXT <= (spec.most_frames or recipe.size)
            if context is None and size < recipe.size and fits:
                context = max(recipe.context, CPU_CONTEXT)
    if spec.most_frames is not None:
        padding = 2 * (recipe.context if context is None else context)
        _check_positions(spec, asked or 1, padding)
        size = min(size, spec.most_frames - padding)
    return resize(recipe, size, context)


def _check_positions(spec: ModelSpec, size: int, padding: int) -> None:
    """UsageError for a window that is wider than a network's table of positions."""
    if spec.most_frames is not None and size + padding > spec.most_frames:
        raise UsageError(
            f"{spec.name} has positions for {spec.most_frames} frames, too few for a crop of {size} with "
            f"{padding} frames of padding: choose a smaller crop size or padding"
        )


def _frames(spec: ModelSpec, seconds: float) -> int:
    return max(round(seconds * spec.rate / spec.stft.hop), 1)
