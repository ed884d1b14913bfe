"""Where training audio lies: folders, songs with their stems, a manifest -> the recordings that are in them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vocalremover import checkpoint
from vocalremover.dataset.cache import MELODY, Recording, Source, digest, entry_name
from vocalremover.dataset.credits import read_rows
from vocalremover.dataset.tracks import KINDS, STEMS
from vocalremover.errors import InputError
from vocalremover.evaluate.multitracks import audio_files, find_multitracks


@dataclass(frozen=True)
class Sources:
    """Where training audio lies: folders of any formats, folders of songs with their stems, a manifest.csv.

    held_out: beginnings of paths, as the manifest names them (or `folder/path` for folders), that are left out.
    judged: files of the songs to validate on, resolved; recordings made of them or of copies are left out as well.
    often: beginnings of such paths, and how many times as often as by itself each is drawn, 0.5 being half as often.
    melodies: whether voices are joined by what `melody.add_melodies` made of them.
    Without any source, what the cache was last prepared for is taken, but for what is left out.
    """

    instrumentals: tuple[Path, ...] = ()
    vocals: tuple[Path, ...] = ()
    pairs: tuple[Path, ...] = ()
    manifest: Path | None = None
    held_out: tuple[str, ...] = ()
    often: tuple[tuple[str, float], ...] = ()
    melodies: bool = True
    judged: frozenset[Path] = frozenset()

    @property
    def given(self) -> bool:
        """Whether anything is named."""
        return bool(self.instrumentals or self.vocals or self.pairs or self.manifest)

    @cached_property
    def judged_sizes(self) -> frozenset[int]:
        """Bytes of the judged files: what has another size is no copy, and is not read to find that out."""
        return frozenset(path.stat().st_size for path in self.judged)

    @cached_property
    def judged_digests(self) -> frozenset[str]:
        """The SHA-256 of the judged files."""
        return frozenset(map(checkpoint.sha256, self.judged))


def list_recordings(sources: Sources) -> tuple[list[Recording], list[str]]:
    """What the sources name, and sentences about what they name in vain."""
    recordings: dict[str, Recording] = {}
    problems: list[str] = []
    for recording in _listed(sources, problems):
        if is_left_out(recording, (path for path, _ in recording.parts), sources, problems):
            continue
        if recording.name in recordings:
            # The full path tells two files apart whose folders have the same name.
            recording = replace(recording, name=entry_name(recording.parts[0][0].absolute().as_posix()).strip("_"))
        recordings[recording.name] = recording
    return list(recordings.values()), problems


def is_left_out(recording: Recording, files: Iterable[Path | Source], sources: Sources, problems: list[str]) -> bool:
    """Whether a recording made of these files, as they are or as they were when they were decoded, is left out; a
    sentence where nobody has asked for that by its name."""
    if recording.source.startswith(sources.held_out):
        return True
    judged = bool(sources.judged) and any(_is_judged(file, sources) for file in files)
    if judged:
        problems.append(f"{recording.source}: left out, because it is validated on.")
    return judged


def rows_of(recordings: Iterable[Recording], sources: Sources) -> list[dict[str, str]]:
    """The manifest's lines of what is used; files of plain folders have no more than their path."""
    known = {}
    if sources.manifest:
        known = {row["path"]: row for row in read_rows(_table(sources.manifest), sources.held_out)}
    spoken = ((r.source.removeprefix(MELODY), r.kind) for r in recordings)  # melodies are owed to those who spoke
    plain = ({"path": path, "kind": kind, "source": path.split("/")[0]} for path, kind in spoken)
    return [known.get(row["path"], row) for row in plain]


def _is_judged(file: Path | Source, sources: Sources) -> bool:
    known = isinstance(file, Source)
    path = Path(file.path) if known else file
    if path.resolve() in sources.judged:
        return True
    size = file.size if known else path.stat().st_size if path.is_file() else 0
    if size not in sources.judged_sizes:
        return False
    return (file.sha256 if known else checkpoint.sha256(path)) in sources.judged_digests


def _listed(sources: Sources, problems: list[str]) -> Iterator[Recording]:
    if sources.manifest:
        yield from _from_manifest(sources.manifest, sources.held_out, problems)
    for folders, kind in ((sources.vocals, "singing"), (sources.instrumentals, "instrumental")):
        for folder in folders:
            files = _present(folder, problems)
            for path in files:
                yield _recording(f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}", kind, path)
    taken: set[str] = set()
    for folder in sources.pairs:
        songs = find_multitracks(folder, _present(folder, problems))
        if not songs:
            problems.append(f"{folder}: holds no song with its stems.")
        for song in songs:
            place = f"{folder.resolve().name}/{song.name}"
            if place in taken:  # by a folder of the same name; what holds out one song holds out the other
                place = f"{place}/{digest(str(folder.resolve()))}"
            taken.add(place)
            for stem, parts in (("vocals", song.vocals), ("instrumental", song.instrumental)):
                yield Recording(entry_name(f"{place}/{stem}"), f"{place}/{stem}", "multitrack", parts)


def _from_manifest(manifest: Path, held_out: tuple[str, ...], problems: list[str]) -> Iterator[Recording]:
    path = _table(manifest)
    if not path.exists():
        raise InputError(f"{path} is missing: it must list the training files with the columns path and kind.")
    for row in read_rows(path, held_out):
        kind = row["kind"] or "nothing"
        if kind not in KINDS:
            problems.append(f"{row['path']}: is of kind {kind}, which is none of {', '.join(KINDS)}.")
            continue
        if kind == "multitrack" and Path(row["path"]).stem not in STEMS:
            problems.append(f"{row['path']}: of a multitrack, which gives {' and '.join(STEMS)} by their names.")
            continue
        mono, flags = row["path"].startswith("vocals/"), tuple((row.get("flags") or "").split())
        yield _recording(row["path"], kind, path.parent / row["path"], mono, flags)


def _table(manifest: Path) -> Path:
    """The manifest itself, which may be named by its folder."""
    return manifest / "manifest.csv" if manifest.is_dir() else manifest


def _recording(source: str, kind: str, path: Path, mono: bool = False, flags: tuple[str, ...] = ()) -> Recording:
    return Recording(entry_name(source), source, kind, ((path, 1),), mono, flags)


def _present(folder: Path, problems: list[str]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    files = audio_files(folder)
    if not files:
        problems.append(f"{folder}: holds no audio.")
    return files
