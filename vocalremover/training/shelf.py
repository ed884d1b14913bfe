"""What a run leaves in its folder, and when: checkpoints, the log, pictures, scores."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vocalremover import checkpoint
from vocalremover.evaluate.multitracks import Multitrack
from vocalremover.models import ModelSpec
from vocalremover.training.distributed import World
from vocalremover.training.drawing import draw_curve
from vocalremover.training.journal import Journal, read_journal
from vocalremover.training.recipe import Recipe, write_recipe
from vocalremover.training.state import State, save_state
from vocalremover.training.validation import validate

Line = dict[str, Any]


class Shelf:
    """The folder of a run. Only the process of rank 0 writes."""

    def __init__(
        self, folder: Path, recipe: Recipe, spec: ModelSpec, world: World, step: int, credits: str, tensorboard: bool
    ) -> None:
        """step: where the run stands; credits: whom the audio is owed to."""
        self.folder, self.recipe, self.world = folder, recipe, world
        note = f"Trained by this user after the recipe for {recipe.model}."
        self.spec = replace(spec, name=folder.name or spec.name, filename=None, url=None, sha256=None, note=note)
        self._journal = None
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            write_recipe(recipe, folder / "recipe.yaml")
            if credits:
                (folder / "CREDITS.md").write_text(credits, encoding="utf-8", errors="backslashreplace")
            self._journal = Journal(folder, step, tensorboard)

    def note(self, line: Line) -> Line:
        """Log a line, and hand it on."""
        if self._journal is not None:
            self._journal.note(line)
        return line

    def store(self, state: State) -> float:
        """All that the run needs to go on, and the averaged weights to separate with; the seconds that it took."""
        if not self.world.first:
            return 0.0
        began = time.monotonic()
        save_state(state, self.folder / "last.pt")
        self._weights("last", state)
        if state.best is None:
            self._weights("best", state)  # without songs to validate on, the last is the best there is
        return time.monotonic() - began

    def examine(self, state: State, songs: Sequence[Multitrack]) -> Iterator[Line]:
        """Draw the losses; score the songs, and keep the weights if none were better; yields the line for the log."""
        if self.world.first:
            lines = read_journal(self.folder / "log.jsonl")
            draw_curve(self.folder / "loss.png", [(line["step"], line["loss"]) for line in lines if "loss" in line])
        if not songs:
            return
        result = validate(
            self.recipe, self.spec, state.averaged, songs, self.world, self.folder / "spectrograms.png"
        )
        if state.best is None or math.isnan(state.best) or result["score"] >= state.best:
            state.best = result["score"]
            if self.world.first:
                self._weights("best", state)
        yield self.note({"step": state.step, "minutes": state.minutes, **result, "best": state.best})

    def keep(self, state: State) -> None:
        """The weights of now and then, for good."""
        if self.world.first and self.recipe.keep_steps and state.step % self.recipe.keep_steps == 0:
            self._weights(f"step_{state.step:08}", state)

    def _weights(self, name: str, state: State) -> None:
        dtype = getattr(torch, self.recipe.dtype)
        checkpoint.save(self.folder / f"{name}.safetensors", self.spec, state.averaged, dtype=dtype)


class Clock:
    """When it is time to save, to validate and to end."""

    def __init__(self, recipe: Recipe, state: State) -> None:
        """state: as it was loaded; the minutes of earlier pieces count."""
        self.recipe = recipe
        self.saved = (state.minutes, state.step)
        self._began = time.monotonic() - 60 * state.minutes

    def minutes(self) -> float:
        """How long the run has taken, over all its pieces."""
        return (time.monotonic() - self._began) / 60

    def wishes(self, state: State) -> list[bool]:
        """Whether it is time to end, to save, to validate."""
        return [self.over(state), self.saves(state), self.validates(state)]

    def over(self, state: State) -> bool:
        """Whether the run is as long as it should be."""
        recipe = self.recipe
        enough = recipe.steps is not None and state.step >= recipe.steps
        return enough or (recipe.minutes is not None and state.minutes >= recipe.minutes)

    def saves(self, state: State) -> bool:
        """Whether it is time to save."""
        return _due(self.saved, state, self.recipe.save_minutes, self.recipe.save_steps)

    def validates(self, state: State) -> bool:
        """Whether it is time to validate."""
        return _due(state.validated, state, self.recipe.validate_minutes, self.recipe.validate_steps)


class Tally:
    """Means over the steps since the last line of the log. saving: seconds that the last save took."""

    def __init__(self) -> None:
        self.saving = self._waited = 0.0
        self._clear()

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches as they are, with the seconds that were spent waiting for them counted."""
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - asked
            yield batch

    def add(self, losses: Mapping[str, float], norm: float, rate: float, examples: int, broken: bool) -> None:
        """Count a step; of a broken one, only the examples."""
        self._examples += examples
        self._rate = rate
        if not broken:
            for name, value in {**losses, "norm": norm}.items():
                self._sums.setdefault(name, []).append(value)

    @property
    def sound(self) -> bool:
        """Whether any step since the last line had a finite loss."""
        return bool(self._sums)

    def line(self, state: State, minutes: float) -> Line:
        """The line for the log; the next one begins from nothing. waiting: share of the time without a batch."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        line = {
            "step": state.step,
            "minutes": minutes,
            **{name: sum(values) / len(values) for name, values in self._sums.items()},
            "rate": self._rate,
            "examples_per_second": self._examples / seconds,
            "waiting": self._waited / seconds,
            "saving": self.saving,
            "skipped": state.broken[0],
            "drawn": state.examples,
        }
        self._clear()
        return line

    def _clear(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._examples, self._rate, self._waited, self._began = 0, 0.0, 0.0, time.monotonic()


def _due(last: tuple[float, int], state: State, minutes: float | None, steps: int | None) -> bool:
    """Whether so many minutes have gone since the last time, or a step is a multiple of `steps`."""
    late = minutes is not None and state.minutes - last[0] >= minutes
    return state.step > last[1] and (late or bool(steps and state.step % steps == 0))
