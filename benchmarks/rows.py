"""What a benchmark answers with: rows of one table, each a ratio of two numbers taken in one run.

A module of this folder plugs in with one function,

    def rows(settings: Settings) -> Iterator[Row]:
        for kind, timing in side_by_side({"ours": ours, "plain": plain}, settings.runs).items(): ...
        yield Row("V10, a crop", ours.cpu, "CPU-s", plain.cpu, "plain formulation", most=0.5, timing=ours)

and with its name in `NAMES` of `__main__.py`. It is called in a process of its own. It yields a row as soon as it has
it, so that a failure later on loses nothing; raises Absent, or yields `absent(...)`, for what this machine does not
have; lets every other error go up: the table then says what failed and the command ends with exit code 1. With
`settings.quick` it should take seconds, else two minutes on two cores. It may print: its output goes to stderr. Its own
`main` with finer options stays what it likes; `benchmarks.table.show(rows(Settings()))` prints the rows as the table.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from vocalremover import machine

ROOT = Path(__file__).resolve().parent.parent
_UNIT = 1 if sys.platform == "darwin" else 2**10  # the system counts a peak in bytes there, in KiB elsewhere


class Absent(Exception):
    """What a benchmark needs is not here: a device, a program, a file. The sentence says what."""


@dataclass(frozen=True)
class Settings:
    """What the one command hands to every benchmark."""

    quick: bool = False  # seconds instead of minutes; for a look, not for publishing
    runs: int = 3  # of which the median is told
    song: Path | None = None  # to be used instead of a made-up one
    device: str = "auto"  # as the command `vocalremover -d` takes it


@dataclass(frozen=True)
class Timing:
    """Medians over several runs of one thing."""

    wall: float  # seconds
    cpu: float  # seconds of processor time, of all threads
    peak_mib: float | None = None  # largest resident set; of a process of its own only
    runs: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table. `value` and `against` have the same unit; their ratio is what is judged."""

    what: str
    value: float | None = None
    unit: str = ""
    against: float | None = None
    peer: str = ""  # what `against` is: another formulation, a bound, "real time"
    most: float | None = None  # the target: the ratio is not above it ...
    least: float | None = None  # ... or not below it
    timing: Timing | None = None  # of the run that gave `value`
    note: str = ""
    state: str = "done"  # or "absent", "failed": the note says why

    @property
    def ratio(self) -> float | None:
        """`value / against`."""
        return None if self.value is None or not self.against else self.value / self.against

    @property
    def met(self) -> bool | None:
        """Whether the target is kept; None without one."""
        if self.ratio is None or (self.most is None and self.least is None):
            return None
        return (self.most is None or self.ratio <= self.most) and (self.least is None or self.ratio >= self.least)

    def to_json(self) -> dict[str, object]:
        """All fields, the ratio and the judgement."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}

    @classmethod
    def from_json(cls, told: Mapping[str, object]) -> "Row":
        """The inverse of `to_json`."""
        fields = {name: value for name, value in told.items() if name not in ("ratio", "met")}
        return cls(**fields | {"timing": Timing(**told["timing"]) if told["timing"] else None})


def absent(what: str, why: str) -> Row:
    """A row for what cannot be measured here."""
    return Row(what, state="absent", note=why)


def side_by_side(ways: Mapping[str, Callable[[], object]], runs: int, warm: bool = True) -> dict[str, Timing]:
    """Medians of several ways, run in turn, so that what else the machine does falls on all of them alike.

    With `warm` each way is run once before, uncounted.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(runs + warm):
        for name, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if number >= warm:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: _median([(*one, None) for one in taken]) for name, taken in seconds.items()}


def processes(ways: Mapping[str, Sequence[object]], runs: int, environment: Mapping[str, str] | None = None) -> dict:
    """As `side_by_side`, `{name: Timing}`, of command lines, each run in a new process, with its peak of memory.

    Raises CalledProcessError, with what the command said last, if one fails.
    """
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, words in ways.items():
            taken[name].append(run_process(words, environment))
    return {name: _median(some) for name, some in taken.items()}


def run_process(words: Sequence[object], environment: Mapping[str, str] | None = None) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of one run of a command from the project's folder.

    The system counts a process's peak from the moment it was forked, so it is never below that of whoever asks here.
    """
    command = [str(word) for word in words]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _UNIT / 2**20


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return (machine.peak() or 0) / 2**20


def _median(taken: Sequence[tuple[float, float, float | None]]) -> Timing:
    wall, cpu, peaks = zip(*taken, strict=True)
    return Timing(median(wall), median(cpu), None if peaks[0] is None else median(peaks), len(taken))
