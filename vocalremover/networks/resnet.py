"""FrameResUNet, the "new architecture" beside carperbr's frame primer: a U-Net over frequency full of attention.

In: magnitudes `[batch, nin, 1025, frames]`, divided by the song's largest; at most `cropsize` frames, for so many is
the table of relative positions.
Out: the mask of the instrumental, `[batch, 2, 1025, frames]`, 0..1.

Level k of 5 has nout * (1, 2, 4, 6, 8) channels and 1024 / 2^(k - 1) features; frames are never resampled. A block
attends over the frames of one map made from its channels, then convolves the features of every frame. The logits of
the attentions are not added up; none are held, as the positional term is one more pair of queries and keys.

Dead in every block, yet part of the state dict: `identity` and `norm2` (the original computes a shortcut and returns
the block without it) and `attention.attn.weight` (the table in use is that of `positional_encoding`).

Source: carperbr/frame-transformer at 9da2cd8, frame_primer/frame_resnet.py and common.py (MIT).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vocalremover.networks.layers import BandProjections, attend, mask, resize

WIDTHS = (1, 2, 4, 6, 8)
FEATURES = 1024  # the original's decoders are made for n_fft = 2048 and eight heads, whatever it is told
BANDS = 8


class PositionTable(nn.Module):
    """A learned column for every place in a crop, `[features / bands, cropsize]`."""

    def __init__(self, features: int, cropsize: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, cropsize))


class MultibandFrameAttention(BandProjections):
    """Attention over frames in bands of features, with a learned term for where the asking frame is.

    To the logit q_i k_j comes q_j w_i, w_i being column i of the table: the asked frame's query tells whether it wants
    to be heard at place i. The sum is divided by sqrt(features).
    """

    def __init__(self, features: int, cropsize: int) -> None:
        super().__init__(features, BANDS)
        self.weight = nn.Parameter(torch.randn(features // BANDS, cropsize))  # dead
        self.positional_encoding = PositionTable(features // BANDS, cropsize)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(x, role) for role in "qkv")
        table = self.positional_encoding.weight[:, : x.shape[1]]
        place = rearrange(table, "d t -> 1 1 t d").expand_as(query)
        scale = x.shape[-1] ** -0.5
        return self.join(attend([(query * scale, key), (place * scale, query)], value))


class FrameAttention(nn.Module):
    """`[batch, channels, features, frames]` -> one map `[batch, 1, features, frames]` of what the frames attended."""

    def __init__(self, channels: int, features: int, cropsize: int) -> None:
        super().__init__()
        self.in_project = nn.Conv2d(channels, 1, (3, 1), padding=(1, 0), bias=False)
        self.attn = MultibandFrameAttention(features, cropsize)

    def forward(self, x: Tensor) -> Tensor:
        frames = rearrange(self.in_project(x), "b 1 f t -> b t f")
        return rearrange(self.attn(frames), "b t f -> b 1 f t")


class ResBlock(nn.Module):
    """Attention over frames, then two convolutions over the features; with `stride` 2 it halves these."""

    def __init__(self, in_channels: int, out_channels: int, features: int, cropsize: int, stride: int) -> None:
        super().__init__()
        shape = {"kernel_size": (3, 1), "padding": (1, 0), "bias": False}
        self.attention = FrameAttention(in_channels, features, cropsize)
        self.norm1 = nn.LayerNorm(features)
        self.conv1 = nn.Conv2d(in_channels, 2 * out_channels, **shape)
        self.conv2 = nn.Conv2d(2 * out_channels, out_channels, stride=(stride, 1), **shape)
        self.norm2 = nn.LayerNorm(features // stride)  # dead
        self.identity = nn.Identity()
        if in_channels != out_channels or stride > 1:
            self.identity = nn.Conv2d(in_channels, out_channels, 1, stride=(stride, 1), bias=False)  # dead

    def forward(self, x: Tensor) -> Tensor:
        # One attended map is added to all channels.
        columns = rearrange(x + self.attention(x), "b c f t -> b c t f")
        x = rearrange(self.norm1(columns), "b c t f -> b c f t")
        return self.conv2(F.leaky_relu(self.conv1(x), inplace=True))


class FrameEncoder(nn.Module):
    """Residual blocks in a row, the first of which may halve the features."""

    def __init__(
        self, in_channels: int, out_channels: int, features: int, cropsize: int, blocks: int, stride: int = 1
    ) -> None:
        super().__init__()
        later = (out_channels, out_channels, features // stride, cropsize, 1)
        first = ResBlock(in_channels, out_channels, features, cropsize, stride)
        self.body = nn.Sequential(first, *(ResBlock(*later) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class FrameDecoder(FrameEncoder):
    """What comes from below, resized to the skip and put before it, then residual blocks."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.body(torch.cat((resize(x, skip.shape[-2:]), skip), dim=1))


class FrameResUNet(nn.Module):
    """The keywords are those of the original, which works for n_fft = 2048 only (ValueError) and not by `num_bands`.

    `nout` is the width of the first level, not that of the output; `cropsize` the most frames a crop may have.
    """

    def __init__(
        self,
        nin: int = 2,
        nout: int = 8,
        cropsize: int = 2048,
        n_fft: int = 2048,
        num_res_blocks: int = 2,
        num_bands: int = 8,
    ) -> None:
        super().__init__()
        if n_fft != 2 * FEATURES:
            raise ValueError(f"FrameResUNet has an n_fft of {2 * FEATURES}, not {n_fft}")
        self.cropsize = cropsize
        widths = [nout * width for width in WIDTHS]
        before = nin
        for level, width in enumerate(widths, start=1):
            features, stride = (FEATURES, 1) if level == 1 else (FEATURES >> level - 2, 2)
            encoder = FrameEncoder(before, width, features, cropsize, num_res_blocks, stride)
            self.add_module(f"enc{level}", encoder)
            before = width
        for level in range(len(WIDTHS) - 1, 0, -1):
            width = widths[level - 1]
            decoder = FrameDecoder(before + width, width, FEATURES >> level - 1, cropsize, num_res_blocks)
            self.add_module(f"dec{level}", decoder)
            before = width
        self.out = nn.Conv2d(before, 2, 1, bias=False)

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, nin, 1024, frames]` -> logits `[batch, 2, 1024, frames]`."""
        x, skips = magnitude, []
        for level in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"enc{level}")(x)
            skips.append(x)
        for level in range(len(WIDTHS) - 1, 0, -1):
            x = self.get_submodule(f"dec{level}")(x, skips[level - 1])
        return self.out(x)

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, nin, 1025, frames]` -> mask `[batch, 2, 1025, frames]`; at most `cropsize` frames."""
        return mask(self.logits(magnitude[:, :, :FEATURES]))


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor's keywords, read off the shapes of a state dict; KeyError if a telling tensor is absent."""
    hidden, inputs = shapes["enc1.body.0.conv1.weight"][:2]
    return {
        "nin": inputs,
        "nout": hidden // 2,
        "cropsize": shapes["enc1.body.0.attention.attn.positional_encoding.weight"][1],
        "n_fft": 2048,
        "num_res_blocks": len({key.split(".")[2] for key in shapes if key.startswith("enc1.body.")}),
    }
