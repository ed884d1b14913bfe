"""Where weights are looked for, what lies there, and which of it cannot be read."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vocalremover import checkpoint
from vocalremover.checkpoint import neighbours
from vocalremover.checkpoint.weights import read
from vocalremover.doctor.checks import Check, Wanted
from vocalremover.errors import ModelError

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".th", ".bin", ".chpt")


def look(wanted: Wanted) -> Iterator[Check]:
    """Each folder in which weights are looked for."""
    for folder in checkpoint.folders():
        if folder.is_dir() or folder == checkpoint.models_folder():
            yield _folder(folder)
    for folder in neighbours.folders():
        count = 0
        with suppress(OSError):  # another program's folder, which is none of this one's business
            count = len(_weights(folder))
        if count:
            found = f"{folder}: {count} checkpoint{'s' * (count > 1)} of another program"
            yield Check("models", "folder", "ok", found, facts={"folder": str(folder), "files": count})


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir())


def _folder(folder: Path) -> Check:
    facts: dict[str, object] = {"folder": str(folder)}
    if not folder.is_dir():
        return Check("models", "folder", "ok", f"{folder}: your own; not there yet", facts=facts | {"files": []})
    whole, bad = [], []
    try:
        paths = _weights(folder)
    except OSError as error:
        advice = "Give yourself the right to read that folder, or name another in VOCALREMOVER_HOME."
        return Check("models", "folder", "warning", f"{folder}: {error.strerror}", advice, facts)
    for path in paths:
        try:
            read(path)
            whole.append(path.name)
        except ModelError as error:
            bad.append((path.name, str(error).replace(f"{folder}{os.sep}", "")))
    facts |= {"files": whole, "unreadable": [name for name, _ in bad]}
    found = f"{folder}: {', '.join(whole) or 'empty' * (not bad) or 'nothing that can be read'}"
    if bad:
        reasons = "; ".join(reason for _, reason in bad)
        advice = "Get these files again; `vocalremover models list` says from where."
        return Check("models", "folder", "warning", f"{found}. {reasons}", advice, facts)
    return Check("models", "folder", "ok", found, facts=facts)
