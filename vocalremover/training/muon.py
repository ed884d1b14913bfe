"""Muon: momentum whose steps turn every matrix by equally much in all directions, and AdamW for the rest.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); a convolution counts as the
matrix of its outputs by everything else. torch has had one since 2.9, for parameters of two axes alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0, so that small singular values grow within few rounds
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Parameter groups with `matrices: True` move by Muon, others by AdamW.

    lr: of AdamW; matrix_rate: of Muon, which rises and falls with what a scheduler makes of `lr`.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, matrix_rate: float, betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.0, momentum: float = 0.95, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "ratio": matrix_rate / lr, "betas": tuple(betas), "weight_decay": weight_decay,
            "momentum": momentum, "eps": eps, "matrices": False,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move the weights along their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._turn if group["matrices"] else self._adapt
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _turn(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        held, rate = state["momentum"], group["lr"] * group["ratio"]
        held.lerp_(gradient, 1 - group["momentum"])
        direction = rearrange(gradient.lerp(held, group["momentum"]), "out ... -> out (...)")  # Nesterov's look ahead
        rows, columns = direction.shape
        direction = orthogonal(direction) * max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - rate * group["weight_decay"]).add_(direction.view_as(parameter), alpha=-rate)

    def _adapt(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        (slow, slower), steps = group["betas"], state["step"]
        mean, square = state["mean"].lerp_(gradient, 1 - slow), state["square"].lerp_(gradient.square(), 1 - slower)
        spread = (square / (1 - slower**steps)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(mean / spread * (group["lr"] / (1 - slow**steps)))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix `[rows, columns]` with all its singular values brought near 1 (0.7 to 1.2): Newton and Schulz's
    iteration, with a polynomial of the fifth degree."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
