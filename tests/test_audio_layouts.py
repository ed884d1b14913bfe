"""Which channels belong together, by the names of their loudspeakers."""

import pytest

from vocalremover.audio.layouts import pairs_of, sides_of


@pytest.mark.parametrize(
    ("channels", "layout", "pairs"),
    [
        (2, "stereo", [[0, 1]]),
        (4, None, [[0, 1], [2, 3]]),
        (5, "4.1", [[0, 1], [2, 2], [3, 3], [4, 4]]),
        (6, None, [[0, 1], [2, 2], [3, 3], [4, 5]]),
        (6, "hexagonal", [[0, 1], [2, 2], [3, 4], [5, 5]]),
        (7, "6.1", [[0, 1], [2, 2], [3, 3], [4, 4], [5, 6]]),
        (10, "5.1.4", [[0, 1], [2, 2], [3, 3], [4, 5], [6, 7], [8, 9]]),
        (3, "3 channels (FL+FR+SL)", [[0, 1], [2, 2]]),
        # Nobody knows where these stand, so neighbours go together.
        (6, "6 channels", [[0, 1], [2, 3], [4, 5]]),
        (9, None, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 8]]),
    ],
)
def test_left_and_right_belong_together(channels: int, layout: str | None, pairs: list[list[int]]) -> None:
    assert pairs_of(channels, layout).tolist() == pairs
    places = [channel for pair in pairs for channel in pair]
    for channel, (first, last) in enumerate(zip(*sides_of(channels, layout), strict=True)):
        assert (places[first], places[last]) == (channel, channel)
