"""Adversarial training as in pix2pix: a generator that separates, a discriminator that tells its work from the truth.

Both see the mixture beside the candidate for its stem (Isola et al., "Image-to-image translation with conditional
adversarial networks", CVPR 2017). After carperbr/frame-transformer at 5000d3d, app/train-v1cgan.py (MIT), where the
candidate was cut off from the generator in the generator's own step too, so that the verdict never taught it anything;
here it does. Both move at the end of a step, so that the candidate has to be made only once.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocalremover.models import NETWORKS, ModelSpec
from vocalremover.training.batches import Batch
from vocalremover.training.losses import weigh
from vocalremover.training.optimisation import Player
from vocalremover.training.recipe import Recipe, Stage
from vocalremover.training.supervised import add, heard, separate

JUDGE = "newft_disc"


def make_judge(recipe: Recipe, spec: ModelSpec) -> nn.Module:
    """The untrained discriminator of a recipe, for spectrograms of the model's size."""
    return NETWORKS[JUDGE](**{"n_fft": spec.stft.n_fft, **recipe.adversary.network})


def step(
    players: Mapping[str, Player], batches: Iterator[Batch], stage: Stage, recipe: Recipe, spec: ModelSpec
) -> tuple[dict[str, Tensor], list[int]]:
    """Gather both networks' gradients of one step; the losses (means) and the numbers of the examples."""
    player, judge, sums, numbers = players["network"], players["judge"], {}, []
    for count in range(1, stage.accumulation + 1):
        batch, last = next(batches), count == stage.accumulation
        numbers += batch.numbers
        hearing = heard(player.network, "activity" in recipe.losses)
        with hearing as activity, player.gathering(last), judge.gathering(last):
            estimate = separate(player, batch, spec, activity)
            mixture = batch.mixture_spectrogram.abs() / batch.peak
            candidate, truth = (each.abs() / batch.peak for each in (estimate.spectrogram, estimate.wanted))
            judged = judge_loss(judge, mixture, candidate.detach(), truth)
            judge.backward(judged / stage.accumulation)
            parts = weigh(estimate, recipe.losses)
            fooled = verdict_loss(judge, mixture, candidate)
            parts["loss"] = parts["loss"] + recipe.adversary.weight * fooled
            player.backward(parts["loss"] / stage.accumulation)
        add(sums, {**parts, "fooled": fooled, "judge": judged}, stage.accumulation)
    return sums, numbers


def judge_loss(judge: Player, mixture: Tensor, candidate: Tensor, truth: Tensor) -> Tensor:
    """How wrongly the discriminator tells truth from candidate, the mean of both; one call, as DDP wants it."""
    pairs = torch.cat((torch.cat((mixture, truth), dim=1), torch.cat((mixture, candidate), dim=1)))
    with judge.autocast():
        verdicts = judge.model(pairs)
    wanted = torch.cat([torch.full_like(half, value, dtype=torch.float32)
                        for half, value in zip(verdicts.chunk(2), (1.0, 0.0), strict=True)])  # fmt: skip
    return F.binary_cross_entropy_with_logits(verdicts.float(), wanted)


def verdict_loss(judge: Player, mixture: Tensor, candidate: Tensor) -> Tensor:
    """How far the candidate is from being taken for the truth; its gradient reaches the candidate, not the judge."""
    judge.network.requires_grad_(False)
    try:
        with judge.autocast():
            verdict = judge.network(torch.cat((mixture, candidate), dim=1))
    finally:
        judge.network.requires_grad_(True)
    return F.binary_cross_entropy_with_logits(verdict.float(), torch.ones_like(verdict, dtype=torch.float32))
