"""Songs in, jobs out: which stems each is to become, and a refusal of whatever would lose a file, before any work."""

import logging
import os
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from vocalremover.batch.jobs import Job
from vocalremover.batch.journal import Journal, Origin
from vocalremover.batch.settings import STEMS, Settings
from vocalremover.batch.songs import Song, find_songs, identity, resolver
from vocalremover.errors import InputError, UsageError

log = logging.getLogger(__name__)


def plan(
    inputs: Iterable[str | os.PathLike], settings: Settings, recursive: bool = False,
    shard: tuple[int, int] | None = None,
) -> list[Job]:  # fmt: skip
    """One job a song; see `find_songs` for what an input may be.

    With `recursive` and an output folder, that folder repeats the tree below each folder given. `shard` (i, n) keeps
    every n-th job from the i-th on, whatever is already done, so that n computers given the same words share the work.
    Refuses an output that is an input or another song's output, in any shard (UsageError), and finding nothing to do
    (InputError).
    """
    if shard and not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"there is no shard {shard[0]} of {shard[1]}: count from 1 to {shard[1]}")
    if settings.out and os.path.lexists(settings.out) and not settings.out.is_dir():
        raise UsageError(f"{settings.out} is a file, and the stems need a folder: choose another --out")
    inputs = list(inputs)
    songs = find_songs(inputs, recursive, settings.out)
    keys = _Keys()
    made = _made_by(songs, settings, keys)
    earlier = _Earlier(songs)
    jobs = []
    for song in songs:
        if song.problem:
            jobs.append(Job(song.path, {}, song.problem))
        elif earlier.made(song):
            log.info("%s is left out: it was made from a song that is given, too", song.path)
        elif song.named or not made.get(keys.bare(song.path), set()) - {keys.bare(song.path)}:
            outputs = {stem: settings.name(song.path, stem, song.below) for stem in settings.stems}
            jobs.append(Job(song.path, outputs))
        else:
            log.info("%s is left out: it is named like a stem of a song beside it", song.path)
    # Only a pattern without a match is named and a problem at once.
    unmatched = [song.problem for song in songs if song.problem and song.named]
    if len(jobs) == len(unmatched):
        names = ", ".join(map(str, inputs)) or "what was given"
        sentence = f"there is no song in {names}; name a file, or a folder that holds songs"
        raise InputError(" ".join(unmatched) or sentence)
    _refuse_collisions(jobs, keys)
    return jobs[shard[0] - 1 :: shard[1]] if shard else jobs


class _Keys:
    """Equal strings for two names that are, on some file system, one file: letter case and accents' encoding do not
    count."""

    def __init__(self) -> None:
        self._place = resolver()

    def whole(self, path: Path) -> str:
        return unicodedata.normalize("NFC", str(self._place(path))).casefold()

    def bare(self, path: Path) -> str:
        """Without its suffix: a stem made as wav last week is no song when flac is asked for today."""
        return self.whole(path.with_suffix(""))


def _made_by(songs: Iterable[Song], settings: Settings, keys: _Keys) -> dict[str, set[str]]:
    """Which songs a stem's name would come from, so that a folder's earlier stems are not taken for songs."""
    made: dict[str, set[str]] = {}
    for song in songs:
        for stem in {*STEMS, *settings.stems}:
            made.setdefault(keys.bare(settings.name(song.path, stem, song.below)), set()).add(keys.bare(song.path))
    return made


class _Earlier:
    """What the journals in and above the songs' folders tell of the files there."""

    def __init__(self, songs: Iterable[Song]) -> None:
        self._songs = songs
        self._journals: dict[Path, Journal] = {}

    @cached_property
    def _given(self) -> set[str]:
        return {os.path.realpath(song.path) for song in self._songs}

    def made(self, song: Song) -> bool:
        """Whether an earlier run made this file from another of the songs. Alone, a stem is what the person wants
        separated."""
        for folder in list(song.path.parents)[: len(song.below.parts) + 2]:
            journal = self._journals.setdefault(folder, Journal(folder))
            entry = journal.entry(song.path)
            if entry and entry.is_as_long_as(song.path):
                return self._is_given(entry.origin, folder)
        return False

    def _is_given(self, origin: Origin, folder: Path) -> bool:
        """Whether the song is there where it was, or beside the journal: a folder may have been moved as a whole."""
        beside = folder / Path(origin.path).name
        return origin.path in self._given or (os.path.realpath(beside) in self._given and origin.is_same(beside))


def _refuse_collisions(jobs: list[Job], keys: _Keys) -> None:
    by_key = {keys.whole(job.input): job.input for job in jobs}
    by_identity = {found: job.input for job in jobs if (found := identity(job.input))}
    owners: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs.values():
            same = by_key.get(keys.whole(output)) or by_identity.get(identity(output))
            if same:
                raise UsageError(f"the output {output} is the input {same}; choose another --out or --template")
            owner = owners.setdefault(keys.whole(output), job)
            if owner is not job:
                raise UsageError(
                    f"{owner.input} and {job.input} would both be written to {output}; "
                    "separate them in two runs with different --out folders"
                )
        if len({keys.whole(output) for output in job.outputs.values()}) < len(job.outputs):
            raise UsageError(f"all stems of {job.input} would be written to {output}; put {{stem}} into the template")
