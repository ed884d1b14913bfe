"""Muon turns matrices by equally much in all directions and leaves everything else to AdamW."""

import pytest
import torch
from torch import nn

from vocalremover.errors import UsageError
from vocalremover.training.distributed import World
from vocalremover.training.muon import Muon, orthogonal
from vocalremover.training.optimisation import make_player
from vocalremover.training.recipe import Optimiser

CPU = World(0, 1, torch.device("cpu"))
SETTINGS = Optimiser(learning_rate=1e-3, matrix_rate=0.02, weight_decay=0.01, clip=None)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.Linear(3, 3))


def learn(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        network(torch.randn(2, 2, 9, 7)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(5, 5), (4, 40), (40, 4), (1, 9)])
def test_the_singular_values_of_a_direction_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -2, min(shape))  # two decades: smaller ones grow, but not all the way
    turned = orthogonal(left @ torch.diag(values) @ right)
    found = torch.linalg.svdvals(turned)
    assert found.min() > 0.3 and found.max() < 1.3
    # The directions stay: only how far each one goes changes.
    torch.testing.assert_close(left.mT @ turned @ right.mT, torch.diag(torch.diagonal(left.mT @ turned @ right.mT)),
                               atol=1e-4, rtol=0)  # fmt: skip


def test_vectors_move_as_under_adamw() -> None:
    ours, theirs = (nn.BatchNorm1d(5) for _ in range(2))
    rates = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    muon = Muon([{"params": list(ours.parameters())}], matrix_rate=0.02, **rates)
    adam = torch.optim.AdamW(theirs.parameters(), **rates)
    for network, optimizer in ((ours, muon), (theirs, adam)):
        for step in range(5):
            optimizer.zero_grad()
            torch.manual_seed(step)
            network(torch.randn(8, 5)).pow(3).mean().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_what_is_plain_or_a_vector_is_not_turned() -> None:
    network = small_network()
    player = make_player(network, Optimiser(**{**SETTINGS.__dict__, "plain": ("0.*",)}), "fp32", CPU, False)
    names = {parameter: name for name, parameter in network.named_parameters()}
    turned = {names[each] for group in player.optimizer.param_groups if group["matrices"] for each in group["params"]}
    assert turned == {"2.weight", "3.weight"}
    held = [each for group in player.optimizer.param_groups for each in group["params"]]
    assert len(held) == len(set(held)) == len(names)
    with pytest.raises(UsageError, match="no parameter is called nothing"):
        make_player(small_network(), Optimiser(**{**SETTINGS.__dict__, "plain": ("nothing",)}), "fp32", CPU, False)


def test_a_step_is_as_long_as_the_rate_says() -> None:
    network = nn.Linear(8, 8, bias=False)
    before = network.weight.detach().clone()
    muon = Muon([{"params": list(network.parameters()), "matrices": True}], lr=1.0, matrix_rate=0.05)
    network(torch.randn(64, 8)).square().mean().backward()
    for group in muon.param_groups:
        group["lr"] = 0.5  # half way down a schedule
    muon.step()
    moved = torch.linalg.svdvals(network.weight.detach() - before)
    assert moved.min() > 0.5 * 0.05 * 0.3 and moved.max() < 0.5 * 0.05 * 1.3


def test_a_run_that_goes_on_moves_as_one_that_never_stopped() -> None:
    networks = [small_network(), small_network()]
    players = [make_player(network, SETTINGS, "fp32", CPU, False) for network in networks]
    learn(networks[0], players[0].optimizer, 6)
    learn(networks[1], players[1].optimizer, 3)
    again = small_network()
    again.load_state_dict(networks[1].state_dict())
    player = make_player(again, SETTINGS, "fp32", CPU, False)
    player.optimizer.load_state_dict(players[1].optimizer.state_dict())
    for step in range(3, 6):
        player.optimizer.zero_grad()
        torch.manual_seed(step)
        again(torch.randn(2, 2, 9, 7)).square().mean().backward()
        player.optimizer.step()
    for mine, other in zip(again.parameters(), networks[0].parameters(), strict=True):
        assert torch.equal(mine, other)
