"""What was made in a folder, from what and how: a hidden file of JSON lines beside the stems.

A run first writes one line on its model and settings, known from then on by their digest (`making`), and then two
lines for each song: "writing" before its stems get their names and "done" after, so that whatever bears a stem's name
is known to be ours even if the run is killed in between. Several processes may write at once: a line is appended in one
piece, under a lock where the system has one. A line that was torn by a kill or a full disk is passed over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vocalremover import checkpoint
from vocalremover.batch.jobs import Job
from vocalremover.batch.settings import Settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

JOURNAL = ".vocalremover.jsonl"
# What a separator tells of itself that changes nothing in a stem: the same windows on another device, or more at once.
INDIFFERENT = frozenset({"device", "devices", "batch", "stems", "warnings"})


@dataclass(frozen=True)
class Stamp:
    """What tells a file from its earlier or later self."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Origin:
    """The song that a stem was made from."""

    path: str
    stamp: Stamp
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Origin:
        """Reads the whole song. Raises OSError."""
        return cls(os.path.realpath(path), Stamp.of(path), checkpoint.sha256(path))

    def is_same(self, path: Path) -> bool:
        """Whether the file at `path` has the song's content; it is read only where its date and place do not tell."""
        try:
            stamp = Stamp.of(path)
            if stamp == self.stamp and os.path.realpath(path) == self.path:
                return True
            return stamp.size == self.stamp.size and checkpoint.sha256(path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class Entry:
    """What the journal says of one output; where it was about to be replaced, it may still look as in `earlier`."""

    stem: str
    stamp: Stamp
    origin: Origin
    making: str
    done: bool
    earlier: frozenset[Stamp] = frozenset()

    def is_as_long_as(self, path: Path) -> bool:
        """Whether a file has the output's size; its date may be another, which a copy changes."""
        try:
            return Stamp.of(path).size == self.stamp.size
        except OSError:
            return False


def describe(settings: Settings, description: Mapping[str, object]) -> dict[str, object]:
    """All that the samples and bytes of a stem depend on, save for the song. `description`: the separator's."""
    encoding = settings.encoding
    written = {"format": encoding.format, "bits": encoding.bits, "bitrate": encoding.bitrate, "clip": settings.clip}
    return {**_decisive(description), **written}


def _decisive(value: object) -> object:
    """A description without what changes nothing, in the descriptions within it too: an ensemble tells its models'."""
    if isinstance(value, Mapping):
        return {key: _decisive(each) for key, each in value.items() if key not in INDIFFERENT}
    return [_decisive(each) for each in value] if isinstance(value, list | tuple) else value


def digest(making: Mapping[str, object]) -> str:
    """The name of a way to make stems: equal for equal settings."""
    return hashlib.sha256(json.dumps(making, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Journal:
    """The journal of one folder, read as far as it goes whenever it is asked; safe to use from several threads.

    Raises OSError where it cannot be written; a journal that cannot be read is an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._entries: dict[str, Entry] = {}
        self._seen = (0, 0, 0)  # the file's number, size and date when it was last read
        self._read = 0  # bytes of it, in whole lines

    def entry(self, output: Path) -> Entry | None:
        """The last that any run has said of an output, one that is under way included."""
        with self._lock:
            with suppress(OSError):
                self._read_on()
            return self._entries.get(self._key(output))

    def note(
        self, job: Job, origin: Origin, stamps: Mapping[str, Stamp], making: Mapping[str, object], done: bool
    ) -> None:  # fmt: skip
        """Appends that the job's stems, which look like `stamps`, are about to get their names or have got them."""
        name = digest(making)
        record = {
            "state": "done" if done else "writing",
            "making": name,
            "input": origin.path,
            "size": origin.stamp.size,
            "mtime_ns": origin.stamp.mtime_ns,
            "sha256": origin.sha256,
            "outputs": {
                stem: [self._key(job.outputs[stem]), stamp.size, stamp.mtime_ns] for stem, stamp in stamps.items()
            },
        }
        with self._lock:
            fresh = [] if name in self._told else [{"making": name, "settings": making}]
            self._append([*fresh, record])
            self._told.add(name)

    def _key(self, output: Path) -> str:
        # Systems differ in how they spell an accent in a name that was given to them.
        return unicodedata.normalize("NFC", Path(os.path.relpath(output, self.folder)).as_posix())

    def _read_on(self) -> None:
        """Reads the lines that have come since the last time, all of them where it is another file."""
        path = self.folder / JOURNAL
        status = os.stat(path)
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen == self._seen:
            return
        if seen[0] != self._seen[0] or seen[1] < self._read:
            self._entries, self._read = {}, 0
        with open(path, "rb") as lines:
            lines.seek(self._read)
            for line in lines:
                with suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
                    self._learn(_entries(json.loads(line)))
                self._read += len(line) if line.endswith(b"\n") else 0
        self._seen = seen

    def _learn(self, entries: Mapping[str, Entry]) -> None:
        for key, entry in entries.items():
            known = self._entries.get(key)
            earlier = {known.stamp, *known.earlier} if known and not entry.done else ()
            self._entries[key] = replace(entry, earlier=frozenset(earlier))

    def _append(self, records: list[dict]) -> None:
        data = "".join(json.dumps(record, default=str) + "\n" for record in records).encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(self.folder / JOURNAL, flags, 0o666)
        try:
            with _locked(descriptor):
                end = os.lseek(descriptor, 0, os.SEEK_END)
                if end:
                    os.lseek(descriptor, end - 1, os.SEEK_SET)
                    data = data if os.read(descriptor, 1) == b"\n" else b"\n" + data
                if os.write(descriptor, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entries(record: dict) -> dict[str, Entry]:
    """What a line says, by the keys of the outputs. Raises one of several errors for a line that no run has written."""
    if "outputs" not in record:
        return {}
    texts = (record["input"], record["sha256"], record["making"], *(key for key, *_ in record["outputs"].values()))
    numbers = (record["size"], record["mtime_ns"], *(n for _, *both in record["outputs"].values() for n in both))
    if not (all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)):
        raise TypeError("texts and whole numbers are wanted")
    origin = Origin(record["input"], Stamp(record["size"], record["mtime_ns"]), record["sha256"])
    return {
        key: Entry(stem, Stamp(size, mtime_ns), origin, record["making"], record["state"] == "done")
        for stem, (key, size, mtime_ns) in record["outputs"].items()
    }


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Keeps other processes out, on shared disks too, where appending alone does not; nothing on systems without."""
    if fcntl:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield  # closing the file gives the lock back
