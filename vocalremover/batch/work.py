"""One job on its way: a thread that reads and measures the song and publishes its stems, a thread for each encoder.

The network is not run here: whoever runs it calls `Work.separate` once the song is ready, and is free again when the
last block has been handed to the encoders. The stems are written into a hidden folder and get their names all together
or not at all.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter

from torch import Tensor

from vocalremover.audio import Encoding, Reader, Writer
from vocalremover.audio.writing import REASONS
from vocalremover.batch.flow import Flow, Gone
from vocalremover.batch.jobs import Job
from vocalremover.batch.journal import JOURNAL, Origin, Stamp
from vocalremover.batch.ledger import Ledger
from vocalremover.batch.results import Progress, Result, levels
from vocalremover.errors import AudioError, UsageError, VocalRemoverError
from vocalremover.separate import Separator
from vocalremover.staging import Staging
from vocalremover.threads import TICK

log = logging.getLogger(__name__)

# Bytes of decoded song before the network: as much as the next windows need while it computes.
READ_AHEAD = 16 << 20
# Bytes of each stem behind it: a song of three minutes, so that a slow encoder does not hold the next song up.
WRITE_BEHIND = 64 << 20


class Work:
    """One job under way.

    `on_end` is called with the Work and its result at the very end, in a thread of the Work's.
    """

    def __init__(
        self, job: Job, separator: Separator, ledger: Ledger, progress: Progress,
        on_end: Callable[["Work", Result], None],
    ) -> None:  # fmt: skip
        """`separator` measures the song, where its model needs that."""
        self.job = job
        self._separator = separator
        self._ledger = ledger
        self._settings = ledger.settings
        self._progress = progress
        self._on_end = on_end
        self._song = Flow(READ_AHEAD)
        self._stems = {stem: Flow(WRITE_BEHIND) for stem in job.outputs}
        self._peaks = dict.fromkeys(job.outputs, 0.0)
        self._warnings: list[str] = []
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._failing = Lock()
        self._failure: Exception | None = None
        self._samples = 0
        self._waited = 0.0  # seconds that the song was ready and the network was not
        self._device = ""
        self._thread = Thread(target=self._live, name=f"song {job.input.name}", daemon=True)

    def start(self) -> None:
        """Begins to read and to measure."""
        self._thread.start()

    def join(self) -> None:
        """Waits until nothing of this job is left, neither a thread nor a staged file."""
        if self._thread.ident is not None:
            self._thread.join()

    def fail(self, failure: Exception) -> None:
        """Ends the job soon, whatever thread says so; the first failure is the one that is told."""
        with self._failing:
            self._failure = self._failure or failure
        for flow in (self._song, *self._stems.values()):
            flow.abandon()

    def wanted(self) -> bool | None:
        """Whether there is something to separate, for the one who would; None where that is not known in a moment."""
        try:
            return self._wanted.get(timeout=TICK)
        except Empty:
            return None

    def separate(self, separator: Separator) -> Iterator[None]:
        """Runs the network over the song in the caller's thread; yields after every block. Only where `wanted`."""
        self._waited = perf_counter() - self._ready_at
        self._device = str(separator.device)
        told = len(separator.warnings)
        reader = self._reader

        def separated() -> Iterator[Tensor]:
            for stems in separator.stream(self._song, reader.rate, self._peak, reader.layout):
                for stem, flow in self._stems.items():
                    flow.give(stems[stem])
                yield stems[stem]

        try:
            for block in self._progress(separated(), self.job, "separating", reader.samples):
                self._samples += block.shape[-1]
                yield
            self._warnings += separator.warnings[told:]
            for flow in self._stems.values():
                flow.end()
        except Gone:
            return  # the failure is known already
        except Exception as failure:
            self._warnings += separator.warnings[told:]
            self.fail(failure)

    def _live(self) -> None:
        began, state, error, code = perf_counter(), "failed", None, 1
        try:
            state = self._work()
        except VocalRemoverError as failure:
            error, code = str(failure), failure.exit_code
        except Gone as stopped:
            error = str(stopped)
        except Exception as failure:  # one song in a thousand must not stop the rest, whatever a codec does
            log.debug("%s failed", self.job.input, exc_info=True)
            error = f"{self.job.input} failed unexpectedly: {type(failure).__name__}: {failure}"
        seconds = perf_counter() - began - self._waited
        duration, peaks = (self._samples / self._reader.rate, self._peaks) if state == "done" else (0.0, {})
        warnings = tuple(dict.fromkeys(self._warnings))
        self._on_end(self, Result(self.job, seconds, duration, warnings, error, state, self._device, peaks, code))
        self._wanted.put(False)

    def _work(self) -> str:
        """The whole life of the job; returns its state. Raises whatever went wrong first, in whatever thread."""
        step = self._ledger.step(self.job)
        if step.state == "done":
            return "skipped"
        if step.reason:
            raise AudioError(step.reason)
        with ExitStack() as stack:
            self._reader = stack.enter_context(Reader(self.job.input))
            stack.callback(lambda: self._warnings.extend(self._reader.warnings))
            staged = self._stage(stack)
            try:
                return self._make(staged)
            except (AudioError, UsageError, OSError) as error:
                raise AudioError(_retold(str(error), staged, self.job)) from error

    def _stage(self, stack: ExitStack) -> dict[str, Path]:
        """A short name for each stem, in a hidden folder beside its output, whose own name the disk has to take."""
        folders: dict[Path, Path] = {}
        for output in self.job.outputs.values():
            if output.parent not in folders:
                folders[output.parent] = stack.enter_context(Staging(output.parent))
            try:
                with suppress(FileNotFoundError):
                    os.lstat(output)
            except OSError as error:
                raise _refused(output, error) from error
        return {
            stem: folders[output.parent] / f"stem{number}{output.suffix}"
            for number, (stem, output) in enumerate(self.job.outputs.items())
        }

    def _make(self, staged: dict[str, Path]) -> str:
        """Reads and measures the song, has its stems written and gives them their names; returns the job's state."""
        origin = Origin.of(self.job.input)
        writers = self._writers(staged, self._settings.encoding)
        if self._settings.clip == "rescale":  # the gain is known only at the song's end: the stems wait as floats
            spools = {stem: path.with_name(f"{path.name}.spool") for stem, path in staged.items()}
            self._separated(self._writers(spools, Encoding("wav", "32f")))
            gain = 1 / max(1.0, *self._peaks.values())
            self._at_once({stem: lambda stem=stem: self._encode(spools[stem], writers[stem], gain) for stem in staged})
        else:
            self._separated(writers)
        self._warnings += levels(self.job, self._peaks, self._settings)
        return self._publish(origin, staged)

    def _writers(self, paths: dict[str, Path], encoding: Encoding) -> dict[str, Writer]:
        """Raises UsageError where the encoding cannot hold the song; nothing is opened yet."""
        reader = self._reader
        return {
            stem: Writer(path, reader.rate, reader.channels, encoding, reader.tags.for_stem(stem), reader.layout)
            for stem, path in paths.items()
        }

    def _separated(self, writers: dict[str, Writer]) -> None:
        """Feeds the song to whoever runs the network, and returns when the writers have closed their files."""
        self._peak = None
        if self._separator.measures:
            blocks = self._progress(self._blocks(), self.job, "measuring", self._reader.samples)
            self._peak = self._separator.peak(blocks, self._reader.rate)
        self._ready_at = perf_counter()
        self._wanted.put(True)
        tasks: dict[str, Callable[[], None]] = {
            stem: lambda stem=stem: self._write(stem, writers[stem]) for stem in writers
        }
        self._at_once({"reading": self._feed, **tasks})

    def _blocks(self) -> Iterator[Tensor]:
        for block in self._reader.blocks():
            if self._failure:
                raise Gone
            yield block

    def _feed(self) -> None:
        for block in self._reader.blocks():
            self._song.give(block)
        self._song.end()

    def _write(self, stem: str, writer: Writer) -> None:
        clamp = self._settings.clip == "clamp"
        with writer:
            for block in self._stems[stem]:
                if clamp and block.numel():
                    self._peaks[stem] = max(self._peaks[stem], float(block.abs().max()))
                    block = block.clamp(-1, 1)
                writer.write(block)
        if not clamp:
            self._peaks[stem] = writer.peak

    def _encode(self, spool: Path, writer: Writer, gain: float) -> None:
        with Reader(spool) as reader, writer:
            for block in reader.blocks():
                if self._failure:
                    raise Gone
                writer.write(block * gain)

    def _at_once(self, tasks: dict[str, Callable[[], None]]) -> None:
        """Runs each task in a thread; the first that fails ends them all, and its failure is raised."""

        def guarded(task: Callable[[], None]) -> None:
            try:
                task()
            except Gone:
                return
            except Exception as failure:
                self.fail(failure)

        threads = [
            Thread(target=guarded, args=(task,), name=f"{self._thread.name}: {name}", daemon=True)
            for name, task in tasks.items()
        ]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as failure:  # the system has no more of them
            self.fail(failure)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if self._failure:
            raise self._failure

    def _publish(self, origin: Origin, staged: dict[str, Path]) -> str:
        step = self._ledger.step(self.job)
        if step.state == "done":
            return "skipped"
        if step.reason:
            raise AudioError(f"somebody else has been at work here meanwhile: {step.reason}")
        stamps = {stem: Stamp.of(path) for stem, path in staged.items()}
        self._note(origin, stamps, done=False)
        self._rename(staged)
        self._note(origin, stamps, done=True)
        return "done"

    def _rename(self, staged: dict[str, Path]) -> None:
        """Gives the stems their names; where the disk refuses one, all is as it was before."""
        moved: list[tuple[Path, Path]] = []
        try:
            for stem, output in self.job.outputs.items():
                if os.path.lexists(output):
                    old = staged[stem].with_suffix(".old")
                    _keep(output, old)
                    moved.append((output, old))
                os.replace(staged[stem], output)
                moved.append((staged[stem], output))
        except OSError as error:
            for before, now in reversed(moved):
                os.replace(now, before)
            raise _refused(output, error) from error

    def _note(self, origin: Origin, stamps: dict[str, Stamp], done: bool) -> None:
        try:
            self._ledger.note(self.job, origin, stamps, done)
        except OSError as error:
            journal = self._settings.home(self.job.input) / JOURNAL
            self._warnings.append(f"{journal} cannot be written ({error.strerror}): it will not tell how this was made")


def _keep(output: Path, old: Path) -> None:
    """Gives a file a second name, so that it is never without its first; a new one where the disk knows no links."""
    try:
        os.link(output, old, follow_symlinks=False)
    except (OSError, NotImplementedError):
        os.replace(output, old)


def _refused(output: Path, error: OSError) -> AudioError:
    reason = REASONS.get(error.errno, error.strerror)
    return AudioError(f"{output}: cannot be written, {reason}; choose another --template or --out")


def _retold(sentence: str, staged: dict[str, Path], job: Job) -> str:
    """What went wrong with a staged file, told of the output that it would have become."""
    for stem, path in staged.items():
        sentence = sentence.replace(str(path), str(job.outputs[stem]))
    return sentence
