"""The checks in their order: what is wanted in, a stream of `Check` out, whatever is broken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Check:
    """What one check found.

    group and name: what was looked at. state: "ok", "warning" or "failed". found: what is there, in words. advice: the
    way out in one sentence, where something is wrong. facts: the same for programs, as numbers and words for JSON.
    """

    group: str
    name: str
    state: str
    found: str
    advice: str = ""
    facts: Mapping[str, object] = field(default_factory=lambda: NOTHING)

    def record(self) -> dict[str, object]:
        """All of it for JSON."""
        return {
            "group": self.group, "name": self.name, "state": self.state, "found": self.found,
            "advice": self.advice or None, "facts": dict(self.facts),
        }  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What the computer is to do: with which model (a name or a path), on which devices, into which folder."""

    model: str = "default"
    device: str = "auto"
    config: Path | None = None
    out: Path = Path()


TORCH = ("torch", "numpy")
SOUND = (*TORCH, "einops", "av", "soundfile", "soxr")
MODELS = (*TORCH, "einops", "platformdirs", "safetensors", "yaml")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "computer": (),
    "libraries": (),
    "devices": TORCH,
    "sound": SOUND,
    "disks": (),
    "models": MODELS,
    "selftest": (*MODELS, *SOUND),
}
"""The modules with the checks in their order, and the libraries without which each cannot be imported."""


def examine(wanted: Wanted) -> Iterator[Check]:
    """Every check, as it is made. What needs a library that does not work is told as not checked."""
    broken: set[str] = set()
    for group, needs in GROUPS.items():
        lacking = [library for library in dict.fromkeys(needs) if library in broken]
        if lacking:
            yield Check(group, group, "warning", "not checked", f"Repair {', '.join(lacking)} first.")
            continue
        for check in _guarded(group, wanted):
            if group == "libraries" and check.state == "failed":
                broken.add(str(check.facts.get("module")))
            yield check


def _guarded(group: str, wanted: Wanted) -> Iterator[Check]:
    """The checks of a group, imported only now; whatever it raises becomes a failed one."""
    try:
        yield from import_module(f"vocalremover.doctor.{group}").look(wanted)
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        advice = "This should not happen: install vocalremover and its libraries anew, in an environment of their own."
        yield Check(group, group, "failed", found, advice)


def first_line(error: object) -> str:
    """The first line of what an error says; some libraries say pages."""
    return next(iter(str(error).strip().splitlines()), "no reason given")
