"""A file cut into parts that are small enough to travel, and put together again.

A part is called `NAME.DIGEST.K-of-N`, the digest being the beginning of the whole's SHA-256: parts of two states of a
file are never joined, and what comes out is what went in.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from vocalremover.errors import InputError

DIGITS = 16  # of the digest
_PART = re.compile(rf"(.+)\.([0-9a-f]{{{DIGITS}}})\.(\d+)-of-(\d+)")


def split(path: Path, folder: Path, limit: int) -> list[Path]:
    """Cut a file into parts of at most `limit` bytes, in a folder where they take the place of its earlier ones."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:DIGITS]
    count = count_parts(len(content), limit)
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / "coming"
    staging.mkdir(exist_ok=True)
    names = [f"{path.name}.{digest}.{number}-of-{count}" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        (staging / name).write_bytes(content[number * limit : (number + 1) * limit])
    for part in parts_of(folder, path.name):  # only now: a kill before leaves the earlier state whole
        part.unlink()
    for name in names:
        (staging / name).replace(folder / name)
    shutil.rmtree(staging)
    return [folder / name for name in names]


def count_parts(size: int, limit: int) -> int:
    """How many parts a file of so many bytes makes."""
    return max(1, -(-size // limit))


def join(folder: Path, path: Path) -> bool:
    """Put the parts of `path.name` in a folder together as `path`; False where there is none.

    Raises InputError where parts are missing, damaged or of several states of the file.
    """
    parts = parts_of(folder, path.name)
    if not parts:
        return False
    kinds = {(match[2], int(match[4])) for match in map(_match, parts)}
    if len(kinds) > 1:
        raise InputError(f"{folder} holds parts of several states of {path.name}: keep those of one.")
    ((digest, count),) = kinds
    numbered = {int(_match(part)[3]): part for part in parts}
    missing = sorted(set(range(1, count + 1)) - numbered.keys())
    if missing:
        raise InputError(f"{folder}: of {path.name} the parts {', '.join(map(str, missing))} of {count} are missing.")
    content = b"".join(numbered[number].read_bytes() for number in range(1, count + 1))
    if hashlib.sha256(content).hexdigest()[:DIGITS] != digest:
        raise InputError(f"{folder}: the parts of {path.name} are damaged: bring them again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    partial.replace(path)
    return True


def parts_of(folder: Path, name: str) -> list[Path]:
    """The parts of a file that lie in a folder, of whatever state."""
    found: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if (match := _match(path)) and match[1] == name)


def _match(path: Path) -> re.Match[str] | None:
    return _PART.fullmatch(path.name)
