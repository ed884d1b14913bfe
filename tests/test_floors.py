"""The house's rule of floors: a module imports only from floors below its own, or from its own package.

The imports are read from the source, those inside functions too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vocalremover"

# A package's floor holds for every module in it that has none of its own.
FLOORS = {
    "vocalremover": 12,
    "vocalremover.__main__": 12,
    "vocalremover.cli": 11,
    "vocalremover.training": 10,
    "vocalremover.report": 9,
    "vocalremover.voxaug": 9,
    "vocalremover.bench": 9,
    "vocalremover.doctor": 9,
    "vocalremover.batch": 8,
    "vocalremover.dataset": 8,
    "vocalremover.ensemble": 7,
    "vocalremover.evaluate": 7,
    "vocalremover.separate": 6,
    "vocalremover.checkpoint": 5,
    "vocalremover.models": 3,
    "vocalremover.recipes": 2,
    "vocalremover.networks": 2,
    "vocalremover.networks.layers": 1,
    "vocalremover.networks.roformer": 1,
    "vocalremover.networks.strips": 0,
    "vocalremover.chunks": 1,
    "vocalremover.devices": 1,
    "vocalremover.durations": 0,
    "vocalremover.pictures": 2,
    "vocalremover.spectrogram": 1,
    "vocalremover.staging": 1,
    "vocalremover.streams": 2,
    "vocalremover.threads": 0,
    "vocalremover.audio": 1,
    "vocalremover.machine": 0,
    "vocalremover.errors": 0,
}
# Networks are documents: they share layers.py and strips.py and nothing else, not even with each other.
TOGETHER = tuple(
    f"vocalremover.{room}"
    for room in "audio batch bench checkpoint cli dataset doctor ensemble evaluate separate training voxaug".split()
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    if module == "vocalremover":
        return FLOORS[module]
    while module not in FLOORS:
        module, _, _ = module.rpartition(".")
        assert module != "vocalremover", "every room of the house has a floor in FLOORS"
    return FLOORS[module]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports. The version is a literal in the face and counts as ground."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full != "vocalremover.__version__":
                    found.add(full if is_module(full) else node.module)
    return {name for name in found if name.split(".")[0] == "vocalremover"}


def imported_names(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def allowed(module: str, imported: str) -> bool:
    together = any(f"{module}.".startswith(f"{room}.") and f"{imported}.".startswith(f"{room}.") for room in TOGETHER)
    return together or floor_of(imported) < floor_of(module)


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_below(path: Path) -> None:
    module = name_of(path)
    above = sorted(imported for imported in imports(path) if not allowed(module, imported))
    assert not above, f"{module} (floor {floor_of(module)}) imports {', '.join(above)}"


def test_networks_import_the_shared_blocks_and_nothing_else_of_ours() -> None:
    shared = ("networks.layers", "networks.strips", "networks.roformer", "errors")
    for path in (PACKAGE / "networks").glob("*.py"):
        assert imports(path) <= {f"vocalremover.{name}" for name in shared}


def test_the_rule_bites() -> None:
    assert not allowed("vocalremover.chunks", "vocalremover.spectrogram")
    assert not allowed("vocalremover.networks.v10", "vocalremover.networks.compact")
    assert not allowed("vocalremover.separate", "vocalremover.batch")
    assert not allowed("vocalremover.batch", "vocalremover")
    assert allowed("vocalremover.audio.reading", "vocalremover.audio.tags")
    assert allowed("vocalremover.networks.v10", "vocalremover.networks.layers")


def test_only_the_audio_rooms_use_the_audio_libraries() -> None:
    for path in MODULES:
        if not path.is_relative_to(PACKAGE / "audio"):
            libraries = {"soundfile", "av", "soxr"}
            assert not libraries & imported_names(path.read_text(encoding="utf-8")), path
