"""Networks on a CPU: a song as a user separates it, beside the plain formulation run the original's way, as ratios.

    python -m benchmarks.networks [--models NAME...] [--seconds N] [--runs N] [--crop FRAMES] [--song FILE]

`plain` is `benchmarks.plain`: crops of 512 frames of a whole song's STFT by librosa. `ours` is the command `separate`
with nothing but the model named. Both get the same weights, of the released size and untrained unless they are here,
and run in turn in processes of their own, start and loading included; medians. Memory and time do not depend on the
values of the weights.

A song of 35 s has 1508 frames, which the original fills up by 1.9 %, as on average a song of five minutes. The system
counts a file's pages that it has mapped to the resident set, though it takes them back as soon as anybody needs the
room: where it tells of the rest alone, there is a row for that, too. `OMP_NUM_THREADS=1` keeps all on one core.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import soundfile
import torch

from benchmarks.memory import write_song
from benchmarks.plain import CROP, make_plain
from benchmarks.rows import ROOT, Absent, Row, Settings, Timing
from benchmarks.table import show
from vocalremover import checkpoint
from vocalremover.errors import ModelError
from vocalremover.models import MODELS

SECONDS, QUICK_SECONDS = 35, 6
HALF = 0.5  # of what the plain formulation takes
TIMES = 10  # real time, with the default model
TOLD = ("v10", "default")
SAME = 1e-4  # between two masks that round differently
FRAMES = 40  # of a compared mask
PYTHON = (sys.executable, "-m")
UNIT = 1 if sys.platform == "darwin" else 2**10  # the system counts a peak in bytes there, in KiB elsewhere
COMPARED = [name for name, spec in MODELS.items() if spec.domain == "spectrogram" and not spec.recurrent]
"""The networks that the original's loop can run."""


@dataclass(frozen=True)
class Usage:
    """What a process took, all told."""

    wall: float  # seconds
    user: float
    system: float
    faults: float  # pages that the system had to map
    resident: float  # MiB at the peak
    own: float  # MiB at the peak without the pages of files; 0 where the system does not tell


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`."""
    if find_spec("librosa") is None:
        raise Absent("librosa, which the original's way needs; the extra `test` brings it")
    models = ("default",) if settings.quick else TOLD
    seconds = QUICK_SECONDS if settings.quick else SECONDS
    for model in models:
        yield from compared(model, seconds, 1 if settings.quick else settings.runs, settings.song, CROP)


def compared(model: str, seconds: float, runs: int, song: Path | None, crop: int) -> Iterator[Row]:
    """The rows of one network."""
    told = json.loads(subprocess.check_output([*PYTHON, "benchmarks.networks", "--check", model], cwd=ROOT))
    yield Row(f"{model}: masks of both ways", told, "apart", SAME, "rounding", most=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if song is None:
            song = folder / "song.wav"
            write_song(song, seconds / 60)
        seconds = soundfile.info(song).duration
        # Written by another process: what this one holds would count as the peak of all that it starts.
        subprocess.check_call([*PYTHON, "benchmarks.networks", "--write", model, folder], cwd=ROOT)
        ways = {
            "plain": ["benchmarks.plain", model, folder / "file.pth", song, folder, "--crop", crop],
            "ours": ["vocalremover", "separate", song, "-m", folder / "file.safetensors", "-d", "cpu", "-o",
                     folder / "out", "--overwrite", "-q"],
        }  # fmt: skip
        taken: dict[str, list[Usage]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, words in ways.items():
                taken[way].append(run([*PYTHON, *map(str, words)]))
    yield from judged(model, seconds, middle(taken["plain"]), middle(taken["ours"]), runs)


def judged(model: str, seconds: float, plain: Usage, ours: Usage, runs: int) -> Iterator[Row]:
    """What both ways took, one row for each kind of cost."""
    timing = Timing(ours.wall, ours.user + ours.system, ours.resident, runs)
    what, target = f"{model}, {seconds:g} s of song", HALF if model == "v10" else None
    peer = f"plain, {plain.wall:.1f} s"
    yield Row(what, timing.cpu, "CPU-s", plain.user + plain.system, peer, most=target, timing=timing)
    yield Row(f"{what}: the program's", ours.user, "CPU-s", plain.user, peer)
    yield Row(f"{what}: the system's", ours.system, "CPU-s", plain.system, peer)
    yield Row(f"{what}: pages mapped", ours.faults / 1000, "thousand", plain.faults / 1000, peer)
    yield Row(f"{what}: peak", ours.resident, "MiB", plain.resident, peer, most=target)
    if ours.own:
        yield Row(f"{what}: peak but for files", ours.own, "MiB", plain.own, peer, most=target)
    if model == "default":
        yield Row(what, seconds / ours.wall, "x real time", 1, "real time", least=TIMES, timing=timing)


def write_weights(model: str, folder: Path) -> None:
    """The same weights as PyTorch and as `convert` write them, those of the model where they are at hand."""
    try:
        spec, network = checkpoint.load(model)
    except ModelError:
        spec, network = MODELS[model], MODELS[model].build("cpu")
    torch.save(network.state_dict(), folder / "file.pth")
    checkpoint.save(folder / "file.safetensors", spec, network)


def check(model: str) -> float:
    """The largest difference between the plain formulation's mask and ours, with random weights."""
    torch.manual_seed(0)
    spec = MODELS[model]
    network = spec.build("cpu")
    magnitude = torch.rand(1, 2, spec.stft.n_fft // 2 + 1, spec.most_frames or FRAMES)
    with torch.inference_mode():
        ours = network(magnitude)
        return (make_plain(spec, network)(magnitude) - ours).abs().max().item()


def run(command: list[str]) -> Usage:
    """A command from the project's folder; raises CalledProcessError, with what it said last, if it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    own = [0.0]
    watch = threading.Thread(target=watched, args=(process.pid, own))
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    watch.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    resident = usage.ru_maxrss * UNIT / 2**20
    return Usage(wall, usage.ru_utime, usage.ru_stime, usage.ru_minflt, resident, max(own))


def watched(process: int, own: list[float]) -> None:
    """Notes a process's memory without the pages of files, in MiB, every 20 ms until it ends."""
    status = Path(f"/proc/{process}/status")
    try:
        while found := re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8")):
            own.append(int(found[1]) / 1024)
            time.sleep(0.02)
    except OSError:
        return


def middle(taken: Sequence[Usage]) -> Usage:
    """The median of each number."""
    return Usage(*(median(getattr(one, field.name) for one in taken) for field in fields(Usage)))


def main() -> int:
    """Prints the table of the chosen networks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=COMPARED, default=TOLD, metavar="NAME", help=", ".join(COMPARED))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the song that is made up (%(default)g)")
    parser.add_argument("--song", type=Path, help="one to use instead, at the model's rate")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is told (%(default)s)")
    parser.add_argument("--crop", type=int, default=CROP, help="frames of a crop of the original (%(default)s)")
    parser.add_argument("--check", choices=COMPARED, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_weights(options.write[0], Path(options.write[1]))
        return 0
    if options.check:
        print(check(options.check))
        return 0
    song = options.song.resolve() if options.song else None
    for model in options.models:
        show(compared(model, options.seconds, options.runs, song, options.crop))
    return 0


if __name__ == "__main__":
    sys.exit(main())
