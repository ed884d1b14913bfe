"""Run as a program of its own: imports one library and prints, as one JSON object, its version or why it has none.

A library that crashes, or waits for ever, does so here and not in the program that asks.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from types import ModuleType


def _of_av(module: ModuleType) -> dict[str, object]:
    versions = {name: ".".join(map(str, number)) for name, number in module.library_versions.items()}
    return {"holds": f"FFmpeg's libavcodec {versions['libavcodec']}, libavformat {versions['libavformat']}"}


def _of_soundfile(module: ModuleType) -> dict[str, object]:
    return {"holds": f"libsndfile {module.__libsndfile_version__}"}


def _of_soxr(module: ModuleType) -> dict[str, object]:
    return {"holds": f"libsoxr {module.__libsoxr_version__}"}


def _of_torch(module: ModuleType) -> dict[str, object]:
    """Whether PyTorch can hand tensors to the NumPy that is here, which it tells by failing at the first one."""
    build = {"CUDA": module.version.cuda, "ROCm": getattr(module.version, "hip", None)}
    known = [f"{name} {version}" for name, version in build.items() if version]
    module.from_numpy(module.zeros(1).numpy())
    return {"holds": f"for {known[0]}" if known else "without CUDA"}


FACTS: Mapping[str, Callable[[ModuleType], dict[str, object]]] = {
    "av": _of_av,
    "soundfile": _of_soundfile,
    "soxr": _of_soxr,
    "torch": _of_torch,
}


def facts(name: str, distribution: str) -> dict[str, object]:
    """`version` and what else is known of a library, or its `error`."""
    try:
        module = importlib.import_module(name)
        found = FACTS.get(name, lambda module: {})(module)
    except Exception as error:  # a broken library may raise anything
        return {"error": f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"}
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = str(getattr(module, "__version__", "unknown"))
    return {"version": version, **found}


if __name__ == "__main__":
    sys.path.pop(0)  # this file's own folder, whose modules are no libraries
    print(json.dumps(facts(*sys.argv[1:])))
