"""How stems are named and written: a song's path in, the path of each of its stems out."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from string import Formatter

from vocalremover.audio import Encoding
from vocalremover.errors import UsageError

STEMS = ("vocals", "instrumental")
CLIPS = ("none", "rescale", "clamp")
FIELDS = ("track", "stem", "ext", "model")
NAME_BYTES = 255


@dataclass(frozen=True)
class Settings:
    """How stems are named and written; refuses (UsageError) a template that could not name them.

    `clip` says what happens to a stem beyond full scale: "none" leaves its level alone, "rescale" turns all stems of
    the song down by one common gain, "clamp" limits its samples to -1..1. Of a song whose stems exist, `overwrite`
    makes them again; `skip_existing` leaves it alone where the journal says that they are what would be made now, and
    makes them again where it says that this program made them otherwise. With both, whatever is not done is replaced.
    """

    out: Path | None = None
    template: str = "{track}_{stem}.{ext}"
    stems: tuple[str, ...] = STEMS
    encoding: Encoding = field(default_factory=Encoding)
    clip: str = "none"
    overwrite: bool = False
    model: str = "default"
    skip_existing: bool = False

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise UsageError(f"clip is one of {', '.join(CLIPS)}, not {self.clip!r}")
        if not self.stems:
            raise UsageError("no stem was chosen; name one, such as vocals")
        try:
            fields = [part[1:] for part in Formatter().parse(self.template) if part[1] is not None]
        except ValueError as error:
            raise UsageError(f"the template {self.template!r} cannot be read: {error}") from error
        for name, spec, conversion in fields:
            if name not in FIELDS or spec or conversion:
                known = ", ".join(f"{{{known}}}" for known in FIELDS)
                raise UsageError(f"the template {self.template!r} holds the field {name!r}; known are {known}")
        if not self.template.endswith(".{ext}"):
            raise UsageError(f"the template {self.template!r} must end in .{{ext}}, so that a name tells its format")
        if PurePath(self.template).is_absolute() or ".." in PurePath(self.template).parts:
            raise UsageError(f"the template {self.template!r} leaves the output folder; name that folder with --out")

    def check(self, given: Sequence[str]) -> None:
        """Raises UsageError for a stem that is wanted of a model that gives these."""
        for stem in self.stems:
            if stem not in given:
                raise UsageError(f"the model {self.model} gives no stem {stem!r}; it gives {', '.join(given)}")

    def home(self, song: Path) -> Path:
        """The folder that a song's stems go into or below, where the journal lies."""
        return self.out or song.parent

    def name(self, song: Path, stem: str, below: PurePath | None = None) -> Path:
        """Where `stem` of `song` goes. A track name too long for the file system is cut and marked with its digest.

        below: the song's folder within the folder that was named, which `out` repeats.
        """
        words = {"stem": stem.capitalize(), "ext": self.encoding.format, "model": PurePath(self.model).stem}
        track = "_.." if song.stem == ".." else song.stem  # which would be the folder above
        relative = PurePath(self.template.format(track=track, **words))
        excess = max(len(os.fsencode(part)) for part in relative.parts) - NAME_BYTES
        if excess > 0:
            digest = hashlib.sha256(os.fsencode(track)).hexdigest()[:8]
            kept = max(0, len(os.fsencode(track)) - excess - len("~") - len(digest))
            track = os.fsencode(track)[:kept].decode("utf-8", "ignore") + "~" + digest
            relative = PurePath(self.template.format(track=track, **words))
        return self.home(song) / (below if self.out and below else "") / relative
