"""Which channels of a song belong together: a number of channels and FFmpeg's name for their order in, pairs out."""

from functools import lru_cache

from torch import Tensor, tensor

# Which channels are left and right of each other; one on its own is heard on both sides. By their number in the usual
# order (FL FR FC LFE BL BR SL SR, less those that are missing) or, where that does not decide it, by FFmpeg's name.
LAYOUTS: dict[str | int, tuple[tuple[int, ...], ...]] = {
    4: ((0, 1), (2, 3)),  # quad
    "4.0": ((0, 1), (2,), (3,)),
    "3.1": ((0, 1), (2,), (3,)),
    5: ((0, 1), (2,), (3, 4)),
    "4.1": ((0, 1), (2,), (3,), (4,)),
    6: ((0, 1), (2,), (3,), (4, 5)),  # 5.1
    7: ((0, 1), (2,), (3,), (4,), (5, 6)),  # 6.1
    8: ((0, 1), (2,), (3,), (4, 5), (6, 7)),  # 7.1
}


@lru_cache(maxsize=16)
def pairs_of(channels: int, layout: str | None) -> Tensor:
    """`[pairs, 2]`: the channel on either side of every pair; a channel on its own is on both."""
    named = LAYOUTS.get(layout or channels, ())
    if sum(map(len, named)) != channels:
        in_order = tuple(tuple(range(first, min(first + 2, channels))) for first in range(0, channels, 2))
        named = LAYOUTS.get(channels, in_order)
    return tensor([(together[0], together[-1]) for together in named])


@lru_cache(maxsize=16)
def sides_of(channels: int, layout: str | None) -> tuple[list[int], list[int]]:
    """For every channel its first and its last place in the flattened pairs: the same one, unless it is on both."""
    places = pairs_of(channels, layout).flatten().tolist()
    first = [places.index(channel) for channel in range(channels)]
    return first, [place + places.count(channel) - 1 for channel, place in enumerate(first)]
