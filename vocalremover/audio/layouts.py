"""Which channels of a song belong together: a number of channels and FFmpeg's name for their order in, pairs out."""

from functools import lru_cache

from torch import Tensor, tensor

from vocalremover.audio.sources import LAYOUTS, speakers


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
