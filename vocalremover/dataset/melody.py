"""Speech and sung syllables -> melodies with the same words and the same throat, made once, offline.

Voices that sing are rare among open recordings, voices that speak are not. WORLD (Morise, Yokomori and Ozawa 2016,
through pyworld, which only this module needs) takes a voice apart into pitch, throat and breath; the throat and the
breath are kept, vowels are held as long as notes last, and the pitch is a melody: notes of a scale in a singer's
register, with glides, vibrato and a little drift. The same seed makes the same melody.
"""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np

from vocalremover.dataset.cache import (
    FULL_SCALE,
    RATE,
    Cache,
    Entry,
    Source,
    checksum,
    melody_name,
    write_entry,
)
from vocalremover.dataset.catalogue import saved_recordings
from vocalremover.dataset.pool import make_pool
from vocalremover.errors import DeviceError, InputError

PERIOD = 5.0  # milliseconds between frames
PIECE = 20  # seconds that are taken apart at once; WORLD's spectra of a second take 1.6 MB
CONCERT = 440.0  # hertz
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
REGISTERS = (43, 48, 52, 57, 60, 64, 69)  # MIDI notes in the middle of voices from bass to soprano
SHORTEST_VOWEL = 0.06  # seconds of voice that carry a note; what is shorter is kept as long as it is
LONGEST_PAUSE = 0.25
KINDS = ("speech", "syllables")


@dataclass(frozen=True)
class Style:
    """How someone sings. centre: MIDI note; scale: semitones above the key; glide: seconds from one note to the next;
    vibrato_cents, vibrato_hertz; drift_cents: how far the pitch wanders; notes: shortest and longest, in seconds."""

    centre: float
    key: int
    scale: tuple[int, ...]
    glide: float
    vibrato_cents: float
    vibrato_hertz: float
    drift_cents: float
    notes: tuple[float, float]


def draw_style(rng: np.random.Generator, spoken: float) -> Style:
    """A style for a voice whose median pitch is `spoken` hertz: a register within an octave and a half of it."""
    own = midi(spoken)
    near = [register for register in REGISTERS if -7 <= register - own <= 16]
    near = near or [min(REGISTERS, key=lambda register: abs(register - own))]
    return Style(
        centre=float(rng.choice(near)),
        key=int(rng.integers(12)),
        scale=SCALES[rng.integers(len(SCALES))],
        glide=float(rng.uniform(0.03, 0.12)),
        vibrato_cents=float(rng.uniform(5, 45)),
        vibrato_hertz=float(rng.uniform(4.5, 6.8)),
        drift_cents=float(rng.uniform(2, 10)),
        notes=(float(rng.uniform(0.12, 0.3)), float(rng.uniform(0.5, 1.8))),
    )


def sing(voice: np.ndarray, rng: np.random.Generator, style: Style | None = None) -> np.ndarray:
    """A voice `[samples]` at 44.1 kHz, float -1..1 -> the same words as a melody, as loud, of another length.

    Empty where there is no voice in it. style: drawn to fit, if it is not given. Raises DeviceError without pyworld.
    """
    parts = [_sing_piece(piece, rng, style) for piece in _pieces(voice)]
    return np.concatenate([part for part in parts if part.size] or [np.zeros(0, np.float32)])


def add_melodies(
    cache: Path, seed: int = 1, kinds: Sequence[str] = KINDS, workers: int = 1, limit_bytes: int | None = None,
    progress: Callable[[Iterable[Entry], int], Iterable[Entry]] | None = None,
) -> list[Entry]:  # fmt: skip
    """Sing what a prepared cache holds of these kinds, and keep it there as further voices of the kind melody.

    What is there already, from the same audio and seed, stays. Ends where the cache would exceed its limit. Returns the
    new entries. `dataset.prepare` and `dataset.load` find them. Raises InputError for a cache that was never prepared.
    """
    chosen = [recording for recording in saved_recordings(cache) if recording.kind in kinds]
    store = Cache(cache)
    if not chosen:
        raise InputError(f"{cache} holds no {' or '.join(kinds)} to sing.")
    names = [recording.name for recording in chosen if recording.name in store.entries]
    todo = [name for name in names if not _is_made(store, name, seed)]
    made = _sung(todo, store, seed, workers)
    used, new = store.used(), []
    for entry in progress(made, len(todo)) if progress else made:
        used += entry.size
        if limit_bytes is not None and used > limit_bytes:
            store.path(entry.name).unlink(missing_ok=True)  # which one that cannot be sung has not
            break
        store.note(entry)
        new.append(entry)
    return new


def midi(hertz: float) -> float:
    """MIDI note, 69 being 440 Hz."""
    return 69 + 12 * float(np.log2(hertz / CONCERT))


def make_entry(base: Entry, folder: Path, seed: int) -> Entry:
    """Sing one entry of the cache into the cache; what has no voice in it gives a refused entry."""
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(base.name.encode(errors="surrogatepass"))]))
    audio = np.load(folder / f"{base.name}.npy").mean(axis=0) / FULL_SCALE
    source = Source(base.name, base.size, seed, f"{base.crc32:08x}")
    sung = sing(audio, rng)
    if sung.size < RATE:
        return Entry(melody_name(base.name), (source,), f"{base.name}: has no voice that could sing.")
    path = write_entry(folder, melody_name(base.name), sung[None])
    status = path.stat()
    return Entry(path.stem, (source,), "", 1, sung.size, status.st_size, status.st_mtime_ns, checksum(path))


def _is_made(store: Cache, name: str, seed: int) -> bool:
    base, entry = store.entries[name], store.entries.get(melody_name(name))
    source = Source(name, base.size, seed, f"{base.crc32:08x}")
    return entry is not None and entry.sources == (source,) and (bool(entry.refused) or store.path(entry.name).exists())


def _sung(names: Sequence[str], store: Cache, seed: int, workers: int) -> Iterator[Entry]:
    bases = [store.entries[name] for name in names]
    if workers == 0 or len(bases) < 2:
        yield from (make_entry(base, store.folder, seed) for base in bases)
        return
    with make_pool(workers) as pool:
        yield from pool.map(make_entry, bases, [store.folder] * len(bases), [seed] * len(bases))


def _load_world() -> ModuleType:
    """pyworld, which asks pkg_resources for its own version and nothing else; newer setuptools no longer have that."""
    if find_spec("pyworld") is None:
        raise DeviceError("melodies need the package pyworld: pip install 'vocalremover[train]'.")
    lacking = "pkg_resources" not in sys.modules and find_spec("pkg_resources") is None
    if lacking:
        sys.modules["pkg_resources"] = ModuleType("pkg_resources")
        sys.modules["pkg_resources"].get_distribution = distribution
    try:
        return import_module("pyworld")
    finally:
        if lacking:
            del sys.modules["pkg_resources"]


def _pieces(voice: np.ndarray) -> Iterator[np.ndarray]:
    count = max(1, round(voice.size / RATE / PIECE))
    yield from np.array_split(voice, count)


def _sing_piece(voice: np.ndarray, rng: np.random.Generator, style: Style | None) -> np.ndarray:
    pyworld = _load_world()
    wave = np.ascontiguousarray(voice, dtype=np.float64)
    rough, places = pyworld.dio(wave, RATE, frame_period=PERIOD)
    pitch = pyworld.stonemask(wave, rough, places, RATE)
    if (pitch > 0).sum() * PERIOD < 300:
        return np.zeros(0, np.float32)
    throat = pyworld.cheaptrick(wave, pitch, places, RATE)
    breath = pyworld.d4c(wave, pitch, places, RATE)
    style = style or draw_style(rng, float(np.median(pitch[pitch > 0])))
    sources, notes = _arranged(pitch > 0, rng, style)
    melody = _melody(notes, rng, style)
    sung = pyworld.synthesize(melody, throat[sources], breath[sources], RATE, PERIOD)
    level = np.sqrt(np.square(wave).mean() / max(np.square(sung).mean(), 1e-12))
    return np.clip(sung * level, -1, 1).astype(np.float32)


def _arranged(voiced: np.ndarray, rng: np.random.Generator, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """For every frame to come: the frame that it is made of, and its note (MIDI), 0 where nothing is voiced."""
    sources, notes = [], []
    note = style.centre
    for first, last in _runs(voiced):
        held = (last - first) * PERIOD / 1000
        frames = last - first
        if not voiced[first]:
            frames = min(frames, int(LONGEST_PAUSE * 1000 / PERIOD))
        elif held >= SHORTEST_VOWEL:
            note = _next_note(note, rng, style)
            frames = max(frames, int(np.exp(rng.uniform(*np.log(style.notes))) * 1000 / PERIOD))
        sources.append(_held(first, last, frames))
        notes.append(np.full(frames, note if voiced[first] else 0.0))
    return np.concatenate(sources), np.concatenate(notes)


def _held(first: int, last: int, frames: int) -> np.ndarray:
    """Frames first to last in so many frames: both ends at their own speed, the middle stretched."""
    places = np.linspace(0, 1, frames)
    ends = min(0.4, 0.4 * (last - first) / frames)  # of the new length
    known = np.array([0, ends, 1 - ends, 1]), np.array([0, 0.4, 0.6, 1])
    return (first + np.interp(places, *known) * (last - first - 1)).round().astype(int)


def _runs(voiced: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of every run of equal values."""
    edges = np.flatnonzero(np.diff(voiced.astype(np.int8))) + 1
    yield from zip((0, *edges.tolist()), (*edges.tolist(), voiced.size), strict=True)


def _next_note(note: float, rng: np.random.Generator, style: Style) -> float:
    """Mostly a step or two of the scale away, drawn back to the register's middle."""
    allowed = [n for n in range(int(style.centre) - 12, int(style.centre) + 13) if (n - style.key) % 12 in style.scale]
    steps = np.array(allowed) - note
    weights = np.exp(-np.abs(steps) / 2.5 - np.abs(np.array(allowed) - style.centre) / 6)
    return float(rng.choice(allowed, p=weights / weights.sum()))


def _melody(notes: np.ndarray, rng: np.random.Generator, style: Style) -> np.ndarray:
    """Notes (MIDI, 0 for none) a frame -> hertz a frame: glides, vibrato once a note has settled, drift."""
    seconds = PERIOD / 1000
    pitch = np.zeros(notes.size)
    smooth = np.hanning(80)
    drift = np.convolve(rng.standard_normal(notes.size), smooth / np.sqrt(np.square(smooth).sum()), "same")
    drift = drift[: notes.size]  # of a piece that is shorter than the window
    before = 0.0
    for first, last in _notes(notes):
        note = notes[first]
        if not note:
            continue
        time = np.arange(last - first) * seconds
        start = before or note - rng.uniform(0, 1.5)  # a phrase often begins from below
        glide = (start - note) * np.exp(-time / (style.glide / 2))
        settled = np.clip((time - 0.2) / 0.3, 0, 1)
        vibrato = settled * style.vibrato_cents / 100 * np.sin(2 * np.pi * (style.vibrato_hertz * time + rng.random()))
        pitch[first:last] = note + glide + vibrato + drift[first:last] * style.drift_cents / 100
        before = note if last < notes.size and notes[last] else 0.0
    return np.where(notes > 0, CONCERT * 2 ** ((pitch - 69) / 12), 0.0)


def _notes(notes: np.ndarray) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(notes)) + 1
    yield from zip((0, *edges.tolist()), (*edges.tolist(), notes.size), strict=True)
