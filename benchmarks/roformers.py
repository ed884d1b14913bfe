"""BS-RoFormer and Mel-Band RoFormer beside the reference's formulation of them, in one run, as ratios.

    python -m benchmarks.roformers [--models NAME...] [--device cpu|cuda] [--precision NAME...] [--frames N]
                                   [--windows N] [--json FILE]

Both ways run the same random weights of the released sizes (viperx's epoch 317, Kim's); neither memory nor time depends
on the values. `plain` is the formulation of ZFTurbo's Music-Source-Separation-Training at ccc011ab: a module for each
band, one after the other, the tokens repacked for every attention, masks scattered and added as complex numbers, and
at half precision autocast; its songs go through `demix` with num_overlap 2, the default of the published settings.
`ours` is what `separate` does by default. Every number comes from a process of its own.

window: one window through the network. song: `--windows` windows of random audio from samples to samples, STFT,
overlaps and all. Seconds are those of the clock on a GPU, of processor time on a CPU, where other work of the machine
shall not count. x real: seconds of audio in such a second. peak: on a CPU the largest resident set that the system
counted beyond that of the loaded network, on a GPU the most memory that was allocated, the network included. FLOP: what
the matrix products of a window count, padding included, as a share of what the largest of several plain matrix products
was measured to reach. error: the largest difference of both masks, relative to the largest mask, for 16 frames.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import Row, Settings
from vocalremover import Separator
from vocalremover.chunks import trapezoid
from vocalremover.devices import PRECISIONS
from vocalremover.models import MODELS, ModelSpec
from vocalremover.separate import Inference

ROOT = Path(__file__).resolve().parent.parent
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # the system counts bytes there, KiB elsewhere
RELEASED = ("bs_roformer", "mel_roformer")
REPEATS = {"cpu": 1, "cuda": 10}


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`: a window and a song beside the plain formulation."""
    device = "cuda" if settings.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    small = ["--frames", "51", "--windows", "2"] if device == "cpu" or settings.quick else []
    options = make_parser().parse_args(["--device", device, *small])
    precision = "fp32" if device == "cpu" else "fp16"
    for name in RELEASED[-1:] if settings.quick else RELEASED:
        told = measure(name, precision, options)
        unit = "CPU-s" if device == "cpu" else "s"
        for kind in ("window", "song"):
            ours, plain = told[f"{kind}_ours"], told[f"{kind}_plain"]
            what = f"{name}, {precision}, {told['sizes']['frames']} frames, a {kind}"
            yield Row(what, ours["seconds"], unit, plain["seconds"], "reference's formulation")
            yield Row(f"{what}, memory", ours["peak_mib"], "MiB", plain["peak_mib"], "reference's formulation")


class Plain(nn.Module):
    """The reference's walk through a network's named modules; the msst layout with one layer in each transformer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.bins = [sorted({number // (2 * network.bands.channels) for number in band}) for band in reads(network)]

    def forward(self, spectrogram: Tensor, stems: None = None) -> Tensor:
        """`[batch, channels, bins, frames, 2]` -> masks `[batch, stems, channels, bins, frames, 2]`."""
        sides = spectrogram.shape[1]
        numbers = rearrange(spectrogram, "b s f t c -> b (f s) t c")
        index = torch.tensor([bin_ * sides + side for band in self.bins for bin_ in band for side in range(sides)])
        index = index.to(spectrogram.device)
        x = self.split(rearrange(numbers[:, index], "b f t c -> b t (f c)"))
        batch, frames = x.shape[:2]
        for time_transformer, band_transformer in self.network.layers:
            x = transform(time_transformer, rearrange(x, "b t f d -> (b f) t d"))
            x = transform(band_transformer, rearrange(x, "(b f) t d -> (b t) f d", b=batch))
            x = rearrange(x, "(b t) f d -> b t f d", t=frames)
        x = normalise(x, self.network.final_norm.gamma) if hasattr(self.network, "final_norm") else x
        masks = torch.stack([self.estimate(estimator, x) for estimator in self.network.mask_estimators], dim=1)
        masks = torch.view_as_complex(rearrange(masks, "b n t (f c) -> b n f t c", c=2).float().contiguous())
        places = index[:, None].expand(*masks.shape)
        total = masks.new_zeros(*masks.shape[:2], numbers.shape[1], frames).scatter_add_(2, places, masks)
        counts = torch.zeros(numbers.shape[1], device=index.device).index_add_(0, index, torch.ones_like(index).float())
        mean = torch.view_as_real(total / counts[:, None])
        return rearrange(mean, "b n (f s) t c -> b n s f t c", s=sides)

    def split(self, x: Tensor) -> Tensor:
        """One norm and one linear layer after the other."""
        parts = x.split(self.network.bands.widths, dim=-1)
        modules = self.network.band_split.to_features
        tokens = [linear(normalise(part, norm.gamma)) for part, (norm, linear) in zip(parts, modules, strict=True)]
        return torch.stack(tokens, dim=-2)

    def estimate(self, estimator: nn.Module, x: Tensor) -> Tensor:
        """One MLP after the other."""
        return torch.cat([mlp(part) for part, mlp in zip(x.unbind(-2), estimator.to_freqs, strict=True)], dim=-1)


def reads(network: nn.Module) -> list[list[int]]:
    """For every band, the numbers of a frame it is made of."""
    bands, found, start = network.bands, [], 0
    for group in bands.groups:
        width = max(bands.widths[group])
        for own in bands.widths[group]:
            found.append(bands.reads[start : start + own].tolist())
            start += width
    return found


def normalise(x: Tensor, gamma: Tensor) -> Tensor:
    """The root-mean-square norm, operation by operation."""
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * gamma


def rotate(x: Tensor, rates: Tensor) -> Tensor:
    """Interleaved pairs of `[..., tokens, features]`, turned by their positions."""
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates.repeat_interleave(2)
    first, second = rearrange(x, "... (pairs two) -> ... pairs two", two=2).unbind(-1)
    swapped = rearrange(torch.stack((-second, first), dim=-1), "... pairs two -> ... (pairs two)")
    return (x * angles.cos() + swapped * angles.sin()).to(x.dtype)


def transform(transformer: nn.Module, x: Tensor) -> Tensor:
    """Gated attention and feed-forward, each with its residual, and the norm where there is one."""
    for attention, feed_forward in transformer.layers:
        normal = normalise(x, attention.norm.gamma)
        projected = attention.to_qkv(normal)
        query, key, value = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=attention.heads)
        rates = attention.rotary_embed.freqs
        attended = F.scaled_dot_product_attention(rotate(query, rates), rotate(key, rates), value)
        attended = attended * rearrange(attention.to_gates(normal), "b n h -> b h n 1").sigmoid()
        x = attention.to_out(rearrange(attended, "b h n d -> b n (h d)")) + x
        norm, *rest = feed_forward.net
        hidden = normalise(x, norm.gamma)
        for step in rest:
            hidden = step(hidden)
        x = hidden + x
    return normalise(x, transformer.norm.gamma) if hasattr(transformer.norm, "gamma") else x


def demix(network: nn.Module, spec: ModelSpec, song: Tensor, device: torch.device, overlap: int = 2) -> Tensor:
    """The reference's loop over windows, one in a batch: song `[channels, samples]` -> the first stem."""
    chunk = spec.chunking.whole
    step, fade = chunk // overlap, chunk // 10
    border, samples = chunk - step, song.shape[-1]
    mirrored = samples > 2 * border > 0
    padded = F.pad(song, (border, border), mode="reflect") if mirrored else song
    shape = torch.ones(chunk)
    shape[:fade], shape[-fade:] = torch.linspace(0, 1, fade), torch.linspace(1, 0, fade)
    total, weights = torch.zeros_like(padded), torch.zeros_like(padded)
    for start in range(0, padded.shape[-1], step):
        part = padded[:, start : start + chunk].to(device)
        width = part.shape[-1]
        mode = "reflect" if width > chunk // 2 else "constant"
        part = F.pad(part, (0, chunk - width), mode=mode)
        window = shape.clone()
        if start == 0:
            window[:fade] = 1
        if start + step >= padded.shape[-1]:
            window[-fade:] = 1
        spectrogram = spec.stft.forward(part[None])
        masks = torch.view_as_complex(network(torch.view_as_real(spectrogram)).contiguous())
        stem = spec.stft.inverse(spectrogram * masks[:, 0], chunk)[0].cpu()
        total[:, start : start + width] += (stem * window)[:, :width]
        weights[:, start : start + width] += window[:width]
    mean = (total / weights).nan_to_num()
    return mean[:, border : border + samples] if mirrored else mean


def recipe(name: str, frames: int | None) -> ModelSpec:
    """A model, its window made so many STFT frames wide."""
    spec = MODELS[name]
    if frames is None:
        return spec
    return replace(spec, chunking=trapezoid((frames - 1) * spec.stft.hop, spec.chunking.overlap))


def frames_of(spec: ModelSpec) -> int:
    """How many STFT frames a window has."""
    return spec.stft.frames(spec.chunking.whole)


def build(spec: ModelSpec, way: str, device: torch.device, precision: str) -> tuple[nn.Module, AbstractContextManager]:
    """The network of a formulation, and what it runs in."""
    torch.manual_seed(0)
    network = spec.build("cpu").requires_grad_(False).to(device)
    half = precision != "fp32"
    if way == "ours":
        return network.to(PRECISIONS[precision]) if half else network, nullcontext()
    return Plain(network), torch.autocast(device.type, PRECISIONS[precision]) if half else nullcontext()


def clock(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Seconds of one run, and MiB as the head of this file defines them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        run()  # kernels are chosen and loaded
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    now = time.perf_counter if device.type == "cuda" else time.process_time
    start = now()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return (now() - start) / repeats, torch.cuda.max_memory_allocated() / 2**20
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (now() - start) / repeats, (after - before) * UNIT / 2**20


def run_window(spec: ModelSpec, way: str, device: torch.device, precision: str) -> dict[str, float]:
    """Time and memory of one window through the network."""
    network, context = build(spec, way, device, precision)
    sides, bins = network_input(spec)
    spectrogram = torch.randn(1, sides, bins, frames_of(spec), 2, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode(), context:
        few = network(spectrogram[:, :, :, :16])  # ours packs its weights once
        seconds, mib = clock(lambda: network(spectrogram), device, REPEATS[device.type])
        answer = {"seconds": seconds, "peak_mib": mib}
        if way == "plain":
            other, _ = build(spec, "ours", device, "fp32")
            expected = other(spectrogram[:, :, :, :16])
            expected[:, :, :, 0] = few[:, :, :, 0]  # the reference leaves the lowest bin to a later step
            answer["error"] = ((few - expected).abs().max() / expected.abs().max()).item()
    return answer


def network_input(spec: ModelSpec) -> tuple[int, int]:
    """Channels and bins that a network reads."""
    return (2 if spec.args["stereo"] else 1), spec.stft.bins


def run_song(spec: ModelSpec, way: str, device: torch.device, precision: str, windows: float) -> dict[str, float]:
    """Time and memory of a song of so many windows."""
    samples = round(windows * spec.chunking.whole)
    song = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if way == "ours":
            network, _ = build(spec, way, device, "fp32")
            separator = Separator(spec, network, device, Inference(precision=precision, batch=1))
            network(torch.zeros(1, *network_input(spec), 1, 2, device=device))
            seconds, mib = clock(lambda: separator.separate(song, spec.rate), device, 1)
        else:
            network, context = build(spec, way, device, precision)
            with context:
                seconds, mib = clock(lambda: demix(network, spec, song, device), device, 1)
    return {"seconds": seconds, "peak_mib": mib, "audio_seconds": samples / spec.rate}


def measure_peak(device: torch.device, precision: str) -> float:
    """FLOP per second of the fastest of some square matrix products."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        matrix = torch.randn(size, size, device=device, dtype=PRECISIONS[precision])
        for _ in range(5):
            seconds, _ = clock(lambda matrix=matrix: matrix @ matrix, device, 3)
            best = max(best, 2 * size**3 / seconds)
    return best


def count_flop(spec: ModelSpec) -> int:
    """What the matrix products of one of our windows count."""
    network = spec.build("meta").requires_grad_(False)
    spectrogram = torch.zeros(1, *network_input(spec), frames_of(spec), 2, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(spectrogram)
    return counter.get_total_flops()


def child(kind: str, name: str, frames: int | None, way: str, device: str, precision: str, windows: float) -> object:
    """What a process of its own finds out."""
    spec, where = recipe(name, frames), torch.device(device)
    if kind == "window":
        return run_window(spec, way, where, precision)
    if kind == "song":
        return run_song(spec, way, where, precision, windows)
    return {"peak_flops": measure_peak(where, precision), "flop": count_flop(spec), "frames": frames_of(spec),
            "seconds": spec.chunking.whole / spec.rate}  # fmt: skip


def ask(*task: object) -> dict[str, float]:
    """The answer of a new process; CalledProcessError, with its last words, if it fails."""
    command = [sys.executable, "-m", "benchmarks.roformers", "--task", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(name: str, precision: str, options: argparse.Namespace) -> dict[str, object]:
    """All the numbers of a model at a precision."""
    frames, device, windows = options.frames, options.device, options.windows
    row: dict[str, object] = {"model": name, "precision": precision, "device": device}
    row["sizes"] = ask("sizes", name, frames, "", device, precision, windows)
    for kind in ("window", "song"):
        for way in ("plain", "ours"):
            row[f"{kind}_{way}"] = ask(kind, name, frames, way, device, precision, windows)
    return row


def show(row: dict[str, object]) -> str:
    """Two lines of the table, one for each way."""
    sizes, lines = row["sizes"], []
    for way in ("plain", "ours"):
        window, song = row[f"window_{way}"], row[f"song_{way}"]
        share = sizes["flop"] / window["seconds"] / sizes["peak_flops"]
        speeds = [sizes["seconds"] / window["seconds"], song["audio_seconds"] / song["seconds"]]
        cells = (
            f"{window['seconds']:.3f}", f"{speeds[0]:.2f}", f"{share:.0%}", f"{window['peak_mib']:.0f}",
            f"{song['seconds']:.2f}", f"{speeds[1]:.2f}", f"{song['peak_mib']:.0f}",
        )  # fmt: skip
        lines.append(f"{row['model']:<14}{row['precision']:<6}{way:<7}" + "".join(f"{cell:>10}" for cell in cells))
    ratios = [row[f"{kind}_plain"]["seconds"] / row[f"{kind}_ours"]["seconds"] for kind in ("window", "song")]
    lines.append(
        f"{'':<14}{sizes['frames']} frames ({sizes['seconds']:.2f} s), {sizes['flop'] / 1e12:.3f} TFLOP; the device "
        f"reaches {sizes['peak_flops'] / 1e12:.2f} TFLOP/s; error {row['window_plain']['error']:.1e}; "
        f"faster: window {ratios[0]:.2f} x, song {ratios[1]:.2f} x"
    )
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roformers", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=RELEASED, default=RELEASED, metavar="NAME")
    parser.add_argument("--device", choices=REPEATS, default="cpu")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: fp32, and fp16 on a GPU")
    parser.add_argument(
        "--frames", type=int, help="frames of a window; default: 51 on a CPU, the released ones on a GPU"
    )
    parser.add_argument("--windows", type=float, default=4, help="windows that the song is long (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Prints the table as it comes into being."""
    options = make_parser().parse_args()
    if options.task:
        print(json.dumps(child(*options.task)))
        return 0
    if options.frames is None and options.device == "cpu":
        options.frames = 51
    heads = ("window s", "x real", "of peak", "peak MiB", "song s", "x real", "peak MiB")
    print(f"{'model':<27}" + "".join(f"{head:>10}" for head in heads), flush=True)
    rows = []
    for name in options.models:
        for precision in options.precision or (["fp32"] if options.device == "cpu" else ["fp32", "fp16"]):
            rows.append(measure(name, precision, options))
            print(show(rows[-1]), flush=True)
    if options.json:
        found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
