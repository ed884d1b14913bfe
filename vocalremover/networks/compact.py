"""The compact frame transformer, our own default network: a U-Net over frequency with attention over frames.

In: magnitudes `[batch, 2, n_fft / 2 + 1, frames]` of a song at any level, any number of frames.
Out: the mask of the vocals, same shape, 0..1; the Nyquist bin stays with the instrumental.

The idea is that of carperbr's frame transformer (https://github.com/carperbr/frame-transformer, MIT, commit 85e7f18b):
every level mixes the frequencies of whole frames, and the low-resolution level attends from frame to frame. What makes
this one small: the network works on patches of two frames by some bins, few of them where a voice has most of its
energy (nine tenths of what a mask gets wrong lies below 2 kHz) and many in the treble; the mixing of frequencies goes
through a bottleneck (the time-distributed fully-connected block of Choi et al., "Investigating U-Nets with various
intermediate blocks for spectrogram-based singing voice separation", ISMIR 2020), and batch normalisation, which costs
nothing once trained, stands in for the layer normalisation. Inside, maps are `[batch, channels, frames, features]`:
frequency last, where the mixing matrices want it, and where an STFT leaves it in memory; the mask lies there as well.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vocalremover.networks.layers import Rotary

PATCH_FRAMES = 2
BANDS = ((192, 2), (64, 8), (256, 32), (512, 64), (1024, 128))  # how many bins, in patches of how many, from 0 Hz up
NARROW = 8  # bins: patches up to this look at their neighbours, wider ones are large enough to be seen alone
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
        hidden = F.relu(self.norm1(_across(self.down, x)), inplace=True)
        return x + F.relu(self.norm2(_across(self.up, hidden)), inplace=True)


def _across(linear: nn.Linear, x: Tensor) -> Tensor:
    """What a matrix makes of the features of maps, in the order in which these lie in memory."""
    if x.is_contiguous():
        return linear(x)
    return rearrange(linear.weight @ rearrange(x, "b c t f -> b t f c"), "b t f c -> b c t f")


def _laid_out(x: Tensor) -> Tensor:
    """The maps as convolutions want them in memory: in bfloat16 on a CPU with the channels last, which makes the whole
    network 1.5 times as fast there."""
    fast = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return x.contiguous(memory_format=torch.channels_last) if fast else x


def _normalised(convolution: nn.Module) -> nn.Sequential:
    """A convolution that no rectifier follows. Were its maps not normalised, those of a deep level could grow from step
    to step until the next rectifier lets none of them through, and what lies below were never heard again."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, then the mixing of frequencies."""

    def __init__(self, in_channels: int, channels: int, features: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        change = in_channels != channels
        self.shortcut = _normalised(nn.Conv2d(in_channels, channels, 1, bias=False)) if change else nn.Identity()
        self.mixer = FrameMixer(channels, features, hidden)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, frames, features]
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        h = F.relu(self.norm2(self.conv2(h)) + self.shortcut(x), inplace=True)
        return self.mixer(h)


def _level(in_channels: int, channels: int, features: int, bottleneck: int, depth: int) -> nn.Sequential:
    """So many blocks, one after the other, of which the first may change the number of channels."""
    widths = [in_channels, *[channels] * (depth - 1)]
    return nn.Sequential(*(Block(width, channels, features, features // bottleneck) for width in widths))


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


class Band(nn.Module):
    """A range of bins: magnitudes to patches to features and back to logits."""

    def __init__(self, bins: int, patch_bins: int, channels: int) -> None:
        super().__init__()
        self.patch_bins = patch_bins
        self.is_narrow = patch_bins <= NARROW
        patch, kernel = 2 * PATCH_FRAMES * patch_bins, 3 if self.is_narrow else 1
        self.register_buffer("mean", torch.full((bins, 1), -6.0))
        self.register_buffer("scale", torch.full((bins, 1), 0.4))
        self.stem = nn.Conv2d(patch, channels, kernel, padding=kernel // 2)
        self.head = nn.Conv2d(channels + patch if self.is_narrow else channels, patch, kernel, padding=kernel // 2)

    def patches(self, level: Tensor) -> Tensor:
        """`[batch, 2, bins, frames]` -> `[batch, patch, frames / 2, features]`, each bin as its mean and spread say."""
        level = (level - self.mean) * self.scale
        return rearrange(level, "b c (f q) (t p) -> b (c p q) t f", p=PATCH_FRAMES, q=self.patch_bins)

    def logits(self, x: Tensor, patches: Tensor) -> Tensor:
        """Features and the patches they began with -> `[batch, 2, frames, bins]`."""
        x = self.head(torch.cat((x, patches), dim=1) if self.is_narrow else x)
        return rearrange(x, "b (c p q) t f -> b c (t p) (f q)", p=PATCH_FRAMES, q=self.patch_bins)


class CompactFrameTransformer(nn.Module):
    """bands: bins and bins a patch, `n_fft / 2` in all; channels: width of every level; maps: channels that attend at
    the deepest; bottleneck: features a hidden unit; depth: blocks of every level, on the way down and up."""

    def __init__(
        self,
        n_fft: int = 4096,
        bands: Sequence[tuple[int, int]] = BANDS,
        channels: Sequence[int] = (48, 96, 96, 144, 192),
        maps: int = 16,
        num_layers: int = 2,
        num_heads: int = 4,
        bottleneck: int = 4,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.bins = [bins for bins, _ in bands]
        if sum(self.bins) != n_fft // 2:
            raise ValueError(f"the bands have {sum(self.bins)} bins in all, not the {n_fft // 2} of n_fft {n_fft}")
        self.full_scale = n_fft / 4  # magnitude of a full-scale sine under a Hann window
        self.num_heads = num_heads
        self.bands = nn.ModuleList(Band(bins, patch, channels[0]) for bins, patch in bands)
        self.features = [bins // patch for bins, patch in bands]
        features = [sum(self.features) // 2**level for level in range(len(channels))]
        self.encoders = nn.ModuleList(
            _level(width, width, size, bottleneck, depth) for width, size in zip(channels, features, strict=True)
        )
        steps = list(zip(channels[:-1], channels[1:], TIME_STRIDES, strict=True))
        self.downs = nn.ModuleList(
            _normalised(nn.Conv2d(wide, deep, 3, stride=(stride, 2), padding=1, bias=False))
            for wide, deep, stride in steps
        )
        self.embed = nn.Conv2d(channels[-1], maps, 1)
        self.transformer = nn.ModuleList(FrameAttention(maps * features[-1], num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(maps * features[-1])
        self.unembed = nn.Conv2d(maps, channels[-1], 1)
        self.ups = nn.ModuleList(
            _normalised(nn.ConvTranspose2d(deep, wide, (stride, 2), stride=(stride, 2), bias=False))
            for wide, deep, stride in steps
        )
        self.decoders = nn.ModuleList(
            _level(2 * width, width, size, bottleneck, depth)
            for width, size in zip(channels[:-1], features[:-1], strict=True)
        )

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, 2, n_fft / 2, frames]` magnitudes -> logits of the vocals' mask, same shape."""
        frames = magnitude.shape[-1]
        step = PATCH_FRAMES * max(TIME_STRIDES)
        level = self.level(magnitude)
        if frames % step:
            level = F.pad(level, (0, -frames % step), value=math.log(FLOOR))
        parts = level.split(self.bins, dim=2)
        patches = [band.patches(part) for band, part in zip(self.bands, parts, strict=True)]
        x = torch.cat([band.stem(patch) for band, patch in zip(self.bands, patches, strict=True)], dim=3)
        x = self.encoders[0](_laid_out(x))
        skips = []
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            skips.append(x)
            x = encoder(down(x))
        x = x + self.attend(x)
        for up, decoder, skip in zip(reversed(self.ups), reversed(self.decoders), reversed(skips), strict=True):
            x = decoder(torch.cat((up(x), skip), dim=1))
        parts = zip(self.bands, x.split(self.features, dim=3), patches, strict=True)
        return torch.cat([band.logits(part, patch) for band, part, patch in parts], dim=3)[:, :, :frames].mT

    def level(self, magnitude: Tensor) -> Tensor:
        """The natural logarithm of the magnitudes against full scale."""
        return torch.log(magnitude / self.full_scale + FLOOR)

    def calibrate(self, magnitude: Tensor) -> None:
        """Before training: each bin's mean and spread, from typical mixtures `[batch, 2, n_fft / 2 + 1, frames]`."""
        level = rearrange(self.level(magnitude[:, :, :-1]), "b c f t -> f (b c t)")
        for band, part in zip(self.bands, level.split(self.bins), strict=True):
            band.mean.copy_(part.mean(dim=1, keepdim=True))
            band.scale.copy_(1 / part.std(dim=1, keepdim=True).clamp(min=0.5))

    def attend(self, x: Tensor) -> Tensor:
        """What the frames tell one another at the deepest level, `[batch, channels, frames, features]`."""
        features = x.shape[-1]
        tokens = rearrange(self.embed(x), "b m t f -> b t (m f)")
        for layer in self.transformer:
            tokens = layer(tokens)
        return self.unembed(rearrange(self.norm(tokens), "b t (m f) -> b m t f", f=features))

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, 2, n_fft / 2 + 1, frames]` magnitudes -> the vocals' mask, same shape, 0..1."""
        return F.pad(self.logits(magnitude[:, :, :-1]).mT.sigmoid(), (0, 1)).mT


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor arguments of a state dict with these shapes; KeyError if it is not this network's."""
    levels = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("downs."))
    channels = [shapes[f"encoders.{level}.0.conv1.weight"][0] for level in range(levels + 1)]
    count = len({key.split(".")[1] for key in shapes if key.startswith("bands.")})
    bands = [
        (shapes[f"bands.{band}.mean"][0], shapes[f"bands.{band}.stem.weight"][1] // (2 * PATCH_FRAMES))
        for band in range(count)
    ]
    width = shapes["transformer.0.norm1.weight"][0]
    return {
        "n_fft": 2 * sum(bins for bins, _ in bands),
        "bands": bands,
        "channels": channels,
        "maps": shapes["embed.weight"][0],
        "num_layers": len({key.split(".")[1] for key in shapes if key.startswith("transformer.")}),
        "num_heads": width // (2 * shapes["transformer.0.rotary.freqs"][0]),
        "bottleneck": shapes["encoders.0.0.mixer.down.weight"][1] // shapes["encoders.0.0.mixer.down.weight"][0],
        "depth": len({key.split(".")[2] for key in shapes if key.startswith("encoders.0.")}),
    }
