"""Networks and whole songs on a GPU, against real time and against what the card was measured to reach.

    python -m benchmarks.gpu --out FOLDER [--budget SECONDS] [--models NAME...] [--device cuda] [--tiny]

First the card itself: FLOP per second of large matrix products of every precision on random numbers, bytes per second
of a large copy. Then each model in a process of its own, with random weights of the released sizes (the default model
with its own), which ends with its share of the budget; what it has told by then is kept. FOLDER/gpu.json is written
anew after every answer, FOLDER/kernels.txt holds the kernels that take the time. A model's answers, in order:

network: full batches as `Runner.stream` works them off in a song, windows on the device: x real for each way (none,
auto: CUDA graphs, compile: last of all), precision and batch, with the shares of the measured peaks: FLOP of the matrix
products over the product's rate, and bytes that the operations read and write, one by one, over the copy's (more than 1
where caches or fused kernels spare them). error: SDR in dB of the stems against strict float32; `fp32` itself differs
from that where PyTorch lets convolutions round to TF32. kernels: the 15 with the most device time, started one by one,
and the share of the time in which any ran. song: a wav of four minutes into two wavs through `Separator`, what is
loaded being loaded, as a user's later songs are.

Where PyAV, soundfile, soxr or platformdirs are absent, stand-ins let the library be imported, and Python's `wave` reads
and writes the wav. To measure the library's own reader and writer, bring wheels of av, soundfile, cffi, pycparser, soxr
and platformdirs. `--device cpu --tiny` runs all of it in small, to see that it works.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Timer

import torch

from benchmarks.cases import Case, measure_error, measure_kernels, measure_network, measure_song
from benchmarks.device import peaks
from benchmarks.rows import ROOT, Absent, Row, Settings

TARGETS = {"v10": 1000, "bs_roformer": 200, "mel_roformer": 500, "default": 500}
SONG_TARGETS = {"v10": 300}


def answers(task: str, device: torch.device, tiny: bool, peak: dict[str, float]) -> Iterator[dict]:
    """Everything a process of its own tells, the most wanted first."""
    if task == "peak":
        yield {"kind": "peak", "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
               "torch": torch.__version__, **peaks(device, tiny)}  # fmt: skip
        return
    case = Case(task, device, tiny)
    yield from measure_network(case, peak, ("none", "auto"))
    yield from measure_error(case)
    with tempfile.TemporaryDirectory() as folder:
        yield from measure_song(case, Path(folder))
    yield from measure_kernels(case)
    if device.type == "cuda":  # last: it takes the longest, and a compiler for a CPU may be absent
        yield from measure_network(case, peak, ("compile",))


def ask(task: str, device: str, tiny: bool, peak: dict[str, float], limit: float) -> Iterator[dict]:
    """The answers of a new process as they come; it is ended at its limit, and the last then says so."""
    words = ["--task", task, "--device", device, "--peak", json.dumps(peak), *(["--tiny"] if tiny else [])]
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    clock = Timer(limit, process.kill)
    clock.start()
    try:
        for line in process.stdout:
            yield {"model": task, **json.loads(line)}
    except GeneratorExit:
        process.kill()
        raise
    finally:
        alive = clock.is_alive()
        clock.cancel()
    if process.wait():
        why = f"its process ended with {process.returncode}" if alive else f"its {limit:.0f} s were over"
        yield {"model": task, "kind": "end", "error": why}


def run(out: Path, device: str, tiny: bool, models: Sequence[str], budget: float) -> Iterator[dict]:
    """All answers, each of them on disk before the next is asked for."""
    out.mkdir(parents=True, exist_ok=True)
    end, told, peak = time.monotonic() + budget, [], {}
    for number, task in enumerate(("peak", *models)):
        share = (end - time.monotonic()) / (len(models) - number + 1)
        for answer in ask(task, device, tiny, peak, max(share, 1)):
            told.append(answer)
            (out / "gpu.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            if answer["kind"] == "peak":
                peak = {key: value for key, value in answer.items() if isinstance(value, float)}
            elif answer["kind"] == "kernels":
                (out / "kernels.txt").write_text(kernel_list(told), encoding="utf-8")
            yield answer


def kernel_list(told: Sequence[dict]) -> str:
    """The tables of kernels, for a reader."""
    lines = []
    for one in told:
        if one["kind"] == "kernels":
            how = f"{one['model']} {one['precision']} batch {one['batch']} {one['way']}"
            lines.append(f"\n{how}: {one['device_ms']:.2f} of {one['wall_ms']:.2f} ms, busy {one['busy']:.0%}")
            lines += [f"{top['share']:6.1%} {top['ms']:9.3f} ms {top['count']:6d} x {top['kernel'][:110]}"
                      for top in one["top"]]  # fmt: skip
    return "\n".join(lines) + "\n"


def show(answer: dict) -> str:
    """One line for an answer."""
    skipped = ("top", "kind", "model", "warnings")
    cells = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
             for key, value in answer.items() if key not in skipped and value is not None]  # fmt: skip
    return f"{answer['model']:<13} {answer['kind']:<8} " + ", ".join(cells + answer.get("warnings", []))


def rows(settings: Settings) -> Iterator[Row]:
    """The targets, each by the best of its ways."""
    if settings.device not in ("auto", "cuda") or not torch.cuda.is_available():
        raise Absent("no CUDA device")
    models = ("v10",) if settings.quick else tuple(TARGETS)
    with tempfile.TemporaryDirectory() as folder:
        told = list(run(Path(folder), "cuda", False, models, 120 if settings.quick else 540))
    for kind, targets, what in (("network", TARGETS, "network"), ("song", SONG_TARGETS, "a wav of four minutes")):
        for name, least in targets.items():
            found = [one for one in told if one["model"] == name and one["kind"] == kind and "x_real" in one]
            if found:
                best = max(found, key=lambda one: one["x_real"])
                how = ", ".join(f"{key} {best[key]}" for key in ("precision", "batch", "way") if key in best)
                yield Row(f"{name}, {what}", best["x_real"], "s/s", 1.0, "real time", least=least, note=how)


def main() -> int:
    """Prints an answer a line; the exit code is 1 if a process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where gpu.json and kernels.txt go")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (%(default)g)")
    parser.add_argument("--models", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand parameters, seconds of song")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        for answer in answers(options.task, torch.device(options.device), options.tiny, options.peak):
            print(json.dumps(answer), flush=True)
        return 0
    if options.out is None:
        parser.error("--out FOLDER is needed")
    failed = False
    for answer in run(options.out, options.device, options.tiny, options.models, options.budget):
        print(show(answer), flush=True)
        failed |= "error" in answer
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
