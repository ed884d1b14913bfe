"""The names and shapes of tensors in, the recipe of their network out.

The architecture and its arguments are told from the shapes alone, and no memory is taken for a network before its
shapes, built on the meta device, equal those at hand. What a file says of itself adds what shapes cannot tell.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from torch import Tensor

from vocalremover.chunks import Chunking
from vocalremover.errors import ModelError
from vocalremover.models import ARGUMENTS, MODELS, NETWORKS, RENAMED, ModelSpec
from vocalremover.spectrogram import STFT
from vocalremover.weights import printable

Shapes = Mapping[str, tuple[int, ...]]

REFUSALS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
"""What a network's constructor or `arguments` may raise when handed shapes of something else."""
SENSIBLE = {
    "rate": range(1000, 768_001),
    "n_fft": range(2, 65_537),
    "size": range(1, 1 << 24),
    "context": range(1 << 24),
    "multiple": range(1, 1 << 24),
}
"""What a description may say in these fields."""
STEM = re.compile(r"[a-z0-9]([a-z0-9 _&+-]{0,38}[a-z0-9])?")
"""What a stem may be called."""


def recognise(shapes: Shapes) -> ModelSpec:
    """The recipe of the network whose state dict has exactly these names and shapes.

    Its arguments are those the shapes tell; the rest (STFT, chunking, target) is that of the network in MODELS.
    Raises ModelError that names the nearest architecture and the first differences, or those that fit alike.
    """
    spec = _match(shapes)
    if spec is None:
        raise ModelError(_near_miss(shapes))
    return spec


def identify(candidates: list[dict[str, Tensor]], description: str | None) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The first candidate that is a known network; ModelError about the largest one if none is.

    Where a description names the network, that one is tried first, and recognition is spared.
    """
    candidates = [state for candidate in candidates for state in _namings(candidate)]
    every = [shapes_of(state) for state in candidates]
    named = _named_network(description) if description else None
    for shapes, state in zip(every, candidates, strict=True):
        args = _fit(named, shapes) if named else None
        spec = _match(shapes) if args is None else _recipe(named, args)
        if spec is not None:
            return (_described(spec, description, shapes) if description else spec), state
    raise ModelError(_near_miss(max(every, key=len)))


def _namings(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A state dict, and once more under the names that a network's other version gives to the same tensors."""
    yield state
    for rename in RENAMED.values():
        renamed = {rename(key): value for key, value in state.items()}
        if renamed.keys() != state.keys():
            yield renamed


def _match(shapes: Shapes) -> ModelSpec | None:
    """The recipe of the one network that fits; ModelError if several do."""
    fitting = [(network, args) for network in NETWORKS if (args := _fit(network, shapes)) is not None]
    if len(fitting) > 1:
        names = " and ".join(network for network, _ in fitting)
        raise ModelError(f"fits {names} alike; only a file that describes itself can be told from its like")
    return _recipe(*fitting[0]) if fitting else None


def _fit(network: str, shapes: Shapes) -> dict[str, Any] | None:
    """The arguments with which a network has exactly these names and shapes, if there are any."""
    args = _derive(network, shapes)
    return args if args is not None and expected_shapes(network, args) == dict(shapes) else None


def _named_network(description: str) -> str | None:
    """The key in NETWORKS that a description names, if it does."""
    try:
        network = json.loads(description).get("network")
        return network if network in NETWORKS else None
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a state dict, by its name."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _derive(network: str, shapes: Shapes) -> dict[str, Any] | None:
    try:
        return ARGUMENTS[network](shapes)
    except REFUSALS:
        return None


def expected_shapes(network: str, args: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The names and shapes of a network's state dict, without taking memory for it; None if it cannot be built."""
    try:
        return shapes_of(ModelSpec("", network, args).build("meta").state_dict())
    except REFUSALS:
        return None


@cache
def _published() -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """The network and the expected tensors of every recipe."""
    return [(recipe.network, expected_shapes(recipe.network, recipe.args) or {}) for recipe in MODELS.values()]


def _recipe(network: str, args: dict[str, Any]) -> ModelSpec:
    """The recipe for these arguments; with other arguments the network's recipe, under the network's own name.

    Where several models are one network, it is the first of them, without what tells them apart.
    """
    recipes = [recipe for recipe in MODELS.values() if recipe.network == network]
    fitting = [recipe for recipe in recipes if all(args.get(key) == value for key, value in recipe.args.items())]
    if len(fitting) == 1:
        return replace(fitting[0], args=args)
    if fitting:
        note = f"One network with {len(fitting)} sets of weights, {', '.join(recipe.name for recipe in fitting)}: "
        note += "which of them a file holds, its tensors do not tell."
        return replace(fitting[0], args=args, filename=None, url=None, sha256=None, note=note)
    base = recipes[0] if recipes else ModelSpec(network, network, args)
    n_fft = args.get("n_fft", base.stft.n_fft)
    stft = base.stft if n_fft == base.stft.n_fft else replace(base.stft, n_fft=n_fft, hop=n_fft // 2)
    return replace(base, name=network, args=args, stft=stft, filename=None, url=None, sha256=None)


def _near_miss(shapes: Shapes) -> str:
    """One sentence on the architecture that shares most tensors with a state dict, and on the first differences."""
    derived = [(network, args) for network in NETWORKS if (args := _derive(network, shapes)) is not None]
    known = [*_published(), *((network, expected_shapes(network, args) or {}) for network, args in derived)]
    shared, network, expected = max(
        ((sum(shapes.get(key) == shape for key, shape in one.items()), network, one) for network, one in known),
        key=lambda candidate: candidate[0],
    )
    if not shared:
        return f"holds {len(shapes)} tensors of no network known here"
    differences = [f"lacks {key}" for key in expected if key not in shapes]
    differences += [
        f"{printable(key)} is {list(shapes[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if shapes.get(key, shape) != shape
    ]
    differences += [f"has {printable(key)} besides" for key in shapes if key not in expected]
    rest = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
    return f"is not quite {network}, the nearest network known here: {', '.join(differences[:3])}{rest}"


def _described(found: ModelSpec, description: str, shapes: Shapes) -> ModelSpec:
    """The recipe that a file describes, every field checked; the tensors, not the text, decide on the network."""
    # Through JSON, so that tuples compare equal to the lists of the file. Fields it lacks are those of the network.
    known = json.loads(json.dumps(asdict(found)))
    try:
        told = json.loads(description)
        record = {**known, **told}
        record.update({key: {**known[key], **told.get(key, {})} for key in ("args", "stft", "chunking")})
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError("carries a description that cannot be read") from error
    record["instruments"] = _checked_stems(record["instruments"], record["target"])
    _check_fields(record, asdict(ModelSpec("", "", {})), "description")
    args = record["args"]
    if record["network"] != found.network:
        raise ModelError(f"describes itself as {printable(record['network'])} but holds the tensors of {found.network}")
    for key in ("domain", "reads"):
        if record[key] != known[key]:
            raise ModelError(f"says that its {key} is {printable(record[key])}, but that of {found.network} is not")
    if record["domain"] == "spectrogram" and record["target"] not in ("instrumental", "vocals"):
        raise ModelError(f"carries a description whose target makes no sense for a mask: {record['target']}")
    if args.get("num_stems", 1) > 1 and len(record["instruments"]) != args["num_stems"]:
        raise ModelError(f"describes {len(record['instruments'])} stems but holds {args['num_stems']}")
    for key, value in args.items():
        harmless = isinstance(value, bool | str) or (isinstance(value, int | float) and 0 <= value <= 1024)
        if value != known["args"].get(key) and not harmless:
            raise ModelError(f"describes an argument that its tensors do not bear out: {printable(key)}")
    if args != known["args"] and expected_shapes(found.network, args) != dict(shapes):
        raise ModelError(f"describes another {found.network} than the one it holds")
    return ModelSpec(**{**record, "stft": STFT(**record["stft"]), "chunking": Chunking(**record["chunking"])})


def _checked_stems(instruments: object, target: object) -> tuple[str, ...]:
    """The names a description gives to stems, which become parts of file names: letters, digits and little else."""
    names = instruments if isinstance(instruments, list) and len(instruments) <= 64 else [None]
    for name in (*names, target):
        if not isinstance(name, str) or not STEM.fullmatch(name):
            raise ModelError(f"carries a description that names a stem {printable(str(name))}")
    if len(set(names)) < len(names):
        raise ModelError("carries a description that names two stems alike")
    return tuple(names)


def _check_fields(record: object, pattern: Mapping[str, Any], where: str) -> None:
    """Demands the same keys as the pattern and values of the same types; text must be short and printable."""
    if not isinstance(record, dict) or record.keys() != pattern.keys():
        raise ModelError(f"carries a {where} with other fields than {', '.join(pattern)}")
    for key, example in pattern.items():
        value = record[key]
        if isinstance(example, dict) and example:
            _check_fields(value, example, key)
            continue
        kind = str if example is None else type(example)
        optional = example is None and value is None
        if not optional and type(value) is not kind:
            raise ModelError(f"carries a {where} whose {key} is not of type {kind.__name__}")
        long = isinstance(value, str) and (len(value) > 1000 or not value.isprintable())
        if long or value not in SENSIBLE.get(key, (value,)):
            raise ModelError(f"carries a {where} whose {key} makes no sense: {printable(str(value))}")
