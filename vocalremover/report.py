"""A run as one HTML page: results in, a file out that shows and plays every song and its stems, without any network.

The page grows song by song on the disk; its pictures are inside, its players point at the stems' own files.
"""

import base64
import html
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryFile
from types import TracebackType
from urllib.parse import quote

from torch import Tensor

from vocalremover.batch import Result, Summary
from vocalremover.durations import clock
from vocalremover.errors import AudioError, InputError, UsageError, VocalRemoverError
from vocalremover.pictures import Progress, Sound, measure, spectrogram, waveform
from vocalremover.staging import Staging, bears, sweep
from vocalremover.threads import Aside

MARK = '<meta name="generator" content="vocalremover">'
MIXTURE = "mixture"
HUES = ((128, 134, 146), (222, 78, 96), (44, 138, 196), (62, 156, 96), (196, 136, 36), (146, 98, 196), (80, 150, 150))


class Page:
    """The page of one run, used as a context manager: it has its name, whole, once the block ends normally.

    `settings` are shown as they are. A file of that name is replaced where it is such a page, otherwise only with
    `overwrite` (UsageError). Raises AudioError, at the start or at the end, where the page cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, object], overwrite: bool = False) -> None:
        self.path = path
        self.settings = settings
        self._drawn: list[Callable[[], None]] = []
        self._stopped = False
        if path.is_dir() or (path.exists() and not overwrite and not bears(path, MARK)):
            raise UsageError(f"{path} exists and is no report; choose another name for the report")
        sweep(path.parent)
        with ExitStack() as stack, _told(path):
            folder = stack.enter_context(Staging(path.parent))
            self._part = stack.enter_context(open(folder / "report", "wb"))
            self._songs = stack.enter_context(TemporaryFile())  # what stands above them is known last
            # Beside the work: one thread, so that songs come in order and only one is in memory.
            self._thread = Aside()
            stack.callback(self._thread.end)
            self._stack = stack.pop_all()
        self._summary = Summary()

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                if kind is None:
                    self._finish()
            finally:
                self._stopped = True

    def add(self, result: Result) -> None:
        """Has the song and its stems read once more, in blocks, and their pictures and levels added to the page."""
        self._summary.add(result)
        self._drawn.append(self._thread.begin(self._draw, result, len(self._drawn) + 1))

    def _draw(self, result: Result, number: int) -> None:
        if self._stopped:
            return
        with _told(self.path):
            self._songs.write(_song(result, number, self.path.parent, self._unless_stopped).encode())

    def _unless_stopped(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        for block in blocks:
            if self._stopped:
                raise InputError("the run was stopped")
            yield block

    def _finish(self) -> None:
        record = self._summary.record()  # before the wait for pictures, which is no time that the songs took
        for drawn in self._drawn:
            drawn()
        counts = [f"{record[state]} {state}" for state in ("done", "failed", "skipped") if record[state]]
        songs = f"{len(self._drawn)} song{'s' * (len(self._drawn) != 1)}"
        facts = ", ".join(counts) or "nothing to do"
        if record["done"]:
            facts += f"; {_facts(record['duration'], record['seconds'])}"
        rows = (_part("setting", name=_text(name), value=_text(_flat(of))) for name, of in self.settings.items())
        with _told(self.path):
            self._part.write(_part("head", mark=MARK, songs=songs, facts=facts).encode())
            self._songs.seek(0)
            shutil.copyfileobj(self._songs, self._part)
            self._part.write(_part("foot", settings="".join(rows)).encode())
            self._part.flush()
            os.fsync(self._part.fileno())
            os.replace(self._part.name, self.path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AudioError(f"the report {path} cannot be written: {error.strerror}") from error


def _song(result: Result, number: int, folder: Path, progress: Progress) -> str:
    """One song's part of the page; `folder` is where the page lies, `progress` wraps the blocks of every file."""
    job = result.job
    warnings = list(result.warnings)
    sounds = ""
    if result.error is None:
        try:
            sounds = _sounds({MIXTURE: job.input, **job.outputs}, folder, progress)
        except VocalRemoverError as error:
            warnings.append(f"There are no pictures: {error}")
    notes = [_part("note", kind="warning", text=_text(warning)) for warning in warnings]
    if result.error is not None:
        notes.append(_part("note", kind="error", text=_text(result.error)))
    return _part(
        "song", number=str(number), name=_text(job.input.name), path=_text(str(job.input)), state=result.state,
        facts=_facts(result.duration, result.seconds) if result.state == "done" else "", notes="".join(notes),
        sounds=sounds,
    )  # fmt: skip


def _facts(duration: float, seconds: float) -> str:
    speed = f", {duration / seconds:.1f} times real time" if seconds else ""
    return f"{clock(duration)} of audio{speed}"


def _sounds(paths: Mapping[str, Path], folder: Path, progress: Progress) -> str:
    """Mixture and stems, drawn to the mixture's scale, so that one sees how much of it each stem is."""
    sounds = {name: measure(path, progress) for name, path in paths.items()}
    top = max(sound.peak for sound in sounds.values()) or 1.0
    power = float(sounds[MIXTURE].powers.max(initial=0.0))
    return "".join(
        _part(
            "sound", name=_text(name), link=html.escape(_link(paths[name], folder)), levels=_levels(sound),
            wave=_image(waveform(sound, top, hue)), spectrogram=_image(spectrogram(sound, power)),
            hue=f"rgb{hue}", seconds=f"{sound.seconds:.3f}",
        )
        for (name, sound), hue in zip(sounds.items(), _hues(), strict=False)
    )  # fmt: skip


def _hues() -> Iterable[tuple[int, int, int]]:
    yield HUES[0]
    while True:
        yield from HUES[1:]


def _levels(sound: Sound) -> str:
    return f"peak {_decibels(sound.peak)} dBFS, RMS {_decibels(sound.rms)} dBFS, {_number(sound.loudness)} LUFS"


def _decibels(ratio: float) -> str:
    return _number(20 * math.log10(ratio) if ratio else -math.inf)


def _number(decibels: float) -> str:
    """With a real minus; silence is minus infinity."""
    digits = "∞" if math.isinf(decibels) else f"{abs(decibels):.1f}"
    return f"\N{MINUS SIGN}{digits}" if decibels < 0 and digits != "0.0" else digits


def _link(path: Path, folder: Path) -> str:
    """Relative, so that folder and page can be moved together; a name may hold any bytes."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive of Windows
        return path.resolve().as_uri()
    # What begins with a letter and a colon would be taken for a protocol.
    return "./" + quote(os.fsencode(relative.replace(os.sep, "/")))


def _image(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _flat(value: object) -> str:
    """A setting as words: what is nested comes in brackets, what is absent as a dash."""
    if value is None or value in ((), [], {}):
        return "\N{EN DASH}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_nested(of)}" for name, of in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_nested, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _nested(value: object) -> str:
    return f"({_flat(value)})" if isinstance(value, Mapping | list | tuple) else _flat(value)


def _text(text: str) -> str:
    """Safe in HTML, attributes included; bytes that are no characters and control characters are shown as escapes."""
    return html.escape("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))


def _part(part: str, **words: str) -> str:
    return _parts()[part].substitute(words)


@cache
def _parts() -> dict[str, Template]:
    """The page's template, cut where a line says `<!-- part: NAME -->`."""
    text = (files("vocalremover") / "report.html").read_text(encoding="utf-8")
    cut = re.split(r"^<!-- part: (\w+) -->\n", text, flags=re.MULTILINE)
    return {name: Template(part) for name, part in zip(cut[1::2], cut[2::2], strict=True)}
