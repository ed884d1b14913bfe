"""Load time, memory and CPU time of every network, beside the plain formulation of its attention, as ratios.

    python -m benchmarks.networks [--models NAME...] [--frames N] [--no-load] [--no-plain] [--json FILE]

The networks have their released size and untrained weights, as their constructors draw them: neither memory nor time
depends on the values. Every number comes from a process of its own, whose peak is the largest resident set that the
system counted for it.

load: seconds of `checkpoint.load` for a float32 file, as PyTorch writes it (.pth) and as `convert` writes it (.safet.).
The file lies in the system's cache; its pages are mapped and only read once they are needed.
crop: how much one crop through the network adds to the peak. CPU: seconds of processor time for a second of audio.
plain: the same crop through the same network, whose attentions hold their logits, frames x frames for every head, add
those of earlier attentions to them and take the softmax at once. V2b and the new frame transformers do not keep the
logits of their encoders even then, which makes the ratio smaller than the original's would be; the compact network has
no residual attention to compare.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rows import Row, Settings, absent
from vocalremover import checkpoint
from vocalremover.models import MODELS, NETWORKS, ModelSpec
from vocalremover.networks.layers import Pair, Rotary, join_heads, split_heads

ROOT = Path(__file__).resolve().parent.parent
LEAST = {"default": 5.0}  # seconds of song in a second of one processor: 10 on two
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # the system counts bytes there, KiB elsewhere


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`: CPU time and memory of a crop, beside the plain formulation where it fits."""
    for name, frames in (("default", None), ("v10", 256 if settings.quick else 512)):
        crop = ask(16, "crop", name, frames, False)
        if "error" in crop:
            yield Row(name, state="failed", note=crop["error"])
            continue
        what = f"{name}, {crop['frames']} frames"
        yield Row(f"{what}, a core", 1 / crop["cpu_per_second"], "s/s", 1, "real time", least=LEAST.get(name))
        plain = ask(16, "crop", name, frames, True)  # nothing for the default model, which has nothing to compare
        for key, unit in (("cpu_per_second", "CPU s/s"), ("crop_mib", "MiB")) if plain else ():
            if "error" in plain:
                yield absent(f"{what}, plain", plain["error"])
            else:
                yield Row(what, crop[key], unit, plain[key], "plain attention, same crop")


def plain_running_attention(query: Tensor, key: Tensor, value: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(earlier + q k^T) value, and the sum of the logits `[batch, heads, frames, frames]`."""
    logits = query @ key.mT
    if earlier is not None:
        logits = earlier + logits
    return logits.softmax(-1) @ value, logits


def plain_residual_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, rotary: Rotary | None, earlier: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """As `layers.residual_attention`, but what is handed on is one matrix: the sum of the logits."""
    split = split_heads(query, key, value, heads, rotary)
    attended, logits = plain_running_attention(*split, earlier[0] if earlier else None)
    return join_heads(attended, heads), [logits]


def plain_attend(pairs: Sequence[Pair], value: Tensor) -> Tensor:
    """As `layers.attend`, one summand of the logits after the other."""
    logits = sum(query @ key.mT for query, key in pairs)
    return logits.softmax(-1) @ value


def plain_add(*logits: Sequence[Tensor]) -> list[Tensor]:
    """The sum of several logits, any of which may be missing."""
    held = [one for some in logits for one in some]
    return [sum(held[1:], start=held[0])] if held else []


PLAIN = {
    "residual_attention": plain_residual_attention,
    "running_attention": plain_running_attention,
    "attend": plain_attend,
    "attend_rows": plain_attend,
    "add": plain_add,
}


def make_plain(spec: ModelSpec) -> bool:
    """Puts the plain functions where the network's module has the others; False if it has none of them."""
    module = sys.modules[NETWORKS[spec.network].__module__]
    names = [name for name in PLAIN if hasattr(module, name)]
    for name in names:
        setattr(module, name, PLAIN[name])
    return bool(names)


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 2**20


def write_files(name: str, folder: Path) -> dict[str, float]:
    """The same weights in both kinds of file."""
    network = MODELS[name].build("cpu")
    torch.save(network.state_dict(), folder / "file.pth")
    checkpoint.save(folder / "file.safetensors", MODELS[name], network)
    return {"file_mib": (folder / "file.safetensors").stat().st_size / 2**20}


def load_file(path: Path) -> dict[str, float]:
    """How long a file takes to load, and the peak then."""
    start = time.perf_counter()
    checkpoint.load(path)
    return {"seconds": time.perf_counter() - start, "peak_mib": peak()}


def run_crop(name: str, frames: int | None, plain: bool) -> dict[str, float | None]:
    """One crop of the recommended width, padding and all, or of `frames` frames without any."""
    spec = MODELS[name]
    if plain and not make_plain(spec):
        return {}
    useful = min(frames or spec.chunking.size, spec.most_frames or sys.maxsize)
    width = useful if frames else useful + 2 * spec.chunking.context
    network = spec.build("cpu")
    channels = spec.args.get("in_channels", spec.args.get("nin", 2))
    magnitude = torch.rand(1, channels, spec.stft.n_fft // 2 + 1, width, generator=torch.Generator().manual_seed(0))
    before, start = peak(), time.process_time()
    with torch.inference_mode():
        mask = network(magnitude)
    return {
        "frames": width,
        "crop_mib": peak() - before,
        "peak_mib": peak(),
        "cpu_per_second": (time.process_time() - start) / (useful * spec.stft.hop / spec.rate),
        "mean": mask.mean().item(),
    }


def child(task: list, limit: float) -> None:
    """What a process of its own does: one JSON object on stdout."""
    # Too much memory is an error here and not the end of whatever else the machine is doing.
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)
    kind, *words = task
    if kind == "write":
        print(json.dumps(write_files(words[0], Path(words[1]))))
    elif kind == "load":
        print(json.dumps(load_file(Path(words[0]))))
    else:
        print(json.dumps(run_crop(*words)))


def ask(limit: float, *task: object) -> dict[str, float | str | None]:
    """The answer of a new process, or `{"error": ...}` with the last it said."""
    command = [sys.executable, "-m", "benchmarks.networks", "--limit", str(limit), "--task", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return json.loads(done.stdout)


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """All the numbers of a network."""
    row: dict[str, object] = {"model": name}
    if not options.no_load:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row["file"] = ask(options.limit, "write", name, folder)
            for kind in ("pth", "safetensors"):
                row[kind] = ask(options.limit, "load", f"{folder}/file.{kind}")
    row["crop"] = ask(options.limit, "crop", name, options.frames, False)
    row["plain"] = {} if options.no_plain else ask(options.limit, "crop", name, options.frames, True)
    return row


def show(row: dict[str, object]) -> str:
    """One line of the table."""

    def number(group: str, key: str, digits: int) -> str:
        value = row.get(group, {}).get(key)
        return "-" if value is None else f"{value:.{digits}f}"

    def ratio(key: str) -> str:
        ours, plain = (row[group].get(key) for group in ("crop", "plain"))
        return f"{plain / ours:.2f}" if ours and plain else "-"

    cells = (
        number("pth", "seconds", 2), number("safetensors", "seconds", 2), number("crop", "frames", 0),
        number("crop", "peak_mib", 0), number("crop", "crop_mib", 0), number("plain", "crop_mib", 0),
        ratio("crop_mib"), number("crop", "cpu_per_second", 2), number("plain", "cpu_per_second", 2),
        ratio("cpu_per_second"),
    )  # fmt: skip
    errors = [f"\n    {group}: {told['error']}" for group, told in row.items() if "error" in told and group != "model"]
    return f"{row['model']:<10}" + "".join(f"{cell:>8}" for cell in cells) + "".join(errors)


def main() -> int:
    """Prints the table as it comes into being; the exit code is 1 if a network failed as it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--frames", type=int, help="the width of the crop; default: the recommended one, with padding")
    parser.add_argument("--no-load", action="store_true", help="write and load no files")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain formulation out")
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile; default: the system's")
    parser.add_argument("--limit", type=float, default=16, help="GiB that a process may take (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        child(options.task, options.limit)
        return 0
    print(f"{'':<10}{'load, s':>16}{'':>8}{'peak':>8}{'crop, MiB':>16}{'plain':>8}{'CPU s/s':>16}{'plain':>8}")
    heads = (".pth", ".safet.", "frames", "MiB", "ours", "plain", "/ ours", "ours", "plain", "/ ours")
    print(f"{'model':<10}" + "".join(f"{head:>8}" for head in heads), flush=True)
    rows = []
    for name in options.models:
        rows.append(measure(name, options))
        print(show(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"torch_threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")
    return int(any("error" in row["crop"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
