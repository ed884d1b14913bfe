"""The wait at the start: `--help`, the first window of a song, and loading V10: `python -m benchmarks.start [--quick]`.

Every number comes from new processes, run in turn. `import torch` alone is the bound of whatever computes. The first
window is that of a song of three minutes (or of --song): the command runs as a person types it, and stops where its
network has answered for the first time. The weights of V10 are untrained and written for the purpose; loaded and, to be
fair, read to the last number, they are compared with reading the plain file, both from the system's cache and, where
the system can be told to forget the file, from the disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from benchmarks.rows import ROOT, Row, Settings, Timing, absent, peak, processes
from benchmarks.table import show

HELP = 0.25  # CPU seconds
WINDOW = 3.0  # seconds
ABOVE = 0.4  # GiB of resident memory beside the weights


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`."""
    runs = settings.runs if settings.quick else max(settings.runs, 5)
    yield from short(runs)
    with tempfile.TemporaryDirectory() as folder:
        yield from song(settings, runs, Path(folder))
        yield from weights("thin" if settings.quick else "v10", settings.runs, Path(folder))


def short(runs: int) -> Iterator[Row]:
    """What ends before anything is computed."""
    ways = {"help": ["-m", "vocalremover", "--help"], "torch": ["-c", "import torch"]}
    taken = processes({name: [sys.executable, *words] for name, words in ways.items()}, runs)
    yield Row("--help", taken["help"].cpu, "CPU-s", HELP, "bound", most=1, timing=taken["help"])
    yield Row("import torch, alone", taken["torch"].cpu, "CPU-s", timing=taken["torch"])


def song(settings: Settings, runs: int, folder: Path) -> Iterator[Row]:
    """From the command line to the first window, and to the end of a song of half a minute."""
    ask("song", folder / "long.wav", 3.0)
    ask("song", folder / "short.wav", 0.5)
    long = settings.song or folder / "long.wav"
    device = ["-d", settings.device]
    first, bound = [], []
    for _ in range(runs):  # in turn, so that what else the machine does falls on both
        began = time.perf_counter()
        told = ask("window", str(began), "separate", long, "-o", folder / "out", "--overwrite", "-q", *device)
        first.append((told["wall"], told["cpu"], told["peak_mib"]))
        bound.append(processes({"torch": [sys.executable, "-c", "import os, torch; os._exit(0)"]}, 1)["torch"].cpu)
    timing = Timing(*(median(column) for column in zip(*first, strict=True)), runs)
    yield Row("first window computed", timing.wall, "s", WINDOW, "bound", most=1, timing=timing)
    yield Row("first window computed", timing.cpu, "CPU-s", median(bound), "import torch", timing=timing)
    whole = [sys.executable, "-m", "vocalremover", "separate", folder / "short.wav", "-o", folder / "out", *device]
    ways = {"whole": [*whole, "--overwrite", "-q"], "torch": [sys.executable, "-c", "import torch"]}
    taken = processes(ways, runs)
    yield Row(
        "30 s of song, start and end included", taken["whole"].cpu, "CPU-s", taken["torch"].cpu, "import torch",
        timing=taken["whole"],
    )  # fmt: skip


def weights(model: str, runs: int, folder: Path) -> Iterator[Row]:
    """A large model's file: memory beside its numbers, and time beside reading it."""
    path = folder / f"{model}.safetensors"
    size = ask("write", model, path)["bytes"]
    what = f"{model}, {size / 2**30:.2f} GiB"
    for cold in (False, True):
        if cold and not hasattr(os, "posix_fadvise"):
            yield absent(f"{what} from the disk", "this system cannot be told to forget a file")
            continue
        taken: dict[str, list[Mapping[str, float]]] = {"load": [], "read": []}
        for _ in range(runs):
            for task, some in taken.items():
                forget(path, cold)
                some.append(ask(task, path))
        load, read = (
            Timing(*(median(one[key] for one in some) for key in ("wall", "cpu", "peak_mib")), runs)
            for some in taken.values()
        )
        where = "from the disk" if cold else "from the cache"
        yield Row(f"{what}, loaded and used, {where}", load.wall, "s", read.wall, "reading the file", timing=load)
        if not cold:
            beside = median(one["peak_mib"] - one["before_mib"] for one in taken["load"]) - size / 2**20
            yield Row(f"{what}: memory beside the weights", beside, "MiB", ABOVE * 2**10, "bound", most=1, timing=load)


def forget(path: Path, cold: bool) -> None:
    """Has the system drop a file from its cache, or take it in."""
    with open(path, "rb") as stream:
        if cold:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while stream.read(1 << 24):
                pass


def ask(*task: object) -> dict[str, float]:
    """The last line of what a new process says, as JSON; CalledProcessError if it fails."""
    words = [sys.executable, "-m", "benchmarks.start", "--task", json.dumps([str(word) for word in task])]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(kind: str, *words: str) -> dict[str, float]:
    """What a process of its own does. It imports what it needs only here, because that is what is measured."""
    if kind == "window":
        return until_window(float(words[0]), list(words[1:]))
    if kind == "song":
        from benchmarks.memory import write_song

        write_song(Path(words[0]), float(words[1]))
        return {}
    if kind == "write":
        return {"bytes": write_weights(words[0], Path(words[1]))}
    return read_file(Path(words[0])) if kind == "read" else load_file(Path(words[0]))


def until_window(began: float, words: list[str]) -> dict[str, float]:
    """Runs the command line up to the first answer of a network; `began` is what the clock said before the process."""
    from vocalremover.cli import main, running

    listen = running.listen

    def listening(verbosity: int) -> None:  # the command is about to import what computes
        listen(verbosity)
        from vocalremover.separate.runner import Runner

        run = Runner.__call__

        def first(*arguments: object) -> None:
            run(*arguments)
            told = {"wall": time.perf_counter() - began, "cpu": time.process_time(), "peak_mib": peak()}
            os.write(1, json.dumps(told).encode())
            os._exit(0)

        Runner.__call__ = first

    running.listen = listening
    main(words)
    raise RuntimeError("the command ended without a window")


def write_weights(model: str, path: Path) -> int:
    """A file of the model's shapes, filled with random numbers; its size in bytes."""
    import torch

    from vocalremover import checkpoint
    from vocalremover.models import MODELS

    network = MODELS[model].build("meta").to_empty(device="cpu")
    noise = torch.randn(1 << 20)
    for tensor in network.state_dict().values():
        flat = tensor.view(-1)
        for start in range(0, flat.shape[0], noise.shape[0]):
            part = flat[start : start + noise.shape[0]]
            part.copy_(noise[: part.shape[0]])
    checkpoint.save(path, MODELS[model], network)
    return path.stat().st_size


def load_file(path: Path) -> dict[str, float]:
    """Loads the weights and looks at every number."""
    from vocalremover import checkpoint

    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    _, network = checkpoint.load(path)
    for tensor in network.state_dict().values():
        tensor.sum()
    return {
        "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak_mib": peak(), "before_mib": before
    }  # fmt: skip


def read_file(path: Path) -> dict[str, float]:
    """Reads the plain file, as much at once as a disk likes."""
    wall, cpu = time.perf_counter(), time.process_time()
    with open(path, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 23)
        while stream.readinto(buffer):
            pass
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak_mib": peak()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the weights of a small model instead of V10's")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--song", type=Path)
    parser.add_argument("-d", "--device", default="auto")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(child(*options.task)))
    else:
        show(rows(Settings(options.quick, options.runs, options.song, options.device)))


if __name__ == "__main__":
    main()
