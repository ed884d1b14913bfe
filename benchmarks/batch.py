"""Songs per minute of one batch against a shell loop of single calls and against its own stages: `python -m
benchmarks.batch`.

The stages are measured alone, one song after another in this process: decoding, the network (with its transforms) and
encoding. One after another they take the sum of the three; a batch that overlaps them takes no longer than the slowest,
counting that decoding and encoding have `--cores` processors and that on a CPU the network needs them too. `share` is
how much of that bound the batch reaches. Fifty songs of three minutes with the default model take about half an hour
on two cores; `--songs 4 --minutes 0.5` is quicker.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.memory import weights, write_song
from benchmarks.rows import Row, Settings, Timing, run_process
from vocalremover.audio import Encoding, Reader, Writer
from vocalremover.separate import Separator


def rows(settings: Settings) -> Iterator[Row]:
    """The contract of `benchmarks.rows`."""
    size = ["--songs", "2", "--minutes", "0.25"] if settings.quick else ["--songs", "4", "--minutes", "1"]
    given = [str(settings.song)] if settings.song else []
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(make_parser().parse_args([*given, *size, "-d", settings.device]), Path(folder))
    one, what = numbers["seconds a song"], f"{numbers['songs']} songs, each"
    timing = Timing(one["batch"], numbers["CPU seconds a song"])
    yield Row(f"{what}, as one batch", one["batch"], "s", one["loop of single calls"], "single calls", timing=timing)
    yield Row(f"{what}, as one batch", one["batch"], "s", one["bound"], "stages side by side", timing=timing)


def make_songs(folder: Path, songs: int, minutes: float, given: list[Path]) -> list[Path]:
    """Copies of the songs given, in turn, or else of made-up ones."""
    folder.mkdir()
    if not given:
        given = [folder.parent / "song.wav"]
        write_song(given[0], minutes)
    paths = [folder / f"{number:03}{given[number % len(given)].suffix}" for number in range(songs)]
    for number, path in enumerate(paths):
        shutil.copyfile(given[number % len(given)], path)
    return paths


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of `work`."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stages(song: Path, separator: Separator, encoding: Encoding, folder: Path) -> dict[str, float]:
    """Seconds that each stage takes for one song, alone and in one thread, save for the network's own threads."""
    with Reader(song) as reader:
        blocks: list = []
        decode = seconds_of(lambda: blocks.extend(reader.blocks()))
        stems: list[dict] = []

        def network() -> None:
            peak = separator.peak(blocks, reader.rate) if separator.measures else None
            stems.extend(separator.stream(blocks, reader.rate, peak, reader.layout))

        def encode() -> None:
            for stem in separator.stems:
                with Writer(folder / f"{stem}.{encoding.format}", reader.rate, reader.channels, encoding) as writer:
                    for block in stems:
                        writer.write(block[stem])

        passes = 2 if separator.measures else 1
        return {"decode": passes * decode, "network": seconds_of(network), "encode": seconds_of(encode)}


def bound(alone: dict[str, float], cores: int, on_cpu: bool) -> float:
    """Seconds a song that no batch can do better than: the slowest stage, or on a CPU all work shared by its cores."""
    beside = (alone["decode"] + alone["encode"]) / cores
    if on_cpu:  # the network's time is that of all cores already
        return alone["network"] + beside
    return max(alone["network"], beside)


def call(words: list[object], threads: str | None) -> tuple[float, float]:
    """Wall and CPU seconds of one run of the command, which must succeed."""
    environment = {"OMP_NUM_THREADS": threads} if threads else {}
    return run_process([sys.executable, "-m", "vocalremover", "separate", *words, "-q"], environment)[:2]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All numbers of the table."""
    model = weights(options.model, folder)
    songs = make_songs(folder / "songs", options.songs, options.minutes, options.song)
    encoding = Encoding(options.format)
    separator = Separator.load(model, options.device)
    stages(songs[0], separator, encoding, folder)  # the first is slower: libraries are loaded, memory is touched
    alone = stages(songs[0], separator, encoding, folder)
    with Reader(songs[0]) as reader:
        minutes = sum(block.shape[-1] for block in reader.blocks()) / reader.rate / 60
    words = ["-m", model, "-d", str(separator.device), "-f", options.format]
    on_cpu = separator.device.type == "cpu"
    del separator
    jobs = ["--jobs", options.jobs] if options.jobs else []
    batch, cpu = call([folder / "songs", "-o", folder / "batch", *words, *jobs], options.threads)
    looped = songs[: options.loop or len(songs)]
    loop = sum(call([song, "-o", folder / "loop", *words], options.threads)[0] for song in looped)
    best = bound(alone, options.cores, on_cpu)
    return {
        "device": words[3], "model": options.model, "format": options.format, "songs": len(songs),
        "minutes": round(minutes, 3), "cores": options.cores,
        "seconds a song": {
            **{stage: round(seconds, 3) for stage, seconds in alone.items()},
            "sum of the stages": round(sum(alone.values()), 3),
            "bound": round(best, 3),
            "batch": round(batch / len(songs), 3),
            "loop of single calls": round(loop / len(looped), 3),
        },
        "CPU seconds a song": round(cpu / len(songs), 3),
        "songs a minute": {
            "batch": round(60 * len(songs) / batch, 2), "loop of single calls": round(60 * len(looped) / loop, 2)
        },
        "batch against loop": round(loop / len(looped) / (batch / len(songs)), 3),
        "share": round(best / (batch / len(songs)), 3),
    }  # fmt: skip


def table(numbers: dict[str, object]) -> str:
    """The numbers for a reader."""
    lines = [f"{numbers['songs']} songs of {numbers['minutes']} min, {numbers['model']} on {numbers['device']}, "
             f"{numbers['format']}, {numbers['cores']} cores", "", "seconds a song"]  # fmt: skip
    lines += [f"  {name:22}{seconds:9.3f}" for name, seconds in numbers["seconds a song"].items()]
    lines += ["", "songs a minute"]
    lines += [f"  {name:22}{count:9.2f}" for name, count in numbers["songs a minute"].items()]
    lines += ["", f"batch against loop      {numbers['batch against loop']:9.3f}"]
    lines += [f"share of the bound      {numbers['share']:9.3f}"]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", nargs="*", type=Path, help="songs to copy; without any, noise and tones are made")
    parser.add_argument("--songs", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=3.0, help="length of a made-up song")
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("-d", "--device", default="auto")
    parser.add_argument("-f", "--format", default="wav")
    parser.add_argument("--jobs", type=int, help="songs under way at once")
    parser.add_argument("--loop", type=int, help="how many single calls to measure; by default one a song")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--threads", help="OMP_NUM_THREADS of the command")
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    return parser


def main() -> None:
    """Measures and prints."""
    options = make_parser().parse_args()
    if options.threads:
        torch.set_num_threads(int(options.threads))
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(options, Path(folder))
    print(table(numbers))
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
