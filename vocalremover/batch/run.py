"""Jobs in, stems on disk and results out, with several songs under way at once.

While the network works on one song, the next is read and measured and the ones before are encoded, each in threads of
its own (the codecs let go of Python's lock). One network runs per separator: in the caller's thread where there is one
separator, so that a signal reaches it, else in a thread each.
"""

import atexit
import os
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock, Thread, get_ident

from vocalremover.batch.flow import Gone
from vocalremover.batch.jobs import Job
from vocalremover.batch.ledger import Ledger
from vocalremover.batch.results import Progress, Result, silent
from vocalremover.batch.settings import Settings
from vocalremover.batch.work import Work
from vocalremover.errors import UsageError
from vocalremover.separate import Separator
from vocalremover.staging import sweep
from vocalremover.threads import Bell

MOST_ENCODED = 8


def run(
    jobs: Iterable[Job], separators: Separator | Sequence[Separator], settings: Settings, progress: Progress = silent,
    songs: int | None = None,
) -> Iterator[Result]:  # fmt: skip
    """Does the jobs. Whatever goes wrong with a song is told in its result's `error` and goes no further.

    separators: one, or the same model on several devices. songs: how many may be under way at once on each; None lets
    as many songs be encoded beside as the computer has processors for. Results come in the order of the jobs from one
    separator, from several as they are done. Closing the iterator, and any exception in it, stops all threads and
    leaves no unfinished file. Raises UsageError where a stem is wanted that the model does not give.
    """
    crew = Crew(jobs, list(separators) if isinstance(separators, Sequence) else [separators], settings, progress, songs)
    atexit.register(crew.stop)  # for a caller who was interrupted and never closed the iterator
    try:
        yield from crew.results()
    finally:
        crew.stop()
        atexit.unregister(crew.stop)


class Crew:
    """All that is under way: who waits for a network, who works, and the results that nobody has asked for yet."""

    def __init__(
        self, jobs: Iterable[Job], separators: list[Separator], settings: Settings, progress: Progress,
        songs: int | None,
    ) -> None:  # fmt: skip
        if songs is not None and songs < 1:
            raise UsageError(f"at least one song must be under way, not {songs}")
        settings.check(separators[0].stems)
        self._jobs = enumerate(jobs)
        self._separators = separators
        self._progress = progress
        self._ledger = Ledger(settings, separators[0].describe)
        encoded = min(MOST_ENCODED, max(1, (os.cpu_count() or 1) // len(settings.stems)))
        self._most = songs * len(separators) if songs else 2 * len(separators) + encoded
        self._swept: set[Path] = set()
        self._lock = Lock()
        self._bells: dict[int, Bell] = defaultdict(Bell)  # of every thread that has waited for a change
        self._exhausted = False
        self._numbers: dict[Work, int] = {}  # all that is under way, with its place among the jobs
        self._waiting: deque[Work] = deque()
        self._finished: dict[int, Result] = {}
        self._told = 0
        self._broken: BaseException | None = None
        self._threads: list[Thread] = []

    def results(self) -> Iterator[Result]:
        """Runs everything."""
        if len(self._separators) == 1:
            for _ in self._separate(self._separators[0]):
                yield from self._ready_results()
        else:
            for separator in self._separators:
                thread = Thread(target=self._serve, args=(separator,), name=f"{separator.device}", daemon=True)
                self._threads.append(thread)
                thread.start()
        while self._is_busy():
            yield from self._ready_results()
        yield from self._ready_results()

    def stop(self) -> None:
        """Ends whatever is under way and waits until nothing of it is left."""
        with self._lock:
            self._exhausted = True
            works = list(self._numbers)
        for work in works:
            work.fail(Gone("stopped"))
        for work in works:
            work.join()
        for thread in self._threads:
            thread.join()

    def _serve(self, separator: Separator) -> None:
        """The life of a thread that runs one of several networks."""
        try:
            for _ in self._separate(separator):
                pass
        except BaseException as error:
            with self._lock:
                self._broken = self._broken or error
                self._ring()

    def _separate(self, separator: Separator) -> Iterator[None]:
        """Takes one song after another through a network; yields often, for whoever has something else to look to."""
        while work := (yield from self._next_work(separator)):
            while (wanted := work.wanted()) is None:
                yield
            if wanted:
                yield from work.separate(separator)

    def _next_work(self, separator: Separator) -> Generator[None, None, Work | None]:
        while True:
            with self._lock:
                self._begin_more(separator)
                if self._waiting:
                    work = self._waiting.popleft()
                    self._begin_more(separator)
                    return work
                if self._exhausted:
                    return None
            self._wait()
            yield

    def _begin_more(self, separator: Separator) -> None:
        """Begins songs, as long as there are few enough under way and few enough that only wait for a network."""
        while (
            not self._exhausted and len(self._numbers) < self._most and len(self._waiting) < len(self._separators)
        ):
            number, job = next(self._jobs, (0, None))
            if job is None:
                self._exhausted = True
                self._ring()
                return
            for parent in {output.parent for output in job.outputs.values()} - self._swept:
                self._swept.add(parent)
                sweep(parent)
            work = Work(job, separator, self._ledger, self._progress, self._end)
            self._numbers[work] = number
            self._waiting.append(work)
            work.start()

    def _end(self, work: Work, result: Result) -> None:
        with self._lock:
            self._finished[self._numbers.pop(work)] = result
            self._ring()

    def _wait(self) -> None:
        """Until something has changed since the last time, or a moment."""
        self._bells[get_ident()].wait()

    def _ring(self) -> None:
        for bell in list(self._bells.values()):
            bell.ring()

    def _is_busy(self) -> bool:
        """Waits a moment for something to be finished."""
        with self._lock:
            if self._broken:
                raise self._broken
            busy = bool(self._numbers) or not self._exhausted
            idle = busy and self._tellable() is None
        if idle:
            self._wait()
        return busy

    def _ready_results(self) -> Iterator[Result]:
        while True:
            with self._lock:
                number = self._tellable()
                if number is None:
                    return
                result = self._finished.pop(number)
                self._told += 1
            yield result

    def _tellable(self) -> int | None:
        """The job whose result comes next, if it is there."""
        if len(self._separators) > 1:
            return next(iter(self._finished), None)
        return self._told if self._told in self._finished else None
