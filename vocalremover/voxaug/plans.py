"""Drawn mixes -> a `Plan`: all that can be known of their audio before there is any, as a few arrays of numbers.

A plan is made on a CPU, in another process if need be, and travels to the device in two copies; `rendering` then works
through it without once asking back. Every channel of every part is a row; rows that are cut and sped up alike stand
together, so that one transform serves them, and the parts that drew an effect are listed for all of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vocalremover.dataset import Track
from vocalremover.voxaug.mixes import FLAT, Mix, Part
from vocalremover.voxaug.spectra import EFFECTS

STEPS = 16  # lengths of crops that are played at another tempo, as parts of an example: few, to be planned once
SETTINGS = (
    "gain_db", "tempo", "formant", "compression", "drive", "pan", "width", "swap", "low_cut", "high_cut",
    "echo_seconds", "echo_db", "wet_db", "double", "roughness", "phase", "drop", "loop", "loop_begin",
)  # fmt: skip
COLUMNS = {name: place for place, name in enumerate((*SETTINGS, "begin", "end"))}
# Who is touched by an effect.
DRAWN: dict[str, Callable[[Part], bool]] = {
    "plain": lambda part: part.tempo == 1,
    "stretched": lambda part: part.tempo != 1,
    "spectral": lambda part: bool(part.formant or part.roughness or part.phase),
    "looped": lambda part: part.loop > 0,
    "driven": lambda part: part.compression > 1 or bool(part.drive),
    "silenced": lambda part: part.gap[1] > part.gap[0],
    "equalised": lambda part: part.equaliser_db != FLAT,
    "low_cut": lambda part: part.low_cut > 0,
    "high_cut": lambda part: part.high_cut < inf,
    "echoed": lambda part: part.echo_db > -inf,
    "doubled": lambda part: bool(part.double),
    "wet": lambda part: part.wet_db > -inf,
}


@dataclass(frozen=True)
class Place:
    """Where a recording lies: its first sample in the tapes, its channels and their length, one after the other."""

    offset: int
    channels: int
    samples: int


Places = Callable[[Path], Place]


class Sheet:
    """Named arrays, packed as one of whole numbers and one of others; arrays without numbers are left out."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        packed: dict[bool, list[np.ndarray]] = {True: [], False: []}
        self._places: dict[str, tuple[bool, int, tuple[int, ...]]] = {}
        begins = {True: 0, False: 0}
        for name, array in arrays.items():
            if array.size:
                whole = array.dtype.kind == "i"
                self._places[name] = whole, begins[whole], array.shape
                packed[whole].append(array.ravel())
                begins[whole] += array.size
        self._wholes = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *packed[True]]))
        self._floats = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *packed[False]]))

    def to(self, device: torch.device) -> dict[str, Tensor]:
        """The arrays on a device, by their names."""
        wholes, floats = (send(each, device) for each in (self._wholes, self._floats))
        return {
            name: (wholes if whole else floats)[begin : begin + prod(shape)].view(shape)
            for name, (whole, begin, shape) in self._places.items()
        }


@dataclass(frozen=True)
class Block:
    """Rows that are cut out together, in the order in which they lie. name: "plain" or "stretched"; cuts: (first row,
    row behind the last, samples that are cut, samples that these become); reads: (row, track, first sample, samples) of
    every part, for those who read from disk."""

    name: str
    rows: int
    cuts: tuple[tuple[int, int, int, int], ...]
    reads: tuple[tuple[int, Track, int, int], ...]

    @property
    def longest(self) -> int:
        """Samples of the longest cut."""
        return max(cut for _, _, cut, _ in self.cuts)


@dataclass(frozen=True)
class Plan:
    """What `rendering.perform` works through. samples: of an example; mixes, parts: how many; turns: the most parts
    that one stem has; channels: of the parts, 1 or 2 or both; noises, rooms: by channels, the numbers of what is not an
    array before it is made."""

    samples: int
    mixes: int
    parts: int
    turns: int
    blocks: tuple[Block, ...]
    channels: tuple[int, ...]
    noises: Mapping[int, tuple[int, ...]]
    rooms: Mapping[int, tuple[int, ...]]
    sheet: Sheet


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which nobody waits for; on the CPU the same."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


@lru_cache(maxsize=4096)
def on_disk(path: Path) -> Place:
    """The place of a recording that is read from its file."""
    channels, samples = np.load(path, mmap_mode="r").shape
    return Place(0, channels, samples)


def make_plan(mixes: Sequence[Mix], samples: int, places: Places | None = None) -> Plan:
    """places: where the tapes hold a recording; without them, its file is read."""
    stems = [stem for mix in mixes for stem in (mix.voices, mix.backings)]
    parts = [part for stem in stems for part in stem]
    levelled = [mix.level == "parts" for mix in mixes for stem in (mix.voices, mix.backings) for _ in stem]
    found = [(places or on_disk)(part.track.path) for part in parts]
    rows: dict[int, int] = {}  # of parts: the first of their rows in its block
    arrays: dict[str, np.ndarray] = {}
    blocks = []
    for name in ("plain", "stretched"):
        chosen = [number for number, part in enumerate(parts) if DRAWN[name](part)]
        if chosen:
            cuts = {number: _cut(parts[number], samples) for number in chosen}
            blocks.append(_block(name, parts, samples, found, cuts, rows, arrays, places is None))
    channels = tuple(sorted({place.channels for place in found}))
    noises, rooms = {}, {}
    for count in channels:
        numbers = [number for number, place in enumerate(found) if place.channels == count]
        mine = [parts[number] for number in numbers]
        arrays |= {f"{count}/{name}": array for name, array in _group(mine, [rows[n] for n in numbers], count).items()}
        arrays[f"{count}/into"] = np.array(numbers)
        noises[count] = tuple(part.noise for part in mine if part.roughness or part.phase)
        rooms[count] = tuple(part.room for part in mine if DRAWN["wet"](part))
    arrays |= _whole(mixes, stems)
    arrays["part/levelled"] = np.array(levelled, np.float32)
    arrays["part/gain_db"] = np.array([part.gain_db for part in parts], np.float32)
    arrays["part/drop"] = np.array([part.drop for part in parts], np.float32)
    turns = max((len(stem) for stem in stems), default=0)
    return Plan(samples, len(mixes), len(parts), turns, tuple(blocks), channels, noises, rooms, Sheet(arrays))


def _cut(part: Part, samples: int) -> tuple[int, int]:
    """(samples that are cut out, samples that these become when they are sped up)."""
    needed = samples
    if part.tempo != 1:
        step = max(samples // STEPS, 1)
        needed = fast_length(-(-round(samples * part.tempo + EFFECTS.n_fft) // step) * step)
    return (needed if part.speed == 0 else fast_length(round(needed * 2 ** (part.speed / 12)))), needed


def _heard(part: Part, samples: int) -> int:
    """How much of the recording is heard in the end: as much of a voice as of its harmony, which is cut out longer."""
    return round(samples * part.tempo * 2 ** (part.speed / 12))


@lru_cache
def fast_length(least: int) -> int:
    """The smallest product of twos, threes and fives that is at least so many: Fourier transforms like such lengths."""
    odd = (3**threes * 5**fives for threes in range(20) for fives in range(14))
    return min(number << (-(-least // number) - 1).bit_length() for number in odd)


def _block(
    name: str, parts: Sequence[Part], samples: int, found: Sequence[Place], cuts: Mapping[int, tuple[int, int]],
    rows: dict[int, int], arrays: dict[str, np.ndarray], reading: bool,
) -> Block:  # fmt: skip
    """Lay the parts' channels in rows, those of equal cuts together; tells `rows` and `arrays` where they are."""
    order = sorted(cuts, key=lambda number: (cuts[number], number))
    runs, reads, bounds = [], [], []
    for number in order:
        part, place, (before, after) = parts[number], found[number], cuts[number]
        row = rows[number] = len(bounds)
        stored = place.samples if part.track.samples is None else min(part.track.samples, place.samples)
        first = part.track.first(part.start, _heard(part, samples), stored)
        for channel in range(place.channels):
            low = place.offset + channel * place.samples
            bounds.append((low + first, low, low + stored))
        if runs and runs[-1][2:] == (before, after):
            runs[-1] = (runs[-1][0], len(bounds), before, after)
        else:
            runs.append((row, len(bounds), before, after))
        if reading:
            reads.append((row, part.track, first, before))
    arrays[f"{name}/bounds"] = np.array(bounds).T.copy()
    return Block(name, len(bounds), tuple(runs), tuple(reads))


def _group(parts: Sequence[Part], rows: Sequence[int], channels: int) -> dict[str, np.ndarray]:
    """The settings of parts with equally many channels, who drew what, and the rows where they lie."""
    table = [[float(getattr(part, name)) for name in SETTINGS] + [*part.gap] for part in parts]
    arrays = {"settings": np.array(table, np.float32)}
    for name, drawn in DRAWN.items():
        arrays[name] = np.array([place for place, part in enumerate(parts) if drawn(part)], np.int64)
    spectral = [parts[place] for place in arrays["spectral"]]
    arrays["noisy"] = np.array([p for p, part in enumerate(spectral) if part.roughness or part.phase], np.int64)
    arrays["equaliser"] = np.array([parts[place].equaliser_db for place in arrays["equalised"]], np.float32)
    beside = np.array(rows)[:, None] + np.arange(channels)
    return arrays | {f"{name}_rows": beside[arrays[name]] for name in ("plain", "stretched")}


def _whole(mixes: Sequence[Mix], stems: Sequence[tuple[Part, ...]]) -> dict[str, np.ndarray]:
    """What is done to whole mixes; in which stem the parts of every turn are added up."""
    coded = [number for number, mix in enumerate(mixes) if mix.codec < inf]
    cut = [number for number, mix in enumerate(mixes) if mix.high_cut < inf]
    arrays = {
        "gain_db": np.array([mix.gain_db for mix in mixes], np.float32),
        "swap": np.array([mix.swap for mix in mixes], np.float32),
        "levelled": np.array([mix.level == "song" for mix in mixes], np.float32),
        "coded": np.array(coded, np.int64),
        "codec": np.array([mixes[number].codec for number in coded], np.float32),
        "cut": np.array(cut, np.int64),
        "high_cut": np.array([mixes[number].high_cut for number in cut], np.float32),
    }
    turns = [(turn, stem) for stem, mine in enumerate(stems) for turn in range(len(mine))]
    for turn in {turn for turn, _ in turns}:
        mine = [(part, stem) for part, (when, stem) in enumerate(turns) if when == turn]
        arrays[f"turn/{turn}"] = np.array(mine).T.copy()  # parts, and the stems that they are added to
    return arrays
