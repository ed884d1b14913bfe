"""Whether each library is there, works and is new enough: imported in a process of its own, where it may crash."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from vocalremover.doctor import probe
from vocalremover.doctor.checks import Check, Wanted

SECONDS = 120.0  # a cold disk takes half a minute for PyTorch
TRAINING = "only training needs it"
TORCH_PAGE = "https://pytorch.org/get-started/locally/"


@dataclass(frozen=True)
class Library:
    """One that setup.cfg names: what is imported, what is installed, the least version, and who else can do without."""

    module: str
    distribution: str
    least: str
    spare: str = ""


LIBRARIES = (
    Library("numpy", "numpy", "1.26"),
    Library("torch", "torch", "2.6"),
    Library("av", "av", "16.0"),
    Library("soundfile", "soundfile", "0.13"),
    Library("soxr", "soxr", "0.3.3"),
    Library("safetensors", "safetensors", "0.4"),
    Library("einops", "einops", "0.6"),
    Library("yaml", "pyyaml", "6.0"),
    Library("platformdirs", "platformdirs", "3.0"),
    Library("click", "click", "8.1"),
    Library("rich", "rich", "13.0", "only bars and tables need it"),
    Library("pyworld", "pyworld", "0.3.4", TRAINING),
    Library("tensorboard", "tensorboard", "2.14", TRAINING),
)


def look(wanted: Wanted) -> Iterator[Check]:
    """A check for each library."""
    for library in LIBRARIES:
        yield judged(library, asked(library))


def asked(library: Library) -> dict[str, str]:
    """What the probe says, or how it ended."""
    words = [sys.executable, probe.__file__, library.module, library.distribution]
    path = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=SECONDS,
            errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"importing it did not come to an end in {SECONDS:.0f} s"}
    with suppress(IndexError, ValueError):
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        with suppress(ValueError):
            return {"error": f"importing it crashes ({signal.Signals(-done.returncode).name})"}
    return {"error": f"importing it ends Python with code {done.returncode}"}


def judged(library: Library, told: dict[str, str]) -> Check:
    """The check of a library of which this is told."""
    name, install = library.distribution, f'python -m pip install "{library.distribution}>={library.least}"'
    facts = {"module": library.module, **told}
    error, version = told.get("error"), told.get("version", "")
    if error and library.spare:
        if library.spare == TRAINING and error.startswith("ModuleNotFoundError"):
            return Check("libraries", name, "ok", f"absent; {TRAINING}", facts=facts)
        return Check("libraries", name, "warning", error, f"To have it ({library.spare}): {install}.", facts)
    if error:
        return Check("libraries", name, "failed", error, _way_out(library, error, install), facts)
    if older(version, library.least):
        return Check("libraries", name, "warning", f"{version} is older than {library.least}", f"Run {install}.", facts)
    return Check("libraries", name, "ok", ", ".join(filter(None, (version, told.get("holds")))), facts=facts)


def _way_out(library: Library, error: str, install: str) -> str:
    if library.module == "torch" and "numpy" in error.lower():
        return 'PyTorch was built for another NumPy: update PyTorch, or run python -m pip install "numpy<2".'
    if error.startswith("ModuleNotFoundError"):
        return f"Run {install}."
    if library.module == "torch":
        return f"Install PyTorch anew with the line that {TORCH_PAGE} has for this computer."
    return f"Run python -m pip install --force-reinstall {library.distribution}."


def older(version: str, least: str) -> bool:
    """Whether a version such as "2.13.0+cpu" is below another; what is no number ends it."""

    def numbers(text: str) -> list[int]:
        found = re.match(r"\d+(\.\d+)*", text)
        return [int(part) for part in found[0].split(".")] if found else []

    return bool(numbers(version)) and numbers(version) < numbers(least)
