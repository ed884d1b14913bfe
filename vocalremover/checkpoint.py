"""Checkpoint files: find one by name or path, recognise what it holds, load it safely, save one that explains itself.

A file comes from anywhere, so nothing in it is believed: no code of it runs (`weights_only=True`, always), the network
is recognised from the names and shapes of the tensors alone, and no memory is taken for a network before its shapes,
built on the meta device, equal those in the file. PyTorch files (zip or older) and safetensors are told apart by their
content, not by their name. Whatever is wrong with a file becomes one ModelError that names it.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vocalremover.chunks import Chunking
from vocalremover.errors import ModelError, UsageError
from vocalremover.models import ARGUMENTS, MODELS, NETWORKS, RECIPES, RENAMED, ModelSpec
from vocalremover.spectrogram import STFT

Shapes = Mapping[str, tuple[int, ...]]

# Averaged weights come first: where a training run kept both, they are the better ones.
WRAPPERS = ("ema", "ema_state_dict", "model_ema", "state", "state_dict", "model_state_dict", "model", "generator")
PREFIXES = ("ema_model.", "module.", "model.", "network.")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REFUSALS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
"""What a network's constructor or `arguments` may raise when handed shapes of something else."""
SENSIBLE = {
    "target": ("instrumental", "vocals"),
    "domain": ("spectrogram", "waveform"),
    "reads": ("magnitude", "complex"),
    "rate": range(1000, 768_001),
    "n_fft": range(2, 65_537),
    "size": range(1, 1 << 24),
    "context": range(1 << 24),
    "multiple": range(1, 1 << 24),
}
"""What a description may say in these fields."""


def models_folder() -> Path:
    """Where weights are looked for: `models` in $VOCALREMOVER_HOME, or else in the user's data folder."""
    home = os.environ.get("VOCALREMOVER_HOME") or platformdirs.user_data_dir("vocalremover", appauthor=False)
    return Path(home).expanduser() / "models"


def folders() -> tuple[Path, ...]:
    """Where the weights of a named model are looked for, in this order; the last folder is the user's own."""
    package = Path(str(files("vocalremover")))
    # The wheel carries the default weights inside the package; in the source tree their folder lies beside it.
    return package / "checkpoints", package.parent / "checkpoints", models_folder()


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a model in MODELS, or the path itself; ModelError says what is missing and where to get it."""
    recipe = MODELS.get(str(name_or_path))
    if recipe is None:
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
        kind = "a folder, not a checkpoint" if path.is_dir() else f"neither a file nor one of {', '.join(MODELS)}"
        raise ModelError(f"{path} is {kind}")
    names = dict.fromkeys((recipe.filename or f"{recipe.name}.safetensors", f"{recipe.name}.safetensors"))
    for folder in folders():
        for name in names:
            if (folder / name).is_file():
                return folder / name
    source = f"download it from {recipe.url}" if recipe.url else "its author published no link"
    raise ModelError(
        f"the weights of {recipe.name} are missing: put {next(iter(names))} into {models_folder()} ({source})"
    )


def load(name_or_path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[ModelSpec, nn.Module]:
    """The recipe and the network of a checkpoint, in eval mode and float32; file pages are read as they are needed.

    A float32 file is mapped, not copied: V10's 1.51 GiB load in 2 s and, once used, take 0.04 GiB more than that.
    A self-describing file brings its own recipe. For the name of a model the file must hold that model's network.
    Raises ModelError.
    """
    spec, network = _assemble(name_or_path)
    return spec, network.float().to(device)


def verify(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a model, once it is certain that it loads, holds finite numbers only and is the author's.

    The last only where the recipe knows the sha256 and the file has the author's name. Raises ModelError.
    """
    path = find(name_or_path)
    _, network = _assemble(name_or_path)
    for key, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise ModelError(f"{path}: {key} has numbers that are not finite")
    recipe = MODELS.get(str(name_or_path))
    if recipe is not None and recipe.sha256 and path.name == recipe.filename and sha256(path) != recipe.sha256:
        raise ModelError(f"{path} is not the file of {recipe.name} that its author made: its sha256 is another")
    return path


def convert(
    name_or_path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> ModelSpec:
    """Write a model as a safetensors file that describes itself, and return the description.

    Its `sha256` is that of the file it was made from. Numbers stay as they are stored, unless `dtype` says otherwise.
    Raises ModelError, or UsageError if the target is no new .safetensors file.
    """
    origin, target = find(name_or_path), Path(target)
    if target.suffix != ".safetensors":
        raise UsageError(f"{target} is no name for the result: it has to end with .safetensors")
    if target.exists() and target.samefile(origin):
        raise UsageError(f"{target} is the file to convert; give the result another name")
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"{target} exists already; --overwrite replaces it")
    spec, network = _assemble(name_or_path)
    spec = replace(spec, sha256=sha256(origin))
    save(target, spec, network, dtype)
    return spec


def _assemble(name_or_path: str | os.PathLike[str]) -> tuple[ModelSpec, nn.Module]:
    """The recipe and the network of a checkpoint, in eval mode, its tensors as they are stored."""
    path = find(name_or_path)
    candidates, description = _read(path)
    try:
        spec, state = _identify(candidates, description)
    except (ModelError, UsageError) as error:
        raise ModelError(f"{path}: {error}") from error
    recipe = MODELS.get(str(name_or_path))
    if recipe is not None:
        if spec.network != recipe.network:
            raise ModelError(f"{path} holds a {spec.network} network, not the {recipe.network} of {recipe.name}")
        base = spec if description else replace(recipe, args=spec.args, stft=spec.stft)
        spec = replace(base, name=recipe.name, filename=recipe.filename, url=recipe.url, sha256=recipe.sha256)
    network = spec.build("meta")
    for key, wanted in network.state_dict().items():
        held = state[key].dtype
        if held != wanted.dtype and not (held in DTYPES and wanted.dtype.is_floating_point):
            raise ModelError(f"{path}: {key} holds {held}, which cannot be read as {wanted.dtype}")
    network.load_state_dict(state, strict=True, assign=True)
    return spec, network


def recognise(shapes: Shapes) -> ModelSpec:
    """The recipe of the network whose state dict has exactly these names and shapes.

    Its arguments are those the shapes tell; the rest (STFT, chunking, target) is that of the network in MODELS.
    Raises ModelError that names the nearest architecture and the first differences, or those that fit alike.
    """
    spec = _match(shapes)
    if spec is None:
        raise ModelError(_near_miss(shapes))
    return spec


def save(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    network_or_state: nn.Module | Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file that carries its recipe; it appears whole or not at all, and its folder with it.

    With `dtype` the parameters are converted to it; buffers (position tables, running statistics) stay as they are.
    ModelError if the tensors are not those of the recipe or do not fit the dtype, or if the file cannot be written.
    """
    path = Path(path)
    state = network_or_state.state_dict() if isinstance(network_or_state, nn.Module) else dict(network_or_state)
    if _shapes(state) != _expected(spec.network, spec.args):
        raise ModelError(f"{path}: the tensors to save are not those of the network {spec.network}")
    parameters = {name for name, _ in spec.build("meta").named_parameters()}
    tensors = {}
    for key, tensor in state.items():
        # safetensors refuses memory that two names share, hence the clone.
        tensors[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if dtype is not None and key in parameters:
            tensors[key] = tensors[key].to(dtype)
            if not torch.isfinite(tensors[key]).all():
                raise ModelError(f"{path}: {key} has values that do not fit {dtype}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata={"format": "pt", "vocalremover": json.dumps(asdict(spec))})
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> tuple[list[dict[str, Tensor]], str | None]:
    """The sets of tensors a file holds, the most promising first, and the description inside if it has one."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
            size = os.fstat(stream.fileno()).st_size
        description = None
        # The brace first: before it, the length of a safetensors header may look like anything.
        if head[8:] == b"{":
            with safe_open(path, framework="pt", device="cpu") as opened:
                tree = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
                description = (opened.metadata() or {}).get("vocalremover")
        elif head[:4] == b"PK\x03\x04" and path.suffix != ".safetensors":
            _check_archive(path, size)
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        elif head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
            # The pickles of PyTorch before 1.6 cannot be mapped; and torch itself believes in the suffix .safetensors.
            with open(path, "rb") as stream:
                tree = torch.load(stream, map_location="cpu", weights_only=True)
        else:
            raise ModelError(f"{path} is not a checkpoint, or only the beginning of one")
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # parsers meet damaged bytes with any kind of exception
        if "unsupported" in str(error).lower():
            raise ModelError(f"{path} holds more than tensors and could run foreign code: refused") from error
        raise ModelError(f"{path} is damaged, incomplete or no checkpoint of tensors; copy it again") from error
    candidates = list(_candidates(tree))
    if not candidates:
        raise ModelError(f"{path} holds no tensors")
    for candidate in candidates:
        _check_tensors(path, candidate, size)
    return candidates, description


def _check_archive(path: Path, size: int) -> None:
    """Refuses archives that would unpack to more than the file; PyTorch itself never compresses."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise ModelError(f"{path} is a compressed archive, not a checkpoint")


def _check_tensors(path: Path, state: Mapping[str, Tensor], size: int) -> None:
    """Refuses tensors that claim more numbers than are stored, which a few bytes can do with a stride of zero."""
    total = 0
    for key, tensor in state.items():
        plain = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path}: {_name(key)} is not an ordinary tensor")
        total += tensor.nbytes
    if total > 2 * size:
        raise ModelError(f"{path}: the tensors claim to be larger than the file")


def _candidates(tree: object, depth: int = 0) -> Iterator[dict[str, Tensor]]:
    """Every dictionary of tensors in a checkpoint, wrapped ones first, without prefixes of training wrappers.

    Each may follow once more under the names that a network's other version gives to the same tensors.
    """
    if not isinstance(tree, Mapping) or depth > len(PREFIXES):
        return
    for wrapper in WRAPPERS:
        yield from _candidates(tree.get(wrapper), depth + 1)
    state = {key: value.detach() for key, value in tree.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        return
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    for prefix in PREFIXES * 2:
        stripped = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        # An exponential average keeps the trained weights and counters beside its own; other wrappers rename all.
        if len(stripped) == len(state) or (stripped and prefix == "ema_model."):
            state = stripped
    yield state
    for rename in RENAMED.values():
        renamed = {rename(key): value for key, value in state.items()}
        if renamed.keys() != state.keys():
            yield renamed


def _identify(candidates: list[dict[str, Tensor]], description: str | None) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The first candidate that is a known network; ModelError about the largest one if none is.

    Where a description names the network, that one is tried first, and recognition is spared.
    """
    every = [_shapes(state) for state in candidates]
    named = _named_network(description) if description else None
    for shapes, state in zip(every, candidates, strict=True):
        args = _fit(named, shapes) if named else None
        spec = _match(shapes) if args is None else _recipe(named, args)
        if spec is not None:
            return (_described(spec, description, shapes) if description else spec), state
    raise ModelError(_near_miss(max(every, key=len)))


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
    return args if args is not None and _expected(network, args) == dict(shapes) else None


def _named_network(description: str) -> str | None:
    """The key in NETWORKS that a description names, if it does."""
    try:
        network = json.loads(description).get("network")
        return network if network in NETWORKS else None
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _derive(network: str, shapes: Shapes) -> dict[str, Any] | None:
    try:
        return ARGUMENTS[network](shapes)
    except REFUSALS:
        return None


def _expected(network: str, args: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The names and shapes of a network's state dict, without taking memory for it; None if it cannot be built."""
    try:
        return _shapes(ModelSpec("", network, args).build("meta").state_dict())
    except REFUSALS:
        return None


@cache
def _published() -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """The network and the expected tensors of every recipe."""
    return [(recipe.network, _expected(recipe.network, recipe.args) or {}) for recipe in RECIPES]


def _recipe(network: str, args: dict[str, Any]) -> ModelSpec:
    """The recipe for these arguments; with other arguments the network's recipe, under the network's own name.

    Where several models are one network, it is the first of them, without what tells them apart.
    """
    recipes = [recipe for recipe in RECIPES if recipe.network == network]
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
    known = [*_published(), *((network, _expected(network, args) or {}) for network, args in derived)]
    shared, network, expected = max(
        ((sum(shapes.get(key) == shape for key, shape in one.items()), network, one) for network, one in known),
        key=lambda candidate: candidate[0],
    )
    if not shared:
        return f"holds {len(shapes)} tensors of no network known here"
    differences = [f"lacks {key}" for key in expected if key not in shapes]
    differences += [
        f"{_name(key)} is {list(shapes[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if shapes.get(key, shape) != shape
    ]
    differences += [f"has {_name(key)} besides" for key in shapes if key not in expected]
    rest = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
    return f"is not quite {network}, the nearest network known here: {', '.join(differences[:3])}{rest}"


def _name(key: str) -> str:
    """A tensor's name from a foreign file, fit to be shown."""
    return key if key.isprintable() and len(key) < 80 else repr(key[:80])


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
    _check_fields(record, asdict(ModelSpec("", "", {})), "description")
    args = record["args"]
    if record["network"] != found.network:
        raise ModelError(f"describes itself as {_name(record['network'])} but holds the tensors of {found.network}")
    for key, value in args.items():
        harmless = isinstance(value, bool | str) or (isinstance(value, int | float) and 0 <= value <= 1024)
        if value != known["args"].get(key) and not harmless:
            raise ModelError(f"describes an argument that its tensors do not bear out: {_name(key)}")
    if args != known["args"] and _expected(found.network, args) != dict(shapes):
        raise ModelError(f"describes another {found.network} than the one it holds")
    return ModelSpec(**{**record, "stft": STFT(**record["stft"]), "chunking": Chunking(**record["chunking"])})


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
            raise ModelError(f"carries a {where} whose {key} makes no sense: {_name(str(value))}")
