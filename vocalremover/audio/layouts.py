"""Where the loudspeakers of a song stand: FFmpeg's name for their order, and which of its channels belong together."""

import re
from functools import lru_cache
from itertools import pairwise

import av
from torch import Tensor, tensor

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
# FFmpeg's names of the loudspeakers in its own order, in which a layout has them unless it is a custom one.
NAMES = (
    "FL FR FC LFE BL BR FLC FRC BC SL SR TC TFL TFC TFR TBL TBC TBR DL DR WL WR SDL SDR LFE2 TSL TSR BFC BFL BFR "
    "SSL SSR TTL TTR BIL BIR"
).split()


def layout_name(name: str, channels: int) -> str:
    """FFmpeg's name of the loudspeakers, or the usual one for that many channels where the file does not say.

    One or two channels have the usual one whatever the file says: no format has a place for another.
    """
    if channels > 2 and name and not name.endswith("channels"):
        return name
    return LAYOUTS.get(channels, f"{channels} channels")


def is_custom(name: str) -> bool:
    """Whether a layout by this name of FFmpeg's has its loudspeakers in another order than FFmpeg's own."""
    listed = re.fullmatch(r"\d+ channels \((.+)\)", name)
    places = [NAMES.index(each) if each in NAMES else -1 for each in listed[1].split("+")] if listed else []
    return any(later <= earlier for earlier, later in pairwise([-1, *places]))


def speakers(layout: str) -> list[str]:
    """FFmpeg's name of each channel's loudspeaker; none where it does not know the layout."""
    try:
        return [channel.name for channel in av.AudioLayout(layout).channels]
    except ValueError:
        return []


@lru_cache(maxsize=16)
def pairs_of(channels: int, layout: str | None) -> Tensor:
    """`[pairs, 2]`: the channel on either side of every pair; a channel on its own is on both.

    A left and a right loudspeaker belong together; where no name tells them, two neighbours do.
    """
    names = speakers(layout or LAYOUTS.get(channels, "")) if channels > 2 else []
    if len(set(names)) != channels:
        return tensor([(first, min(first + 1, channels - 1)) for first in range(0, channels, 2)])
    right_of = {name: right for name in names if (right := name.replace("L", "R")) != name and right in names}
    first = [name for name in names if name not in right_of.values()]
    return tensor([(names.index(name), names.index(right_of.get(name, name))) for name in first])


@lru_cache(maxsize=16)
def sides_of(channels: int, layout: str | None) -> tuple[list[int], list[int]]:
    """For every channel its first and its last place in the flattened pairs: the same one, unless it is on both."""
    places = pairs_of(channels, layout).flatten().tolist()
    first = [places.index(channel) for channel in range(channels)]
    return first, [place + places.count(channel) - 1 for channel, place in enumerate(first)]
