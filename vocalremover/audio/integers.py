"""Float planes to what files hold: `[channels, samples]` of full scale 1 in, `[samples, channels]` out.

Every step runs over memory in its order, or in one stride: numpy then takes about a nanosecond a sample, and several
times as long for a transposed copy or for inner loops of three bytes.
"""

import numpy as np


def interleaved(planes: np.ndarray) -> np.ndarray:
    """`[channels, samples]` to a new `[samples, channels]`, a channel at a time: several times faster than `.T`."""
    turns = np.empty(planes.shape[::-1], planes.dtype)
    for channel, plane in enumerate(planes):
        turns[:, channel] = plane
    return turns


class Quantiser:
    """Float to integer: rounds, and saturates beyond full scale. 16 bits are dithered.

    The dither is triangular, of two units peak to peak (TPDF), so that the error is noise that does not depend on the
    song. Digital silence stays silent. The same song gives the same bytes, however it was cut.
    """

    def __init__(self, bits: int) -> None:
        self._full = np.float32(2 ** (bits - 1))
        self._type = np.int16 if bits == 16 else np.int32
        self._generator = np.random.default_rng(16)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """`[channels, samples]` float32 to `[samples, channels]`: int16 for 16 bits, int32 for all others."""
        scaled = np.empty(samples.shape[::-1], np.float32)
        for channel, plane in enumerate(samples):
            np.multiply(plane, self._full, out=scaled[:, channel])
        if self._type == np.int16:
            scaled += self._dither(*scaled.shape) * (scaled != 0)
        np.rint(scaled, out=scaled)
        return np.clip(scaled, -self._full, self._full - 1, out=scaled).astype(self._type)

    def _dither(self, samples: int, channels: int) -> np.ndarray:
        """The difference of two uniform numbers of 16 bits for each sample; a draw of 64 bits makes two of them."""
        draws = self._generator.integers(0, 2**64, (samples, -(-channels // 2)), dtype=np.uint64).view(np.int32)
        dither = ((draws >> 16) - draws.astype(np.int16)).astype(np.float32)
        dither *= np.float32(2**-16)
        return dither[:, :channels]
