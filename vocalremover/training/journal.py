"""What a run tells about itself: a line of JSON now and then, always; the same for TensorBoard if it is asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vocalremover.errors import UsageError
from vocalremover.evaluate.scores import plain

DIGITS = 8  # behind the point of what is logged


class Journal:
    """`log.jsonl` in the run's folder, and `tensorboard/` beside it; a file is complete after every line."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        """Lines of an earlier piece that are about steps after `step`, which will be taken again, are forgotten; so is
        one that was cut off."""
        self.path = folder / "log.jsonl"
        kept = "".join(f"{json.dumps(line)}\n" for line in read_journal(self.path) if line["step"] <= step)
        if self.path.exists() and self.path.read_text(encoding="utf-8") != kept:
            partial = self.path.with_suffix(".part")
            partial.write_text(kept, encoding="utf-8")
            partial.replace(self.path)
        self._writer = _writer(folder / "tensorboard", step) if tensorboard else None

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line; its numbers become scalars of TensorBoard at the line's `step`."""
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(plain(line, DIGITS)) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a kill may have cut the last one."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _writer(folder: Path, step: int) -> Any:  # noqa: ANN401
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError('TensorBoard is not installed: pip install "vocalremover[train]", or leave it out') from error
    return SummaryWriter(str(folder), purge_step=step + 1)
