"""What is to be done with a job, by what is on disk and in the journals; and the journals of a run."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vocalremover.audio import check
from vocalremover.batch.jobs import Job
from vocalremover.batch.journal import Entry, Journal, Origin, Stamp, describe, digest
from vocalremover.batch.settings import Settings
from vocalremover.errors import AudioError

Description = Callable[[], Mapping[str, object]]

TO_DO = ("new", "stale", "replace")


@dataclass(frozen=True)
class Step:
    """One job and what a run would do with it.

    `state` is "new"; "done" (skipped); "stale" (ours, but made otherwise: made again); "replace" (made again because
    of `overwrite`); "exists" or "failed" (an error, told in `reason`).
    """

    job: Job
    state: str
    reason: str | None = None

    def record(self) -> dict[str, object]:
        """The step as JSON has it."""
        outputs = {stem: str(path) for stem, path in self.job.outputs.items()}
        return {"input": str(self.job.input), "outputs": outputs, "state": self.state, "reason": self.reason}


class Ledger:
    """The journals of all folders that a run writes into, each read as far as it goes when it is needed.

    description: `Separator.describe`, which is asked once there are stems to tell of: it may read all weights.
    """

    def __init__(self, settings: Settings, description: Description) -> None:
        self.settings = settings
        self._description = description
        self._lock = threading.Lock()
        self._made: Mapping[str, object] | None = None
        self._journals: dict[Path, Journal] = {}

    def step(self, job: Job) -> Step:
        """What to do with the job. Reads the song only where its date does not tell whether it has changed."""
        if job.problem:
            return Step(job, "failed", job.problem)
        existing = {stem: output for stem, output in job.outputs.items() if os.path.lexists(output)}
        for output in existing.values():
            if output.is_dir():
                return Step(job, "failed", f"{output} is a folder; move it away or choose another --template")
        if not existing:
            return Step(job, "new")
        reason = f"{next(iter(existing.values()))} exists already; --overwrite replaces it"
        if self.settings.skip_existing:
            state, reason = self._known(job, existing)
            if state:
                return Step(job, state)
        return Step(job, "replace") if self.settings.overwrite else Step(job, "exists", reason)

    def note(self, job: Job, origin: Origin, stamps: Mapping[str, Stamp], done: bool) -> None:
        """Writes into the journal; see `Journal.note`."""
        self._journal(job).note(job, origin, stamps, self._making(), done)

    def _is_made(self, entry: Entry) -> bool:
        return entry.making == digest(self._making())

    def _making(self) -> Mapping[str, object]:
        with self._lock:  # several songs may ask at once, and one answer is enough
            if self._made is None:
                self._made = describe(self.settings, self._description())
            return self._made

    def _journal(self, job: Job) -> Journal:
        folder = self.settings.home(job.input)
        with self._lock:
            if folder not in self._journals:
                self._journals[folder] = Journal(folder)
            return self._journals[folder]

    def _known(self, job: Job, existing: dict[str, Path]) -> tuple[str | None, str]:
        """"done", "stale" or None with the reason, for a job some of whose outputs exist."""
        journal = self._journal(job)
        entries = {stem: journal.entry(output) for stem, output in job.outputs.items()}
        same = {entry.origin: entry.origin.is_same(job.input) for entry in entries.values() if entry}
        if len(existing) == len(entries) and all(
            entry and entry.done and entry.stem == stem and same[entry.origin] and self._is_made(entry)
            and entry.is_as_long_as(existing[stem])
            for stem, entry in entries.items()
        ):
            return "done", ""
        for stem, output in existing.items():
            reason = _foreign(job, output, entries[stem], same)
            if reason:
                return None, f"{output} exists already and {reason}; --overwrite replaces it"
        return "stale", ""


def preview(jobs: Iterable[Job], settings: Settings, description: Description) -> Iterator[Step]:
    """What `run` would do with each job, without doing or writing anything. description: `Separator.describe`.

    A song that cannot be opened is "failed"; whether it can be decoded is not tried.
    """
    ledger = Ledger(settings, description)
    for job in jobs:
        step = ledger.step(job)
        if step.state in TO_DO:
            try:
                check(job.input)
            except AudioError as error:
                step = Step(job, "failed", str(error))
        yield step


def _foreign(job: Job, output: Path, entry: Entry | None, same: Mapping[Origin, bool]) -> str | None:
    """Why an output must not be replaced unasked, None where it is ours, of this song and as we left it."""
    if entry is None:
        return "the journal does not tell how it was made"
    if not same[entry.origin] and entry.origin.path != os.path.realpath(job.input):
        return f"was made from {entry.origin.path}"
    if output.is_symlink() or Stamp.of(output) not in {entry.stamp, *entry.earlier}:
        return "was changed since it was made"
    return None
