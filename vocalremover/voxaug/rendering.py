"""A drawn `Mix` -> its audio: parts are cut, changed and placed, all of a batch at once, on the device of choice.

`plans` decides on a CPU what is to be done; `perform` does it without asking back, so that a GPU never waits for a
number. Crops come from the cache on disk, or from `Tapes`, all of the training audio in a device's memory.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vocalremover.dataset import Catalogue
from vocalremover.dataset.cache import FULL_SCALE
from vocalremover.voxaug import filters, spectra, waves
from vocalremover.voxaug.mixes import Mix
from vocalremover.voxaug.plans import COLUMNS, Block, Place, Plan, make_plan
from vocalremover.voxaug.spectra import EFFECTS

LEVEL = 0.1  # RMS that voices and backings are brought to before their gain: -20 dBFS
ROOMS = 64


class Tapes:
    """The audio of a catalogue in the memory of a device, int16 as in the cache, one recording after the other."""

    def __init__(self, catalogue: Catalogue, device: str | torch.device) -> None:
        """Reads everything: as many bytes as the cache has."""
        stored = {path: np.load(path, mmap_mode="r") for path in catalogue.paths}
        self.places: dict[Path, Place] = {}
        total = 0
        for path, audio in stored.items():
            self.places[path] = Place(total, *audio.shape)
            total += audio.size
        self._samples = torch.empty(total, dtype=torch.int16, device=device)
        for path, place in self.places.items():
            audio = torch.from_numpy(np.load(path).ravel())
            self._samples[place.offset : place.offset + audio.numel()].copy_(audio)

    def crop(self, bounds: Tensor, samples: int) -> Tensor:
        """Rows of so many samples, `[rows, samples]`; bounds `[3, rows]`: where a row begins, and between which places
        there is something to be heard."""
        first, low, high = bounds[..., None]
        places = first + torch.arange(samples, device=bounds.device)
        heard = self._samples[places.clamp(low, high - 1)].float() / FULL_SCALE
        return heard.where((places >= low) & (places < high), 0)


def render(mix: Mix, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, vocals), each float32 `[2, samples]` at 44.1 kHz."""
    mixtures, vocals = render_batch([mix], samples)
    return mixtures[0].numpy(), vocals[0].numpy()


def render_batch(
    mixes: Sequence[Mix], samples: int, device: str | torch.device = "cpu", tapes: Tapes | None = None
) -> tuple[Tensor, Tensor]:
    """(mixtures, vocals), each float32 `[batch, 2, samples]` on the device.

    The same mixes give the same audio on the same kind of device; the noise that some effects need is another on
    another kind.
    """
    plan = make_plan(mixes, samples, tapes.places.__getitem__ if tapes else None)
    both = perform(plan, torch.device(device), tapes)
    return both[:, 0], both[:, 1]


@torch.no_grad()
def perform(plan: Plan, device: torch.device, tapes: Tapes | None = None) -> Tensor:
    """The audio of a plan, `[batch, 2 (mixture, vocals), 2, samples]`; tapes: those that the plan was made for."""
    sheet = plan.sheet.to(device)
    both = _sums(plan, sheet, device, tapes).unflatten(0, (plan.mixes, 2))
    vocals, backings = both.unbind(dim=1)
    both = _coded(torch.stack([vocals + backings, vocals], dim=1), sheet)
    gains = 10 ** (sheet["gain_db"] / 20)
    gains = torch.where(sheet["levelled"] > 0, gains * LEVEL / waves.loudness(both[:, 0]), gains)
    return waves.swap(both * gains[:, None, None, None], sheet["swap"] > 0)


def _sums(plan: Plan, sheet: dict[str, Tensor], device: torch.device, tapes: Tapes | None) -> Tensor:
    """The parts of every stem, rendered and added: `[batch * 2 (vocals, backings), 2, samples]`."""
    total = torch.zeros(2 * plan.mixes, 2, plan.samples, device=device)
    if not plan.parts:
        return total
    rows = {block.name: _crops(block, sheet, device, tapes) for block in plan.blocks}
    rendered = torch.empty(plan.parts, 2, plan.samples, device=device)
    for channels in plan.channels:
        rendered[sheet[f"{channels}/into"]] = _Chain(plan, sheet, channels, device).run(rows)
    gains = 10 ** (sheet["part/gain_db"] / 20)
    even = torch.where(sheet["part/levelled"] > 0, LEVEL / waves.loudness(rendered), torch.ones_like(gains))
    rendered = waves.drop(rendered * (gains * even)[:, None, None], sheet["part/drop"])
    for turn in range(plan.turns):  # one part of each stem at a time, always in the same order
        parts, stems = sheet[f"turn/{turn}"]
        total[stems] += rendered[parts]
    return total


def _crops(block: Block, sheet: dict[str, Tensor], device: torch.device, tapes: Tapes | None) -> Tensor:
    """The rows of a block, cut out and sped up: `[rows, longest]`, silent behind the end of a shorter one."""
    if tapes is not None:
        crops = tapes.crop(sheet[f"{block.name}/bounds"], block.longest)
    else:
        crops = torch.zeros(block.rows, block.longest)
        for row, track, first, samples in block.reads:
            audio = torch.from_numpy(track.crop(first, samples))
            crops[row : row + audio.shape[0], :samples] = audio
        crops = crops.to(device)
    sped = crops.new_zeros(block.rows, max(after for _, _, _, after in block.cuts))
    for first, last, before, after in block.cuts:
        sped[first:last, :after] = waves.change_speed(crops[first:last, :before], after)
    return sped


class _Chain:
    """The effects of parts that have equally many channels; each one touches only those that drew it."""

    def __init__(self, plan: Plan, sheet: dict[str, Tensor], channels: int, device: torch.device) -> None:
        self.samples, self.channels, self.device = plan.samples, channels, device
        self._noises, self._rooms = plan.noises[channels], plan.rooms[channels]
        self._sheet = sheet
        self._settings = sheet[f"{channels}/settings"]

    def run(self, rows: dict[str, Tensor]) -> Tensor:
        """Rows of crops, by the names of their blocks -> `[parts, 2, samples]`."""
        audio = self.tempo(rows)
        self.touch(audio, "looped", self.loop)
        self.touch(audio, "spectral", self.spectral)
        self.touch(audio, "driven", self.drive)
        self.touch(audio, "silenced", self.silence)
        response = self.response()
        audio = audio if response is None else filters.filtered(audio, response)
        audio = waves.place(audio, self.column("pan"))
        audio = waves.widen(audio, self.column("width"))
        return waves.swap(audio, self.column("swap") > 0)

    def drawn(self, name: str) -> Tensor | None:
        """Who drew it, None where nobody did."""
        return self._sheet.get(f"{self.channels}/{name}")

    def column(self, name: str, rows: Tensor | None = None) -> Tensor:
        """A setting of the parts, float32 `[parts]`."""
        column = self._settings[:, COLUMNS[name]]
        return column if rows is None else column[rows]

    def touch(self, audio: Tensor, name: str, effect: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Apply an effect (rows, their audio) in place where it was drawn."""
        rows = self.drawn(name)
        if rows is not None:
            audio[rows] = effect(rows, audio[rows])

    def tempo(self, rows: dict[str, Tensor]) -> Tensor:
        """`[parts, channels, samples]`."""
        plain, stretched = self.drawn("plain"), self.drawn("stretched")
        audio = torch.empty(self._settings.shape[0], self.channels, self.samples, device=self.device)
        if plain is not None:
            audio[plain] = rows["plain"][self.drawn("plain_rows")]
        if stretched is not None:
            crops = rows["stretched"][self.drawn("stretched_rows")]
            audio[stretched] = spectra.stretch(crops, self.column("tempo", stretched), self.samples)
        return audio

    def loop(self, rows: Tensor, audio: Tensor) -> Tensor:
        """What a sampler repeats."""
        return waves.loop(audio, filters.RATE * self.column("loop", rows), self.column("loop_begin", rows))

    def spectral(self, rows: Tensor, audio: Tensor) -> Tensor:
        """Formants, roughness and phases: one spectrogram for all of them."""
        spectrogram = EFFECTS.forward(audio)
        spectrogram = spectra.shift_formants(spectrogram, self.column("formant", rows))
        noisy = self.drawn("noisy")
        if noisy is not None:
            which, size = rows[noisy], (2, *spectrogram.shape[1:])
            noise = torch.stack([_noise(seed, size, self.device) for seed in self._noises])
            rough = spectra.roughen(spectrogram[noisy], noise[:, 0], self.column("roughness", which))
            spectrogram[noisy] = spectra.blur_phases(rough, noise[:, 1], self.column("phase", which))
        return EFFECTS.inverse(spectrogram, audio.shape[-1])

    def drive(self, rows: Tensor, audio: Tensor) -> Tensor:
        """Compression and distortion, which depend on how loud something is, of what was made equally loud."""
        loud = waves.with_loudness(audio, torch.ones(audio.shape[0], device=self.device))
        return waves.distort(waves.compress(loud, self.column("compression", rows)), self.column("drive", rows))

    def silence(self, rows: Tensor, audio: Tensor) -> Tensor:
        """The gaps."""
        return waves.silence(audio, self.column("begin", rows), self.column("end", rows))

    def response(self) -> Tensor | None:
        """All that is a response, multiplied: `[parts, bins]`, `[parts, 2, bins]` where the sides differ, or none."""
        alike, differing = ([name for name in each if self.drawn(name) is not None] for each in (ALIKE, DIFFERING))
        if not alike and not differing:
            return None
        hertz = filters.frequencies(self.samples, self.device)
        response = torch.ones(self._settings.shape[0], hertz.shape[0], device=self.device)
        for name in alike:
            self.touch(response, name, lambda rows, taken, name=name: taken * ALIKE[name](self, rows, hertz))
        if not differing:
            return response
        sides = torch.stack([response, response], dim=1).to(torch.complex64)
        for name in differing:
            self.touch(sides, name, lambda rows, taken, name=name: taken * DIFFERING[name](self, rows, hertz))
        return sides

    def equalised(self, rows: Tensor, hertz: Tensor) -> Tensor:
        """Response of the equaliser."""
        return filters.equaliser(self.drawn("equaliser"), hertz)

    def low_cut(self, rows: Tensor, hertz: Tensor) -> Tensor:
        """Response of the high-pass."""
        return filters.high_pass(self.column("low_cut", rows), hertz)

    def high_cut(self, rows: Tensor, hertz: Tensor) -> Tensor:
        """Response of the low-pass."""
        return filters.low_pass(self.column("high_cut", rows), hertz)

    def echoed(self, rows: Tensor, hertz: Tensor) -> Tensor:
        """Response of one repetition."""
        seconds, levels = self.column("echo_seconds", rows), self.column("echo_db", rows)
        return filters.echo(seconds, levels, hertz)[:, None]

    def doubled(self, rows: Tensor, hertz: Tensor) -> Tensor:
        """The same line sung twice, to the left and to the right."""
        seconds = self.column("double", rows)
        levels = torch.full_like(seconds, -3.0)
        return torch.stack([filters.echo(s, levels, hertz) for s in (seconds, 1.7 * seconds)], dim=1)

    def wet(self, rows: Tensor, hertz: Tensor) -> Tensor:
        """Response of the rooms."""
        rooms = torch.stack([_room(number, self.samples, self.device) for number in self._rooms])
        return filters.reverberation(rooms, self.column("wet_db", rows))


# Responses by who draws them: the same on both sides, or not.
ALIKE = {"equalised": _Chain.equalised, "low_cut": _Chain.low_cut, "high_cut": _Chain.high_cut}
DIFFERING = {"echoed": _Chain.echoed, "doubled": _Chain.doubled, "wet": _Chain.wet}


def _coded(both: Tensor, sheet: dict[str, Tensor]) -> Tensor:
    """What a coder of music does to the mixture, done to the vocals alike, so that both still differ by the backing."""
    samples = both.shape[-1]
    coded, cut = sheet.get("coded"), sheet.get("cut")
    if coded is not None:
        spectrograms = EFFECTS.forward(both[coded])
        kept = spectra.coded(spectrograms[:, 0], sheet["codec"])[:, None]
        both[coded] = EFFECTS.inverse(spectrograms * kept, samples)
    if cut is not None:
        response = filters.low_pass(sheet["high_cut"], filters.frequencies(samples, both.device))
        both[cut] = filters.filtered(both[cut].flatten(1, 2), response).unflatten(1, (2, 2))
    return both


def _noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


@lru_cache(maxsize=ROOMS)
def _room(number: int, samples: int, device: torch.device) -> Tensor:
    """A room's response, kept: about 2 MB for 6 s."""
    return filters.spectrum(filters.room(number), samples).to(device)
