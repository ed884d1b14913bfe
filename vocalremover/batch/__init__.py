"""Files and folders in, jobs out; jobs in, stems on disk out.

`plan` turns what a person named into jobs and refuses, before anything starts, whatever would lose a file. `run` does
the jobs one after another: each song is read, separated and written in blocks into hidden folders beside its outputs,
and its stems appear under their names all together or not at all. A song that fails never stops the others.
"""

import hashlib
import logging
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from string import Formatter
from tempfile import TemporaryDirectory
from time import perf_counter

from torch import Tensor

from vocalremover.audio import Encoding, Reader, Writer
from vocalremover.errors import AudioError, InputError, UsageError, VocalRemoverError
from vocalremover.separate import Separator

STEMS = ("vocals", "instrumental")
CLIPS = ("none", "rescale", "clamp")
FIELDS = ("track", "stem", "ext", "model")
NAME_BYTES = 255
SONG_SUFFIXES = frozenset(
    ".aac .ac3 .aif .aifc .aiff .alac .ape .avi .caf .eac3 .flac .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 .mp4 .oga .ogg"
    " .opus .rf64 .w64 .wav .wave .webm .wma .wv".split()
)

log = logging.getLogger(__name__)

# Wraps the blocks (`[channels, samples]`) of one pass over a song: (blocks, job, what is done, samples if known).
Progress = Callable[[Iterable[Tensor], "Job", str, int | None], Iterable[Tensor]]


@dataclass(frozen=True)
class Settings:
    """How stems are named and written; refuses (UsageError) a template that could not name them.

    `clip` says what happens to a stem beyond full scale: "none" leaves its level alone, "rescale" turns all stems of
    the song down by one common gain, "clamp" limits its samples to -1..1.
    """

    out: Path | None = None
    template: str = "{track}_{stem}.{ext}"
    stems: tuple[str, ...] = STEMS
    encoding: Encoding = field(default_factory=Encoding)
    clip: str = "none"
    overwrite: bool = False
    model: str = "default"

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise UsageError(f"clip is one of {', '.join(CLIPS)}, not {self.clip!r}")
        try:
            fields = [part[1:] for part in Formatter().parse(self.template) if part[1] is not None]
        except ValueError as error:
            raise UsageError(f"the template {self.template!r} cannot be read: {error}") from error
        for name, spec, conversion in fields:
            if name not in FIELDS or spec or conversion:
                known = ", ".join(f"{{{known}}}" for known in FIELDS)
                raise UsageError(f"the template {self.template!r} holds the field {name!r}; known are {known}")
        if not self.template.endswith(".{ext}"):
            raise UsageError(f"the template {self.template!r} must end in .{{ext}}, so that a name tells its format")
        if PurePath(self.template).is_absolute() or ".." in PurePath(self.template).parts:
            raise UsageError(f"the template {self.template!r} leaves the output folder; name that folder with --out")

    def name(self, song: Path, stem: str) -> Path:
        """Where `stem` of `song` goes. A track name too long for the file system is cut and marked with its digest."""
        words = {"stem": stem.capitalize(), "ext": self.encoding.format, "model": PurePath(self.model).stem}
        track = song.stem
        relative = PurePath(self.template.format(track=track, **words))
        excess = max(len(os.fsencode(part)) for part in relative.parts) - NAME_BYTES
        if excess > 0:
            digest = hashlib.sha256(os.fsencode(track)).hexdigest()[:8]
            kept = max(0, len(os.fsencode(track)) - excess - len("~") - len(digest))
            track = os.fsencode(track)[:kept].decode("utf-8", "ignore") + "~" + digest
            relative = PurePath(self.template.format(track=track, **words))
        return (self.out or song.parent) / relative


@dataclass(frozen=True)
class Job:
    """One song and where each of its wanted stems goes."""

    input: Path
    outputs: dict[str, Path]


@dataclass(frozen=True)
class Result:
    """How one job went: `seconds` of work for `duration` seconds of song; `error` is None where the stems are there."""

    job: Job
    seconds: float
    duration: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None

    @property
    def real_time_factor(self) -> float:
        """Seconds of song per second of work: above 1 is faster than playing it."""
        return self.duration / self.seconds if self.seconds > 0 else 0.0


def find_songs(inputs: Iterable[str | os.PathLike]) -> dict[Path, bool]:
    """Songs in the order given, each once; the value tells whether the person named it or a folder held it.

    A folder stands for the songs directly in it, known by their suffix, sorted; hidden files are left out. A file is
    taken as it is, whatever its suffix and even if it is missing: its job will say so.
    """
    songs: dict[Path, bool] = {}
    seen: dict[Path, Path] = {}
    for path in map(Path, inputs):
        is_folder = path.is_dir()
        for song in _songs_in(path) if is_folder else [path]:
            first = seen.setdefault(song.parent.resolve() / song.name, song)
            songs[first] = songs.get(first, False) or not is_folder
    return songs


def plan(inputs: Iterable[str | os.PathLike], settings: Settings) -> list[Job]:
    """One job a song. Refuses an output that is an input or another song's output (UsageError), and finding nothing to
    do (InputError)."""
    inputs = list(inputs)
    songs = find_songs(inputs)
    made = _made_by(songs, settings)
    jobs = []
    for song, named in songs.items():
        if named or not made.get(_bare(song), set()) - {_bare(song)}:
            jobs.append(Job(song, {stem: settings.name(song, stem) for stem in settings.stems}))
        else:
            log.info("%s is left out: it is named like a stem of a song beside it", song)
    if not jobs:
        names = ", ".join(map(str, inputs)) or "what was given"
        raise InputError(f"there is no song in {names}; name a file, or a folder that holds songs")
    _refuse_collisions(jobs)
    return jobs


def run(
    jobs: Iterable[Job],
    separator: Separator,
    settings: Settings,
    progress: Progress = lambda blocks, job, stage, samples: blocks,
) -> Iterator[Result]:
    """Does the jobs in turn. Whatever goes wrong with a song is told in its result's `error` and goes no further."""
    for job in jobs:
        started = perf_counter()
        seen = len(separator.warnings)
        warnings: list[str] = []
        duration, error = 0.0, None
        try:
            duration = _separate(job, separator, settings, progress, warnings)
        except VocalRemoverError as failure:
            error = str(failure)
        except Exception as failure:  # one song in a thousand must not stop the rest, whatever a codec does
            log.debug("%s failed", job.input, exc_info=True)
            error = f"{job.input} failed unexpectedly: {type(failure).__name__}: {failure}"
        warnings.extend(separator.warnings[seen:])
        yield Result(job, perf_counter() - started, duration, tuple(dict.fromkeys(warnings)), error)


def _songs_in(folder: Path) -> list[Path]:
    songs = (path for path in folder.iterdir() if path.suffix.lower() in SONG_SUFFIXES and path.is_file())
    return sorted(path for path in songs if not path.name.startswith("."))


def _key(path: Path) -> str:
    """Equal for two names that are, on some file system, one file: letter case and accents' encoding do not count."""
    return unicodedata.normalize("NFC", str(path.parent.resolve() / path.name)).casefold()


def _bare(path: Path) -> str:
    """The key without its suffix: a stem made as wav last week is no song when flac is asked for today."""
    return _key(path.with_suffix(""))


def _made_by(songs: Iterable[Path], settings: Settings) -> dict[str, set[str]]:
    """Which songs a stem's name would come from, so that a folder's earlier stems are not taken for songs."""
    made: dict[str, set[str]] = {}
    for song in songs:
        for stem in {*STEMS, *settings.stems}:
            made.setdefault(_bare(settings.name(song, stem)), set()).add(_bare(song))
    return made


def _identity(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    return path.stat().st_dev, path.stat().st_ino


def _refuse_collisions(jobs: list[Job]) -> None:
    by_key = {_key(job.input): job.input for job in jobs}
    by_identity = {_identity(job.input): job.input for job in jobs if _identity(job.input)}
    owners: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs.values():
            same = by_key.get(_key(output)) or by_identity.get(_identity(output))
            if same:
                raise UsageError(f"the output {output} is the input {same}; choose another --out or --template")
            owner = owners.setdefault(_key(output), job)
            if owner is not job:
                raise UsageError(
                    f"{owner.input} and {job.input} would both be written to {output}; "
                    "separate them in two runs with different --out folders"
                )
        if len({_key(output) for output in job.outputs.values()}) < len(job.outputs):
            raise UsageError(f"all stems of {job.input} would be written to {output}; put {{stem}} into the template")


def _separate(job: Job, separator: Separator, settings: Settings, progress: Progress, warnings: list[str]) -> float:
    """Does one job; returns the song's length in seconds. What is worth telling is added to `warnings`."""
    _refuse_existing(job, settings)
    with ExitStack() as stack:
        reader = stack.enter_context(Reader(job.input))
        stack.callback(lambda: warnings.extend(reader.warnings))
        staged = {stem: _stage(output, stack) for stem, output in job.outputs.items()}
        stack.enter_context(_errors_name_outputs(staged, job))
        writers = {stem: _writer(path, reader, settings.encoding, stem) for stem, path in staged.items()}
        if settings.clip == "rescale":  # the gain is known only at the song's end, so that the stems wait as floats
            spools = {stem: path.with_name(f"{path.name}.spool") for stem, path in staged.items()}
            whole = {stem: _writer(path, reader, Encoding("wav", "32f"), stem) for stem, path in spools.items()}
            samples, peaks = _write_stems(job, reader, separator, whole, False, progress)
            for stem, spool in spools.items():
                _encode(spool, writers[stem], 1 / max(1.0, *peaks.values()))
        else:
            samples, peaks = _write_stems(job, reader, separator, writers, settings.clip == "clamp", progress)
        warnings.extend(_levels(job, peaks, settings))
        for stem, output in job.outputs.items():
            os.replace(staged[stem], output)
    return samples / reader.rate


def _write_stems(
    job: Job, reader: Reader, separator: Separator, writers: dict[str, Writer], clamp: bool, progress: Progress
) -> tuple[int, dict[str, float]]:
    """Separates a song into `writers`; returns its samples and each stem's largest absolute sample before clamping."""
    peak = None
    if separator.measures:
        peak = separator.peak(progress(reader.blocks(), job, "measuring", reader.samples), reader.rate)
    samples, peaks = 0, dict.fromkeys(writers, 0.0)

    def written() -> Iterator[Tensor]:
        for stems in separator.stream(reader.blocks(), reader.rate, peak, reader.layout):
            for stem, writer in writers.items():
                block = stems[stem]
                peaks[stem] = max(peaks[stem], float(block.abs().max()) if block.numel() else 0.0)
                writer.write(block.clamp(-1, 1) if clamp else block)
            yield block

    with ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer)
        for block in progress(written(), job, "separating", reader.samples):
            samples += block.shape[-1]
    return samples, peaks


def _refuse_existing(job: Job, settings: Settings) -> None:
    for output in job.outputs.values():
        if output.is_dir():
            raise AudioError(f"{output} is a folder; move it away or choose another --template")
        if os.path.lexists(output) and not settings.overwrite:
            raise AudioError(f"{output} exists already; --overwrite replaces it")


def _stage(output: Path, staging: ExitStack) -> Path:
    """A short name in a new hidden folder beside `output`, on its file system, gone when `staging` closes."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = staging.enter_context(TemporaryDirectory(prefix=".vocalremover-", dir=output.parent))
    except OSError as error:
        raise AudioError(f"cannot write into the folder {output.parent}: {error.strerror}") from error
    return Path(folder) / f"stem{output.suffix}"


@contextmanager
def _errors_name_outputs(staged: dict[str, Path], job: Job) -> Iterator[None]:
    """What goes wrong with a staged file is told of the output that it would have become."""
    try:
        yield
    except (AudioError, UsageError, OSError) as error:
        sentence = str(error)
        for stem, path in staged.items():
            sentence = sentence.replace(str(path), str(job.outputs[stem]))
        raise AudioError(sentence) from error


def _writer(path: Path, reader: Reader, encoding: Encoding, stem: str) -> Writer:
    return Writer(path, reader.rate, reader.channels, encoding, reader.tags.for_stem(stem), reader.layout)


def _encode(spool: Path, writer: Writer, gain: float) -> None:
    with Reader(spool) as reader, writer:
        for block in reader.blocks():
            writer.write(block * gain)
    spool.unlink()


def _levels(job: Job, peaks: dict[str, float], settings: Settings) -> Iterator[str]:
    """A sentence for each stem beyond full scale, where the encoding or the settings change its samples."""
    if settings.clip == "none" and settings.encoding.bits == "32f":
        return
    fate = {
        "none": "was clipped; --clip rescale or --bits 32f keeps it whole",
        "rescale": f"was turned down by {20 * math.log10(max(1.0, *peaks.values())):.2f} dB, as all stems of the song",
        "clamp": "was limited to full scale",
    }[settings.clip]
    for stem, peak in peaks.items():
        if peak > 1:
            over = 20 * math.log10(peak)
            yield f"the stem {stem} of {job.input.name} exceeds full scale by {over:.2f} dB and {fate}"
