"""This program, the Python that runs it and the computer beneath: what they are, and what does not go together."""

import platform
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from vocalremover import __version__, machine
from vocalremover.doctor.checks import Check, Wanted

OLDEST = (3, 10)
LITTLE = 2 * machine.GIB  # the default model takes a quarter of it, PyTorch as much


def look(wanted: Wanted) -> Iterator[Check]:
    """vocalremover, Python, system, processor and memory."""
    folder = str(Path(machine.__file__).parent)
    facts: dict[str, object] = {"version": __version__, "folder": folder}
    yield Check("computer", "vocalremover", "ok", f"{__version__} in {folder}", facts=facts)
    yield _python()
    translated = machine.is_translated()
    yield Check(
        "computer", "system", "warning" if translated else "ok", f"{platform.platform()}, {platform.machine()}",
        "This Python is translated from Intel's instructions: install one for Apple's own chips." * translated,
        {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
    )  # fmt: skip
    count = machine.processors()
    many = "1 core" if count == 1 else f"{count} cores"
    facts = {"processor": machine.processor(), "processors": count}
    yield Check("computer", "processor", "ok", f"{machine.processor()}, {many}", facts=facts)
    yield _memory()


def _python() -> Check:
    version, bits = platform.python_version(), 8 * struct.calcsize("P")
    facts = {"version": version, "bits": bits, "executable": sys.executable}
    advice = ""
    if sys.version_info[:2] < OLDEST:
        advice = f"Install Python {OLDEST[0]}.{OLDEST[1]} or newer."
    elif bits != 64:
        advice = "Install a Python of 64 bits: PyTorch knows no other."
    return Check("computer", "Python", "failed" if advice else "ok", f"{version}, {sys.executable}", advice, facts)


def _memory() -> Check:
    whole, free = machine.memory()
    facts = {"bytes": whole, "free_bytes": free}
    if whole is None or free is None:
        return Check("computer", "memory", "ok", "not told by this system", facts=facts)
    found = f"{whole / machine.GIB:.1f} GiB, {free / machine.GIB:.1f} GiB free"
    advice = "Close other programs, or choose the default model, which needs the least." if free < LITTLE else ""
    return Check("computer", "memory", "warning" if advice else "ok", found, advice, facts)
