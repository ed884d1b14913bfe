"""Convolutions of large maps in strips of features, so that what lies between two of them stays in a CPU's caches.

Maps are `[batch, channels, features, frames]`; where several go in they count as one, concatenated along the channels.
A strip is some neighbouring features of all frames. Outside inference on a CPU there is one strip only, the whole map:
a GPU has no use for small pieces, and gradients need everything anyway.

On a CPU the maps have their channels last in memory, where torch's convolutions do nearly as many operations a second
as a product of matrices. A whole hidden map costs more than its arithmetic there: it is too large for the caches, and
the system maps and clears its pages anew for every layer.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NUMBERS = 1 << 20  # of the widest map in a strip: 4 MiB in float32
HEIGHT = 16  # features of the smallest strip
TILE = 6  # features and frames that Winograd's algorithm computes at once
WINOGRAD = 32  # channels in and out from which Winograd's convolution is faster than the direct one

Maps = Sequence[Tensor]
Function = Callable[[Tensor], Tensor]


class Norm(Protocol):
    """A layer normalisation over the features; weight and bias are `[channels, 1, features]`."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor: ...


def in_strips(x: Tensor) -> bool:
    """Whether a map is worked on in strips."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def prepare(x: Tensor) -> Tensor:
    """The map as the functions below want it in memory."""
    if not in_strips(x):
        return x
    _, channels, features, frames = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    # One channel would pass for either order, and whatever it is joined with would be put in the other.
    return x.as_strided(x.shape, (channels * features * frames, 1, channels * frames, channels))


def residual(
    maps: Maps, norm: Norm, conv1: nn.Conv2d, activation: Function, conv2: nn.Conv2d,
    shortcut: Function | None = None, dropout: Function | None = None,
) -> Tensor:  # fmt: skip
    """`shortcut(x) + dropout(conv2(activation(conv1(norm(x)))))` of the maps x; without a shortcut of the first map.

    Both convolutions have kernels of 3x3 with padding 1 and no bias; the second may have a stride along the frames.
    """
    height = strip_height(maps, conv1.out_channels)
    if height is None:
        x = joined(maps)
        change = conv2(activation(conv1(norm(x))))
        return (maps[0] if shortcut is None else shortcut(x)) + (change if dropout is None else dropout(change))
    made = Join(maps[0].shape[2])
    planes = takes_winograd(maps[0], conv1.weight, conv1.stride)
    for strip, normal, inner, missing in cut(maps, norm, height, 2, planes):
        hidden = activation(convolve(pad(normal, missing), conv1.weight))
        # Beyond the map there is nothing for the second convolution, either.
        hidden[:, :, : missing[0] // 2] = 0
        hidden[:, :, hidden.shape[2] - missing[1] // 2 :] = 0
        change = convolve(hidden, conv2.weight, conv2.stride)
        straight = strip[:, : maps[0].shape[1], inner] if shortcut is None else shortcut(strip[:, :, inner])
        made.add(straight, change if dropout is None else dropout(change))
    return made.map


def project(maps: Maps, norm: Norm | None, convs: Sequence[nn.Conv2d]) -> tuple[Tensor, ...]:
    """What each of some convolutions, all 1x1 or all 3x3, makes of the same maps, normalised if there is a norm."""
    weight, padding = torch.cat([conv.weight for conv in convs]), convs[0].padding
    height = strip_height(maps, sum(x.shape[1] for x in maps))
    if height is None:
        x = joined(maps)
        whole = F.conv2d(x if norm is None else norm(x), weight, padding=padding)
    else:
        made = Join(maps[0].shape[2])
        for _, normal, _, missing in cut(maps, norm, height, padding[0]):
            made.put(F.conv2d(pad(normal, missing), weight, padding=(0, padding[1])))
        whole = made.map
    return whole.split([conv.out_channels for conv in convs], dim=1)


def convolve(x: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
    """The convolution with a kernel of 3x3 that pads the frames by 1 and the features not at all.

    With many channels Winograd's algorithm (Lavin and Gray 2015) needs a fifth of the products. It rounds ten times
    as much: 1e-5 of the largest number instead of 1e-6.
    """
    if takes_winograd(x, weight, stride):
        return torch._nnpack_spatial_convolution(x.contiguous(), weight, None, (0, 1))
    return F.conv2d(x, weight, stride=stride, padding=(0, 1))


def takes_winograd(x: Tensor, weight: Tensor, stride: tuple[int, int]) -> bool:
    """Whether `convolve` takes the other algorithm, which wants every channel as a plane of its own."""
    many = min(weight.shape[:2]) >= WINOGRAD and stride == (1, 1)
    return many and has_winograd() and multiplies_in_single(x)


@cache
def has_winograd() -> bool:
    """Whether torch comes with NNPACK, which itself uses it for large batches only, this processor can run it, and it
    pays: on those with AMX the direct convolution, by oneDNN in AVX-512, takes three quarters of its time."""
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if has_amx is not None and has_amx():
        return False
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()


def multiplies_in_single(x: Tensor) -> bool:
    """Whether products with x are computed in float32: not in a network of another precision, nor under autocast."""
    return F.linear(x.new_ones(1, 1), x.new_ones(1, 1)).dtype == torch.float32


def strip_height(maps: Maps, channels: int) -> int | None:
    """How many features a strip has of which a map of so many channels is made; None for one strip, the whole map.

    With the two more that the first of two convolutions computes it is a multiple of TILE.
    """
    batch, _, features, frames = maps[0].shape
    height = max(NUMBERS // (batch * channels * frames), HEIGHT)
    height = -(-(height + 2) // TILE) * TILE - 2
    return height if height < features and in_strips(maps[0]) else None


def cut(
    maps: Maps, norm: Norm | None, height: int, halo: int, planes: bool = False
) -> Iterator[tuple[Tensor, Tensor, slice, tuple[int, int]]]:
    """Strips of the maps with `halo` features more on either side where there are any.

    Gives the strip, the strip normalised, where in it the strip without halo is, and how many features are missing
    before and behind it. planes: whether the normalised strip has its channels first in memory.
    """
    features = maps[0].shape[2]
    if norm is not None:
        mean, scale = (joined(parts) for parts in zip(*(moments(x, norm.eps) for x in maps), strict=True))
        shift = -mean * scale
        weight, bias = (channels_last(table) for table in (norm.weight, norm.bias))
    for start in range(0, features, height):
        stop = min(start + height, features)
        first, last = max(start - halo, 0), min(stop + halo, features)
        strip = normal = joined([x[:, :, first:last] for x in maps])
        if norm is not None:
            kind = torch.contiguous_format if planes else torch.channels_last
            normal = torch.empty(strip.shape, dtype=mean.dtype, memory_format=kind)
            torch.addcmul(shift, strip, scale, out=normal)
            torch.addcmul(bias[:, first:last], normal, weight[:, first:last], out=normal)
        yield strip, normal, slice(start - first, stop - first), (halo + first - start, halo + stop - last)


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The mean and 1 / sqrt(variance + eps) over the features, `[batch, channels, 1, frames]`."""
    columns = rearrange(x, "b c f t -> f (b t c)").to(torch.promote_types(x.dtype, torch.float32))
    # To batch normalisation every column is a channel. Its kernel takes the mean first and then the squares, as layer
    # normalisation does, and reads the map in the order of memory, unlike torch.var_mean (16 times as fast).
    mean, variance = torch.batch_norm_update_stats(columns, None, None, 0.0)
    sizes = {"b": x.shape[0], "t": x.shape[3]}
    mean, scale = (rearrange(one, "(b t c) -> b c 1 t", **sizes) for one in (mean, torch.rsqrt(variance + eps)))
    return mean, scale


def channels_last(table: Tensor) -> Tensor:
    """A norm's `[channels, 1, features]` as `[channels, features, 1]`, in the maps' order in memory."""
    return rearrange(rearrange(table, "c one f -> f one c").contiguous(), "f one c -> c f one")


def pad(x: Tensor, missing: tuple[int, int]) -> Tensor:
    """The map with so many features of zeros before and behind it."""
    return F.pad(x, (0, 0, *missing)) if any(missing) else x


def joined(maps: Maps) -> Tensor:
    """The maps as one."""
    return torch.cat(tuple(maps), dim=1) if len(maps) > 1 else maps[0]


class Join:
    """A map of so many features from strips of it, one after the other."""

    map: Tensor

    def __init__(self, features: int) -> None:
        self.features, self.done = features, 0

    def put(self, strip: Tensor) -> None:
        """The next strip."""
        self._place(strip).copy_(strip)

    def add(self, strip: Tensor, other: Tensor) -> None:
        """The next strip as a sum."""
        torch.add(strip, other, out=self._place(strip))

    def _place(self, strip: Tensor) -> Tensor:
        if not self.done:
            shape = (*strip.shape[:2], self.features, strip.shape[3])
            self.map = torch.empty(shape, dtype=strip.dtype, memory_format=torch.channels_last)
        start, self.done = self.done, self.done + strip.shape[2]
        return self.map[:, :, start : self.done]
