"""The options that several commands share: words typed by a person in, the library's dataclasses out.

Each group is a frozen dataclass, whose fields are the options' names, beside the list of its options; `grouped` hands
a command its groups whole. Nothing here imports anything heavy before a group is turned into what the library takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vocalremover.cli.sections import choice, option

if TYPE_CHECKING:
    from vocalremover.audio import Encoding
    from vocalremover.batch import Settings
    from vocalremover.separate import Inference

FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
BOTH = ("vocals", "instrumental")
ORIGINAL = "original"


def grouped(*groups: type) -> Callable[[Callable], Callable]:
    """Adds the options of the groups to a command, which is then called with one object a group and its own words."""

    def decorate(callback: Callable) -> Callable:
        @wraps(callback)
        def collected(**words: object) -> object:
            made = [group(**{field.name: words.pop(field.name) for field in fields(group)}) for group in groups]
            return callback(*made, **words)

        for group in reversed(groups):
            for add in reversed(OPTIONS[group]):
                collected = add(collected)
        return collected

    return decorate


def several(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """`--x a,b --x c` is a, b and c."""
    return tuple(name for word in words for name in (part.strip() for part in word.split(",")) if name)


def _lower(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in several(context, parameter, words))


def _bitrate(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """`192k`, `192` and `192000` are all 192000 bits per second."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(k?)", text.strip().lower())
    if not match:
        raise click.BadParameter(f"{text!r} is no bit rate; write 192k or 192000", context, parameter)
    number = int(match[1])
    return number * 1000 if match[2] or number < 1000 else number


def device_name(context: click.Context, parameter: click.Parameter, names: str) -> str:
    """The word as it is; BadParameter for one that names no device."""
    for name in names.split(","):
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps|all", name.strip()):
            raise click.BadParameter(f"{name!r} is none of auto, cpu, cuda, cuda:N, mps, all", context, parameter)
    return names


def _crops(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[tuple[int, int], ...] | str | None:
    """`256/128,512/256` -> ((256, 128), (512, 256)); the word ORIGINAL stays."""
    if text is None or text.lower() == ORIGINAL:
        return text and ORIGINAL
    if not re.fullmatch(r"[1-9]\d*/\d+(,[1-9]\d*/\d+)*", text):
        hint = f"write frames and padding, such as 256/128,512/256, or {ORIGINAL}"
        raise click.BadParameter(f"{text!r} are no crops; {hint}", context, parameter)
    pairs = (pair.split("/") for pair in text.split(","))
    return tuple((int(frames), int(padding)) for frames, padding in pairs)


def _shard(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise click.BadParameter(f"{text!r} is no shard; 2/8 is the second of eight", context, parameter)
    return int(match[1]), int(match[2])


def _page(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """The path as it is; BadParameter for one that may be a song's or a stem's, which a page would replace."""
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(f"{str(path)!r} is no name for a page; it ends with .html", context, parameter)
    return path


@dataclass(frozen=True)
class Computing:
    """What computes, and how well."""

    device: str
    gpu: int | None
    precision: str
    acceleration: str
    batch_size: int | None
    quality: str
    overlap: float | None
    num_overlap: int | None
    shifts: int | None
    tta: bool
    crops: tuple[tuple[int, int], ...] | str | None
    segment: float | None
    cropsize: int | None
    padding: int | None

    @property
    def chosen(self) -> str:
        """The devices' names as they were asked for. Raises UsageError."""
        if self.gpu is None:
            return self.device
        if self.device != "auto":
            raise click.UsageError(f"--gpu {self.gpu} and --device {self.device} both choose a device; give one")
        return "cpu" if self.gpu == -1 else f"cuda:{self.gpu}"

    def devices(self) -> list[str]:
        """The devices' names, "auto" and "all" looked up. Raises UsageError and DeviceError."""
        from vocalremover.devices import choose_devices

        return [str(device) for device in choose_devices(self.chosen)]

    def inference(self) -> Inference:
        """The settings in the library's words. Raises UsageError."""
        if self.overlap is not None and self.num_overlap is not None:
            raise click.UsageError("--overlap and --num-overlap say the same in two ways; give one of them")
        from vocalremover.separate import ORIGINAL_TTA, Inference

        overlap = self.overlap if self.num_overlap is None else 1 - 1 / self.num_overlap
        return Inference(
            precision=self.precision, batch=self.batch_size, quality=self.quality, size=self.cropsize,
            context=self.padding, segment=self.segment, overlap=overlap, shifts=self.shifts, tta=self.tta,
            crops=ORIGINAL_TTA if self.crops == ORIGINAL else self.crops or (), acceleration=self.acceleration,
        )  # fmt: skip


@dataclass(frozen=True)
class Filing:
    """Which stems are written, where, and as what."""

    stem: tuple[str, ...]
    two_stems: str | None
    out: Path | None
    template: str
    format: str
    bits: str | None
    int24: bool
    float32: bool
    bitrate: int | None
    clip: str
    overwrite: bool

    def stems(self) -> tuple[str, ...] | None:
        """The stems that are asked for; None for all that the model gives. Raises UsageError."""
        named = tuple(dict.fromkeys(self.stem))
        if self.two_stems and named not in ((), ("both",)):
            raise click.UsageError(f"--two-stems writes both stems and --stem {','.join(named)} others; choose")
        if "both" in named and len(named) > 1:
            raise click.UsageError(f"--stem both is {' and '.join(BOTH)}; name it alone, or each stem by its name")
        return BOTH if self.two_stems or named == ("both",) else named or None

    def settings(self, model: str, skip_existing: bool = False) -> Settings:
        """How stems are written, all of them; `model` is what a template's {model} becomes. Raises UsageError."""
        from vocalremover.batch import Settings

        return Settings(
            out=self.out, template=self.template, stems=self.stems() or BOTH, clip=self.clip,
            overwrite=self.overwrite, skip_existing=skip_existing, model=model, encoding=self.encoding(),
        )  # fmt: skip

    def encoding(self) -> Encoding:
        """The format and its bits. Raises UsageError."""
        said = {"--bits": self.bits, "--int24": "24" * self.int24, "--float32": "32f" * self.float32}
        chosen = {name: bits for name, bits in said.items() if bits}
        if len(set(chosen.values())) > 1:
            raise click.UsageError(f"{' and '.join(chosen)} contradict each other; give one of them")
        from vocalremover.audio import Encoding

        return Encoding(self.format, next(iter(chosen.values()), None), self.bitrate)


@dataclass(frozen=True)
class Batch:
    """Which of many songs are done, and how many at once."""

    recursive: bool
    skip_existing: bool
    dry_run: bool
    shard: tuple[int, int] | None
    jobs: int | None


@dataclass(frozen=True)
class Telling:
    """What a person or a script gets to see."""

    as_json: bool
    report: Path | None
    quiet: bool
    verbose: int

    @property
    def verbosity(self) -> int:
        """-1 (errors only), 0, 1 (more) or 2 (tracebacks)."""
        return -1 if self.quiet else min(self.verbose, 2)


_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
OPTIONS: Mapping[type, tuple[Callable, ...]] = {
    Filing: (
        option(
            "Stems", "--stem", "--single-stem", multiple=True, callback=_lower, metavar="NAME",
            help="What to write: both (vocals and instrumental) or any stem of the model, several with commas.  "
            "[default: all]",
        ),
        option("Stems", "--two-stems", type=choice("both", *BOTH), help="Both, whichever is named; as --stem both."),
        option(
            "Files", "-o", "--out", "--output", metavar="DIR", type=_PATH,
            help="Folder for them; - for stdout.  [default: beside the input]",
        ),
        option(
            "Files", "--template", default="{track}_{stem}.{ext}", show_default=True,
            help="The stems' names; {model} is known too.",
        ),
        option("Files", "-f", "--format", type=choice(*FORMATS), default="wav", show_default=True),
        option(
            "Files", "--bits", type=choice("16", "24", "32f"),
            help="wav: 16, 24 or 32f; flac: 16 or 24.  [default: 24]",
        ),
        option("Files", "--int24", is_flag=True, help="As --bits 24."),
        option("Files", "--float32", is_flag=True, help="As --bits 32f."),
        option("Files", "--bitrate", callback=_bitrate, metavar="RATE", help="Of mp3, ogg, opus and m4a: 192k."),
        option(
            "Stems", "--clip", "--clip-mode", type=choice("none", "rescale", "clamp"), default="none",
            show_default=True,
            help="Where a stem exceeds full scale: leave its level alone, turn all stems down alike, or limit it.",
        ),
        option("Files", "--overwrite", is_flag=True, help="Replace what exists."),
    ),
    Batch: (
        option("Many files", "-r", "--recursive", is_flag=True, help="Folders with all that is in them."),
        option("Many files", "--skip-existing", is_flag=True, help="Leave what is done; redo what was made otherwise."),
        option("Many files", "--dry-run", is_flag=True, help="Tell what would be done, and do nothing."),
        option("Many files", "--shard", callback=_shard, metavar="I/N", help="The I-th of N equal shares of the work."),
        option("Many files", "-j", "--jobs", type=_COUNT, metavar="N", help="Songs at once on a device."),
    ),
    Computing: (
        option(
            "Device", "-d", "--device", default="auto", show_default=True, callback=device_name, metavar="NAME",
            help="auto, cpu, cuda, cuda:N, mps; cuda:0,cuda:1 or all for several.",
        ),
        option("Device", "-g", "--gpu", type=click.IntRange(min=-1), metavar="N", help="As -d cuda:N; -1: -d cpu."),
        option("Device", "--precision", type=choice("auto", "fp32", "bf16", "fp16"), default="auto", show_default=True),
        option(
            "Device", "--acceleration", type=choice("auto", "none", "compile"), default="auto", show_default=True,
            help="auto: CUDA graphs on a GPU; compile: for many songs, after a minute or more.",
        ),
        option(
            "Device", "-b", "-B", "--batch-size", "--batchsize", type=_COUNT, metavar="N",
            help="Windows that go through the network together.",
        ),
        option(
            "Quality against speed", "--quality", type=choice("fast", "balanced", "best"), default="balanced",
            show_default=True, help="A preset of what follows.",
        ),
        option(
            "Quality against speed", "--overlap", type=click.FloatRange(0, 0.95), metavar="SHARE",
            help="Of a window, with its neighbours: 0 to 0.95.",
        ),
        option(
            "Quality against speed", "--num-overlap", type=click.IntRange(1, 20), metavar="N",
            help="As --overlap 1-1/N.",
        ),
        option("Quality against speed", "--shifts", type=_COUNT, metavar="N", help="Average so many displaced passes."),
        option("Quality against speed", "--tta", is_flag=True, help="Average over swapped sides and other passes."),
        option(
            "Quality against speed", "--crops", callback=_crops, metavar="C/P,...",
            help="Average over passes with these sizes and paddings; original is the original's --tta.",
        ),
        option(
            "Quality against speed", "--segment", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
            help="Length of a window.  [default: the model's]",
        ),
        option(
            "Quality against speed", "-c", "--cropsize", type=_COUNT, metavar="FRAMES",
            help="Length of a window without padding.  [default: the model's]",
        ),
        option(
            "Quality against speed", "--padding", type=click.IntRange(min=0), metavar="FRAMES",
            help="What the network sees besides on each side.  [default: the model's]",
        ),
    ),
    Telling: (
        option("On the screen", "--json", "as_json", is_flag=True, help="One JSON object per input on stdout."),
        option(
            "On the screen", "--report", metavar="FILE.html", type=_PATH, callback=_page,
            help="A page with pictures and players.",
        ),
        option("On the screen", "-q", "--quiet", is_flag=True, help="Nothing but errors."),
        option("On the screen", "-v", "--verbose", count=True, help="Tell more; -vv adds tracebacks of odd errors."),
    ),
}  # fmt: skip
