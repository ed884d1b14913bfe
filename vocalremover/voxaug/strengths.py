"""How strongly voxaug changes what it mixes: plain numbers, from a preset or from a recipe.

`ORIGINAL` is what carperbr's voxaug2 did (frame-transformer, commit 85e7f18b, dataset_voxaug2.py): gains, swapped and
dropped channels, a few examples without vocals, and nothing else. `OURS` stands in for the singers, rooms and producers
that a small collection lacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from vocalremover.errors import UsageError

BELL = 5  # a bell's standard deviations between its ends


@dataclass(frozen=True)
class Dose:
    """An effect is drawn with a chance, and then a number from low to high, evenly or along a bell."""

    chance: float = 0.0
    low: float = 0.0
    high: float = 0.0
    bell: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise UsageError(f"augmentation: the chance of a dose is from 0 to 1, not {self.chance:g}")

    def draw(self, rng: np.random.Generator, without: float = 0.0) -> float:
        """The number, or `without` where the effect is absent. Takes two numbers from `rng` in either case."""
        chosen = rng.random() < self.chance
        place = np.clip(0.5 + rng.standard_normal() / BELL, 0, 1) if self.bell else rng.random()
        return float(self.low + place * (self.high - self.low)) if chosen else without


@dataclass(frozen=True)
class Doses:
    """The effects on one voice or one backing.

    gain_db: relative to the common level; factor: a gain as a plain number; speed: semitones, like a tape; tempo: ratio
    at a constant pitch; formant: semitones at a constant pitch; pan, aside: -1..1, of which `aside` wins; width: 0 is
    mono, 1 as it is; equaliser_db: how much its bands differ; compression: ratio; drive: 1 bends what is loud;
    low_cut, high_cut: hertz; echo_db, wet_db: level of echo and room; double: seconds between a line and its double;
    harmony: level in dB of the same line at another pitch; roughness: noise in each bin; phase: radians of noise; gap:
    share of the example that is silent; loop: seconds that are repeated over and over, as samplers do; swap, drop,
    mono: of the channels.
    """

    gain_db: Dose = Dose()
    factor: Dose = Dose()
    speed: Dose = Dose()
    tempo: Dose = Dose()
    formant: Dose = Dose()
    pan: Dose = Dose()
    aside: Dose = Dose()
    width: Dose = Dose()
    equaliser_db: Dose = Dose()
    compression: Dose = Dose()
    drive: Dose = Dose()
    low_cut: Dose = Dose()
    high_cut: Dose = Dose()
    echo_db: Dose = Dose()
    wet_db: Dose = Dose()
    double: Dose = Dose()
    harmony: Dose = Dose()
    roughness: Dose = Dose()
    phase: Dose = Dose()
    gap: Dose = Dose()
    loop: Dose = Dose()
    swap: Dose = Dose()
    drop: Dose = Dose()
    mono: Dose = Dose()


@dataclass(frozen=True)
class Strengths:
    """All of voxaug. level: bring voices and backings to a common level before their gains; songs: share of examples
    whose voice is a whole song's, besides those that come to it in turn; song: chance that such a voice meets its own
    backing as it was mixed; second_voice, second_backing: level in dB of another one; no_voice, no_backing: chance of
    an example without; gain_db, swap, codec, high_cut: of the finished mix, `codec` being how many dB below its
    surroundings a bin is dropped, as coders of music do."""

    voice: Doses = Doses()
    backing: Doses = Doses()
    level: bool = False
    songs: float = 0.0
    song: float = 0.0
    second_voice: Dose = Dose()
    second_backing: Dose = Dose()
    no_voice: float = 0.0
    no_backing: float = 0.0
    gain_db: Dose = Dose()
    swap: float = 0.0
    codec: Dose = Dose()
    high_cut: Dose = Dose()

    def __post_init__(self) -> None:
        for name in ("songs", "song", "no_voice", "no_backing", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation.{name} is a share from 0 to 1, not {getattr(self, name):g}")


ORIGINAL = Strengths(
    voice=Doses(factor=Dose(0.5, 0.5, 1.5), swap=Dose(0.5), drop=Dose(0.025)),
    no_voice=0.025,
    swap=0.5,
)

OURS = Strengths(
    voice=Doses(
        gain_db=Dose(1, -13, 9, bell=True), speed=Dose(0.6, -4, 4), tempo=Dose(0.1, 0.8, 1.25),
        formant=Dose(0.25, -4, 4), pan=Dose(0.8, -0.2, 0.2, bell=True), aside=Dose(0.2, -0.8, 0.8),
        width=Dose(0.2, 0, 1.5), equaliser_db=Dose(2 / 3, 2, 5), compression=Dose(0.5, 1.5, 8), drive=Dose(0.2, 0.5, 4),
        low_cut=Dose(1, 60, 90), high_cut=Dose(0.1, 3000, 16000), echo_db=Dose(0.2, -20, -8), wet_db=Dose(0.7, -26, -6),
        double=Dose(0.15, 0.008, 0.03), harmony=Dose(0.15, -12, -2), roughness=Dose(0.05, 0.05, 0.4),
        phase=Dose(0.05, 0.1, 0.8), gap=Dose(0.3, 0.1, 0.6), swap=Dose(0.5),
    ),
    backing=Doses(
        speed=Dose(0.4, -3, 3), tempo=Dose(0.05, 0.85, 1.2), width=Dose(0.15, 0.3, 1.5), equaliser_db=Dose(2 / 3, 1, 4),
        compression=Dose(0.15, 1.5, 4), drive=Dose(0.05, 0.3, 1.5), wet_db=Dose(0.05, -26, -12),
        roughness=Dose(0.03, 0.05, 0.3), phase=Dose(0.03, 0.1, 0.4), swap=Dose(0.5), mono=Dose(0.08),
    ),
    level=True, song=0.5, second_voice=Dose(0.2, -10, 0), second_backing=Dose(0.15, -12, 0), no_voice=0.08,
    no_backing=0.03, gain_db=Dose(1, -14, 4), codec=Dose(0.1, 6, 24), high_cut=Dose(0.1, 10000, 18000),
)  # fmt: skip

PRESETS = {"original": ORIGINAL, "ours": OURS}


def strengths_of(settings: Mapping[str, Any]) -> Strengths:
    """A recipe's words -> strengths: `preset` names what the others change, a dose is a list of its numbers.

    {"preset": "ours", "no_voice": 0.1, "voice": {"speed": [0.5, -6, 6]}}. Raises UsageError for a name that is unknown
    or a value that is no dose.
    """
    settings = dict(settings)
    name = settings.pop("preset", "ours")
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r} of strengths: choose {' or '.join(PRESETS)}")
    return _changed(PRESETS[name], settings, "augmentation")


def _changed(base: object, settings: object, where: str) -> object:
    numbers = isinstance(settings, Sequence) and all(isinstance(number, bool | int | float) for number in settings)
    if isinstance(base, Dose) and numbers and 1 <= len(settings) <= 4:
        return Dose(*settings)
    if is_dataclass(base) and isinstance(settings, Mapping):
        known = {field.name for field in fields(base)}
        for key in settings:
            if key not in known:
                raise UsageError(f"{where} has no setting {key!r}: choose from {', '.join(sorted(known))}")
        changes = {key: _changed(getattr(base, key), value, f"{where}.{key}") for key, value in settings.items()}
        return replace(base, **changes)
    if isinstance(settings, bool | int | float) and not is_dataclass(base):
        return type(base)(settings)
    raise UsageError(f"{where} cannot be {settings!r}: a dose is [chance, low, high]")
