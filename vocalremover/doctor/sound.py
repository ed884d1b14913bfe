"""Whether songs can be written and read: a second of sound through every encoder and back through its decoder."""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vocalremover.audio import FORMATS, Encoding, read, resample, write
from vocalremover.doctor.checks import Check, Wanted, first_line
from vocalremover.evaluate import sdr

RATE = 44100
LOSSLESS = 100.0  # dB: 24 bits leave 130 of this sound
# Chords lie 15 to 30 dB above what mp3, ogg, opus and m4a do to them; a decoder that is wrong gives 0 and less.
LOSSY = 10.0
REPAIR = {"av": ("flac", "mp3", "m4a"), "soundfile": ("ogg", "opus")}


def look(wanted: Wanted) -> Iterator[Check]:
    """A check for each format that stems are written in."""
    sound = chord(RATE, 1.0)
    with tempfile.TemporaryDirectory(prefix="vocalremover-doctor-") as folder:
        for name in FORMATS:
            yield _round(name, sound, Path(folder))


def chord(rate: int, seconds: float) -> Tensor:
    """`[2, samples]`, different on both sides: tones over all octaves and a little noise, the same every time."""
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    tones = [torch.sin(2 * math.pi * 110 * 2**octave * time * detune) for octave in range(6) for detune in (1, 1.26)]
    noise = torch.rand(2, len(time), generator=torch.Generator().manual_seed(0)) - 0.5
    return torch.stack((sum(tones[::2]), sum(tones[1::2]))).float() / len(tones) + 0.002 * noise


def _round(name: str, sound: Tensor, folder: Path) -> Check:
    path, least = folder / f"chord{FORMATS[name].extension}", LOSSLESS if FORMATS[name].bits else LOSSY
    package = next((package for package, formats in REPAIR.items() if name in formats), "av soundfile")
    repair = f"Run python -m pip install --force-reinstall {package}."
    try:
        write(path, sound, RATE, Encoding(name))
        heard, rate = read(path)
        heard = torch.cat(list(resample([heard], rate, RATE)), dim=1)
    except Exception as error:  # what a codec library raises is what is to be told
        return Check("sound", name, "failed", first_line(str(error).replace(f"{folder}{os.sep}", "")), repair)
    if heard.shape != sound.shape:
        found = f"{heard.shape[1]} samples of {sound.shape[1]} come back"
        return Check("sound", name, "failed", found, repair)
    found = sdr(heard, sound)
    facts = {"sdr": found if math.isfinite(found) else None}
    if found < least:
        told = f"SDR {found:.0f} dB, at least {least:.0f} are expected: it is not the sound that was written"
        return Check("sound", name, "failed", told, repair, facts)
    return Check("sound", name, "ok", f"written and read, SDR {found:.0f} dB", facts=facts)
