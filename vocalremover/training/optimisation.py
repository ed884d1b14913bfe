"""A network that learns: its optimizer, precision and gradients, and the averaged copy of its weights."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vocalremover.devices import PRECISIONS
from vocalremover.errors import UsageError
from vocalremover.training.distributed import World
from vocalremover.training.muon import Muon
from vocalremover.training.recipe import Optimiser

SILENCE = 1e-12  # of a variance that is averaged over ten steps: some 270 steps without any


@dataclass
class Player:
    """A network in training. network: as it is saved; model: the same as it is called, compiled or over several
    processes; statistics: those of the batch normalisations before the step, to return to after a broken one."""

    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: str
    statistics: list[Tensor]

    def autocast(self) -> AbstractContextManager:
        """In which the network is called."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(next(self.network.parameters()).device.type, PRECISIONS[self.precision])

    def gathering(self, last: bool) -> AbstractContextManager:
        """In which a batch goes forward and backward: gradients travel between the processes with the last one only."""
        parallel = isinstance(self.model, DistributedDataParallel)
        return nullcontext() if last or not parallel else self.model.no_sync()

    def begin(self, rate: float) -> None:
        """Before a step: no gradients, this learning rate, and the statistics remembered."""
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        for kept, now in zip(self.statistics, _statistics(self.network), strict=True):
            kept.copy_(now)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""
        self.scaler.scale(loss).backward()

    def move(self, clip: float | None, sound: bool) -> float:
        """Step along the gradients and return their norm; where the loss was not `sound` or the norm is not finite,
        stay instead, and forget what the batch did to the statistics."""
        self.scaler.unscale_(self.optimizer)
        learned = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(learned, float("inf") if clip is None else clip).item()
        finite = sound and norm < float("inf")
        if finite:
            self.scaler.step(self.optimizer)
        else:
            for kept, now in zip(self.statistics, _statistics(self.network), strict=True):
                now.copy_(kept)
        self.scaler.update()
        return norm

    def overflowed(self, norm: float) -> bool:
        """Whether a norm that is not finite is only half precision looking for its scale."""
        return not norm < float("inf") and self.scaler.is_enabled() and self.scaler.get_scale() >= 1


def make_player(network: nn.Module, settings: Optimiser, precision: str, world: World, compiled: bool) -> Player:
    """The network on the world's device in training mode, with all that moves its weights."""
    network = network.to(world.device).train()
    if world.size > 1 and world.device.type == "cuda":
        # Statistics of what a single process sees would make several processes another training than one.
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    frozen = freeze(network, settings.freeze)
    model = torch.compile(network) if compiled else network
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        # Some networks have parameters that the original never uses, and whose gradients nobody may wait for.
        model = DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)
    optimizer = make_optimizer(network, settings, frozen, world)
    scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
    return Player(network, model, optimizer, scaler, precision, [each.clone() for each in _statistics(network)])


def make_optimizer(
    network: nn.Module, settings: Optimiser, frozen: set[str], world: World
) -> torch.optim.Optimizer:
    """AdamW for all, or Muon for the matrices that the settings do not keep plain."""
    learned = list(groups(network, frozen, settings.layer_decay))
    if settings.matrix_rate is None:
        return torch.optim.AdamW(
            learned, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay,
            fused=world.device.type == "cuda",
        )  # fmt: skip
    names = {parameter: name for name, parameter in network.named_parameters()}
    for pattern in settings.plain:
        require_match(pattern, names.values())
    sorted_out = []
    for group in learned:
        for turned in (True, False):
            chosen = [each for each in group["params"] if is_turned(names[each], each, settings.plain) == turned]
            sorted_out.append({**group, "params": chosen, "matrices": turned})
    return Muon(
        [group for group in sorted_out if group["params"]], settings.learning_rate, settings.matrix_rate,
        settings.betas, settings.weight_decay,
    )  # fmt: skip


def is_turned(name: str, parameter: Tensor, plain: tuple[str, ...]) -> bool:
    """Whether a parameter moves as a matrix: biases and norms have one axis, and some matrices are kept plain."""
    return parameter.ndim >= 2 and not any(fnmatchcase(name, pattern) for pattern in plain)


def require_match(pattern: str, names: Iterable[str]) -> None:
    """UsageError for a pattern that no parameter's name fits."""
    names = list(names)
    if not any(fnmatchcase(name, pattern) for name in names):
        raise UsageError(f"no parameter is called {pattern}; there are for example {', '.join(names[:3])}")


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> set[str]:
    """Stop parameters whose names match a pattern from learning, and modules with no other from changing at all.

    Returns the names; raises UsageError for a pattern that matches none, or where nothing is left to learn.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        require_match(pattern, names)
    frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if len(frozen) == len(names):
        raise UsageError("everything is frozen: there is nothing to train")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    settle(network)
    return frozen


def settle(network: nn.Module) -> None:
    """Eval mode for modules whose every parameter is frozen: their dropout and statistics rest as well."""
    for module in network.modules():
        held = list(module.parameters())
        if held and not any(parameter.requires_grad for parameter in held):
            module.eval()


def groups(network: nn.Module, frozen: set[str], layer_decay: float) -> Iterator[dict[str, object]]:
    """Parameters by block, each with its share of the learning rate: 1 for the last block, `layer_decay` times the next
    one's for each before it. A block is what the beginning of a name, up to its first number, tells apart."""
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        blocks.setdefault(block_of(name), [])
        if name not in frozen:
            blocks[block_of(name)].append(parameter)
    if layer_decay == 1:
        yield {"params": [parameter for block in blocks.values() for parameter in block], "share": 1.0}
        return
    for depth, parameters in enumerate(reversed(blocks.values())):
        if parameters:
            yield {"params": parameters, "share": layer_decay**depth}


def block_of(name: str) -> str:
    """`encoder.3.body.norm.weight` -> `encoder.3`; `out.weight` -> `out`."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def share_kept(average: float, step: int) -> float:
    """What the averaged weights keep at a step; less at first, so that a short run does not average in its start."""
    return min(average, (1 + step) / (10 + step))


@torch.no_grad()
def average(averaged: dict[str, Tensor], network: nn.Module, keep: float) -> None:
    """Move the averaged weights and statistics towards the network's: exponential moving average."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            averaged[name].lerp_(value, 1 - keep)
        else:
            averaged[name].copy_(value)


def silent_parts(network: nn.Module) -> list[str]:
    """The batch normalisations that have heard the same number in all of their maps for hundreds of steps: what lies
    before them is lost, and gets no gradient to come back."""
    norms = ((name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm))
    return [name for name, norm in norms if norm.running_var is not None and norm.running_var.max() < SILENCE]


def _statistics(network: nn.Module) -> list[Tensor]:
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
