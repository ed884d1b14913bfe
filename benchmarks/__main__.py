"""All benchmarks in one run: `python -m benchmarks [--only NAME...] [--quick] [--out FILE.json]`.

Every benchmark runs in a process of its own, one after the other; what it answers is a table of ratios, each of two
numbers taken side by side, medians of `--runs` runs. What this machine does not have is told and left out. The exit
code is 1 if a benchmark failed; a target that is missed is told in the table and is no failure, because on a machine
that does other work besides it may well be.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from benchmarks.rows import ROOT, Absent, Row, Settings, absent
from benchmarks.table import show
from vocalremover import machine

NAMES = ("start", "stages", "networks", "roformers", "gpu", "memory", "growth", "batch", "overlap", "loader")
LIBRARIES = ("torch", "numpy", "av", "soxr", "soundfile", "librosa", "safetensors", "einops")


def main() -> int:
    """Runs what is chosen, prints the table, writes the file and tells whether anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small sizes: a look in a few minutes")
    parser.add_argument("--runs", type=int, default=3, help="runs of which the median is told (%(default)s)")
    parser.add_argument("--song", type=Path, help="a song to use; without one, noise and tones are made")
    parser.add_argument("-d", "--device", default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the rows and the machine's facts there")
    parser.add_argument("--limit", type=float, default=600, help="seconds that one benchmark may take (%(default)g)")
    parser.add_argument("--answer", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    song = options.song.resolve() if options.song else None
    settings = Settings(options.quick, options.runs, song, options.device)
    if options.answer:
        return answer(options.answer, settings)
    told = []
    for name in options.only:
        began = time.perf_counter()
        told += [(name, row) for row in ask(name, options)]
        Console(stderr=True).print(f"{name}: {time.perf_counter() - began:.0f} s", style="dim")
    show(told)
    rows = [row for _, row in told]
    print(f"{sum(row.met is True for row in rows)} targets met, {sum(row.met is False for row in rows)} missed, "
          f"{sum(row.state == 'failed' for row in rows)} failed")  # fmt: skip
    if options.out:
        found = {"machine": facts(), "quick": options.quick, "runs": options.runs,
                 "rows": [{"benchmark": name, **row.to_json()} for name, row in told]}  # fmt: skip
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row.state == "failed" for row in rows))


def ask(name: str, options: argparse.Namespace) -> list[Row]:
    """A benchmark's rows, from a new process; the last is one that failed if the process did."""
    words = ["--answer", name, "--runs", str(options.runs), "--device", options.device]
    words += ["--quick"] if options.quick else []
    words += ["--song", str(options.song.resolve())] if options.song else []
    command, failure = [sys.executable, "-m", "benchmarks", *words], ""
    # A session of its own: what it has started itself ends with it when its time is over.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=options.limit)
    except subprocess.TimeoutExpired:
        failure = f"took longer than {options.limit:g} s"
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    rows = [Row.from_json(json.loads(line)) for line in out.splitlines()]
    if process.returncode and not any(row.state == "failed" for row in rows):
        rows.append(Row(name, state="failed", note=failure or f"its process ended with {process.returncode}"))
    return rows


def answer(name: str, settings: Settings) -> int:
    """What the new process does: a JSON object on stdout for every row; what the benchmark prints goes to stderr."""
    with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as stream:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        failed = False
        for row in guarded(name, settings):
            print(json.dumps(row.to_json()), file=stream, flush=True)
            failed |= row.state == "failed"
    return int(failed)


def guarded(name: str, settings: Settings) -> Iterator[Row]:
    """The rows of a benchmark; any error becomes the last of them."""
    try:
        yield from import_module(f"benchmarks.{name}").rows(settings)
    except Absent as error:
        yield absent(name, str(error))
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        yield Row(name, state="failed", note=f"{type(error).__name__}: {error}")


def facts() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "cpu": machine.processor(), "cores": machine.processors(),
        "memory_gib": round((machine.memory()[0] or 0) / machine.GIB, 1),
        "load": os.getloadavg(), "system": platform.platform(), "python": platform.python_version(),
        "gpu": gpu(), "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: found for name in LIBRARIES if (found := version_of(name))},
    }  # fmt: skip


def gpu() -> str | None:
    """The first NVIDIA GPU's name, as its driver tells it."""
    if not shutil.which("nvidia-smi"):
        return None
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout.partition("\n")[0] or None


def version_of(name: str) -> str | None:
    """An installed package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
