"""How jobs went: one result a job, and the sum of them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from torch import Tensor

from vocalremover.batch.jobs import Job
from vocalremover.batch.settings import Settings

# Wraps the blocks (`[channels, samples]`) of one pass over a song: (blocks, job, what is done, samples if known).
# Several songs are under way at once: it is called, and what it returns iterated, in several threads.
Progress = Callable[[Iterable[Tensor], Job, str, int | None], Iterable[Tensor]]


def silent(blocks: Iterable[Tensor], job: Job, stage: str, samples: int | None) -> Iterable[Tensor]:
    """The Progress that tells nothing."""
    return blocks


@dataclass(frozen=True)
class Result:
    """How one job went: `seconds` of work for `duration` seconds of song.

    `state` is "done", "skipped" or "failed"; `error` is None where the stems are there, and `exit_code` is that of what
    went wrong. `peaks` holds the largest absolute sample of each stem, before any change of its level.
    """

    job: Job
    seconds: float
    duration: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    state: str = "done"
    device: str = ""
    peaks: dict[str, float] = field(default_factory=dict)
    exit_code: int = 1

    @property
    def real_time_factor(self) -> float:
        """Seconds of song per second of work: above 1 is faster than playing it."""
        return self.duration / self.seconds if self.seconds > 0 else 0.0

    def record(self) -> dict[str, object]:
        """The result as JSON has it; the outputs are those that are there."""
        there = self.state != "failed"
        return {
            "input": str(self.job.input),
            "outputs": {stem: str(path) for stem, path in self.job.outputs.items()} if there else {},
            "state": self.state,
            "duration": round(self.duration, 3),
            "seconds": round(self.seconds, 3),
            "real_time_factor": round(self.real_time_factor, 2),
            "device": self.device,
            "peaks": {stem: round(peak, 6) for stem, peak in self.peaks.items()},
            "warnings": list(self.warnings),
            "error": self.error,
        }


def levels(job: Job, peaks: dict[str, float], settings: Settings) -> Iterable[str]:
    """A sentence for each stem beyond full scale, where the encoding, a player or the settings change its samples."""
    encoding = settings.encoding
    if settings.clip == "none" and encoding.bits == "32f":
        return
    clipped = "was clipped" if encoding.bits else "may be clipped by a player"
    streamed = Path("-") in job.outputs.values()
    remedies = [] if streamed else ["--clip rescale"]  # a stream has no second pass
    remedies.append("--bits 32f" if encoding.format == "wav" else "-f wav --bits 32f")
    fate = {
        "none": f"{clipped}; {' or '.join(remedies)} keeps it whole",
        "rescale": f"was turned down by {20 * math.log10(max(1.0, *peaks.values())):.2f} dB, as all stems of the song",
        "clamp": "was limited to full scale",
    }[settings.clip]
    name = "standard input" if job.input == Path("-") else job.input.name
    for stem, peak in peaks.items():
        if peak > 1:
            over = 20 * math.log10(peak)
            yield f"the stem {stem} of {name} exceeds full scale by {over:.2f} dB and {fate}"


class Summary:
    """What became of a run: how many songs were done, skipped and failed, and how fast, from its creation on."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self._states: Counter[str] = Counter()
        self._duration = 0.0
        self.failures: list[tuple[str, str]] = []

    def add(self, result: Result) -> None:
        """Counts one more result."""
        self._states[result.state] += 1
        self._duration += result.duration
        if result.error is not None:
            self.failures.append((str(result.job.input), result.job.told(result.error)))

    def record(self) -> dict[str, object]:
        """The sum as JSON has it; durations and seconds in seconds, songs per minute of those that were done."""
        seconds = perf_counter() - self._started
        return {
            **{state: self._states[state] for state in ("done", "skipped", "failed")},
            "duration": round(self._duration, 3),
            "seconds": round(seconds, 3),
            "real_time_factor": round(self._duration / seconds, 2),
            "songs_per_minute": round(60 * self._states["done"] / seconds, 2),
            "failures": [{"input": song, "error": error} for song, error in self.failures],
        }
