"""The computer beneath: its processor, its memory, how much of them this process may use and has used.

Only Python's own library is needed, so that a broken installation can be told about, too. What a system does not tell
is None.
"""

import ctypes
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

GIB = 2**30
STATUS = Path("/proc/self/status")
GROUPS = Path("/sys/fs/cgroup")


def processor() -> str:
    """What the processor calls itself, such as "AMD EPYC 7B13"."""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    if sys.platform == "darwin":
        return _asked("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def processors() -> int:
    """How many processors this process may run on at once; a container's share is rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (GROUPS / "cpu.max").read_text(encoding="ascii").split()
        return min(allowed, max(1, -(-int(quota) // int(period))))
    return allowed


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory that this process may have: all of it, and what is free now."""
    whole = free = None
    with suppress(OSError):
        told = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE))
        whole, free = (int(told[name]) * 1024 if name in told else None for name in ("MemTotal", "MemAvailable"))
    if sys.platform == "darwin":
        pages = re.findall(r"Pages (?:free|inactive|purgeable):\s+(\d+)", _asked("vm_stat"))
        whole = int(_asked("sysctl", "-n", "hw.memsize") or 0) or None
        free = sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE") or None
    if sys.platform == "win32":
        whole, free = _windows_memory()
    with suppress(OSError, ValueError):
        most = int((GROUPS / "memory.max").read_text(encoding="ascii"))
        used = int((GROUPS / "memory.current").read_text(encoding="ascii")) - _forgettable()
        whole, free = min(whole or most, most), min(free or most, max(most - used, 0))
    return whole, free


def load() -> float | None:
    """How many threads of all programs wanted to compute at once over the last minute; None on Windows."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def forget_peak() -> bool:
    """Lets `peak` count anew from what is in memory now; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak of the resident set
    except OSError:
        return False
    return True


def peak() -> int | None:
    """The largest resident set of this process in bytes, since its start or since `forget_peak`."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int | None:
    """The resident set of this process in bytes, where /proc tells it."""
    with suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return None


def has_bf16() -> bool | None:
    """Whether the processor computes in bfloat16 by itself; None where the system does not tell."""
    abilities = _abilities()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & abilities) if abilities else None


def has_amx() -> bool:
    """Whether the processor multiplies whole tiles of bfloat16 (Intel's AMX), eight times as fast as single precision.
    """
    return {"amx_tile", "amx_bf16"} <= _abilities()


def is_translated() -> bool:
    """Whether an Apple computer translates this process from Intel's instructions (Rosetta)."""
    return sys.platform == "darwin" and _asked("sysctl", "-n", "sysctl.proc_translated") == "1"


def _abilities() -> set[str]:
    """What the system says that the processor can do, in its own words; empty where it does not tell."""
    with suppress(OSError):
        told = re.search(r"^(?:flags|Features)\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        return set(told[1].split()) if told else set()
    return set()


def _forgettable() -> int:
    """Bytes of files that a container has read and counts as used; the system gives them up for anything else."""
    with suppress(OSError):
        told = (GROUPS / "memory.stat").read_text(encoding="ascii")
        found = re.search(r"^inactive_file (\d+)$", told, re.MULTILINE)
        if found:
            return int(found[1])
    return 0


def _asked(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = [("size", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
        (name, ctypes.c_uint64) for name in ("whole", "free", "pages", "free_pages", "space", "free_space", "extended")
    ]


def _windows_memory() -> tuple[int | None, int | None]:
    status = _Status(size=ctypes.sizeof(_Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return status.whole, status.free
