"""A drawn `Mix` -> its audio: parts are cut, changed and placed, all of a batch at once, on the device of choice.

Crops come from the cache on disk, or from `Tapes`, all of the training audio in a device's memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from vocalremover.training import augment, augment_filters, augment_spectra
from vocalremover.training.augment_spectra import EFFECTS
from vocalremover.training.data import FULL_SCALE, Catalogue, Track
from vocalremover.training.mixes import FLAT, Mix, Part

LEVEL = 0.1  # RMS that voices and backings are brought to before their gain: -20 dBFS
ROOMS = 64


class Tapes:
    """The audio of a catalogue in the memory of a device, int16 as in the cache."""

    def __init__(self, catalogue: Catalogue, device: str | torch.device) -> None:
        """Reads everything: as many bytes as the cache has."""
        tracks = (*catalogue.voices, *catalogue.backings, *(track for song in catalogue.songs for track in song))
        self.device = torch.device(device)
        paths = dict.fromkeys(track.path for track in tracks)
        self._audio = {path: torch.from_numpy(np.load(path)).to(self.device) for path in paths}

    def crop(self, track: Track, start: float, samples: int) -> Tensor:
        """`Track.crop` on the device."""
        stored = self._audio[track.path][:, : track.samples]
        first = track.first(start, samples, stored.shape[1])
        taken = stored[:, max(first, 0) : max(first, 0) + samples].float() / FULL_SCALE
        before = max(-first, 0)
        return torch.nn.functional.pad(taken, (before, samples - before - taken.shape[1]))


def render(mix: Mix, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, vocals), each float32 `[2, samples]` at 44.1 kHz."""
    mixtures, vocals = render_batch([mix], samples)
    return mixtures[0].numpy(), vocals[0].numpy()


@torch.no_grad()
def render_batch(
    mixes: Sequence[Mix], samples: int, device: str | torch.device = "cpu", tapes: Tapes | None = None
) -> tuple[Tensor, Tensor]:
    """(mixtures, vocals), each float32 `[batch, 2, samples]` on the device.

    The same mixes give the same audio on the same kind of device; the noise that some effects need is another on
    another kind.
    """
    device = torch.device(device)
    vocals = _sums([mix.voices for mix in mixes], [mix.level for mix in mixes], samples, device, tapes)
    backing = _sums([mix.backings for mix in mixes], [mix.level for mix in mixes], samples, device, tapes)
    both = torch.stack([vocals + backing, vocals], dim=1)  # [batch, 2 (mixture, vocals), 2, samples]
    both = _coded(both, mixes)
    gains = 10 ** (_column(mixes, lambda mix: mix.gain_db, device) / 20)
    levelled = torch.tensor([mix.level == "song" for mix in mixes], device=device)
    gains = torch.where(levelled, gains * LEVEL / augment.loudness(both[:, 0]), gains)
    swapped = torch.tensor([mix.swap for mix in mixes], device=device)
    both = augment.swap(both * gains[:, None, None, None], swapped)
    return both[:, 0], both[:, 1]


def _sums(
    parts: Sequence[tuple[Part, ...]], levels: Sequence[str], samples: int, device: torch.device, tapes: Tapes | None
) -> Tensor:
    """The parts of each example, rendered and added: `[batch, 2, samples]`."""
    total = torch.zeros(len(parts), 2, samples, device=device)
    owners = [owner for owner, mine in enumerate(parts) for _ in mine]
    turns = [turn for mine in parts for turn, _ in enumerate(mine)]
    flat = [part for mine in parts for part in mine]
    if not flat:
        return total
    rendered = torch.empty(len(flat), 2, samples, device=device)
    crops = [_cut(part, samples, device, tapes) for part in flat]
    for channels in {crop.shape[0] for crop in crops}:
        rows = [row for row, crop in enumerate(crops) if crop.shape[0] == channels]
        chain = _Chain([flat[row] for row in rows], device)
        rendered[rows] = chain.run([crops[row] for row in rows], samples)
    levelled = torch.tensor([levels[owner] == "parts" for owner in owners], device=device)
    gains = 10 ** (_column(flat, lambda part: part.gain_db, device) / 20)
    even = torch.where(levelled, LEVEL / augment.loudness(rendered), torch.ones_like(gains))
    rendered = rendered * (gains * even)[:, None, None]
    rendered = augment.drop(rendered, torch.tensor([part.drop for part in flat], device=device))
    for turn in range(max(map(len, parts))):  # one part of each example at a time, always in the same order
        rows = [row for row, mine in enumerate(turns) if mine == turn]
        total[[owners[row] for row in rows]] += rendered[rows]
    return total


def _cut(part: Part, samples: int, device: torch.device, tapes: Tapes | None) -> Tensor:
    """The part's crop `[channels, n]`, sped up; n is what the change of tempo makes `samples` of."""
    needed = samples if part.tempo == 1 else next_fast_len(round(samples * part.tempo) + EFFECTS.n_fft)
    before = needed if part.speed == 0 else next_fast_len(round(needed * 2 ** (part.speed / 12)))
    if tapes is not None:
        crop = tapes.crop(part.track, part.start, before).to(device)
    else:
        crop = torch.from_numpy(part.track.crop(part.start, before)).to(device)
    return augment.change_speed(crop, needed)


@dataclass
class _Chain:
    """The effects of parts that have equally many channels; each one touches only those that drew it."""

    parts: list[Part]
    device: torch.device

    def run(self, crops: list[Tensor], samples: int) -> Tensor:
        """Crops `[channels, n]` -> `[parts, 2, samples]`."""
        audio = self.tempo(crops, samples)
        audio = self.spectral(audio)
        driven = [row for row, part in enumerate(self.parts) if part.compression > 1 or part.drive]
        if driven:  # both depend on how loud something is, so all are made equally loud
            loud = augment.with_loudness(audio[driven], torch.ones(len(driven), device=self.device))
            loud = augment.compress(loud, self.column("compression", driven))
            audio[driven] = augment.distort(loud, self.column("drive", driven))
        self.touch(audio, lambda part: part.gap[1] > part.gap[0], self.silence)
        audio = augment_filters.filtered(audio, self.response(samples)) if self.is_filtered() else audio
        audio = augment.place(audio, self.column("pan"))
        audio = augment.widen(audio, self.column("width"))
        return augment.swap(audio, torch.tensor([part.swap for part in self.parts], device=self.device))

    def column(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """A setting of the parts, float32 `[parts]`."""
        parts = self.parts if rows is None else [self.parts[row] for row in rows]
        return _column(parts, lambda part: getattr(part, name), self.device)

    def touch(self, audio: Tensor, drawn: Callable[[Part], bool], effect: Callable) -> None:
        """Apply an effect (rows, their audio) in place where it was drawn."""
        rows = [row for row, part in enumerate(self.parts) if drawn(part)]
        if rows:
            audio[rows] = effect(rows, audio[rows])

    def tempo(self, crops: list[Tensor], samples: int) -> Tensor:
        """`[parts, channels, samples]`."""
        audio = torch.empty(len(crops), crops[0].shape[0], samples, device=self.device)
        plain = [row for row, part in enumerate(self.parts) if part.tempo == 1]
        if plain:
            audio[plain] = torch.stack([crops[row] for row in plain])
        rows = [row for row, part in enumerate(self.parts) if part.tempo != 1]
        if rows:
            stretched = torch.nn.utils.rnn.pad_sequence([crops[row].T for row in rows], batch_first=True)
            audio[rows] = augment_spectra.stretch(stretched.transpose(1, 2), self.column("tempo", rows), samples)
        return audio

    def spectral(self, audio: Tensor) -> Tensor:
        """Formants, roughness and phases: one spectrogram for all of them."""
        self.touch(audio, lambda part: bool(part.formant or part.roughness or part.phase), self._spectral)
        return audio

    def _spectral(self, rows: list[int], audio: Tensor) -> Tensor:
        spectrogram = EFFECTS.forward(audio)
        spectrogram = augment_spectra.shift_formants(spectrogram, self.column("formant", rows))
        noisy = [place for place, row in enumerate(rows) if self.parts[row].roughness or self.parts[row].phase]
        if noisy:
            which = [rows[place] for place in noisy]
            size = (2, *spectrogram.shape[1:])
            noise = torch.stack([_noise(self.parts[row].noise, size, self.device) for row in which])
            rough = augment_spectra.roughen(spectrogram[noisy], noise[:, 0], self.column("roughness", which))
            spectrogram[noisy] = augment_spectra.blur_phases(rough, noise[:, 1], self.column("phase", which))
        return EFFECTS.inverse(spectrogram, audio.shape[-1])

    def silence(self, rows: list[int], audio: Tensor) -> Tensor:
        """The gaps."""
        edges = [_column([self.parts[row] for row in rows], lambda p, e=e: p.gap[e], self.device) for e in (0, 1)]
        return augment.silence(audio, *edges)

    def is_filtered(self) -> bool:
        """Whether any part drew something that is a response."""
        wet = any(part.echo_db > -inf or part.wet_db > -inf or part.double for part in self.parts)
        cut = any(part.low_cut or part.high_cut < inf for part in self.parts)
        return wet or cut or any(part.equaliser_db != FLAT for part in self.parts)

    def response(self, samples: int) -> Tensor:
        """All that is a response, multiplied: `[parts, bins]`, or `[parts, 2, bins]` where the sides differ."""
        hertz = augment_filters.frequencies(samples, self.device)
        response = torch.ones(len(self.parts), hertz.shape[0], device=self.device)
        self.touch(response, lambda part: part.equaliser_db != FLAT, lambda rows, _: self._equaliser(rows, hertz))
        self.touch(response, lambda part: part.low_cut > 0, lambda rows, taken: taken * self._high_pass(rows, hertz))
        self.touch(response, lambda part: part.high_cut < inf, lambda rows, taken: taken * self._low_pass(rows, hertz))
        if not any(part.echo_db > -inf or part.double or part.wet_db > -inf for part in self.parts):
            return response
        sides = torch.stack([response, response], dim=1).to(torch.complex64)
        self.touch(sides, lambda part: part.echo_db > -inf, lambda rows, taken: taken * self._echo(rows, hertz))
        self.touch(sides, lambda part: bool(part.double), lambda rows, taken: taken * self._double(rows, hertz))
        self.touch(sides, lambda part: part.wet_db > -inf, lambda rows, taken: taken * self._room(rows, samples))
        return sides

    def _equaliser(self, rows: list[int], hertz: Tensor) -> Tensor:
        gains = torch.tensor([self.parts[row].equaliser_db for row in rows], device=self.device)
        return augment_filters.equaliser(gains, hertz)

    def _high_pass(self, rows: list[int], hertz: Tensor) -> Tensor:
        return augment_filters.high_pass(self.column("low_cut", rows), hertz)

    def _low_pass(self, rows: list[int], hertz: Tensor) -> Tensor:
        return augment_filters.low_pass(self.column("high_cut", rows), hertz)

    def _echo(self, rows: list[int], hertz: Tensor) -> Tensor:
        return augment_filters.echo(self.column("echo_seconds", rows), self.column("echo_db", rows), hertz)[:, None]

    def _double(self, rows: list[int], hertz: Tensor) -> Tensor:
        """The same line sung twice, to the left and to the right."""
        seconds = self.column("double", rows)
        levels = torch.full_like(seconds, -3.0)
        return torch.stack([augment_filters.echo(s, levels, hertz) for s in (seconds, 1.7 * seconds)], dim=1)

    def _room(self, rows: list[int], samples: int) -> Tensor:
        rooms = torch.stack([_room(self.parts[row].room, samples, self.device) for row in rows])
        return augment_filters.reverberation(rooms, self.column("wet_db", rows))


def _coded(both: Tensor, mixes: Sequence[Mix]) -> Tensor:
    """What a coder of music does to the mixture, done to the vocals alike, so that both still differ by the backing."""
    samples = both.shape[-1]
    coded = [row for row, mix in enumerate(mixes) if mix.codec < inf]
    if coded:
        depths = _column([mixes[row] for row in coded], lambda mix: mix.codec, both.device)
        spectrograms = EFFECTS.forward(both[coded])
        kept = augment_spectra.coded(spectrograms[:, 0], depths)[:, None]
        both[coded] = EFFECTS.inverse(spectrograms * kept, samples)
    cut = [row for row, mix in enumerate(mixes) if mix.high_cut < inf]
    if cut:
        cuts = _column([mixes[row] for row in cut], lambda mix: mix.high_cut, both.device)
        response = augment_filters.low_pass(cuts, augment_filters.frequencies(samples, both.device))
        both[cut] = augment_filters.filtered(both[cut].flatten(1, 2), response).unflatten(1, (2, 2))
    return both


def _column(items: Sequence, number: Callable[..., float], device: torch.device) -> Tensor:
    return torch.tensor([float(number(item)) for item in items], device=device)


def _noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


@lru_cache(maxsize=ROOMS)
def _room(number: int, samples: int, device: torch.device) -> Tensor:
    """A room's response, kept: about 2 MB for 6 s."""
    return augment_filters.spectrum(augment_filters.room(number), samples).to(device)
