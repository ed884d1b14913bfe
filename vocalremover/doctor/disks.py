"""How much room there is where stems are written and where temporary files go."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vocalremover.doctor.checks import Check, Wanted, first_line
from vocalremover.machine import GIB

HOUR = 1.8  # GiB of two stems of 24 bits
LITTLE = GIB // 2


def look(wanted: Wanted) -> Iterator[Check]:
    """The folder of the stems, and the folder of temporary files."""
    yield _disk("stems", wanted.out)
    try:
        yield _disk("temporary", Path(tempfile.gettempdir()))
    except OSError as error:  # no folder at all can be written
        yield Check("disks", "temporary", "failed", first_line(error), "Name a folder in TMPDIR that can be written.")


def _disk(name: str, folder: Path) -> Check:
    folder = folder.absolute()
    # A folder that is yet to be made lies on the disk of the nearest one that there is.
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    facts: dict[str, object] = {"folder": str(folder)}
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        advice = "Name a folder that can be written: --out for stems, TMPDIR for temporary files."
        return Check("disks", name, "failed", f"{there} cannot be written: {error.strerror}", advice, facts)
    free = shutil.disk_usage(there).free
    facts["free_bytes"] = free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    advice = f"Make room: an hour of song becomes {HOUR} GiB of stems." if free < LITTLE else ""
    return Check("disks", name, "warning" if advice else "ok", found, advice, facts)
