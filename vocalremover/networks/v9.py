"""V9, carperbr's autoregressive frame transformer: a convolutional U-Net with attention between square chunks.

In: magnitudes `[batch, in_channels, n_fft / 2 + 1, frames]`, divided by the song's largest. Of the ten channels two are
the crop's own, then two each: the crop before, what the mask left of it, the crop before that, what the mask left of
that (zeros at the start of a song); `Separator` carries them along. Any number of frames: zeros fill them up to a
multiple of 8 * chunk_size, with which the original refuses anything else.
Out: the mask of the instrumental, `[batch, out_channels, n_fft / 2 + 1, frames]`, 0..1.

Three strides of two leave maps of an eighth of the bins and frames, which are cut into chunks of chunk_size squared.
The chunks are the tokens: every channel attends from chunk to chunk with heads of chunk_size^2 / num_heads features.
No tensor tells n_fft; the bins must divide by 8 * chunk_size as well.

The attention logits are added up over all layers, in one matrix `chunks x chunks` for every head. Even in a crop of
4096 frames the 64 chunks have fewer logits (17 MB in float32) than one layer has queries (34 MB); attention over the
concatenated heads of all layers, which spares the logits, would hold 17 layers' queries and keys and take nine times
the products. Logits outgrow one layer's queries and keys beyond 16 384 frames.

Source: carperbr/frame-transformer at a678637, inference/v9r/libft2gan/frame_transformer12.py (MIT).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vocalremover.networks.layers import MultichannelLinear, Rotary, count_heads, mask, resize, running_attention

SCALE = 8  # how much smaller the chunked maps are than the spectrogram, along both axes


class FrameEncoder(nn.Module):
    """Two 3x3 convolutions with a shortcut; with `stride` 2 it halves bins and frames."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        plain = in_channels == out_channels and stride == 1
        self.norm1 = nn.InstanceNorm2d(in_channels, affine=True)
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=stride, bias=False)
        self.idt = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.idt(x) + self.conv2(F.leaky_relu(self.conv1(self.norm1(x)), inplace=True))


class FrameDecoder(FrameEncoder):
    """What comes from below, resized to the skip and appended to it, then two convolutions with a shortcut."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(torch.cat((skip, resize(x, skip.shape[-2:])), dim=1))


class Attention(nn.Module):
    """Attention from chunk to chunk, `[(batch, tokens), channels, chunk_size, chunk_size]`, each channel on its own."""

    def __init__(self, channels: int, chunk_size: int, num_heads: int) -> None:
        super().__init__()
        self.heads = num_heads
        # Turns the first chunk_size / num_heads features of a head only, although it has chunk_size times as many.
        self.embedding = Rotary(chunk_size // num_heads)
        self.q_proj = self.projection(channels, chunk_size)
        self.k_proj = self.projection(channels, chunk_size)
        self.v_proj = self.projection(channels, chunk_size)
        self.o_proj = MultichannelLinear(channels, channels, chunk_size, chunk_size)

    @staticmethod
    def projection(channels: int, chunk_size: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            MultichannelLinear(channels, channels, chunk_size, chunk_size),
        )

    def forward(self, chunks: Tensor, tokens: int, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns what was attended and the logits `[batch, channels * heads, tokens, tokens]`, added to `earlier`."""
        size = chunks.shape[-1]
        query = self.embedding(self.split(self.q_proj(chunks), tokens)) * size**-0.5
        key = self.embedding(self.split(self.k_proj(chunks), tokens))
        heads, logits = running_attention(query, key, self.split(self.v_proj(chunks), tokens), earlier)
        attended = rearrange(heads, "b (c h) l d -> (b l) c (h d)", h=self.heads)
        return self.o_proj(rearrange(attended, "n c (f t) -> n c f t", f=size)), logits

    def split(self, chunks: Tensor, tokens: int) -> Tensor:
        """`[(batch, tokens), channels, chunk_size, chunk_size]` -> `[batch, channels * heads, tokens, features]`."""
        flat = rearrange(chunks, "n c f t -> n c (f t)")
        return rearrange(flat, "(b l) c (h d) -> b (c h) l d", l=tokens, h=self.heads)


class FrameTransformerEncoder(nn.Module):
    """Attention between chunks, then a feed-forward part on chunks that also sees what was attended."""

    def __init__(self, channels: int, chunk_size: int, num_heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.InstanceNorm2d(channels, affine=True)
        self.attn = Attention(channels, chunk_size, num_heads)
        self.norm2 = nn.InstanceNorm2d(2 * channels, affine=True)
        self.conv1 = MultichannelLinear(2 * channels, 2 * channels, chunk_size, expansion)
        self.conv2 = MultichannelLinear(2 * channels, channels, expansion, chunk_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, chunks: Tensor, tokens: int, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        attended, logits = self.attn(self.norm1(chunks), tokens, earlier)
        hidden = self.conv1(self.norm2(torch.cat((chunks, attended), dim=1)))
        return chunks + self.dropout(self.conv2(F.leaky_relu(hidden, inplace=True))), logits


class FrameTransformer(nn.Module):
    """V9. The keywords are those of the original, which does not use `num_attention_maps`.

    `expansion` is the hidden size of the feed-forward parts; `dropout` acts on these in training only. ValueError for
    bins that chunks cannot tile.
    """

    def __init__(
        self,
        in_channels: int = 10,
        out_channels: int = 2,
        channels: int = 16,
        expansion: int = 512,
        n_fft: int = 2048,
        dropout: float = 0,
        num_heads: int = 8,
        num_attention_maps: int = 1,
        num_layers: int = 17,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        self.max_bin = n_fft // 2
        self.chunk_size = chunk_size
        if self.max_bin % (SCALE * chunk_size) or chunk_size**2 % num_heads:
            raise ValueError(f"{self.max_bin} bins and {num_heads} heads do not go with chunks of {chunk_size}")
        self.enc1 = FrameEncoder(in_channels, channels)
        self.enc2 = FrameEncoder(channels, 2 * channels, stride=2)
        self.enc3 = FrameEncoder(2 * channels, 4 * channels, stride=2)
        self.enc4 = FrameEncoder(4 * channels, 8 * channels, stride=2)
        self.transformer = nn.ModuleList(
            FrameTransformerEncoder(8 * channels, chunk_size, num_heads, expansion, dropout) for _ in range(num_layers)
        )
        self.dec3 = FrameDecoder((8 + 4) * channels, 4 * channels)
        self.dec2 = FrameDecoder((4 + 2) * channels, 2 * channels)
        self.dec1 = FrameDecoder((2 + 1) * channels, channels)
        self.out = nn.Conv2d(channels, out_channels, 1)

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2, frames]` -> logits `[batch, out_channels, n_fft / 2, frames]`."""
        frames = magnitude.shape[-1]
        e1 = self.enc1(F.pad(magnitude, (0, -frames % (SCALE * self.chunk_size))))
        e2 = self.enc2(e1)
        e3 = self.enc3(e2)
        x = self.attend(self.enc4(e3))
        x = self.dec1(self.dec2(self.dec3(x, e3), e2), e1)
        return self.out(x)[..., :frames]

    def attend(self, x: Tensor) -> Tensor:
        """The transformer on maps of an eighth of the resolution; the tokens run through the frames, then the bins."""
        tiles = [side // self.chunk_size for side in x.shape[-2:]]
        chunks = rearrange(x, "b c (n f) (m t) -> (b n m) c f t", n=tiles[0], m=tiles[1])
        logits = None
        for layer in self.transformer:
            chunks, logits = layer(chunks, tiles[0] * tiles[1], logits)
        return rearrange(chunks, "(b n m) c f t -> b c (n f) (m t)", n=tiles[0], m=tiles[1])

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2 + 1, frames]` -> mask `[batch, out_channels, n_fft / 2 + 1, frames]`."""
        return mask(self.logits(magnitude[:, :, : self.max_bin]))


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor's keywords, read off the shapes of a state dict; n_fft, which no tensor tells, is the released.

    KeyError if a telling tensor is absent.
    """
    channels, in_channels = shapes["enc1.conv2.weight"][:2]
    chunk_size = shapes["transformer.0.attn.o_proj.weight_pw"][-1]
    return {
        "in_channels": in_channels,
        "out_channels": shapes["out.weight"][0],
        "channels": channels,
        "expansion": shapes["transformer.0.conv1.weight_pw"][1],
        "n_fft": 2048,
        "dropout": 0,
        "num_heads": count_heads(chunk_size, shapes["transformer.0.attn.embedding.freqs"][0]),
        "num_attention_maps": 1,
        "num_layers": len({key.split(".")[1] for key in shapes if key.startswith("transformer.")}),
        "chunk_size": chunk_size,
    }
