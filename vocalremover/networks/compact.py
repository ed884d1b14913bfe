"""The compact frame transformer, our own default network: a U-Net over frequency with attention over frames.

In: magnitudes `[batch, 2, n_fft / 2 + 1, frames]` of a song at any level, any number of frames.
Out: the mask of the vocals, same shape, 0..1; the Nyquist bin stays with the instrumental.

The idea is that of carperbr's frame transformer (https://github.com/carperbr/frame-transformer, MIT, commit 85e7f18b):
every level mixes the frequencies of whole frames, and the low-resolution level attends from frame to frame. What makes
this one small: the network works on patches of two frames by four bins, the mixing of frequencies goes through a
bottleneck (the time-distributed fully-connected block of Choi et al., "Investigating U-Nets with various intermediate
blocks for spectrogram-based singing voice separation", ISMIR 2020), and batch normalisation, which costs nothing once
trained, stands in for the layer normalisation. Inside, maps are `[batch, channels, frames, features]`: frequency last,
where the mixing matrices want it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vocalremover.networks.layers import Rotary, mask

PATCH_FRAMES, PATCH_BINS = 2, 4
TIME_STRIDES = (2, 1, 1, 1)  # of the levels below the first; frequency is halved at each of them
FLOOR = 1e-5  # 100 dB below a full-scale sine: what is quieter is silence to the network


class FrameMixer(nn.Module):
    """Adds to each frame a mixture of all its frequencies, through a bottleneck shared by the channels."""

    def __init__(self, channels: int, features: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, hidden, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.up = nn.Linear(hidden, features, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, frames, features]
        hidden = F.relu(self.norm1(self.down(x)), inplace=True)
        return x + F.relu(self.norm2(self.up(hidden)), inplace=True)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, then the mixing of frequencies."""

    def __init__(self, in_channels: int, channels: int, features: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        self.mixer = FrameMixer(channels, features, hidden)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, frames, features]
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        h = F.relu(self.norm2(self.conv2(h)) + self.shortcut(x), inplace=True)
        return self.mixer(h)


class FrameAttention(nn.Module):
    """Pre-norm self-attention over frames with rotary positions, and a feed-forward of twice the width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.conv1 = nn.Linear(width, 2 * width)
        self.conv2 = nn.Linear(2 * width, width)
        self.rotary = Rotary(width // num_heads)

    def forward(self, x: Tensor) -> Tensor:  # [batch, frames, width]
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b t (n h d) -> n b h t d", n=3, h=self.num_heads)
        attended = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v)
        x = x + self.out(rearrange(attended, "b h t d -> b t (h d)"))
        return x + self.conv2(F.gelu(self.conv1(self.norm2(x))))


class CompactFrameTransformer(nn.Module):
    """channels: width of every level; maps: channels that attend at the deepest; bottleneck: features a hidden unit."""

    def __init__(
        self,
        n_fft: int = 2048,
        channels: Sequence[int] = (24, 48, 64, 96, 128),
        maps: int = 16,
        num_layers: int = 4,
        num_heads: int = 8,
        bottleneck: int = 4,
    ) -> None:
        super().__init__()
        bins = n_fft // 2
        self.full_scale = n_fft / 4  # magnitude of a full-scale sine under a Hann window
        self.num_heads = num_heads
        features = [bins // PATCH_BINS // 2**level for level in range(len(channels))]
        patch = 2 * PATCH_FRAMES * PATCH_BINS
        self.register_buffer("mean", torch.full((bins, 1), -6.0))
        self.register_buffer("scale", torch.full((bins, 1), 0.4))
        self.stem = nn.Conv2d(patch, channels[0], 3, padding=1)
        self.encoders = nn.ModuleList(
            Block(width, width, size, size // bottleneck) for width, size in zip(channels, features, strict=True)
        )
        steps = list(zip(channels[:-1], channels[1:], TIME_STRIDES, strict=True))
        self.downs = nn.ModuleList(
            nn.Conv2d(wide, deep, 3, stride=(stride, 2), padding=1) for wide, deep, stride in steps
        )
        self.embed = nn.Conv2d(channels[-1], maps, 1)
        self.transformer = nn.ModuleList(FrameAttention(maps * features[-1], num_heads) for _ in range(num_layers))
        self.unembed = nn.Conv2d(maps, channels[-1], 1)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(deep, wide, (stride, 2), stride=(stride, 2)) for wide, deep, stride in steps
        )
        self.decoders = nn.ModuleList(
            Block(2 * width, width, size, size // bottleneck)
            for width, size in zip(channels[:-1], features[:-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0] + patch, patch, 3, padding=1)

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, 2, n_fft / 2, frames]` magnitudes -> logits of the vocals' mask, same shape."""
        frames = magnitude.shape[-1]
        level = (self.level(magnitude) - self.mean) * self.scale
        step = PATCH_FRAMES * max(TIME_STRIDES)
        level = F.pad(level, (0, -frames % step))
        patches = rearrange(level, "b c (f q) (t p) -> b (c p q) t f", p=PATCH_FRAMES, q=PATCH_BINS)
        x = self.encoders[0](self.stem(patches))
        skips = []
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            skips.append(x)
            x = encoder(down(x))
        x = x + self.attend(x)
        for up, decoder, skip in zip(reversed(self.ups), reversed(self.decoders), reversed(skips), strict=True):
            x = decoder(torch.cat((up(x), skip), dim=1))
        x = self.head(torch.cat((x, patches), dim=1))
        logits = rearrange(x, "b (c p q) t f -> b c (f q) (t p)", p=PATCH_FRAMES, q=PATCH_BINS)
        return logits[..., :frames]

    def level(self, magnitude: Tensor) -> Tensor:
        """The natural logarithm of the magnitudes against full scale."""
        return torch.log(magnitude / self.full_scale + FLOOR)

    def calibrate(self, magnitude: Tensor) -> None:
        """Before training: each bin's mean and spread, from typical mixtures `[batch, 2, n_fft / 2 + 1, frames]`."""
        level = rearrange(self.level(magnitude[:, :, :-1]), "b c f t -> f (b c t)")
        self.mean.copy_(level.mean(dim=1, keepdim=True))
        self.scale.copy_(1 / level.std(dim=1, keepdim=True).clamp(min=0.5))

    def attend(self, x: Tensor) -> Tensor:
        """What the frames tell one another at the deepest level, `[batch, channels, frames, features]`."""
        features = x.shape[-1]
        tokens = rearrange(self.embed(x), "b m t f -> b t (m f)")
        for layer in self.transformer:
            tokens = layer(tokens)
        return self.unembed(rearrange(tokens, "b t (m f) -> b m t f", f=features))

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, 2, n_fft / 2 + 1, frames]` magnitudes -> the vocals' mask, same shape, 0..1."""
        return mask(self.logits(magnitude[:, :, :-1]), nyquist=0.0)


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor arguments of a state dict with these shapes; KeyError if it is not this network's."""
    levels = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("downs."))
    channels = [shapes[f"encoders.{level}.conv1.weight"][0] for level in range(levels + 1)]
    bins = shapes["mean"][0]
    maps = shapes["embed.weight"][0]
    width = shapes["transformer.0.norm1.weight"][0]
    return {
        "n_fft": 2 * bins,
        "channels": channels,
        "maps": maps,
        "num_layers": len({key.split(".")[1] for key in shapes if key.startswith("transformer.")}),
        "num_heads": width // (2 * shapes["transformer.0.rotary.freqs"][0]),
        "bottleneck": shapes["encoders.0.mixer.down.weight"][1] // shapes["encoders.0.mixer.down.weight"][0],
    }
