"""CPU-seconds of everything around the network, stage by stage and together: `python -m benchmarks.stages`.

A made-up stereo song of four minutes is decoded, resampled, transformed, masked, transformed back and encoded, on one
thread, by the functions that the program streams it through. Beside each stage runs its bound: what the library below
it takes for the bare work, fed with what it likes best and its answer thrown away. Then the whole program's way from
file to files runs with a network that returns a mask it keeps ready; its target is 150 times real time on one core.
All of it stays on one core, where the system lets choose: its threads take more CPU time where they share caches, and
perhaps a core's arithmetic, with one another.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor, nn

from benchmarks.rows import Row, Settings, Timing, side_by_side
from benchmarks.table import show
from vocalremover import checkpoint
from vocalremover.audio import Encoding, Reader, Writer, resample, write
from vocalremover.batch.plan import plan
from vocalremover.batch.run import run
from vocalremover.batch.settings import Settings as Naming
from vocalremover.models import MODELS
from vocalremover.separate import Separator
from vocalremover.spectrogram import modulus

SECONDS, QUICK_SECONDS = 240, 20
LOSSY_SECONDS = 10  # of the song: the lossy encoders are slow, and not ours
TARGET = 150  # times real time on one core
RATE, OTHER_RATE = 44100, 48000
BLOCK = 1 << 16  # samples, as Reader gives them
FRAMES = 64  # of a block
SNDFILE = {"wav", "flac"}
INPUTS = ("wav", "flac", "mp3", "m4a", "opus")
OUTPUTS = (Encoding("wav", "24"), Encoding("wav", "16"), Encoding("wav", "32f"), Encoding("flac", "24"),
           Encoding("mp3"), Encoding("m4a"), Encoding("ogg"), Encoding("opus"))  # fmt: skip


class Ready(nn.Module):
    """A network that takes no time: its mask of the vocals is there before it is asked."""

    def __init__(self, bins: int, frames: int) -> None:
        super().__init__()
        # In memory it lies as the default network's does: the bins of a frame side by side.
        self.register_buffer("mask", torch.rand(1, 2, frames, bins, generator=torch.Generator().manual_seed(0)).mT)

    def forward(self, magnitude: Tensor) -> Tensor:
        return self.mask[..., : magnitude.shape[-1]]


class Watched(nn.Module):
    """A network whose CPU-seconds, those of the thread that runs it, are counted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, magnitude: Tensor) -> Tensor:
        began = time.thread_time()
        mask = self.network(magnitude)
        self.seconds += time.thread_time() - began
        return mask


@dataclass(frozen=True)
class Song:
    """The song in files of every kind, in blocks `[2, samples]` of both rates, and its length."""

    files: dict[str, Path]
    blocks: dict[int, list[Tensor]]
    seconds: float


def rows(settings: Settings) -> Iterator[Row]:
    """Each stage against its bound, then all together against real time."""
    torch.set_num_threads(1)
    with one_core(), TemporaryDirectory() as folder:
        song = make_song(Path(folder), QUICK_SECONDS if settings.quick else SECONDS, settings.song)
        bare: dict[str, float] = {}
        for stage in (decoding, resampling, transforms, encoding):
            for name, row in stage(song, settings.runs, Path(folder)):
                bare[name] = row.against
                yield row
        yield from together(song, bare, settings.runs, Path(folder))
        yield network_share(song, Path(folder))


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and those that it starts meanwhile, on one core, where the system lets choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def make_song(folder: Path, seconds: float, given: Path | None) -> Song:
    """The given song, or noise with wandering tones under it, as a file of every kind."""
    if given:
        with Reader(given) as reader:
            whole = torch.cat(list(resample(reader.blocks(), reader.rate, RATE)), dim=1)
        whole = whole.expand(2, -1) if whole.shape[0] == 1 else whole[:2]
        whole = whole[:, : round(seconds * RATE)].contiguous()
    else:
        samples = round(seconds * RATE)
        clock = torch.arange(samples, dtype=torch.float64) / RATE
        tones = torch.stack([torch.sin(6.283 * (pitch + 30 * torch.sin(clock)) * clock) for pitch in (220, 330)])
        noise = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
        whole = (0.2 * tones * (1 + torch.sin(3 * clock)) + 0.05 * noise).float()
    files = {name: folder / f"song.{name}" for name in INPUTS}
    for name, path in files.items():
        write(path, whole, RATE, Encoding(name, "16" if name in SNDFILE else None))
    other = torch.cat(list(resample(whole.split(BLOCK, dim=1), RATE, OTHER_RATE)), dim=1)
    files["wav of 48 kHz"] = folder / "other.wav"
    write(files["wav of 48 kHz"], other, OTHER_RATE, Encoding("wav", "16"))
    blocks = {RATE: list(whole.split(BLOCK, dim=1)), OTHER_RATE: list(other.split(BLOCK, dim=1))}
    return Song(files, blocks, whole.shape[1] / RATE)


def compared(
    what: str, ours: Callable[[], object], bound: Callable[[], object], peer: str, seconds: float, runs: int
) -> Row:
    """A stage of so many seconds of song beside its bound."""
    timings = side_by_side({"ours": ours, "bound": bound}, runs)
    cpu = timings["ours"].cpu
    note = f"{seconds / cpu:.0f}x real time"
    return Row(what, cpu, "CPU-s", timings["bound"].cpu, peer, timing=timings["ours"], note=note)


def used_up(blocks: Iterable[object]) -> None:
    """Asks for everything and keeps nothing."""
    for _ in blocks:
        pass


def decoding(song: Song, runs: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """Files to samples, against libsndfile or FFmpeg whose samples nobody looks at."""

    def ours(path: Path) -> None:
        with Reader(path) as reader:
            used_up(reader.blocks())

    for name, path in song.files.items():
        bound, peer = (sndfile_alone, "libsndfile alone") if path.suffix[1:] in SNDFILE else (av_alone, "PyAV alone")
        yield name, compared(f"decode {name}", partial(ours, path), partial(bound, path), peer, song.seconds, runs)


def sndfile_alone(path: Path) -> None:
    """Decodes into one buffer again and again."""
    buffer = np.empty((BLOCK, 2), np.float32)
    with soundfile.SoundFile(path) as file:
        while len(file.read(out=buffer)) == BLOCK:
            pass


def av_alone(path: Path) -> None:
    """Decodes and lets the frames go."""
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.audio[0]):
            packet.decode()


def resampling(song: Song, runs: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """One rate to the other, against soxr on channels that lie as it wants them."""
    for start, end in ((OTHER_RATE, RATE), (RATE, OTHER_RATE)):
        planes = [[block[side].numpy().copy() for block in song.blocks[start]] for side in range(2)]

        def bound(start: int = start, end: int = end, planes: list[list[np.ndarray]] = planes) -> None:
            for plane in planes:
                stream = soxr.ResampleStream(start, end, 1, dtype="float32", quality="HQ")
                for block in plane:
                    stream.resample_chunk(block)

        ours = partial(lambda start, end: used_up(resample(song.blocks[start], start, end)), start, end)
        what = f"resample {start / 1000:g} to {end / 1000:g} kHz"
        yield what, compared(what, ours, bound, "soxr alone", song.seconds, runs)


def transforms(song: Song, runs: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """The STFT, its magnitudes, its inverse, and all that a Separator does around its network."""
    stft, blocks = MODELS["default"].stft, song.blocks[RATE]
    count = round(song.seconds * RATE / stft.hop / FRAMES)
    frames = torch.randn(2, FRAMES, stft.n_fft)
    spectrum = torch.fft.rfft(frames)
    spectrogram = spectrum.transpose(1, 2)
    copy = torch.empty_like(spectrum)

    def times(work: Callable[[], object]) -> Callable[[], None]:
        return lambda: used_up(work() for _ in range(count))

    def forward() -> None:
        used_up(stft.forward_blocks(blocks, cover=True))

    def inverse() -> None:
        used_up(stft.inverse_blocks(spectrogram for _ in range(count)))

    def fft() -> Tensor:
        return torch.fft.rfft(frames)

    def ifft() -> Tensor:
        return torch.fft.irfft(spectrum, n=stft.n_fft)

    separator = ready()
    stages = {
        "STFT": (forward, times(fft), "torch's FFT alone"),
        "magnitudes": (times(lambda: modulus(spectrogram)), times(lambda: copy.copy_(spectrum)), "a copy"),
        "inverse STFT": (inverse, times(ifft), "torch's FFT alone"),
        "separate, but for the network": (
            lambda: used_up(separator.stream(blocks, RATE)), times(lambda: (fft(), ifft())), "both FFTs alone",
        ),
    }  # fmt: skip
    for what, (ours, bound, peer) in stages.items():
        yield what, compared(what, ours, bound, peer, song.seconds, runs)


def ready() -> Separator:
    """The default model's way of doing things with a network that takes no time."""
    spec = MODELS["default"]
    return Separator(spec, Ready(spec.stft.bins, spec.chunking.whole), "cpu")


def encoding(song: Song, runs: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """Samples to a file, against the bare bytes for wav, and against the encoder alone."""
    for kind in OUTPUTS:
        rate = OTHER_RATE if kind.format == "opus" else RATE
        blocks = song.blocks[rate]
        if kind.format not in SNDFILE:
            blocks = blocks[: round(LOSSY_SECONDS * rate / BLOCK)]
        seconds = sum(block.shape[1] for block in blocks) / rate
        path = folder / f"out.{kind.format}"

        def ours(path: Path = path, rate: int = rate, blocks: Sequence[Tensor] = blocks, kind: Encoding = kind) -> None:
            with Writer(path, rate, 2, kind) as writer:
                for block in blocks:
                    writer.write(block)

        bound, peer = bare_encoder(kind, blocks, path)
        what = f"encode {kind.format} {kind.bits or ''}".strip()
        yield what, compared(what, ours, bound, peer, seconds, runs)


def bare_encoder(kind: Encoding, blocks: Sequence[Tensor], path: Path) -> tuple[Callable[[], None], str]:
    """The work that nobody can spare a file, and whose it is."""
    if kind.format == "wav":
        size = {"16": 2, "24": 3, "32f": 4}[kind.bits]
        pieces = [np.zeros(block.numel() * size, np.uint8) for block in blocks]

        def put() -> None:
            with open(path, "wb") as file:
                for piece in pieces:
                    file.write(piece)

        return put, "the bytes alone"
    turns = [np.ascontiguousarray(block.T.numpy()) for block in blocks]
    subtype = {"flac": "PCM_24", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS", "opus": "OPUS"}.get(kind.format)
    if subtype and kind.format != "mp3":
        container = "FLAC" if kind.format == "flac" else "OGG"
        rate = OTHER_RATE if kind.format == "opus" else RATE

        def sndfile() -> None:
            with soundfile.SoundFile(path, "w", rate, 2, subtype, format=container) as file:
                for piece in turns:
                    for start in range(0, len(piece), BLOCK // 4):
                        file.write(piece[start : start + BLOCK // 4])

        return sndfile, "libsndfile alone"
    codec, muxer = {"mp3": ("libmp3lame", "mp3"), "m4a": ("aac", "mp4")}[kind.format]

    def ffmpeg() -> None:
        with av.open(str(path), "w", format=muxer) as out:
            stream = out.add_stream(codec, rate=RATE, layout="stereo")
            stream.codec_context.format, stream.bit_rate = "fltp", 320_000 if kind.format == "mp3" else 256_000
            for piece in turns:
                frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="flt", layout="stereo")
                frame.sample_rate = RATE
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))

    return ffmpeg, "PyAV alone"


def together(song: Song, bare: dict[str, float], runs: int, folder: Path) -> Iterator[Row]:
    """File to files with a network that takes no time, against real time; two wavs of 24 bits come out."""
    separator = ready()
    ways = {name: partial(whole, path, separator, folder / "stems") for name, path in song.files.items()}
    for name, timing in side_by_side(ways, runs).items():
        least = bare[name] + bare["separate, but for the network"] + 2 * bare["encode wav 24"]
        if "48" in name:
            least += sum(seconds for what, seconds in bare.items() if what.startswith("resample"))
        note = f"{timing.cpu:.2f} CPU-s, {timing.cpu / least:.1f} times the bounds of its stages"
        speed = song.seconds / timing.cpu
        yield Row(f"{name} to two wavs", speed, "x", 1.0, "real time", least=TARGET, timing=timing, note=note)


def whole(path: Path, separator: Separator, out: Path) -> None:
    """What the command does with one song."""
    naming = Naming(out=out, overwrite=True)
    for result in run(plan([path], naming), separator, naming):
        if result.error:
            raise RuntimeError(result.error)


def network_share(song: Song, folder: Path) -> Row:
    """How much of the CPU time of the default model's run is not its network's."""
    spec, network = checkpoint.load("default", torch.device("cpu"))
    watched = Watched(network)
    separator = Separator(spec, watched, "cpu")
    path = folder / "short.wav"
    seconds = min(song.seconds, LOSSY_SECONDS)
    short = torch.cat(song.blocks[RATE], dim=1)[:, : round(seconds * RATE)]
    write(path, short, RATE)
    whole(path, separator, folder / "stems")
    watched.seconds, began = 0.0, time.process_time()
    whole(path, separator, folder / "stems")
    spent = time.process_time() - began
    note = f"{seconds / spent:.1f}x real time in all, {seconds / (spent - watched.seconds):.0f}x without the network"
    return Row("default model: all but its network", spent - watched.seconds, "CPU-s", spent, "the whole run",
               timing=Timing(spent, spent), note=note)  # fmt: skip


def main() -> None:
    """Prints the rows as the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__.partition("\n")[0])
    parser.add_argument("song", nargs="?", type=Path, help="its first four minutes; without any, one is made up")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS} seconds of song")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    show([("stages", row) for row in rows(Settings(options.quick, options.runs, options.song))])


if __name__ == "__main__":
    main()
