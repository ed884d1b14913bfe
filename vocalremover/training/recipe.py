"""What a training run does, as data: a YAML file, with `section.setting=value` on top -> a frozen `Recipe`.

The shipped recipes lie in `recipes/`. Those of the frame transformers follow the scripts of carperbr/frame-transformer
(MIT) at 85e7f18 (thin, V1), 5000d3d (V2b, GAN), a6786372 (V7, V10) and 9da2cd8 (primer), where these state their
settings; the others say where theirs come from. A setting that does not exist is refused, so that a misspelt word never
trains for days with its default.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from vocalremover.chunks import Chunking
from vocalremover.errors import UsageError
from vocalremover.models import MODELS, ModelSpec
from vocalremover.spectrogram import STFT
from vocalremover.training.tables import as_table, from_table

SHIPPED = files("vocalremover.training") / "recipes"
OWN_RECIPE = {"default": "compact", "primer": "primer_pretrain", "primer_pre": "primer_pretrain", "newft_gan": "gan"}
LIKE = {"full": "thin", "v1": "thin", "resnet": "thin", "v3": "v2b", "newft": "v2b", "v8": "v7"}
"""Recipes for models that have none of their own name."""
RECURRENT = "{} reads what it left of the crops before and cannot be trained here"


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum. until: the step at which it ends, None for the run's end; frames: length of an example;
    batch: examples of one process at once; accumulation: such batches before the weights move."""

    until: int | None = None
    frames: int = 256
    batch: int = 4
    accumulation: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.batch, self.accumulation) < 1 or self.frames < 2:
            raise UsageError("a stage needs at least 2 frames, 1 example and 1 batch before the weights move")


@dataclass(frozen=True)
class Optimiser:
    """AdamW, or, with a matrix_rate, Muon at this learning rate for matrices and convolutions and AdamW for what else
    there is and for what `plain` names. clip: the largest norm of the gradients, None for any; freeze, plain: patterns
    of parameter names (`encoder.*`), `freeze` of those that stay as they are; layer_decay: every block of the network
    learns that much more slowly than the one after."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    clip: float | None = 1.0
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()
    matrix_rate: float | None = None
    plain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and (self.matrix_rate is None or self.matrix_rate > 0)):
            raise UsageError("optimiser.learning_rate and optimiser.matrix_rate must be above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError("optimiser.betas must be two numbers from 0 to below 1")
        if not self.weight_decay >= 0:
            raise UsageError("optimiser.weight_decay must be at least 0")
        if not (self.layer_decay > 0 and (self.clip is None or self.clip > 0)):
            raise UsageError("optimiser.layer_decay and optimiser.clip must be above 0; null clips nothing")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes; see `schedules`. warm_up and until are steps, target is a learning rate."""

    kind: Literal["polynomial", "cosine", "constant"] = "polynomial"
    warm_up: int = 0
    until: int | None = None
    power: float = 1.0
    target: float = 0.0
    form: Literal["steep", "plain"] = "plain"

    def __post_init__(self) -> None:
        if not (self.warm_up >= 0 and self.power >= 0):
            raise UsageError("schedule.warm_up and schedule.power must be at least 0")


@dataclass(frozen=True)
class Reuse:
    """Examples made of what was rendered before; see `reuse`. times: examples for every rendering; places: renderings
    that are kept; candidates: backings from which the one in the voice's key is taken, up to how many; frames: length
    of renderings, None for that of an example."""

    times: int = 1
    places: int = 96
    candidates: int = 1
    frames: int | None = None

    def __post_init__(self) -> None:
        if min(self.times, self.places, self.candidates) < 1:
            raise UsageError("reuse.times, reuse.places and reuse.candidates must be at least 1")


@dataclass(frozen=True)
class Masking:
    """Masked pre-training. token: frames that are masked together; rate: share of the tokens; noise, intact: the shares
    of these that are made noisy or left as they are instead of being covered."""

    token: int = 64
    rate: float = 0.2
    noise: float = 0.1
    intact: float = 0.1

    def __post_init__(self) -> None:
        if self.token < 1 or not all(0 <= share <= 1 for share in (self.rate, self.noise, self.intact)):
            raise UsageError("masking.token must be at least 1, and masking.rate, noise and intact from 0 to 1")


@dataclass(frozen=True)
class Adversary:
    """The network that judges, and how much its verdict weighs beside the recipe's `losses`."""

    network: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UsageError("adversary.learning_rate must be above 0")


@dataclass(frozen=True)
class Recipe:
    """One run. network, stft, chunking: replace what MODELS says of the model; losses: name in `losses.LOSSES` ->
    weight; augmentation: strengths of voxaug; mixup: Beta parameter of mixing examples, 0 for none; average: share that
    the averaged weights keep at each step, 0 for no averaging; steps, minutes: whichever is over first ends the run;
    patience: broken batches in a row that end it; dtype: of the parameters in what is saved for separating; log_,
    save_, keep_ and validate_: how often, in steps or minutes."""

    model: str = "default"
    kind: Literal["supervised", "pretrain", "gan"] = "supervised"
    network: Mapping[str, Any] = field(default_factory=dict)
    stft: Mapping[str, Any] = field(default_factory=dict)
    chunking: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=lambda: {"magnitude": 1.0})
    stages: tuple[Stage, ...] = (Stage(),)
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    reuse: Reuse = Reuse()
    masking: Masking = Masking()
    adversary: Adversary = Adversary()
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    mixup: float = 0.0
    average: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    seed: int = 1
    steps: int | None = None
    minutes: float | None = None
    log_steps: int = 20
    save_steps: int | None = None
    save_minutes: float = 5.0
    keep_steps: int | None = None
    validate_steps: int | None = None
    validate_minutes: float | None = None
    patience: int = 10
    dtype: Literal["float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"there is no model {self.model!r} to train: choose one of {', '.join(MODELS)}")
        if MODELS[self.model].recurrent:
            raise UsageError(RECURRENT.format(self.model))
        if not self.stages:
            raise UsageError("a recipe needs at least one stage")
        ends = [stage.until for stage in self.stages[:-1]]
        if None in ends or ends != sorted({*ends}):
            raise UsageError("each stage but the last needs an `until`, later than that of the stage before")
        if self.reuse.frames and self.reuse.frames < max(stage.frames for stage in self.stages):
            raise UsageError("reuse.frames is shorter than an example: renderings are cut to the frames of a stage")
        if self.log_steps < 1 or self.patience < 1:
            raise UsageError("log_steps and patience must be at least 1")
        if not (0 <= self.mixup < math.inf and 0 <= self.average <= 1):
            raise UsageError("mixup must be at least 0, and average from 0 to 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError("seed must be from 0 to 4294967295")

    def spec(self, base: ModelSpec | None = None) -> ModelSpec:
        """The model to train: `base`, or what MODELS says, with the recipe's replacements."""
        base = base or MODELS[self.model]
        stft, chunking = ({**asdict(held), **given} for held, given in
                          ((base.stft, self.stft), (base.chunking, self.chunking)))  # fmt: skip
        args = {**base.args, **self.network}
        return replace(
            base, args=args, stft=from_table(STFT, stft, "stft"), chunking=from_table(Chunking, chunking, "chunking")
        )

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to; the last one has no end."""
        return next((stage for stage in self.stages if stage.until is None or step < stage.until), self.stages[-1])

    def schedule_end(self) -> int | None:
        """The step at which the learning rate has come down; None where the run is limited in minutes only."""
        return self.schedule.until if self.schedule.until is not None else self.steps


def read_recipe(
    name_or_path: str | Path | None, model: str | None = None, changes: Sequence[str] = (), **settings: object
) -> Recipe:
    """The recipe of a shipped name or a YAML file; without either, the one that suits `model`.

    changes: `section.setting=value`, the value in YAML. settings: whole settings that replace the file's unless None.
    Raises UsageError in a sentence for whatever does not fit.
    """
    if name_or_path is None:
        model = model or "default"
        if model in MODELS and MODELS[model].recurrent:
            raise UsageError(RECURRENT.format(model))
        tree = _load(OWN_RECIPE.get(model) or LIKE.get(model) or _family(model))
        if model in MODELS:  # whose network may end sooner than that of the model that the recipe was written for
            most = MODELS[model].most_frames or math.inf
            tree["stages"] = [stage for stage in tree["stages"] if stage["frames"] <= most]
    else:
        tree = _load(str(name_or_path))
    if model is not None:
        tree["model"] = model
    tree = {"stages": [{}]} | tree | {key: value for key, value in settings.items() if value is not None}
    for change in changes:
        _change(tree, change)
    return from_table(Recipe, tree, "recipe")


def shipped() -> list[str]:
    """The names of the recipes that come along."""
    return sorted(Path(entry.name).stem for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """The whole recipe in force, readable by `read_recipe`."""
    path.write_text(yaml.safe_dump(as_table(asdict(recipe)), sort_keys=False), encoding="utf-8")


def _family(model: str) -> str:
    """A RoFormer of any name is trained as its family is; another model as the recipe of its own name says."""
    network = MODELS[model].network if model in MODELS else model
    return network if network in shipped() else model


def _load(name_or_path: str) -> dict[str, Any]:
    entry = SHIPPED / f"{name_or_path}.yaml"
    path = entry if entry.is_file() else Path(name_or_path).expanduser()
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(shipped())
        raise UsageError(f"{name_or_path} is neither a file nor one of the shipped recipes ({known})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{name_or_path} must hold settings, one `name: value` a line")
    return tree


def _change(tree: dict[str, Any], change: str) -> None:
    """Sets `section.setting=value` in a tree of settings; a number picks a stage."""
    path, equals, text = change.partition("=")
    if not equals:
        raise UsageError(f"{change!r} is no setting: write section.setting=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} cannot be read as the value of {path}") from error
    *sections, last = path.strip().split(".")
    place: Any = tree
    for section in sections:
        if isinstance(place, dict):
            place = place.setdefault(section, {})
        elif isinstance(place, list) and section.isdigit() and int(section) < len(place):
            place = place[int(section)]
        else:
            raise UsageError(f"{path} leads nowhere in the recipe")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UsageError(f"{path} leads nowhere in the recipe")
