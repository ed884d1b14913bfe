"""How much is measured: the speed of one window and a limit in seconds in, the settings to try and their cost out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

RUNS = 3  # of which the median is told
WHOLE_RUNS = 2  # of a song from file to files, which is longer
LONGEST = 180.0  # seconds of song; more would tell nothing new
SHARE = 0.4  # of the limit for the stages and the whole song, the rest for the settings
HOST = 0.02  # seconds for a second of song that decoding, encoding and the transforms take at most
COSTS = {"fast": 1.0, "balanced": 1.1, "best": 4.0}  # of a quality, in times of the windows without overlap
Change = Mapping[str, object]


@dataclass(frozen=True)
class Setting:
    """What a person can choose without changing what he hears, but for the quality. threads: None on a GPU."""

    quality: str
    batch: int
    precision: str
    threads: int | None

    def record(self) -> dict[str, object]:
        """All of it for JSON."""
        return {
            "quality": self.quality, "batch": self.batch, "precision": self.precision, "threads": self.threads,
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """window: seconds of song in one window. windows: how many a trial runs over. runs: how often. song: its seconds.

    stage_runs and whole_runs: how often each stage and the whole song are run. changes: what each trial changes about
    the best setting before it. seconds: what all will take.
    """

    window: float
    windows: int
    runs: int
    song: float
    stage_runs: int
    whole_runs: int
    changes: tuple[Change, ...]
    seconds: float

    def record(self) -> dict[str, object]:
        """What it takes and how often things are measured, for JSON."""
        return {
            "seconds": round(self.seconds, 1), "song_seconds": round(self.song, 2), "stage_runs": self.stage_runs,
            "whole_runs": self.whole_runs, "trials": len(self.changes), "runs": self.runs, "windows": self.windows,
            "window_seconds": round(self.window, 3),
        }  # fmt: skip


def changes(base: Setting, precisions: Sequence[str], processors: int) -> list[Change]:
    """What to try besides the setting that a person gets by himself, the most telling last to be left out."""
    threads: list[int] = []
    if base.threads is not None:
        threads = sorted({max(processors // 2, 1), processors, 2 * base.threads} - {base.threads})
        threads = [count for count in threads if count <= processors]
    batches = (1, 2, 4) if base.threads is not None else (1, 2, 4, 8, 16)
    return [
        {},
        *({"threads": count} for count in threads),
        *({"batch": count} for count in batches if count != base.batch),
        *({"precision": name} for name in precisions if name != base.precision),
        {"quality": "fast"},
        {"quality": "best"},
    ]


def draw(window: float, cost: float, limit: float, tried: Sequence[Change], most_song: float | None) -> Plan:
    """The plan that tells most within `limit` seconds; the least there is where that takes longer.

    window: seconds of song in a window. cost: seconds to compute it. most_song: how long the song is at most.
    """
    longest = min(LONGEST, most_song or LONGEST)
    each = cost / window + HOST
    stage_runs, whole_runs = RUNS, WHOLE_RUNS
    song = SHARE * limit / ((stage_runs + 2 * whole_runs) * each)  # twice whole: by default, and at the best settings
    if song < window:
        stage_runs = whole_runs = 1
    song = min(max(song, window), longest)
    fixed = (stage_runs + 2 * whole_runs) * each * song
    base = Plan(window, 1, 1, song, stage_runs, whole_runs, (), fixed)
    most = max([1, *(int(change["batch"]) for change in tried if "batch" in change)])
    windows = most
    while windows >= 1:
        for runs in (RUNS, RUNS - 1):
            kept = [change for change in tried if int(change.get("batch", 1)) <= windows]
            seconds = fixed + sum(price(change, cost, windows, runs) for change in kept)
            if seconds <= limit:
                return replace(base, windows=windows, runs=runs, changes=tuple(kept), seconds=seconds)
        windows //= 2
    kept, seconds = [tried[0]], fixed + price(tried[0], cost, 1, 1)
    for change in tried[1:]:
        extra = price(change, cost, 1, 1)
        if seconds + extra <= limit and "batch" not in change:
            kept.append(change)
            seconds += extra
    if len(kept) == 1:  # with nothing to compare, the whole song is run by default only
        seconds -= whole_runs * each * song
    return replace(base, changes=tuple(kept), seconds=seconds)


def price(change: Change, cost: float, windows: int, runs: int) -> float:
    """Seconds that a trial takes, its warm-up included; what is run once has none."""
    warm = int(change.get("batch", 1)) if runs > 1 else 0
    return cost * COSTS[str(change.get("quality", "balanced"))] * (warm + windows * runs)
