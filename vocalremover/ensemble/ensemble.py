"""Several Separators that answer as one.

The rule is one of what the models leave: of the song without its voice, the quietest, the mean, ... and the vocals are
the song minus that, so that stems sum to the song whatever the rule. Models of one grid share the transform and combine
their masks. Others are heard out and combined on a common grid or sample by sample, every stream a few windows behind
the song, none further ahead of the others than their windows reach.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import tee
from pathlib import Path

import torch
from torch import Tensor

from vocalremover import checkpoint
from vocalremover.chunks import Queue, tap
from vocalremover.devices import choose_device, choose_precision, fetch, send
from vocalremover.ensemble.choir import PAIR, Choir, grid
from vocalremover.ensemble.rules import Rule
from vocalremover.errors import UsageError
from vocalremover.models import ModelSpec
from vocalremover.separate import DEFAULTS, Inference, Progress, Separator, Stems
from vocalremover.separate.separator import checked
from vocalremover.streams import abreast

MIN = Rule("min")
Peaks = tuple[float | None, ...]


class Ensemble:
    """Separators that answer together; `stems` are those that all of them give.

    Where these are more than vocals and instrumental, the rule holds for what each of the others leaves of the song.
    """

    def __init__(
        self, separators: Sequence[Separator], rule: Rule | str = MIN, stems: Sequence[str] | None = None
    ) -> None:
        """stems: the wanted ones, by default all. Raises UsageError where there is none that all of them give."""
        self.rule = Rule.parse(rule) if isinstance(rule, str) else rule
        self.rule.check(len(separators))
        self.separators = tuple(separators)
        specs = [separator.spec for separator in separators]
        self.stems = common_stems(specs, [set(separator.stems) for separator in separators], stems)
        self._parts = parts_of(specs, self.stems)
        self._voices, self._outer = _voices(self.separators, self.rule, self.stems)
        # The original's vocals: whatever the others say, what the last model says.
        self._last = self.separators[-1:] if self.rule.method == "original" else ()
        self._warnings: list[str] = []
        self._told = dict.fromkeys(self.separators, 0)

    @classmethod
    def load(
        cls, names: Sequence[str | Path], device: str = "auto", rule: Rule | str = MIN,
        inference: Inference = DEFAULTS, configs: Sequence[Path | None] | None = None,
        stems: Sequence[str] | None = None,
    ) -> "Ensemble":  # fmt: skip
        """Names in MODELS and paths of checkpoints, of any families -> an Ensemble on one device.

        A model that is named twice is loaded once. configs: one for each model, None where it needs none.
        Raises ModelError, DeviceError and UsageError.
        """
        rule = Rule.parse(rule) if isinstance(rule, str) else rule
        rule.check(len(names))
        chosen = choose_device(device)
        choose_precision(inference.precision, chosen)  # a wrong word is told before the weights are read
        pairs = configured(names, configs)
        loaded = {pair: checkpoint.load(pair[0], chosen, pair[1]) for pair in dict.fromkeys(pairs)}
        specs = [spec for spec, _ in loaded.values()]
        wanted = common_stems(specs, [set(spec.stems) for spec in specs], stems)
        separators = {
            pair: Separator(spec, network, chosen, suited(spec, inference), wanted)
            for pair, (spec, network) in loaded.items()
        }
        ensemble = cls([separators[pair] for pair in pairs], rule, wanted)
        ensemble._warnings += (note for spec in specs for note in unsuited(spec, inference))
        return ensemble

    @property
    def measures(self) -> bool:
        """Whether `peak` needs a first pass over a song before `stream`."""
        return any(voice.measures for voice in (*self._voices, *self._last))

    @property
    def device(self) -> torch.device:
        """Where the first model runs."""
        return self.separators[0].device

    @property
    def warnings(self) -> list[str]:
        """A sentence for everything that did not go as asked; it only grows."""
        for separator, told in self._told.items():
            fresh = separator.warnings[told:]
            self._told[separator] += len(fresh)
            self._warnings += (f"{separator.spec.name}: {warning}" for warning in fresh)
        return self._warnings

    def describe(self) -> dict[str, object]:
        """Everything that decides what the stems are and how they are made, in words and numbers that JSON knows."""
        return {
            "model": "+".join(separator.spec.name for separator in self.separators),
            "rule": asdict(self.rule),
            "stems": list(self.stems),
            "device": str(self.device),
            "models": [separator.describe() for separator in self.separators],
        }

    separate = Separator.separate  # which asks for nothing but this face

    def peak(self, blocks: Iterable[Tensor], rate: int) -> Peaks | None:
        """What `stream` has to know of the whole song: the first pass. None, without reading, where that is nothing."""
        voices = (*self._voices, *self._last)
        measuring = {(voice.spec.stft, voice.spec.rate): voice for voice in voices if voice.measures}
        if not measuring:
            return None
        found = dict(zip(measuring, _peaks(tuple(measuring.values()), blocks, rate), strict=True))
        # A model that takes magnitudes as they are would still divide by a peak that it is given.
        return tuple(found[voice.spec.stft, voice.spec.rate] if voice.measures else None for voice in voices)

    def stream(
        self, blocks: Iterable[Tensor], rate: int, peak: Peaks | None = None, layout: str | None = None,
        progress: Progress = iter,
    ) -> Iterator[Stems]:  # fmt: skip
        """Blocks of a song `[channels, samples]` of any sizes -> blocks of every stem, as Separator.stream does."""
        if self.measures and peak is None:
            raise UsageError("this ensemble measures a song against its peak: pass what Ensemble.peak returns")
        peaks = peak or (None,) * (len(self._voices) + len(self._last))
        if len(self._voices) == 1 and not self._last:
            heard = self._voices[0].stream(blocks, rate, peaks[0], layout, progress)
            return ({stem: stems[stem] for stem in self.stems} for stems in heard)
        return iter(progress(self._stems(blocks, rate, peaks, layout)))

    def _stems(self, blocks: Iterable[Tensor], rate: int, peaks: Peaks, layout: str | None) -> Iterator[Stems]:
        song, last = Queue(), Queue()
        voices = (*self._voices, *self._last)
        feeds = tee(tap(blocks, song), len(voices))
        rests = [
            self._rests(voice, feed, rate, peak, layout) for voice, feed, peak in zip(voices, feeds, peaks, strict=True)
        ]

        def stacked() -> Iterator[Tensor]:
            for several in abreast(rests):
                if self._last:
                    last.push(several[-1])
                yield send(torch.stack(several[: len(self._voices)]), workplace)

        # Apple's GPUs lack some complex operations.
        device = self.separators[0].device
        workplace = device if device.type == "cuda" else torch.device("cpu")
        combined = self._outer.combine_audio(stacked(), rate)
        for rest in fetch(block for block in combined if block.numel()):
            piece = _whole(song, rest.shape[-1])
            kept = _whole(last, rest.shape[-1]) if self._last else rest
            yield {stem: value for stem, value in self._named(piece, rest, kept) if stem in self.stems}

    def _rests(
        self, voice: Separator, blocks: Iterable[Tensor], rate: int, peak: float | None, layout: str | None
    ) -> Iterator[Tensor]:
        """What one voice leaves of the song without each part, `[parts, channels, samples]`."""
        song = Queue()
        for stems in voice.stream(tap(blocks, song), rate, peak, layout):
            samples = next(iter(stems.values())).shape[-1]
            if not samples:
                continue
            piece = _whole(song, samples)
            yield torch.stack([stems[rest] if rest in stems else piece - stems[part] for part, rest in self._parts])

    def _named(self, song: Tensor, rests: Tensor, last: Tensor) -> Iterator[tuple[str, Tensor]]:
        for number, (part, rest) in enumerate(self._parts):
            yield part, song - last[number]
            if rest is not None:
                yield rest, rests[number]


def common_stems(specs: Sequence[ModelSpec], given: Sequence[set[str]], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The stems that all models give, of those asked for, in the order of the first; UsageError where there is none."""
    if not specs:
        raise UsageError("an ensemble needs at least one model")
    common = [stem for stem in specs[0].stems if all(stem in stems for stems in given)]
    if not common:
        lists = "; ".join(f"{spec.name}: {', '.join(spec.stems)}" for spec in specs)
        raise UsageError(f"these models have no stem in common ({lists}): leave out those that give others")
    for stem in asked or ():
        if stem not in common:
            raise UsageError(f"these models have in common {', '.join(common)}, but no {stem}")
    return tuple(stem for stem in common if not asked or stem in asked)


def parts_of(specs: Sequence[ModelSpec], stems: Sequence[str]) -> list[tuple[str, str | None]]:
    """What is combined for these stems: every part, and the name of what it leaves of the song, where that has one."""
    rests = {spec.stems[1]: spec.stems[0] for spec in specs if len(spec.outputs) == 1} | {PAIR[1]: PAIR[0]}
    names = {part: rest for rest, part in rests.items()}
    return [(part, names.get(part)) for part in dict.fromkeys(rests.get(stem, stem) for stem in stems)]


def configured(
    names: Sequence[str | Path], configs: Sequence[Path | None] | None
) -> list[tuple[str | Path, Path | None]]:
    """Every model with its config; UsageError where they are not one for each."""
    if configs is not None and len(configs) != len(names):
        raise UsageError(f"there are {len(names)} models and {len(configs)} configs: give one for each, or none")
    return list(zip(names, configs or [None] * len(names), strict=True))


def suited(spec: ModelSpec, inference: Inference) -> Inference:
    """What was asked of all models, less what one of this kind refuses on its own."""
    if spec.recurrent:
        return replace(inference, context=None, overlap=None, shifts=None, crops=())
    if spec.domain == "waveform":
        return replace(inference, context=None, crops=())
    return inference


def unsuited(spec: ModelSpec, inference: Inference) -> list[str]:
    """A sentence where a model is not run as was asked of all."""
    asked, given = asdict(inference), asdict(suited(spec, inference))
    names = [name for name, value in asked.items() if value != given[name]]
    return [f"{spec.name} has no {', no '.join(names)} of its own and is run without"] if names else []


def _voices(separators: Sequence[Separator], rule: Rule, stems: Sequence[str]) -> tuple[list[Separator], Rule]:
    """Who is heard one by one, and the rule between them; models of one grid are one voice where that is exact."""
    grids = [grid(separator.spec) for separator in separators]
    masks = rule.method == "avg" or rule.domain == "spec"
    nested = masks and rule.method != "median"
    if len(separators) == 1 or not masks or (not nested and (len(set(grids)) > 1 or grids[0] is None)):
        return list(separators), rule
    weights = rule.weights or (1.0,) * len(separators)
    shares: dict[object, list[int]] = {}
    for number, key in enumerate(grids):
        if weights[number]:
            shares.setdefault(number if key is None else key, []).append(number)
    voices = []
    for numbers in shares.values():
        inner = replace(rule, weights=[weights[number] for number in numbers]) if rule.method == "avg" else rule
        alone = len(numbers) == 1
        voices.append(separators[numbers[0]] if alone else Choir([separators[n] for n in numbers], inner, stems))
    sums = [sum(weights[number] for number in numbers) for numbers in shares.values()]
    return voices, replace(rule, weights=sums) if rule.method == "avg" else rule


def _whole(queue: Queue, samples: int) -> Tensor:
    """So many samples of a queue in one piece, float32."""
    return queue.piece(samples).detach().to("cpu", torch.float32)


def _peaks(voices: Sequence[Separator], blocks: Iterable[Tensor], rate: int) -> list[float | None]:
    """The peak of a song on the grid of every voice, in one pass."""
    if len(voices) == 1:
        return [voices[0].peak(blocks, rate)]
    taken, peaks = [0] * len(voices), [0.0] * len(voices)

    def counted(number: int, feed: Iterable[Tensor]) -> Iterator[Tensor]:
        for block in feed:
            taken[number] += 1
            yield block

    feeds = tee(checked(blocks), len(voices))
    running = {number: voice.levels(counted(number, feeds[number]), rate) for number, voice in enumerate(voices)}
    while running:
        # The one that has read least reads on, so that what lies between them is a few blocks.
        behind = min(running, key=taken.__getitem__)
        level = next(running[behind], None)
        if level is None:
            del running[behind]
        else:
            peaks[behind] = max(peaks[behind], level.item())
    return peaks
