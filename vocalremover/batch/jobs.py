"""What there is to be done about one song; `plan` makes such jobs, `run` does them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One song and where each of its wanted stems goes; with a `problem` it fails without being tried."""

    input: Path
    outputs: dict[str, Path]
    problem: str | None = None
