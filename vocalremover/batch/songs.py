"""What a person named, out come the songs that it stands for: files, folders, patterns and lists of paths."""

import codecs
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from vocalremover.errors import InputError, UsageError

SONG_SUFFIXES = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .alac .amr .ape .au .avi .caf .eac3 .flac .flv .m2ts .m4a .m4b .m4v .mka .mkv .mov"
    " .mp2 .mp3 .mp4 .mpeg .mpg .mts .oga .ogg .opus .rf64 .tta .w64 .wav .wave .webm .wma .wv".split()
)


@dataclass(frozen=True)
class Song:
    """A file to separate, and how it was come by.

    `named` tells whether the person named it, or a folder or a pattern holds it; `below` is the folder it lies in, seen
    from the folder that was named. `problem` says, where it is not None, why there is no song at this path.
    """

    path: Path
    named: bool = True
    below: PurePath = field(default_factory=PurePath)
    problem: str | None = None


def find_songs(
    inputs: Iterable[str | os.PathLike], recursive: bool = False, out: Path | None = None
) -> list[Song]:
    """Songs in the order given, each once.

    A folder stands for the songs in it, known by their suffix, sorted; `recursive` adds those in the folders below.
    Hidden names are left out, and so is `out` where it lies within. A file is taken as it is, whatever its suffix and
    even if it is missing: its job will say so. `*`, `?` and `[...]` are a pattern where no file has that very name.
    `@list.txt` stands for the paths in a text file (UTF-8, or UTF-16 with its mark), one a line, relative to the list's
    own folder; empty lines and lines that begin with # are left out. What cannot be looked into comes back as a song
    with a `problem`.
    Raises InputError for a list that cannot be read, UsageError for "-", which is no file, and for an empty name.
    """
    songs: dict[Path, Song] = {}
    place = resolver()
    for path in _expanded(inputs):
        for song in _stood_for(path, recursive, out):
            known = songs.setdefault(place(song.path), song)
            if song.named and not known.named:
                songs[place(song.path)] = replace(known, named=True)
    return list(songs.values())


def resolver() -> Callable[[Path], Path]:
    """A function that follows the links on the way to a path, but not the path itself if it is one.

    It remembers the folders that it has seen: ten thousand songs lie in few.
    """
    folders: dict[Path, Path] = {}

    def place(path: Path) -> Path:
        if path.parent not in folders:
            try:
                folders[path.parent] = path.parent.resolve()
            except (OSError, RuntimeError):  # links in a circle
                folders[path.parent] = path.parent.absolute()
        return folders[path.parent] / path.name

    return place


def _expanded(inputs: Iterable[str | os.PathLike]) -> Iterator[Path | Song]:
    for given in map(os.fspath, inputs):
        if not given:
            raise UsageError("an input is empty: name a file or a folder, . for this one")
        if os.path.lexists(given):
            yield Path(given)
        elif given == "-":
            raise UsageError("- is standard input and stands alone: separate files in another run")
        elif given.startswith("@"):
            yield from _listed(Path(given[1:]))
        elif glob.has_magic(given):
            found = [Path(name) for name in sorted(glob.glob(given, recursive=True))]
            yield from (path if path.is_dir() else Song(path, named=False) for path in found)
            if not found:
                yield Song(Path(given), problem=f"{given}: no file has a name like this.")
        else:
            yield Path(given)


def _listed(path: Path) -> Iterator[Path]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the list {path} cannot be read: {error.strerror}") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16", "replace") if wide else content.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise InputError(f"the list {path} is no text")
    # Not splitlines: a file's name may hold the rarer line breaks.
    for line in text.split("\n"):
        if line.strip() and not line.startswith("#"):
            yield path.parent / line.removesuffix("\r")


def _stood_for(path: Path | Song, recursive: bool, out: Path | None) -> Iterable[Song]:
    if isinstance(path, Song):
        return [path]
    return _in_folder(path, recursive, out) if os.path.isdir(path) else [Song(path)]


def _in_folder(top: Path, recursive: bool, out: Path | None) -> Iterator[Song]:
    """The songs of a folder and then, one after another, of the folders in it; a folder met twice is entered once."""
    entered = {identity(out)} - {identity(top), None} if out else set()
    waiting = [PurePath()]
    while waiting:
        below = waiting.pop()
        folder = top / below
        try:
            place = identity(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if place not in entered else []
        except OSError as error:
            yield Song(folder, False, below, f"{folder}: this folder cannot be read: {error.strerror}.")
            continue
        entered.add(place)
        seen = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in seen:
            if PurePath(entry.name).suffix.lower() in SONG_SUFFIXES and _is_song(entry):
                yield Song(folder / entry.name, False, below)
        if recursive:
            waiting += [below / entry.name for entry in reversed(seen) if os.path.isdir(entry.path)]


def _is_song(entry: os.DirEntry) -> bool:
    """Whether it is a file or a link that leads nowhere, which its job will tell; no folder, pipe or device."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file have in common, None where there is none that could be looked at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
