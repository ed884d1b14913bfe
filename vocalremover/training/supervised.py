"""One step of learning from mixtures and their vocals: batches in, gradients and the losses out.

A spectrogram network reads magnitudes and gives a real mask; a RoFormer reads the complex spectrogram and gives complex
masks, one a stem. Either way the masked mixture is compared with the truth, as spectrogram or as audio.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn

from vocalremover.errors import UsageError
from vocalremover.models import ModelSpec
from vocalremover.training.batches import Batch
from vocalremover.training.losses import LOSSES, Estimate, weigh
from vocalremover.training.optimisation import Player
from vocalremover.training.recipe import Recipe, Stage

INSTRUMENTAL = ("instrumental", "other", "accompaniment", "no_vocals")


def step(
    players: Mapping[str, Player], batches: Iterator[Batch], stage: Stage, recipe: Recipe, spec: ModelSpec
) -> tuple[dict[str, Tensor], list[int]]:
    """Gather the gradients of one step; the losses (means) and the numbers of the examples."""
    player, sums, numbers = players["network"], {}, []
    for count in range(1, stage.accumulation + 1):
        batch = next(batches)
        numbers += batch.numbers
        hearing = heard(player.network, "activity" in recipe.losses)
        with hearing as activity, player.gathering(last=count == stage.accumulation):
            parts = weigh(separate(player, batch, spec, activity), recipe.losses)
            player.backward(parts["loss"] / stage.accumulation)
        add(sums, parts, stage.accumulation)
    return sums, numbers


def add(sums: dict[str, Tensor], parts: Mapping[str, Tensor], count: int) -> None:
    """Add a batch's share to the losses of a step."""
    for name, part in parts.items():
        sums[name] = sums.get(name, 0) + part.detach() / count


def separate(player: Player, batch: Batch, spec: ModelSpec, activity: list[Tensor]) -> Estimate:
    """What the network makes of a batch, beside the truth."""
    mixture, vocals = batch.mixture_spectrogram, batch.vocals_spectrogram
    truths = [pick(batch.mixture, batch.vocals, name) for name in spec.outputs]
    wanted = [pick(mixture, vocals, name) for name in spec.outputs]
    if spec.reads == "magnitude":
        with player.autocast():
            mask = player.model(magnitudes(batch, spec))
        return Estimate(
            mask.float() * mixture, wanted[0], mixture, truths[0], batch.peak, spec.stft, spec.rate, vocals,
            activity[-1] if activity else None,
        )  # fmt: skip
    with player.autocast():
        masks = player.model(torch.view_as_real(mixture))
    mixture = rearrange(mixture, "b c f t -> b 1 c f t")
    return Estimate(
        torch.view_as_complex(masks.float().contiguous()) * mixture, torch.stack(wanted, dim=1), mixture,
        torch.stack(truths, dim=1), rearrange(batch.peak, "b 1 1 1 -> b 1 1 1 1"), spec.stft, spec.rate, vocals,
    )  # fmt: skip


def magnitudes(batch: Batch, spec: ModelSpec) -> Tensor:
    """What a spectrogram network reads, `[batch, 2, bins, frames]`."""
    return batch.mixture_spectrogram.abs() / batch.peak if spec.peak else batch.mixture_spectrogram.abs()


def pick(mixture: Tensor, vocals: Tensor, name: str) -> Tensor:
    """The stem of a name, as audio or as spectrogram."""
    return vocals if name == "vocals" else mixture - vocals


def check(recipe: Recipe, spec: ModelSpec) -> None:
    """UsageError for a recipe that the network or the data cannot follow."""
    for name in recipe.losses:
        if name not in LOSSES:
            raise UsageError(f"there is no loss {name!r}: choose from {', '.join(LOSSES)}")
    if not recipe.losses:
        raise UsageError("a recipe needs at least one loss")
    if recipe.kind != "supervised" and spec.reads != "magnitude":
        raise UsageError(f"{spec.name} reads complex spectrograms, and {recipe.kind} is for networks of magnitudes")
    lacking = [name for name in spec.outputs if name != "vocals" and name not in INSTRUMENTAL]
    if lacking or len(spec.outputs) > 2 or len(spec.instruments) > 2:
        names = ", ".join(lacking or spec.instruments)
        raise UsageError(f"{spec.name} gives {names}, and the training data hold vocals and instrumentals only")
    longest = max(stage.frames for stage in recipe.stages)
    if spec.most_frames and longest > spec.most_frames:
        raise UsageError(f"{spec.name} takes {spec.most_frames} frames at most, and a stage has {longest}")
    if recipe.mixup and min(stage.batch for stage in recipe.stages) < 2:
        raise UsageError("mixup mixes the examples of a batch: set every stage's batch to at least 2, or mixup=0")
    if "activity" in recipe.losses and spec.network != "newft_gan":
        raise UsageError(f"{spec.name} does not tell where a voice is: the loss activity is for newft_gan")


@contextmanager
def heard(network: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """While it lasts, what the generator's second head says, which `forward` keeps to itself."""
    said: list[Tensor] = []
    if not wanted:
        yield said
        return
    hook = network.vout_conv.register_forward_hook(lambda module, given, output: said.append(output))
    try:
        yield said
    finally:
        hook.remove()
