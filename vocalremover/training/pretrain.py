"""Masked pre-training: parts of a mixture are covered, and the network has to restore them from what is around.

As in carperbr's frame primer (frame-transformer at 9da2cd8, train-pre.py and lib/dataset.py, MIT): tokens of 64 frames,
a fifth of them masked; of these eight in ten are set to 1 in every bin, so that a mask can bring back anything, one in
ten is made noisy and one in ten left as it is. The loss is that of the masked tokens only. There the validation masked
one token of 16 frames whatever the training did; here both mask alike.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from einops import reduce, repeat
from torch import Tensor

from vocalremover.models import ModelSpec
from vocalremover.training.batches import Batch, generator
from vocalremover.training.optimisation import Player
from vocalremover.training.recipe import Masking, Recipe, Stage
from vocalremover.training.supervised import add


def step(
    players: Mapping[str, Player], batches: Iterator[Batch], stage: Stage, recipe: Recipe, spec: ModelSpec
) -> tuple[dict[str, Tensor], list[int]]:
    """Gather the gradients of one step; the loss and the numbers of the examples."""
    player, sums, numbers = players["network"], {}, []
    for count in range(1, stage.accumulation + 1):
        batch = next(batches)
        numbers += batch.numbers
        clean = (batch.mixture_spectrogram.abs() / batch.peak).clamp(max=1)
        generators = [generator(recipe.seed, number, "tokens") for number in batch.numbers]
        covered, chosen = cover(clean, recipe.masking, generators)
        with player.gathering(last=count == stage.accumulation):
            with player.autocast():
                mask = player.model(covered)
            loss = restored_error(covered * mask.float(), clean, chosen)
            player.backward(loss / stage.accumulation)
        add(sums, {"loss": loss}, stage.accumulation)
    return sums, numbers


def cover(clean: Tensor, masking: Masking, generators: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Magnitudes 0..1 `[batch, channels, bins, frames]` -> the same with tokens covered, and bool `[batch, frames]`
    of the frames in masked tokens. One generator an example; at least one token of each is masked."""
    covered, frames = clean.clone(), clean.shape[-1]
    tokens = -(-frames // masking.token)
    chosen = torch.zeros(clean.shape[0], frames, dtype=torch.bool, device=clean.device)
    for example, rng in enumerate(generators):
        masked = np.flatnonzero(rng.random(tokens) < masking.rate)
        if not masked.size:
            masked = rng.integers(tokens, size=1)
        for token in masked:
            place = slice(token * masking.token, (token + 1) * masking.token)
            chosen[example, place] = True
            fate = rng.random()
            if fate >= masking.noise + masking.intact:
                covered[example, ..., place] = 1
            elif fate >= masking.intact:
                noise = rng.random(clean[example, ..., place].shape, dtype=np.float32)
                covered[example, ..., place] += torch.from_numpy(noise).to(clean.device)
    return covered.clamp(max=1), chosen


def restored_error(restored: Tensor, clean: Tensor, chosen: Tensor) -> Tensor:
    """The mean absolute error over the chosen frames of an example, as a mean over the examples."""
    error = reduce((restored - clean).abs(), "batch channels bins frames -> batch frames", "mean")
    return ((error * chosen).sum(dim=1) / chosen.sum(dim=1)).mean()


@torch.no_grad()
def judge(network: torch.nn.Module, mixture: Tensor, frames: int, recipe: Recipe, spec: ModelSpec) -> float:
    """The error of restoring a song `[2, samples]` in windows of `frames`, always masked alike."""
    spectrogram = spec.stft.forward(mixture)
    peak = spectrogram.abs().amax().clamp(min=1e-8)
    errors = []
    for number, window in enumerate(spectrogram.abs().split(frames, dim=-1)):
        clean = repeat(window / peak, "c f t -> 1 c f t")
        covered, chosen = cover(clean, recipe.masking, [generator(0, number, "judge")])
        errors.append(restored_error(covered * network(covered), clean, chosen).item())
    return sum(errors) / len(errors)
