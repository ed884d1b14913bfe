"""What a drawn training example is, as plain numbers: a `Mix` of `Part`s, to be rendered by `rendering`."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from vocalremover.dataset import Track

BANDS = 12  # knots of a random equaliser, evenly spaced in octaves from 40 Hz to 20 kHz
FLAT = (0.0,) * BANDS


@dataclass(frozen=True)
class Part:
    """One voice or backing of a mix; the defaults leave it as it was recorded.

    start: 0..1 of where it can be cut; speed: semitones, like a tape; tempo: ratio; formant: semitones; pan: -1 left ..
    1 right; width: 0 mono, 1 as it is; equaliser_db: at the knots; compression: ratio; drive: 0 is clean; low_cut,
    high_cut: hertz, 0 and infinity cut nothing; room: which of the synthetic rooms; double: seconds, 0 for none;
    roughness, phase: of the noise that the number `noise` seeds; gap: from where to where it is silent, 0..1; loop:
    seconds, 0 for none; loop_begin: from where on they are repeated, 0..1; drop: the channel that is silent, -1 for
    none.
    """

    track: Track
    start: float
    gain_db: float = 0.0
    speed: float = 0.0
    tempo: float = 1.0
    formant: float = 0.0
    pan: float = 0.0
    width: float = 1.0
    equaliser_db: tuple[float, ...] = FLAT
    compression: float = 1.0
    drive: float = 0.0
    low_cut: float = 0.0
    high_cut: float = inf
    echo_seconds: float = 0.0
    echo_db: float = -inf
    room: int = 0
    wet_db: float = -inf
    double: float = 0.0
    roughness: float = 0.0
    phase: float = 0.0
    noise: int = 0
    gap: tuple[float, float] = (0.0, 0.0)
    loop: float = 0.0
    loop_begin: float = 0.0
    swap: bool = False
    drop: int = -1


@dataclass(frozen=True)
class Mix:
    """One training example. level: "parts" brings each part to the common level before its gain, "song" their sum,
    "none" leaves all as recorded; gain_db, swap, codec (dB, infinity for none), high_cut: of the whole."""

    voices: tuple[Part, ...]
    backings: tuple[Part, ...]
    gain_db: float = 0.0
    level: Literal["parts", "song", "none"] = "parts"
    swap: bool = False
    codec: float = inf
    high_cut: float = inf
