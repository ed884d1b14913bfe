"""What a second of a song costs, and how much memory it takes, over songs of 10 seconds to 10 hours: the curves.

    python -m benchmarks.growth [--hours N] [--minutes N] [--runs N] [--json FILE] [--png FILE]

A song of noise and tones comes through a pipe and its vocals go out as they are ready, as in `vocalremover separate -`;
so no length needs a disk. Every number is from a process of its own, which has separated 30 seconds before it counts,
so that the start is left out. The whole way (decoding, STFT, windows, mask, inverse, encoding) is shown at all lengths
with a tiny untrained network, and up to `--minutes` with the default model, whose cost is nearly all the network's.
Costs are CPU seconds; the peak is the largest resident set. With 10 hours it takes about ten minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import BinaryIO

import numpy as np
import torch

from benchmarks.rows import ROOT, Row, Settings, Timing
from benchmarks.table import show
from vocalremover import Separator, machine
from vocalremover.audio import Encoding
from vocalremover.batch import Settings as Wanted
from vocalremover.batch import pipe
from vocalremover.models import MODELS

RATE = 44100
MINUTE, HOUR = 60.0, 3600.0
LENGTHS = (10.0, 30.0, MINUTE, 3 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 10 * HOUR)
ANCHOR = 3 * MINUTE  # the length of a song, against which all others are held
MODEL = {"tiny": HOUR, "default": ANCHOR}
"""The networks and how long their songs become unless asked for more."""
REPEATED = ANCHOR  # what is no longer is measured several times
FLAT = 1.1
# To open a stream costs 30 CPU-ms, whatever it is: of ten seconds the tenth part where a network costs next to nothing.
FROM = {"tiny": 30.0, "default": 10.0}
TINY = {"channels": (4, 4, 4, 4, 4), "maps": 4, "num_layers": 1}


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`."""
    for name, longest in MODEL.items():
        yield from told(name, curve(name, longest / 10 if settings.quick else longest, settings.runs, settings.device))


def curve(model: str, longest: float, runs: int, device: str) -> list[dict[str, float]]:
    """For every length: CPU and wall seconds, and MiB."""
    lengths = [seconds for seconds in LENGTHS if seconds <= max(longest, ANCHOR)]
    taken: dict[float, list[dict[str, float]]] = {seconds: [] for seconds in lengths}
    for _ in range(runs):  # in turn, so that what else the machine does falls on all alike
        for seconds, some in taken.items():
            if seconds <= REPEATED or not some:
                some.append(ask(model, seconds, device))
    return [{"seconds": seconds, **{key: median(one[key] for one in some) for key in some[0]}, "runs": len(some)}
            for seconds, some in taken.items()]  # fmt: skip


def told(model: str, points: Sequence[dict[str, float]]) -> Iterator[Row]:
    """The cost and the peak of every length against those of a song of the usual length."""
    (anchor,) = (point for point in points if point["seconds"] == ANCHOR)
    for kind, unit, peer in (("cost of a second", "CPU-ms", "of 3 min"), ("peak", "MiB", "of 3 min")):
        for point in points:
            if point is anchor:
                continue
            value, against = (
                1000 * one["cpu"] / one["seconds"] if unit == "CPU-ms" else one["peak_mib"] for one in (point, anchor)
            )
            most = FLAT if point["seconds"] >= FROM[model] else None
            timing = Timing(point["wall"], point["cpu"], point["peak_mib"], point["runs"])
            what = f"{model} network, {words(point['seconds'])}: {kind}"
            yield Row(what, value, unit, against, peer, most=most, timing=timing)


def words(seconds: float) -> str:
    """`600.0` is `10 min`."""
    for unit, name in ((HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def ask(model: str, seconds: float, device: str) -> dict[str, float]:
    """What a new process measures with a song that is fed to it. CalledProcessError if it fails."""
    command = [sys.executable, "-m", "benchmarks.growth", "--device", device, "--task", model]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        feed(process.stdin, seconds)
        out = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(out)


def feed(sink: BinaryIO, seconds: float) -> None:
    """Writes the song and closes the sink."""
    try:
        with sink:
            for part in song(seconds):
                sink.write(part)
    except BrokenPipeError:
        return  # the process has failed and says why


def song(seconds: float) -> Iterator[bytes]:
    """A 16-bit stereo wav: a minute of noise and a tone, again and again."""
    rng, places = np.random.default_rng(0), np.arange(int(MINUTE) * RATE)
    tone = 0.2 * np.sin(2 * np.pi * 220 * places / RATE)[:, None] + rng.normal(0, 0.05, (len(places), 2))
    minute = (tone * 32767).clip(-32768, 32767).astype("<i2").tobytes()
    yield header()
    left = round(seconds * RATE) * 4
    while left:
        part = minute[:left]
        yield part
        left -= len(part)


def header() -> bytes:
    """Of a wav whose length is not known when it begins."""
    unknown = (0xFFFFFFFF).to_bytes(4, "little")
    fields = np.array([1, 2], "<u2").tobytes() + np.array([RATE, RATE * 4], "<u4").tobytes()
    form = (16).to_bytes(4, "little") + fields + np.array([4, 16], "<u2").tobytes()
    return b"RIFF" + unknown + b"WAVEfmt " + form + b"data" + unknown


def separator(model: str, device: str) -> Separator:
    """The default model, or one of its kind that is as small as can be."""
    if model != "tiny":
        return Separator.load(model, device)
    spec = replace(MODELS["default"], name="tiny", args=TINY)
    torch.manual_seed(0)
    chosen = Separator.load("default", device).device
    return Separator(spec, spec.build("cpu"), chosen)


def child(model: str, device: str) -> dict[str, float]:
    """Separates the song of stdin."""
    chosen = separator(model, device)
    wanted = Wanted(stems=("vocals",), model=model, encoding=Encoding("wav", "16"))
    with open(os.devnull, "wb") as sink:
        pipe(BytesIO(b"".join(song(30))), sink, chosen, wanted)
        wall, cpu = time.perf_counter(), time.process_time()
        pipe(sys.stdin.buffer, sink, chosen, wanted)
    peak = (machine.peak() or 0) / 2**20
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak_mib": peak}


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A picture of the costs and the peaks over the lengths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (costs, peaks) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for model, points in curves.items():
        lengths = [point["seconds"] for point in points]
        costs.plot(lengths, [1000 * point["cpu"] / point["seconds"] for point in points], "o-", label=model)
        peaks.plot(lengths, [point["peak_mib"] for point in points], "o-", label=model)
    ticks = sorted({point["seconds"] for points in curves.values() for point in points})
    for axes, title in ((costs, "CPU milliseconds for a second of song"), (peaks, "peak of memory, MiB")):
        axes.set(xscale="log", xlabel="length of the song", title=title, ylim=(0, None))
        axes.set_xticks(ticks, [words(seconds) for seconds in ticks], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, prints the table and draws."""
    curves = ROOT / "benchmarks" / "curves"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=10, help="of the longest song, with the tiny network")
    parser.add_argument("--minutes", type=float, default=30, help="of the longest song, with the default model")
    parser.add_argument("--runs", type=int, default=3, help="of the songs up to three minutes (%(default)s)")
    parser.add_argument("-d", "--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", default=curves / "growth.json")
    parser.add_argument("--png", type=Path, metavar="FILE", default=curves / "growth.png", help="needs matplotlib")
    parser.add_argument("--task", choices=MODEL, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(child(options.task, options.device)))
        return
    if find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install matplotlib")
    longest = {"tiny": options.hours * HOUR, "default": options.minutes * MINUTE}
    points = {name: curve(name, seconds, options.runs, options.device) for name, seconds in longest.items()}
    show(row for name, some in points.items() for row in told(name, some))
    options.json.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    draw(points, options.png)


if __name__ == "__main__":
    main()
