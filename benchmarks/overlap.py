"""What overlapping windows are worth: SDR of a waveform model against a run whose windows overlap by 15/16.

    python -m benchmarks.overlap SONG... [--model NAME|PATH...] [--start SECONDS] [--seconds SECONDS]
                                 [--overlaps SHARE...] [--gain GAIN] [--device NAME] [--json FILE] [--svg FILE]

SONG is a file, or a folder with `vocals.*` and `instrumental.*`, of which the mixture is separated and the SDR against
the true vocals told as well. Without --model two small RoFormers are run, of random weights: every matrix is drawn with
a standard deviation of GAIN / sqrt(inputs), as the parity fixtures draw theirs, so that attention is not flat.

What random weights can tell: how far from a window's edge the missing context and the mirrored STFT are felt, since
these do not depend on training ("edge": the SDR by distance from the edge, of a run without overlap), and how much of
the difference between two runs is due to edges. What they cannot: how much better a trained model becomes by averaging
windows that disagree, which is what high overlaps buy. Only --model with trained weights and a folder can tell that.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from torch import Tensor, nn

from benchmarks.rows import Row, Settings, side_by_side
from vocalremover import checkpoint, read
from vocalremover.chunks import trapezoid
from vocalremover.devices import choose_device
from vocalremover.evaluate import sdr
from vocalremover.models import NETWORKS, ModelSpec
from vocalremover.separate import Inference, Separator
from vocalremover.spectrogram import STFT

REFERENCE = 0.9375
OVERLAPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
EDGES = (0.0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 4.0)  # seconds from a window's edge
SMALL = {
    "bs_roformer": {"freqs_per_bands": [*[2] * 24, *[4] * 12, *[12] * 8, *[24] * 8, *[48] * 8, 128, 129]},
    "mel_roformer": {"num_bands": 60},
}
COMMON = {
    "dim": 32, "depth": 2, "stereo": True, "num_stems": 1, "time_transformer_depth": 1, "freq_transformer_depth": 1,
    "dim_head": 16, "heads": 2, "stft_n_fft": 2048, "stft_hop_length": 441,
}  # fmt: skip


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`: a small RoFormer by its usual overlap and by that of MSST's num_overlap 2."""
    spec, network = random_model("bs_roformer", 1)
    seconds = 16 if settings.quick else 48
    if settings.song:
        audio, rate, _ = load_song(settings.song, 0, seconds)
    else:
        audio, rate = 0.1 * torch.randn(2, seconds * spec.rate, generator=torch.Generator().manual_seed(0)), spec.rate
    device = str(choose_device(settings.device))

    def separate(inference: Inference) -> None:
        Separator(spec, network, device, inference, [spec.stems[0]]).separate(audio, rate)

    ways = {"a tenth": lambda: separate(Inference()), "a half": lambda: separate(Inference(overlap=0.5))}
    taken = side_by_side(ways, settings.runs, warm=False)
    less, more = taken["a tenth"], taken["a half"]
    yield Row("windows that share a tenth", less.cpu, "CPU-s", more.cpu, "a half", timing=less)


def random_model(name: str, gain: float) -> tuple[ModelSpec, nn.Module]:
    """A RoFormer of the released bands, STFT and windows, small and with random weights, the same every time."""
    spec = ModelSpec(
        f"{name} (random)", name, COMMON | SMALL[name], "vocals", domain="waveform", reads="complex",
        stft=STFT(2048, 441, pad_mode="reflect"), chunking=trapezoid(352800, 0.5), peak=False,
    )  # fmt: skip
    network = NETWORKS[name](**spec.args).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.dim() >= 2 and tensor.is_floating_point():
            tensor.normal_(0, gain / tensor[0].numel() ** 0.5, generator=generator)
    return spec, network


def load_song(path: Path, start: float, seconds: float) -> tuple[Tensor, int, Tensor | None]:
    """An excerpt `[channels, samples]`, its rate and the true vocals where they are known."""
    if path.is_dir():
        stems = [read(next(path.glob(f"{stem}.*"))) for stem in ("vocals", "instrumental")]
        rate, samples = stems[0][1], min(audio.shape[-1] for audio, _ in stems)
        vocals, instrumental = (audio[:, :samples] for audio, _ in stems)
        song = vocals + instrumental
    else:
        (song, rate), vocals = read(path), None
    part = slice(round(start * rate), round((start + seconds) * rate))
    return song[:, part], rate, None if vocals is None else vocals[:, part]


def by_distance(spec: ModelSpec, vocals: Tensor, reference: Tensor) -> dict[str, float]:
    """SDR by the distance from the nearest edge of a window, for windows side by side."""
    whole = spec.chunking.whole
    place = torch.arange(vocals.shape[-1]) % whole
    last = vocals.shape[-1] // whole * whole  # the last window is filled up with zeros
    seconds = torch.minimum(place, whole - 1 - place)[:last] / spec.rate
    answer = {}
    for near, far in pairwise(EDGES):
        chosen = (seconds >= near) & (seconds < far)
        if chosen.any():
            answer[f"{near:g}-{far:g} s"] = sdr(vocals[:, :last][:, chosen], reference[:, :last][:, chosen])
    return answer


def curve(
    spec: ModelSpec, network: nn.Module, device: str, path: Path, song: tuple[Tensor, int, Tensor | None],
    overlaps: Sequence[float],
) -> dict[str, object]:  # fmt: skip
    """All numbers of one model and one song."""
    audio, rate, truth = song

    def vocals(overlap: float) -> tuple[Tensor, float]:
        separator = Separator(spec, network, device, Inference(overlap=overlap), [spec.stems[0]])
        started = time.process_time()
        (answer,) = separator.separate(audio, rate).values()
        return answer, time.process_time() - started

    reference, slowest = vocals(REFERENCE)
    rows, edge = [], {}
    for overlap in overlaps:
        answer, seconds = vocals(overlap)
        row = {"overlap": overlap, "sdr": sdr(answer, reference), "cpu_seconds": seconds, "share": seconds / slowest}
        rows.append(row | ({} if truth is None else {"truth": sdr(answer, truth)}))
        if overlap == 0 and rate == spec.rate and spec.domain == "waveform":
            edge = by_distance(spec, answer, reference)
    default = round(Separator(spec, network, device).chunking.overlap, 3)
    told = {"model": spec.name, "song": path.stem, "default": default, "rows": rows, "edge": edge}
    return told | ({} if truth is None else {"reference_truth": sdr(reference, truth)})


def drawn(curves: Sequence[dict]) -> str:
    """The curves as an SVG: overlap to the right, decibels upwards."""
    decibels = [row["sdr"] for one in curves for row in one["rows"] if row["sdr"] < 200]
    floor, ceiling = int(min(decibels) // 5) * 5, int(max(decibels) // 5 + 1) * 5
    hues = ("#1b6ca8", "#c1440e", "#3a7d34", "#7a3b8f", "#8a6d00", "#555555")

    def x(overlap: float) -> float:
        return round(50 + overlap * 560, 1)

    def y(level: float) -> float:
        return round(360 - (min(level, ceiling) - floor) / (ceiling - floor) * 330, 1)

    def text(left: float, top: float, words: object, hue: str = "#333") -> str:
        return f'<text x="{left}" y="{top}" fill="{hue}">{escape(str(words))}</text>'

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 400" font-family="sans-serif" font-size="11">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    parts += [text(x(share) - 6, 376, share) for share in (0, 0.1, 0.25, 0.5, 0.75)]
    for level in range(floor, ceiling + 1, 5):
        parts += [f'<path d="M50,{y(level)}H620" stroke="#ddd"/>', text(20, y(level) + 4, level)]
    parts += [text(280, 394, "overlap"), text(8, 16, f"SDR in dB against an overlap of {REFERENCE}")]
    for number, one in enumerate(curves):
        hue = hues[number % len(hues)]
        points = " ".join(f"{x(row['overlap'])},{y(row['sdr'])}" for row in one["rows"])
        parts.append(f'<polyline points="{points}" fill="none" stroke="{hue}" stroke-width="2"/>')
        parts.append(text(60, 44 + 14 * number, f"{one['model']}, {one['song']}", hue))
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", nargs="+", type=Path)
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--start", type=float, default=30)
    parser.add_argument("--seconds", type=float, default=24)
    parser.add_argument("--overlaps", nargs="*", type=float, default=OVERLAPS)
    parser.add_argument("--gain", type=float, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    device = str(choose_device(options.device))
    models = [checkpoint.load(name, device) for name in options.model]
    models = models or [random_model(name, options.gain) for name in SMALL]
    curves = []
    for path in options.songs:
        song = load_song(path, options.start, options.seconds)
        for spec, network in models:
            told = curve(spec, network, device, path, song, options.overlaps)
            curves.append(told)
            print(f"\n{told['model']}, {told['song']}: SDR in dB against an overlap of {REFERENCE}")
            for row in told["rows"]:
                line = f"  {row['overlap']:6.3f} {row['sdr']:8.2f} dB {row['cpu_seconds']:8.1f} s"
                line += f"  true vocals {row['truth']:7.3f} dB" if "truth" in row else ""
                print(line + ("  <- default" if row["overlap"] == told["default"] else ""), flush=True)
            if "reference_truth" in told:
                print(f"  {REFERENCE:6.3f} true vocals {told['reference_truth']:7.3f} dB")
            for distance, decibels in told["edge"].items():
                print(f"  edge {distance:>12} {decibels:8.2f} dB")
    if options.json:
        options.json.write_text(json.dumps({"gain": options.gain, "curves": curves}, indent=1))
    if options.svg:
        options.svg.write_text(drawn(curves), encoding="utf-8")


if __name__ == "__main__":
    main()
