"""Imported first, it lets the library be imported where its audio libraries are absent; nothing of theirs works then.

For machines with a GPU on which nothing can be installed. `MISSING` are those that are absent.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

LIBRARIES = ("av", "soundfile", "soxr", "platformdirs")
MISSING = frozenset(name for name in LIBRARIES if find_spec(name) is None)


class StandIns(MetaPathFinder, Loader):
    """Whatever is looked for in such a module, or in a module of it, is a class without anything."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self, is_package=True) if name.partition(".")[0] in MISSING else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (Exception,), {})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


sys.meta_path.append(StandIns())
