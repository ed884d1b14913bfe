"""Examples of a run by their numbers -> batches of audio and spectrograms on the device.

Batch m of a stage, counted from the stage's (or the resumed run's) first example, has the examples from number
first + m * world * batch on, of which process r takes every `world`-th, beginning with the r-th: whatever the number of
processes and of loader workers, the run hears the same examples in the same order. Only what is heard again
(`voxaug.reuse`) depends on the number of processes.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vocalremover.dataset import Catalogue
from vocalremover.models import ModelSpec
from vocalremover.training.ahead import run_ahead
from vocalremover.training.distributed import World
from vocalremover.training.recipe import Recipe, Stage
from vocalremover.voxaug import Mixes
from vocalremover.voxaug.plans import Places, Plan, make_plan, send
from vocalremover.voxaug.rendering import Tapes, perform
from vocalremover.voxaug.reuse import Repertoire

HEADROOM = 0.6  # decades of magnitude, 12 dB: how far a crop's peak may lie below its song's


@dataclass(frozen=True)
class Batch:
    """numbers: of the examples; mixture, vocals: audio `[batch, 2, samples]`; the same as spectrograms, complex
    `[batch, 2, bins, frames]`; peak `[batch, 1, 1, 1]`: what magnitudes are divided by."""

    numbers: tuple[int, ...]
    mixture: Tensor
    vocals: Tensor
    mixture_spectrogram: Tensor
    vocals_spectrogram: Tensor
    peak: Tensor


class Examples(Dataset):
    """An example with its number, as a worker hands it over: `[2 (mixture, vocals), 2 channels, samples]`."""

    def __init__(self, mixes: Mixes) -> None:
        self.mixes = mixes

    def __getitem__(self, number: int) -> tuple[int, Tensor]:
        return number, self.mixes[number]


class Plans(Dataset):
    """A batch with its numbers, as a worker plans it: not a sound of it."""

    def __init__(self, mixes: Mixes, places: Places | None) -> None:
        self.mixes, self.places = mixes, places

    def __getitems__(self, numbers: list[int]) -> tuple[list[int], Plan]:
        """A batch at once, which is how loaders ask where they can."""
        return numbers, make_plan([self.mixes.mix(number) for number in numbers], self.mixes.samples, self.places)


def numbers_of(first: int, batch: int, world: World) -> Iterator[list[int]]:
    """The examples of every batch of this process, without end."""
    start, step = first + world.rank, world.size * batch
    while True:
        yield list(range(start, start + step, world.size))
        start += step


class Sampler:
    """`numbers_of` as a loader takes it: each iteration begins anew."""

    def __init__(self, first: int, batch: int, world: World) -> None:
        self.first, self.batch, self.world = first, batch, world

    def __iter__(self) -> Iterator[list[int]]:
        return numbers_of(self.first, self.batch, self.world)


def load_batches(
    mixes: Mixes, recipe: Recipe, stage: Stage, spec: ModelSpec, world: World, first: int, workers: int,
    on_device: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of a stage from example number `first` on, without end.

    Prepared by `workers` processes, or, `on_device`, drawn by these and rendered by the device itself, on a GPU while
    it computes.
    """
    numbers, make = Sampler(first, stage.batch, world), rendered if on_device else loaded
    if recipe.reuse.times == 1:
        taken = make(mixes, numbers, world, workers)
    else:
        repertoire = repertoire_of(recipe, stage, spec, world.rank, world.size)

        def renderings(start: int) -> Iterator[tuple[list[int], Tensor]]:
            return make(mixes, Sampler(start, stage.batch, world), world, workers)

        taken = repertoire.batches(renderings, numbers)
    batches = (make_batch(tuple(which), audio, recipe, spec) for which, audio in taken)
    yield from run_ahead(batches, world.device) if on_device and world.device.type == "cuda" else batches


def repertoire_of(recipe: Recipe, stage: Stage, spec: ModelSpec, process: int, processes: int) -> Repertoire:
    """Where one of so many processes keeps renderings to be heard again."""
    reuse, samples = recipe.reuse, (stage.frames - 1) * spec.stft.hop
    places = (reuse.times, reuse.places, reuse.candidates)
    return Repertoire(recipe.seed, *places, samples, spec.rate, process, processes)


def loaded(mixes: Mixes, numbers: "Sampler", world: World, workers: int) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers and audio, rendered on CPUs while the device computes."""
    loader = DataLoader(
        Examples(mixes), batch_sampler=numbers, num_workers=workers, prefetch_factor=4 if workers else None,
        # Of its own, or a loader that starts within a step would take from what dropout draws.
        pin_memory=world.device.type == "cuda", generator=torch.Generator(), worker_init_fn=stay,
    )  # fmt: skip
    for taken, audio in loader:
        yield taken.tolist(), audio.to(world.device, non_blocking=True)


def stay(worker: int) -> None:
    """Let a worker live until its loader ends it: terminals and torchrun send their signals to whole groups, and a run
    that is asked to stop needs its batches until the step is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def rendered(mixes: Mixes, numbers: "Sampler", world: World, workers: int) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers and audio, rendered in whole batches on the device, from its own memory if all of the audio fits."""
    tapes = hold_tapes(mixes.catalogue, world.device)
    plans = DataLoader(
        Plans(mixes, tapes.places.__getitem__ if tapes else None), batch_sampler=numbers, num_workers=workers,
        prefetch_factor=4 if workers else None, collate_fn=as_planned, generator=torch.Generator(),
        worker_init_fn=stay,
    )  # fmt: skip
    # At once, not with the first batch: processes are better not forked beside threads that work.
    return _performed(iter(plans), world.device, tapes)


def _performed(
    plans: Iterator[tuple[list[int], Plan]], device: torch.device, tapes: Tapes | None
) -> Iterator[tuple[list[int], Tensor]]:
    for numbers, plan in plans:
        yield numbers, perform(plan, device, tapes)


def as_planned(batch: tuple[list[int], Plan]) -> tuple[list[int], Plan]:
    """What a loader does with a batch that needs nothing done."""
    return batch


@lru_cache(maxsize=1)
def hold_tapes(catalogue: Catalogue, device: torch.device) -> Tapes | None:
    """The tapes of a catalogue, read once for all stages of a run and for whoever measures before it; None where they
    would take more than a third of the device's free memory."""
    if device.type != "cuda":
        return None
    size = sum(path.stat().st_size for path in catalogue.paths)
    return Tapes(catalogue, device) if 3 * size < torch.cuda.mem_get_info(device)[0] else None


def make_batch(numbers: tuple[int, ...], audio: Tensor, recipe: Recipe, spec: ModelSpec) -> Batch:
    """The spectrograms of audio `[batch, 2 (mixture, vocals), 2 channels, samples]`.

    In use a song is divided by the largest magnitude of the whole of it; a crop knows only its own, so the song's is
    drawn to lie up to 12 dB above. The original divided by the instrumental's peak and clipped what came out above 1.
    """
    if recipe.mixup:
        audio = mix_up(audio, [generator(recipe.seed, number, "mixup") for number in numbers], recipe.mixup)
    spectrograms = spec.stft.forward(audio)
    mixture, vocals = audio.unbind(dim=1)
    peak = spectrograms[:, 0].abs().amax(dim=(1, 2, 3)).clamp(min=1e-8)
    if spec.peak:
        heights = [generator(recipe.seed, number, "peak").uniform(0, HEADROOM) for number in numbers]
        peak = peak * send(torch.tensor([10**height for height in heights], dtype=peak.dtype), peak.device)
    return Batch(
        numbers, mixture, vocals, spectrograms[:, 0], spectrograms[:, 1], rearrange(peak, "batch -> batch 1 1 1")
    )


def mix_up(audio: Tensor, generators: list[np.random.Generator], beta: float) -> Tensor:
    """Each example and its mirror place's of the batch, in shares drawn from Beta(beta, beta): a mix of two mixes."""
    shares = send(torch.tensor([each.beta(beta, beta) for each in generators], dtype=audio.dtype), audio.device)
    shares = rearrange(shares, "batch -> batch 1 1 1")
    return shares * audio + (1 - shares) * audio.flip(0)


def generator(seed: int, number: int, purpose: str) -> np.random.Generator:
    """What is random about an example besides its mix, the same in whatever process it is drawn."""
    return np.random.Generator(np.random.PCG64([seed, number, *purpose.encode()]))
