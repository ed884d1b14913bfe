"""What there is to be done about one song; `plan` makes such jobs, `run` does them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One song and where each of its wanted stems goes; with a `problem` it fails without being tried."""

    input: Path
    outputs: dict[str, Path]
    problem: str | None = None

    def told(self, sentence: str) -> str:
        """A sentence about the job, with the song's path before it where it names neither the song nor a stem."""
        files = (self.input, *self.outputs.values())
        return sentence if any(path.name in sentence for path in files) else f"{self.input}: {sentence}"
