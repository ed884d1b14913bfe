"""Songs whose stems are known: a folder -> per song, which files make its mixture, its vocals and its instrumental.

A file tells its song and its stem by one of four arrangements, which may be nested and mixed:

    SONG/vocals.wav  SONG/drums.wav ...     a folder a song, as in MUSDB18 decoded to files
    vocals/SONG.wav  mixtures/SONG.wav      a folder a stem
    SONG_Vocals.wav  SONG_(Vocals).wav      the stem behind the song's name, as separators write them

A song needs its vocals and its instrumental, or one of them and the mixture. An instrumental without a file of its own
is the sum of the other instruments, else the mixture minus the vocals; vocals without one are the mixture minus the
instrumental.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vocalremover.audio import Reader, resample
from vocalremover.chunks import Queue
from vocalremover.errors import AudioError, InputError

ROLES = {
    "mixture": ("mixture", "mixtures", "mix", "mixes", "original", "originals"),
    "vocals": ("vocals", "vocal", "voice", "voices", "vox", "acapella", "a-cappella", "lead_vocals"),
    "instrumental": (
        "instrumental", "instrumentals", "accompaniment", "accompaniments", "instruments", "no_vocals", "karaoke",
        "backing", "minus_one",
    ),
    "instrument": ("drums", "bass", "other", "guitar", "guitars", "piano", "keys", "synths", "strings", "percussion"),
}  # fmt: skip
NO_AUDIO = frozenset(
    ".csv .json .jsonl .yaml .yml .txt .md .pdf .html .xml .log .lab .mid .midi .jpg .jpeg .png .gif .svg .npy .npz "
    ".pt .ckpt .safetensors .zip .gz .tar .py .sh .cue .m3u .part".split()
)

_ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
_SUFFIXED = re.compile(rf"(.+?)[ _.-]*[_ .(-]({'|'.join(map(re.escape, _ROLE_OF))})\)?$")

Parts = tuple[tuple[Path, int], ...]  # files and the sign they are added with


@dataclass(frozen=True)
class Multitrack:
    """One song: what its mixture, vocals and instrumental are the sums of."""

    name: str
    mixture: Parts
    vocals: Parts
    instrumental: Parts


def audio_files(folder: Path) -> list[Path]:
    """Everything below the folder that may be audio, sorted; hidden files and well-known other kinds are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() not in NO_AUDIO and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def find_multitracks(folder: Path, files: Iterable[Path] | None = None) -> list[Multitrack]:
    """The songs below a folder (or among `files`) whose stems are all there, sorted by name; others are left out."""
    songs: dict[str, dict[str, list[Path]]] = {}
    for path in audio_files(folder) if files is None else files:
        name, role = role_of(path, folder)
        if role:
            songs.setdefault(name, {}).setdefault(role, []).append(path)
    return [song for name in sorted(songs) if (song := _assembled(name, songs[name]))]


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The lines of a manifest.csv, which have a path each and more that its first line names.

    Raises InputError for one without the columns path and kind, or in another encoding than UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:  # which spreadsheets begin with a mark
            table = csv.DictReader(lines)
            missing = {"path", "kind"} - set(table.fieldnames or ())
            rows = [row for row in table if row.get("path")]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}; save it as CSV in UTF-8.") from error
    if missing:
        raise InputError(f"{path} has no column {' and no column '.join(sorted(missing))}; its first line names them.")
    return rows


def role_of(path: Path, folder: Path) -> tuple[str, str | None]:
    """(name of the song, "mixture", "vocals", "instrumental", "instrument" or None for a file that does not tell)."""
    inside = path.relative_to(folder)
    stem, above = inside.stem.lower(), inside.parent
    if stem in _ROLE_OF:
        return (above.as_posix() if above.parts else folder.name), _ROLE_OF[stem]
    if above.name.lower() in _ROLE_OF:
        return (above.parent / inside.stem).as_posix(), _ROLE_OF[above.name.lower()]
    suffixed = _SUFFIXED.fullmatch(stem)
    if suffixed:
        return (above / inside.stem[: len(suffixed[1])]).as_posix(), _ROLE_OF[suffixed[2]]
    return (above / inside.stem).as_posix(), None


def blocks(parts: Parts, rate: int) -> Iterator[Tensor]:
    """The sum of the parts as blocks `[channels, samples]` at `rate`; mono is heard on both sides of a stereo part.

    Ends where the shortest part ends. Raises AudioError.
    """
    (first, sign), *rest = parts
    others = [(_Waiting(path, rate), other) for path, other in rest]
    with Reader(first) as reader:
        for block in resample(reader.blocks(), reader.rate, rate):
            total = sign * block if sign != 1 else block
            for other, other_sign in others:
                taken = other.take(total.shape[-1])
                if 1 < len(total) != len(taken) > 1:
                    raise AudioError(f"{other.path}: has {len(taken)} channels, and {first} has {len(total)}")
                total = total[:, : taken.shape[-1]] + other_sign * taken
            if total.shape[-1]:
                yield total


class _Waiting:
    """A file that is read as fast as another one."""

    def __init__(self, path: Path, rate: int) -> None:
        self.path, self._queue = path, Queue()
        self._blocks = self._decoded(path, rate)

    def _decoded(self, path: Path, rate: int) -> Iterator[Tensor]:
        with Reader(path) as reader:
            yield from resample(reader.blocks(), reader.rate, rate)

    def take(self, samples: int) -> Tensor:
        """The next `[channels, samples]`, or as many as there are."""
        while self._queue.held < samples and (block := next(self._blocks, None)) is not None:
            self._queue.push(block)
        return self._queue.piece(samples) if self._queue.held else torch.zeros(1, 0)


def _assembled(name: str, files: dict[str, list[Path]]) -> Multitrack | None:
    parts = {role: tuple((path, 1) for path in paths[: 1 if role != "instrument" else None])
             for role, paths in files.items()}  # fmt: skip
    mixture, vocals = parts.get("mixture", ()), parts.get("vocals", ())
    instrumental = parts.get("instrumental", ()) or (parts.get("instrument", ()) if vocals else ())
    if mixture and vocals and not instrumental:
        instrumental = mixture + _minus(vocals)
    if mixture and instrumental and not vocals:
        vocals = mixture + _minus(instrumental)
    if not (vocals and instrumental):
        return None
    return Multitrack(name, mixture or vocals + instrumental, vocals, instrumental)


def _minus(parts: Parts) -> Parts:
    return tuple((path, -sign) for path, sign in parts)
