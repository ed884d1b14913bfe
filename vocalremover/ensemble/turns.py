"""Models that do not fit into memory together take turns: each runs over all songs before the next one is loaded.

    turns = Turns(names)
    with turns.spooling(out):
        for songs in turns.portions(all_songs):
            turns.hear(songs)
            for song in songs:
                turns.play(song).separate(...)

What they say waits in spools in a hidden folder, which is gone at the end, however that comes. The stems are those of
an Ensemble of the same models, to the rounding of their sums.
"""

import gc
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vocalremover import checkpoint, machine
from vocalremover.audio import Reader
from vocalremover.audio.layouts import pairs_of
from vocalremover.devices import choose_device, choose_precision, lacks_memory
from vocalremover.ensemble.choir import grid
from vocalremover.ensemble.ensemble import MIN, Ensemble, common_stems, configured, suited, unsuited
from vocalremover.ensemble.rules import Rule
from vocalremover.ensemble.spools import kept_stems, played, record
from vocalremover.errors import VocalRemoverError
from vocalremover.separate import DEFAULTS, Inference, Separator
from vocalremover.staging import Staging

SHARE = 0.5  # of the memory that is free, for weights; the rest is for what the networks make of a window
DENSEST = 4  # samples in a byte of a file that does not tell its length, of opus at 96 kbit/s
DISK_SHARE = 0.8  # of the disk that is free, for spools; the rest is for the stems

log = logging.getLogger(__name__)

# Wraps the blocks of one pass over a song: (blocks, song, what is done, samples if known).
Progress = Callable[[Iterable[Tensor], Path, str, int | None], Iterable[Tensor]]


class Turns:
    """Models over songs, one after another.

    `stems`, `device`, `warnings` and `describe()` are those of an Ensemble; `measures` is False, since a song that is
    played needs no first pass.
    """

    measures = False

    def __init__(
        self, names: Sequence[str | Path], device: str = "auto", rule: Rule | str = MIN,
        inference: Inference = DEFAULTS, configs: Sequence[Path | None] | None = None,
        stems: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """As Ensemble.load; every checkpoint is opened once and must be sound, but none is kept in memory."""
        self.rule = Rule.parse(rule) if isinstance(rule, str) else rule
        self.device = choose_device(device)
        choose_precision(inference.precision, self.device)
        self._pairs = configured(names, configs)
        specs = {pair: checkpoint.load(pair[0], "cpu", pair[1])[0] for pair in dict.fromkeys(self._pairs)}
        self.stems = common_stems(list(specs.values()), [set(spec.stems) for spec in specs.values()], stems)
        # Without their networks they tell all settings, and refuse those that cannot be.
        self._models = {
            pair: Separator(spec, nn.Identity(), self.device, suited(spec, inference), self.stems)
            for pair, spec in specs.items()
        }
        self._ensemble = Ensemble([self._models[pair] for pair in self._pairs], self.rule, self.stems)
        notes = [note for spec in specs.values() for note in unsuited(spec, inference)]
        self.warnings = [*self._ensemble.warnings, *notes]
        self._failures: dict[Path, Exception] = {}
        self._spools: dict[Path, list[Path]] = {}
        self._count = 0

    @contextmanager
    def spooling(self, folder: Path) -> Iterator[None]:
        """While it lasts, songs can be heard: their spools lie in a hidden folder in this one.

        Its disk needs room for a stem per song and model. Raises AudioError where nothing can be written.
        """
        with Staging(folder) as self._hidden:
            yield

    def describe(self) -> dict[str, object]:
        """As Ensemble.describe."""
        return self._ensemble.describe()

    def portions(self, songs: Iterable[Path]) -> Iterator[list[Path]]:
        """The songs in their order, in lists whose spools the disk has room for; asked for one after the other."""
        portion, needed = [], 0
        for song in songs:
            size = self._bytes(song)
            if portion and needed + size > DISK_SHARE * shutil.disk_usage(self._hidden).free:
                yield portion
                portion, needed = [], 0
            portion.append(song)
            needed += size
        if portion:
            yield portion

    def hear(self, songs: Iterable[Path], progress: Progress = lambda blocks, song, stage, samples: blocks) -> None:
        """Runs every model over the songs. A song that fails stops no other; `play` raises what stopped it.

        Raises ModelError and DeviceError where a model cannot be loaded.
        """
        songs = list(songs)
        for song in songs:
            self._spools[song] = [self._spool() for _ in self._models]
        peaks: dict[tuple, float | None] = {}
        for number, (pair, silent) in enumerate(self._models.items()):
            spec, (_, network) = silent.spec, checkpoint.load(pair[0], self.device, pair[1])
            separator = Separator(spec, network, self.device, silent.inference, self.stems)
            name = f"{spec.name} ({number + 1} of {len(self._models)})" if len(self._models) > 1 else spec.name
            for song in songs:
                try:
                    if song not in self._failures:
                        self._hear(separator, song, self._spools[song][number], peaks, name, progress)
                except Exception as failure:  # one song in a thousand must not stop the rest
                    log.debug("%s failed", song, exc_info=True)
                    failure.__cause__ = failure.__context__ = None
                    self._failures[song] = failure.with_traceback(None)  # whose frames would keep the model in memory
                    self._remove(song)
            told = [f"{spec.name}: {warning}" for warning in separator.warnings]
            self.warnings += (warning for warning in told if warning not in self.warnings)
            del separator, network
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def play(self, song: Path) -> Ensemble:
        """The models as they spoke of this song, for its blocks only. Raises what stopped them."""
        if song in self._failures:
            raise self._failures[song]
        spools = dict(zip(self._models, self._spools[song], strict=True))
        heard = {pair: played(model.spec, spools[pair], self.stems) for pair, model in self._models.items()}
        return _Heard(self, [heard[pair] for pair in self._pairs])

    def forget(self, song: Path) -> None:
        """Removes what is kept of a song."""
        self._failures.pop(song, None)
        self._remove(song)

    def _hear(
        self, separator: Separator, song: Path, spool: Path, peaks: dict[tuple, float | None], name: str,
        progress: Progress,
    ) -> None:  # fmt: skip
        with Reader(song) as reader:
            key = (song, separator.spec.stft, separator.spec.rate)
            if separator.measures and key not in peaks:
                blocks = progress(reader.blocks(), song, "measuring", reader.samples)
                peaks[key] = separator.peak(blocks, reader.rate)
            peak = peaks.get(key) if separator.measures else None
            done = record(separator, reader, reader.blocks(), peak, spool)
            for _ in progress(done, song, f"separating with {name}", reader.samples):
                pass

    def _spool(self) -> Path:
        self._count += 1
        return self._hidden / f"{self._count}.wav"

    def _remove(self, song: Path) -> None:
        for spool in self._spools.pop(song, []):
            spool.unlink(missing_ok=True)

    def _bytes(self, song: Path) -> int:
        """About how much the spools of a song take, 0 where it cannot be read."""
        try:
            with Reader(song) as reader:
                samples = reader.samples or DENSEST * song.stat().st_size
                channels, rate, layout = reader.channels, reader.rate, reader.layout
        except (VocalRemoverError, OSError):
            return 0
        total = 0
        for spec in (model.spec for model in self._models.values()):
            if grid(spec):
                frames = samples / rate * spec.rate / spec.stft.hop
                total += round(8 * len(pairs_of(channels, layout)) * spec.stft.bins * frames)
            else:
                total += 4 * channels * samples * len(kept_stems(spec, self.stems))
        return total


class _Heard(Ensemble):
    """What models said of a song: described, on disk and to people, as they were when they heard it."""

    def __init__(self, turns: Turns, separators: Sequence[Separator]) -> None:
        super().__init__(separators, turns.rule, turns.stems)
        self._turns = turns

    @property
    def device(self) -> torch.device:
        """Where the models ran."""
        return self._turns.device

    def describe(self) -> dict[str, object]:
        """As Ensemble.describe."""
        return self._turns.describe()


def fit_together(names: Sequence[str | Path], device: str = "auto") -> bool:
    """Whether the weights of all models leave the device room to work; True where its memory is not known."""
    sizes = {path: path.stat().st_size for path in map(checkpoint.find, dict.fromkeys(names))}
    free = _free(choose_device(device))
    return len(sizes) == 1 or free is None or sum(sizes.values()) <= SHARE * free


def load_all(
    names: Sequence[str | Path], device: str = "auto", rule: Rule | str = MIN, inference: Inference = DEFAULTS,
    configs: Sequence[Path | None] | None = None, stems: Sequence[str] | None = None, in_turn: bool | None = None,
) -> Ensemble | Turns:  # fmt: skip
    """An Ensemble where the models fit into memory together, else Turns; `in_turn` decides it where it is not None."""
    settings = (device, rule, inference, configs, stems)
    if not in_turn and (in_turn is False or fit_together(names, device)):
        try:
            return Ensemble.load(names, *settings)
        except (MemoryError, RuntimeError) as error:
            if in_turn is False or not lacks_memory(error):
                raise
    return Turns(names, *settings)


def _free(device: torch.device) -> int | None:
    """The bytes that a device has free; None where nobody tells."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.memory()[1]
