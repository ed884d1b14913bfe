"""How a model is run on a song: what a person asks for -> how its windows are cut, in frames or samples."""

from dataclasses import dataclass

import torch

from vocalremover.chunks import Chunking, resize
from vocalremover.errors import UsageError
from vocalremover.models import ModelSpec

CPU_FRAMES = 1024  # wider windows are slower on a CPU (their buffers leave its caches) and need more memory
CPU_CONTEXT = 64  # what a crop that was made smaller for a CPU sees of its neighbours, so that no seam is heard
BATCH = {"cuda": 4}  # on a CPU a batch costs speed: measured +45 % time for 4 windows at once


@dataclass(frozen=True)
class Inference:
    """How a model is run, for every family. None is the recipe's or the preset's; what is given here wins.

    precision: auto, fp32, bf16 or fp16. batch: windows at once. quality: fast, balanced or best, named presets of the
    overlap and the shifts. size: STFT frames of a window's core (of a waveform model the whole window, `(size - 1) *
    hop` samples). context: frames of padding on either side, for spectrogram models. segment: seconds of a whole
    window. overlap: 0..0.95, the share of a window that it shares with its neighbours. shifts: passes whose windows
    are displaced by k/shifts of a core, averaged. tta: more passes, with the sides swapped, the polarity inverted
    where that changes anything, and the windows displaced by half a core.
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


def choose_batch(inference: Inference, device: torch.device) -> int:
    """How many windows go through the network together; UsageError for less than one."""
    if inference.batch is not None and inference.batch < 1:
        raise UsageError(f"the batch size must be at least 1, not {inference.batch}")
    return BATCH.get(device.type, 1) if inference.batch is None else inference.batch


def choose_chunking(spec: ModelSpec, device: torch.device, inference: Inference) -> Chunking:
    """The recipe's chunking with what the caller, or a CPU's caches, want instead."""
    recipe, size, context = spec.chunking, inference.size, inference.context
    asked = size
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
