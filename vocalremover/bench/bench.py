"""The measurements in their order, and all that they gave: `Bench`."""

import math
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from vocalremover import __version__, checkpoint, machine
from vocalremover.bench import plan, song, stages, trials
from vocalremover.bench.plan import Plan, Setting
from vocalremover.bench.stages import Line, Stage
from vocalremover.bench.trials import Stand, Trial
from vocalremover.devices import PRECISIONS, choose_device
from vocalremover.errors import UsageError
from vocalremover.evaluate import sdr
from vocalremover.separate import Separator

LEAST = -100.0  # dB, in place of minus infinity, which JSON does not know


@dataclass(frozen=True)
class Wanted:
    """What is measured: a name or a path, where, with whose song, and for how many seconds about."""

    model: str = "default"
    device: str = "auto"
    config: Path | None = None
    song: Path | None = None
    seconds: float = 45.0


class Bench:
    """Measures one model on one device: `prepare` says how long it will take, `run` yields what it finds.

    `stages`, `trials` and `wholes` (real-time factors from file to files) grow meanwhile, so that whoever stops it has
    what was found until then. `complete` says whether the whole plan was done. `most_resident` is the largest resident
    set in bytes. `load` is what other programs took of the `processors` before.
    """

    def __init__(self, wanted: Wanted) -> None:
        """Loads the model. Raises ModelError, DeviceError and UsageError."""
        if not 0 < wanted.seconds < math.inf:
            raise UsageError(f"the seconds to measure for must be more than 0, not {wanted.seconds:g}")
        self.wanted = wanted
        self.device = choose_device(wanted.device)
        self.processors = machine.processors()
        self.load = machine.load()  # before there is any of its own
        began = perf_counter()
        spec, network = checkpoint.load(wanted.model, self.device, wanted.config)
        separator = Separator(spec, network, self.device)
        self.load_seconds = perf_counter() - began
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        self.base = Setting(separator.inference.quality, separator.batch, separator.precision, threads)
        hop = spec.stft.hop if spec.domain == "spectrogram" else 1
        window = separator.chunking.size * hop / spec.rate
        rate, layout, blocks = song.beginning(wanted.song, window)
        peak = separator.peak(blocks, rate)
        self._stand = Stand(spec, network, self.device, blocks, rate, peak, layout, window)
        self.plan: Plan | None = None
        self.stages: list[Stage] = []
        self.trials: list[Trial] = []
        self.wholes: dict[Setting, float] = {}
        self.complete = False
        self.most_resident = machine.peak()
        self._sdr: dict[str, float | None] = {}

    def prepare(self) -> Plan:
        """Computes a window two times or more and says what the limit allows. Raises AudioError for a broken song."""
        stand, began = self._stand, perf_counter()
        self._reference = stand.answer(replace(self.base, precision="fp32"))
        cost = perf_counter() - began
        if cost < self.wanted.seconds / 4 or self.device.type != "cpu":
            separator = stand.separator(self.base)
            seconds = [
                stages.timed(lambda: stages.drain(stand.stream(separator, separator.batch)), self.device)
                for _ in range(1 if self.device.type == "cpu" else 2)  # a GPU is prepared for full batches first
            ]
            cost = seconds[-1] / separator.batch
        if self.device.type == "cpu":
            precisions = ["fp32"] if machine.has_bf16() is False else ["fp32", "bf16"]
        else:
            precisions = list(PRECISIONS)
        tried = plan.changes(self.base, precisions, self.processors)
        most = song.length(self.wanted.song) if self.wanted.song else None
        self.plan = plan.draw(stand.window, cost, self.wanted.seconds, tried, most)
        return self.plan

    def run(self) -> Iterator[str | Stage | Trial]:
        """What is being measured, in words, and every result as soon as it is there; after `prepare`."""
        threads = torch.get_num_threads()
        try:
            with tempfile.TemporaryDirectory(prefix="vocalremover-bench-") as folder:
                yield from self._measured(Path(folder))
        finally:
            self._remember()
            torch.set_num_threads(threads)

    @property
    def best(self) -> Trial | None:
        """The fastest setting that ran and may be recommended."""
        return trials.best(self.trials)

    def words(self, setting: Setting) -> list[str]:
        """What a person types for a setting, with SONG in place of his song."""
        model = ["-m", self.wanted.model] if self.wanted.model != "default" else []
        config = ["--config", str(self.wanted.config)] if self.wanted.config else []
        device = ["-d", self.wanted.device] if self.wanted.device != "auto" else []
        threads = [f"OMP_NUM_THREADS={setting.threads}"] if setting.threads != self.base.threads else []
        quality = ["--quality", setting.quality] if setting.quality != self.base.quality else []
        batch, precision = ["--batch-size", str(setting.batch)], ["--precision", setting.precision]
        return [*threads, "vocalremover", "separate", "SONG", *model, *config, *device, *batch, *precision, *quality]

    def record(self) -> dict[str, object]:
        """All of it for JSON."""
        best = self.best
        return {
            "vocalremover": __version__, "torch": torch.__version__, "system": platform.platform(),
            "processor": machine.processor(), "processors": self.processors, "device": self._device_name(),
            "model": self._stand.spec.name, "song": str(self.wanted.song) if self.wanted.song else None,
            "load": self.load, "load_seconds": self.load_seconds, "plan": self.plan and self.plan.record(),
            "complete": self.complete, "host_bytes": self.most_resident,
            "stages": [stage.record() for stage in self.stages],
            "default": self.base.record() | {"whole": self.wholes.get(self.base)},
            "trials": [trial.record() for trial in self.trials],
            "best": best and best.record() | {"whole": self.wholes.get(best.setting)},
            "command": self.words(best.setting) if best else None,
        }  # fmt: skip

    def _device_name(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return f"{self.device} {name}".strip()

    def _measured(self, folder: Path) -> Iterator[str | Stage | Trial]:
        self._ends = perf_counter() + max(self.wanted.seconds, self.plan.seconds)
        yield "a song"
        path = song.prepare(self.wanted.song, self.plan.song, folder)
        yield "the stages"
        line = Line(self._stand.separator(self.base), path, folder)
        for stage in stages.measure(line, self.plan.stage_runs, self._has_time):
            self.stages.append(stage)
            yield stage
        yield "a song from file to files"
        yield self._whole(line, self.base)
        del line  # and what its separator holds
        yield from self._tried()
        best = self.best
        if best and best.setting not in self.wholes and self._has_time(self.stages[-1].seconds):
            yield "the song with the best settings"
            line = Line(self._stand.separator(best.setting), path, folder)
            line.warm()
            self._whole(line, best.setting)
        self.complete = all(trial.state != "left out" for trial in self.trials)

    def _tried(self) -> Iterator[str | Trial]:
        """Each change of the plan beside the best before it."""
        spare = self.plan.whole_runs * self.stages[-1].seconds
        for change in self.plan.changes:
            champion = self.best
            setting = replace(champion.setting if champion else self.base, **change)
            if any(trial.setting == setting for trial in self.trials):
                continue
            threads = f", threads {setting.threads}" if setting.threads else ""
            yield f"{setting.quality}, batch {setting.batch}, {setting.precision}{threads}"
            trial = self._left_out(setting, spare) or trials.run(
                self._stand, setting, self.plan.windows, runs=self.plan.runs, champion=champion,
                has_time=lambda seconds: self._has_time(seconds + spare),
            )  # fmt: skip
            trial = replace(trial, sdr=self._difference(trial))
            self._remember()
            self.trials.append(trial)
            yield trial

    def _left_out(self, setting: Setting, spare: float) -> Trial | None:
        """Why a setting is not tried at all, if it is not."""
        if self.trials and not self._has_time(spare):
            return Trial(setting, "left out", note="the time is up; --seconds gives more")
        before = [trial for trial in self.trials if trial.host_bytes and trial.setting.batch < setting.batch]
        free = machine.memory()[1]
        if before and free and self.device.type == "cpu":
            last = before[-1]
            needed = (last.host_bytes - (machine.resident() or 0)) * setting.batch / last.setting.batch
            if needed > free:
                gib = f"{needed / machine.GIB:.1f} GiB, and {free / machine.GIB:.1f} are free"
                return Trial(setting, "left out", note=f"it may take {gib}")
        return None

    def _difference(self, trial: Trial) -> float | None:
        """The SDR of a precision against single precision over one window; None where there is none to tell."""
        precision = trial.setting.precision
        if trial.state == "ok" and precision != "fp32" and precision not in self._sdr:
            found = sdr(self._stand.answer(replace(self.base, precision=precision)), self._reference)
            self._sdr[precision] = None if found == math.inf else max(found, LEAST)
        return self._sdr.get(precision)

    def _whole(self, line: Line, setting: Setting) -> Stage:
        """A song from file to files, as the command does it; the stage is that of the last setting measured."""
        seconds = [line.whole()]
        while len(seconds) < self.plan.whole_runs and self._has_time(seconds[-1]):
            seconds.append(line.whole())
        stage = Stage("whole", line.seconds, median(seconds), len(seconds))
        self.wholes[setting] = line.seconds / stage.seconds
        if setting == self.base:
            self.stages.append(stage)
        return stage

    def _has_time(self, seconds: float) -> bool:
        return perf_counter() + seconds <= self._ends

    def _remember(self) -> None:
        self.most_resident = max(self.most_resident or 0, machine.peak() or 0) or None
