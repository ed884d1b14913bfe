"""Hidden folders in which outputs are made, beside the place where they will be: on its file system, gone at the end.

Each holds a lock while its owner lives. What a killed process has left behind is recognised by that and swept away.
"""

import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import TracebackType

from vocalremover.errors import AudioError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed: that is lock enough
    fcntl = None

PREFIX = ".vocalremover-"
LOCK = "lock"
# Locks may not be seen from another computer that shares the disk: what stems from there, or from somebody who locks
# nothing, is left alone for so long.
FOREIGN_SECONDS = 24 * 3600.0


class Staging:
    """A locked hidden folder in `parent`, which is made too; as a context manager it vanishes with all its content.

    Raises AudioError where nothing can be written.
    """

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder, self._lock = _locked(parent)
        except OSError as error:
            raise AudioError(f"cannot write into the folder {parent}: {error.strerror}") from error

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder; once."""
        os.close(self._lock)
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Removes from `parent` the staging folders whose owners are dead."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _sweep(Path(entry.path))


def bears(path: Path, mark: str) -> bool:
    """Whether a file has the mark in its first bytes, by which what we made may be replaced."""
    with suppress(OSError), open(path, "rb") as file:
        return mark.encode() in file.read(1024)
    return False


def _locked(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / f"{PREFIX}{token_hex(6)}"
        with suppress(FileExistsError):
            folder.mkdir()
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            _hold(lock, wait=True)
            try:
                os.write(lock, socket.gethostname().encode())
                # Whoever swept between the opening and the lock has taken the folder away.
                if (folder / LOCK).exists():
                    return folder, lock
            except OSError:  # a full disk
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
                raise
            os.close(lock)


def _hold(lock: int, wait: bool) -> bool:
    """Takes the lock; False where somebody else has it. Where the disk knows no locks, nobody but the owner has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return wait
    return True


def _sweep(folder: Path) -> None:
    """Raises OSError where the owner may be alive."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        if time.time() - _touched(folder) > FOREIGN_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        host = os.read(lock, 256).decode(errors="replace")
        foreign = host != socket.gethostname()
        dead = _hold(lock, wait=False) and not (foreign and time.time() - _touched(folder) < FOREIGN_SECONDS)
        if dead and fcntl:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    if dead and not fcntl:
        (folder / LOCK).unlink()
        shutil.rmtree(folder, ignore_errors=True)


def _touched(folder: Path) -> float:
    """When anything in the folder was last written."""
    return max(os.stat(path).st_mtime for path in (folder, *folder.iterdir()))
