"""Peak memory of `vocalremover separate` on a long song against a short one, as a ratio: `python -m benchmarks.memory`.

The songs are noise and tones, written to a temporary folder in blocks; every run is a process of its own, and its peak
is the largest resident set that the system counted for it. Two hours need about 5 GB of disk and, with the default
model on two cores, about ten minutes; `--minutes 5 20` is quicker. The exit code is 1 if the ratio is above the bound.
"""

import argparse
import json
import sys
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.rows import Row, Settings, Timing, run_process
from vocalremover import checkpoint
from vocalremover.errors import ModelError
from vocalremover.models import MODELS

RATE = 44100
CHANNELS = 2
BOUND = 1.10


def write_song(path: Path, minutes: float, seed: int = 0) -> None:
    """A 16-bit stereo wav of noise and a wandering tone, `minutes` long, written second by second."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(RATE) / RATE
    with wave.open(str(path), "wb") as song:
        song.setnchannels(CHANNELS)
        song.setsampwidth(2)
        song.setframerate(RATE)
        for second in range(round(minutes * 60)):
            tone = np.sin(2 * np.pi * (220 + second % 200) * seconds)[:, None]
            samples = 0.2 * tone + rng.normal(0, 0.05, (RATE, CHANNELS))
            song.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())


def weights(model: str, folder: Path) -> str:
    """The model to run: its name, or a file of untrained weights where the trained ones are not at hand.

    Memory depends on the shapes of the weights, not on their values.
    """
    try:
        checkpoint.find(model)
    except ModelError:
        if model not in MODELS:
            raise
        path = folder / f"{model}.safetensors"
        checkpoint.save(path, MODELS[model], MODELS[model].build("cpu"))
        return str(path)
    return model


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`."""
    minutes = [0.5, 2] if settings.quick else [2, 10]
    with tempfile.TemporaryDirectory() as folder:
        short, long = measure(minutes, "default", ["-d", settings.device], Path(folder))
    what, peer = (f"{run['minutes']:g} min of song" for run in (long, short))
    timing = Timing(long["seconds"], long["cpu"], long["peak_mib"])
    yield Row(f"{what}, peak", long["peak_mib"], "MiB", short["peak_mib"], peer, most=BOUND, timing=timing)


def separate(song: Path, model: str, options: list[str]) -> dict[str, float]:
    """Runs the command on a song: `{"peak_mib": ..., "seconds": ..., "cpu": ...}`; CalledProcessError if it fails."""
    out = song.with_suffix("")
    words = ["-m", "vocalremover", "separate", song, "-m", model, "-o", out, "-q", *options]
    seconds, cpu, peak = run_process([sys.executable, *words])
    for stem in out.iterdir():
        stem.unlink()
    return {"peak_mib": peak, "seconds": seconds, "cpu": cpu}


def measure(minutes: list[float], model: str, options: list[str], folder: Path) -> list[dict[str, float]]:
    """A run for every length."""
    chosen = weights(model, folder)
    runs = []
    for length in minutes:
        song = folder / f"{length:g}_minutes.wav"
        write_song(song, length)
        runs.append({"minutes": length, **separate(song, chosen, options)})
        song.unlink()
    return runs


def main() -> int:
    """Measures, prints the table and tells whether the bound is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", nargs=2, type=float, default=[10, 120], metavar=("SHORT", "LONG"))
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--folder", type=Path, help="where the songs and stems go meanwhile; default: the system's")
    parser.add_argument("--bound", type=float, default=BOUND, help="the largest ratio that passes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("options", nargs="*", help="passed on to separate, after --, such as -- -d cpu -f flac")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        runs = measure(arguments.minutes, arguments.model, arguments.options, Path(folder))
    ratio = runs[1]["peak_mib"] / runs[0]["peak_mib"]
    print(f"{'minutes':>8}{'peak MiB':>10}{'seconds':>9}{'x real time':>13}")
    for run in runs:
        speed = run["minutes"] * 60 / run["seconds"]
        print(f"{run['minutes']:>8g}{run['peak_mib']:>10.0f}{run['seconds']:>9.0f}{speed:>13.1f}")
    print(f"ratio {ratio:.3f} (bound {arguments.bound:g}): {'ok' if ratio <= arguments.bound else 'FAIL'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": arguments.model, "runs": runs, "ratio": ratio}, indent=2) + "\n")
    return int(ratio > arguments.bound)


if __name__ == "__main__":
    sys.exit(main())
