"""Train the mask of a spectrogram network on voxaug mixes; one plain loop, read from top to bottom.

A run lives in a folder: `last.pt` holds all that is needed to go on (saved every few minutes, atomically), `log.jsonl`
a line every so often, `best.safetensors` the averaged weights as `vocalremover separate -m` takes them, `CREDITS.md`
whose audio they were trained on. A run is as long as its `minutes`, counted over all the pieces it was run in, so that
a machine that is at hand only for a while can be used.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vocalremover.checkpoint import save
from vocalremover.models import MODELS, ModelSpec
from vocalremover.training.credits import credit, read_rows
from vocalremover.training.data import Catalogue, prepare
from vocalremover.training.losses import masked_error
from vocalremover.training.schedules import warm_cosine
from vocalremover.training.voxaug import draw, render


@dataclass(frozen=True)
class Training:
    """One run. data: the folder with manifest.csv; cache: decoded audio; out: the run's folder; held_out: path prefixes
    kept for validation; frames: length of an example; minutes: the learning rate reaches 0 when they are over."""

    data: Path
    cache: Path
    out: Path
    model: str = "default"
    minutes: float = 60
    batch: int = 4
    frames: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warm_steps: int = 200
    clip: float = 1.0
    averaging: float = 0.999
    save_minutes: float = 4
    seed: int = 1
    held_out: tuple[str, ...] = ()
    device: str = "cpu"
    workers: int = 1


class Mixes(Dataset):
    """Mix number `place` of the run: epoch = place // mixes in an epoch."""

    def __init__(self, catalogue: Catalogue, seed: int, samples: int, first: int) -> None:
        self.catalogue, self.seed, self.samples, self.first = catalogue, seed, samples, first

    def __len__(self) -> int:
        return 1 << 40  # the loop stops by the clock

    def __getitem__(self, place: int) -> Tensor:
        """float32 `[2 (mixture, vocals), 2 channels, samples]`."""
        epoch, index = divmod(self.first + place, len(self.catalogue.backings))
        mixture, vocals = render(draw(self.catalogue, self.seed, epoch, index), self.samples)
        return torch.from_numpy(np.stack([mixture, vocals]))


def train(run: Training) -> Iterator[dict[str, float]]:
    """Train, or go on training, until the minutes are over; yields what the log gets: step, minutes, loss, rate."""
    spec = MODELS[run.model]
    torch.manual_seed(run.seed)
    network = spec.build(run.device).train()
    averaged = spec.build(run.device)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=run.weight_decay)
    run.out.mkdir(parents=True, exist_ok=True)
    step, minutes = resume(run, network, averaged, optimizer)
    catalogue = prepare(run.data, run.cache, run.held_out)
    credits = credit(read_rows(run.data / "manifest.csv", run.held_out))
    (run.out / "CREDITS.md").write_text(credits, encoding="utf-8")
    examples = batches(run, spec, catalogue, first=step * run.batch)
    if step == 0:
        network.calibrate(torch.cat([next(examples)[0] for _ in range(8)]).abs())
        averaged.load_state_dict(network.state_dict())
    began, saved = time.monotonic() - 60 * minutes, minutes
    losses = []
    while minutes < run.minutes:
        rate = run.learning_rate * warm_cosine(minutes / run.minutes, step, run.warm_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        mixture, vocals = next(examples)
        loss = masked_error(network(mixture.abs()), mixture, vocals)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), run.clip)
        optimizer.step()
        average(averaged, network, min(run.averaging, (1 + step) / (10 + step)))
        losses.append(loss.item())
        step, minutes = step + 1, (time.monotonic() - began) / 60
        if step % 20 == 0:
            yield note(run.out / "log.jsonl", step=step, minutes=minutes, loss=sum(losses) / len(losses), rate=rate)
            losses.clear()
        if minutes - saved > run.save_minutes:
            saved = minutes
            checkpoint(run, spec, network, averaged, optimizer, step, minutes)
    checkpoint(run, spec, network, averaged, optimizer, step, minutes)


def batches(run: Training, spec: ModelSpec, catalogue: Catalogue, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Spectrograms of mixture and vocals, complex `[batch, 2, bins, frames]`, from mix number `first` on."""
    samples = (run.frames - 1) * spec.stft.hop
    mixes = Mixes(catalogue, run.seed, samples, first)
    loader = DataLoader(mixes, run.batch, num_workers=run.workers, prefetch_factor=4 if run.workers else None)
    for audio in loader:
        mixture, vocals = spec.stft.forward(audio.to(run.device)).unbind(dim=1)
        yield mixture, vocals


@torch.no_grad()
def average(averaged: nn.Module, network: nn.Module, keep: float) -> None:
    """Move the averaged weights and statistics towards the network's: exponential moving average."""
    state = network.state_dict()
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(state[name], 1 - keep)
        else:
            value.copy_(state[name])


def resume(
    run: Training, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(step, minutes) of the run so far, with everything else put back; (0, 0) for a new run."""
    path = run.out / "last.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location=run.device)
    network.load_state_dict(state["network"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["minutes"]


def checkpoint(
    run: Training,
    spec: ModelSpec,
    network: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    minutes: float,
) -> None:
    """Save all that `resume` needs, and the averaged weights."""
    state = {
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "minutes": minutes,
    }
    partial = run.out / "last.part"
    torch.save(state, partial)
    partial.replace(run.out / "last.pt")
    save(run.out / "best.safetensors", replace(spec, name=run.out.name), averaged, dtype=torch.float16)


def note(path: Path, **values: float) -> dict[str, float]:
    """Append one line of JSON; returns what it says."""
    line = {key: round(value, 6) for key, value in values.items()}
    with path.open("a") as log:
        log.write(json.dumps(line) + "\n")
    return line
