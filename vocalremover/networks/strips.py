"""Convolutions of large maps in strips of features, so that what lies between two of them stays in a CPU's caches.

Maps are `[batch, channels, features, frames]`; where several go in they count as one, concatenated along the channels.
A strip is some neighbouring features of all frames. Outside inference on a CPU there is one strip only, the whole map:
a GPU has no use for small pieces, and gradients need everything anyway.

On a CPU the maps have their channels last in memory, where torch's convolutions reach nearly what a product of matrices
does. A whole hidden map costs more than its arithmetic there: it is too large for the caches, and the system maps and
clears its pages anew for every layer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NUMBERS = 1 << 20  # of the widest map in a strip: 4 MiB in float32
HEIGHT = 16  # features of the smallest strip; the convolutions compute up to 4 more

Maps = Sequence[Tensor]


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
    return x.contiguous(memory_format=torch.channels_last) if in_strips(x) else x


def residual(
    maps: Maps, norm: Norm, conv1: nn.Conv2d, activation: Callable[[Tensor], Tensor],
    conv2: Callable[[Tensor], Tensor], shortcut: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """`shortcut(x) + conv2(activation(conv1(norm(x))))` of the maps x; without a shortcut the first map takes it.

    Both convolutions have kernels of 3x3 with padding 1; the second may have a stride along the frames.
    """

    def strips() -> Iterator[Tensor]:
        for strip, normal, inner in cut(maps, norm, 2, conv1.out_channels):
            straight = strip[:, : maps[0].shape[1], inner] if shortcut is None else shortcut(strip[:, :, inner])
            yield straight + conv2(activation(conv1(normal)))[:, :, inner]

    return join(strips(), maps[0].shape[2])


def project(maps: Maps, norm: Norm | None, convs: Sequence[nn.Conv2d]) -> tuple[Tensor, ...]:
    """What each of some convolutions, all 1x1 or all 3x3, makes of the same maps, normalised if there is a norm."""
    weight, padding = torch.cat([conv.weight for conv in convs]), convs[0].padding
    strips = cut(maps, norm, padding[0], sum(x.shape[1] for x in maps))
    made = (F.conv2d(normal, weight, padding=padding)[:, :, inner] for _, normal, inner in strips)
    return join(made, maps[0].shape[2]).split([conv.out_channels for conv in convs], dim=1)


def cut(maps: Maps, norm: Norm | None, halo: int, channels: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Strips of the maps with up to `halo` features more on either side, these normalised, and where the strip is.

    channels: of the widest map that is made of a strip. Nothing is added beyond the first and the last feature: the
    padding of the convolutions belongs there.
    """
    batch, _, features, frames = maps[0].shape
    height = max(NUMBERS // (batch * channels * frames), HEIGHT)
    if height >= features or not in_strips(maps[0]):
        whole = joined(maps)
        yield whole, whole if norm is None else norm(whole), slice(None)
        return
    scales = [] if norm is None else [moments(x, norm.eps) for x in maps]
    mean, scale = (joined(parts) for parts in zip(*scales, strict=True)) if scales else (None, None)
    for start in range(0, features, height):
        stop = min(start + height, features)
        rows = slice(max(start - halo, 0), stop + halo)
        strip = joined([x[:, :, rows] for x in maps])
        normal = strip
        if norm is not None:
            weight, bias = (rearrange(one[:, :, rows], "c one f -> c f one") for one in (norm.weight, norm.bias))
            normal = torch.addcmul(bias, (strip - mean).mul_(scale), weight)
        yield strip, normal, slice(start - rows.start, stop - rows.start)


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The mean and 1 / sqrt(variance + eps) over the features, `[batch, channels, 1, frames]`."""
    columns = rearrange(x, "b c f t -> f (b t c)").to(torch.promote_types(x.dtype, torch.float32))
    # To batch normalisation every column is a channel. Its kernel takes the mean first and then the squares, as layer
    # normalisation does, and reads the map in the order of memory, unlike torch.var_mean (16 times as fast).
    mean, variance = torch.batch_norm_update_stats(columns, None, None, 0.0)
    shape = {"b": x.shape[0], "t": x.shape[3]}
    mean, scale = (rearrange(one, "(b t c) -> b c 1 t", **shape) for one in (mean, torch.rsqrt(variance + eps)))
    return mean, scale


def joined(maps: Maps) -> Tensor:
    """The maps as one."""
    return torch.cat(tuple(maps), dim=1) if len(maps) > 1 else maps[0]


def join(strips: Iterable[Tensor], features: int) -> Tensor:
    """The map of all features that the strips make up, one after the other."""
    made, start = None, 0
    for strip in strips:
        if strip.shape[2] == features:
            return strip
        if made is None:
            shape = (*strip.shape[:2], features, strip.shape[3])
            made = torch.empty(shape, dtype=strip.dtype, memory_format=torch.channels_last)
        made[:, :, start : start + strip.shape[2]] = strip
        start += strip.shape[2]
    return made
