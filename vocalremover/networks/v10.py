"""V10, carperbr's last frame transformer: a U-Net over time that keeps the full resolution in frequency.

In: magnitudes `[batch, in_channels, n_fft / 2 + 1, frames]`, divided by the song's largest, any number of frames.
Out: the mask of the instrumental, `[batch, out_channels, n_fft / 2 + 1, frames]`, 0..1.

Level k of 6 has w_k = embedding * (1, 2, 4, 6, 8, 10) channels and m_k = num_attention_maps * (1, 2, 4, 8, 12, 14)
attention maps over the frames, of which there are half as many (rounded up) as on the level above. Attention maps are
concatenated to the channels, so that a level hands on w_k + m_k channels on the way down and w_k + 3 m_k on the way up.

Source: carperbr/frame-transformer at a678637, inference/v10/libft2gan/frame_transformer13.py (MIT).
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vocalremover.networks.layers import (
    MultichannelLayerNorm,
    MultichannelLinear,
    Pair,
    Rotary,
    StridedConv2d,
    count_heads,
    mask,
    residual_attention,
    resize,
)
from vocalremover.networks.strips import Maps, prepare, project, residual

WIDTHS = (1, 2, 4, 6, 8, 10)
MAPS = (1, 2, 4, 8, 12, 14)


def activate(x: Tensor) -> Tensor:
    """The leaky ReLU, written over its input."""
    return F.leaky_relu(x, inplace=True)


class ResBlock(nn.Module):
    """Two 3x3 convolutions of concatenated maps with a shortcut; with `stride` 2 it halves the frames, rounded up."""

    def __init__(self, in_channels: int, out_channels: int, features: int, stride: int) -> None:
        super().__init__()
        plain = in_channels == out_channels and stride == 1
        self.norm1 = MultichannelLayerNorm(in_channels, features)
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
        self.conv2 = StridedConv2d(in_channels, out_channels, 3, padding=1, stride=(1, stride), bias=False)
        change = nn.Identity if plain else StridedConv2d
        self.idt = change(in_channels, out_channels, 1, stride=(1, stride), bias=False)

    def forward(self, maps: Maps) -> Tensor:
        return residual(maps, self.norm1, self.conv1, activate, self.conv2, self.idt)


class Attention(nn.Module):
    """Attention over frames of `maps` maps made from x (queries) and from a memory (keys and values)."""

    def __init__(self, channels: int, maps: int, heads: int, features: int, memory_channels: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        memory_channels = channels if memory_channels is None else memory_channels
        self.embedding = Rotary(features // heads)
        self.q_proj = self.projection(channels, maps, features)
        self.k_proj = self.projection(memory_channels, maps, features)
        self.v_proj = self.projection(memory_channels, maps, features)
        self.o_proj = MultichannelLinear(maps, maps, features, features)

    @staticmethod
    def projection(channels: int, maps: int, features: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, maps, 3, padding=1, bias=False),
            MultichannelLinear(maps, maps, features, features),
            nn.Conv2d(maps, maps, (1, 3), padding=(0, 1), bias=False),
        )

    def forward(
        self, maps: Maps, norm: MultichannelLayerNorm, memory: Maps | None, earlier: list[Pair]
    ) -> tuple[Tensor, list[Pair]]:
        """Without a memory, keys and values are made of the normalised maps, too."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        convolutions = [projection[0] for projection in projections]
        if memory is None:
            made = project(maps, norm, convolutions)
        else:
            made = (*project(maps, norm, convolutions[:1]), *project(memory, None, convolutions[1:]))
        query, key, value = (
            projection[2](prepare(projection[1](one))) for projection, one in zip(projections, made, strict=True)
        )
        attended, pairs = residual_attention(query, key, value, self.heads, self.embedding, earlier)
        return prepare(self.o_proj(attended)), pairs


class FrameTransformerEncoder(nn.Module):
    """Self-attention, then a feed-forward part of 3x3 convolutions that also sees what was attended.

    Returns its channels, the attended maps and the logits as a list of pairs.
    """

    def __init__(self, channels: int, maps: int, features: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = MultichannelLayerNorm(channels, features)
        self.attn = Attention(channels, maps, heads, features)
        self.norm2 = MultichannelLayerNorm(channels + maps, features)
        self.conv1 = nn.Conv2d(channels + maps, (channels + maps) * expansion, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d((channels + maps) * expansion, channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Pair]]:
        attended, pairs = self.attn((x,), self.norm1, None, [])
        x = residual((x, attended), self.norm2, self.conv1, activate, self.conv2, dropout=self.dropout)
        return x, attended, pairs


class FrameTransformerDecoder(nn.Module):
    """Self-attention, attention to the encoder of the same level, then the feed-forward part.

    Both attentions start from the encoder's logits. Returns its channels and three groups of attended maps.
    """

    def __init__(self, channels: int, maps: int, features: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = MultichannelLayerNorm(channels, features)
        self.self_attn = Attention(channels, maps, heads, features)
        self.norm2 = MultichannelLayerNorm(channels + maps, features)
        self.skip_attn = Attention(channels + maps, maps, heads, features, channels + 2 * maps)
        self.norm3 = MultichannelLayerNorm(channels + 3 * maps, features)
        self.conv1 = nn.Conv2d(channels + 3 * maps, (channels + 3 * maps) * expansion, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d((channels + 3 * maps) * expansion, channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, skip: Tensor, skip_attended: Tensor, pairs: list[Pair]) -> Maps:
        own, _ = self.self_attn((x,), self.norm1, None, pairs)
        # The encoder's output ends with what it attended; the original hands those maps in a second time.
        memory = (skip, skip_attended, skip_attended)
        other, _ = self.skip_attn((x, own), self.norm2, memory, pairs)
        attended = (skip_attended, own, other)
        maps = (x, *attended)
        x = residual(maps, self.norm3, self.conv1, activate, self.conv2, dropout=self.dropout)
        return x, *attended


class FrameTransformer(nn.Module):
    """V10. The keywords are those of the original; `dropout` acts on the feed-forward parts in training only."""

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        embedding: int = 8,
        expansion: int = 4,
        n_fft: int = 2048,
        dropout: float = 0,
        num_heads: int = 8,
        num_attention_maps: int = 1,
    ) -> None:
        super().__init__()
        self.max_bin = n_fft // 2
        widths = [embedding * width for width in WIDTHS]
        maps = [num_attention_maps * count for count in MAPS]
        shared = (self.max_bin, num_heads, expansion, dropout)
        channels = in_channels
        for level, (width, count) in enumerate(zip(widths, maps, strict=True), start=1):
            self.add_module(f"enc{level}", ResBlock(channels, width, self.max_bin, stride=1 if level == 1 else 2))
            self.add_module(f"enc{level}_transformer", FrameTransformerEncoder(width, count, *shared))
            channels = width + count
        for level in range(len(WIDTHS) - 1, 0, -1):
            width, count = widths[level - 1], maps[level - 1]
            self.add_module(f"dec{level}", ResBlock(channels + width + count, width, self.max_bin, stride=1))
            self.add_module(f"dec{level}_transformer", FrameTransformerDecoder(width, count, *shared))
            channels = width + 3 * count
        self.out = nn.Conv2d(channels, out_channels, 1, bias=False)

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2, frames]` -> logits `[batch, out_channels, n_fft / 2, frames]`."""
        maps, skips = (prepare(magnitude),), []
        for level in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"enc{level}")(maps)
            x, attended, pairs = self.get_submodule(f"enc{level}_transformer")(x)
            skips.append((x, attended, pairs))
            maps = x, attended
        skips.pop()
        for level in range(len(WIDTHS) - 1, 0, -1):
            skip, attended, pairs = skips.pop()
            raised = [resize(x, skip.shape[-2:]) for x in maps]
            x = self.get_submodule(f"dec{level}")((skip, attended, *raised))
            maps = self.get_submodule(f"dec{level}_transformer")(x, skip, attended, pairs)
        return project(maps, None, [self.out])[0]

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2 + 1, frames]` -> mask `[batch, out_channels, n_fft / 2 + 1, frames]`."""
        return mask(self.logits(magnitude[:, :, : self.max_bin]))


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor's keywords, read off the shapes of a state dict; KeyError if a telling tensor is absent."""
    embedding, in_channels = shapes["enc1.conv2.weight"][:2]
    maps, features, _ = shapes["enc1_transformer.attn.o_proj.weight_pw"]
    hidden, inputs = shapes["enc1_transformer.conv1.weight"][:2]
    return {
        "in_channels": in_channels,
        "out_channels": shapes["out.weight"][0],
        "embedding": embedding,
        "expansion": hidden // inputs,
        "n_fft": 2 * features,
        "dropout": 0,
        "num_heads": count_heads(features, shapes["enc1_transformer.attn.embedding.freqs"][0]),
        "num_attention_maps": maps,
    }
