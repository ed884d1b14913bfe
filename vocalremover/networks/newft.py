"""The "new frame transformer": a deep U-Net over frequency whose attention logits pass through gates.

In: magnitudes `[batch, in_channels, n_fft / 2 + 1, frames]`, divided by the song's largest, any number of frames.
Out: the mask of the instrumental, `[batch, out_channels, n_fft / 2 + 1, frames]`, 0..1.

Three networks of one family: the frame transformer itself; the generator of the author's adversarial training, which
tells besides in which bands there is a voice; and the discriminator of that training, which is their encoder with a
verdict on patches behind it. Level k of 9 has channels * (1, 2, 4, 6, 8, 10, 12, 14, 16) channels and half the features
of the level above; the frames are never resampled. Transformers with a few attention maps follow levels 1 to 8; at
level 9, the bridge, every place in frequency and time attends to every other.

Logits are chained: in the encoder from level to level (e); in the decoder along the self-attentions (p1) and along the
attentions to the encoder (p2), and the latter are mixed twice a level with e of that level, as a gate of convolutions
over (heads, frames, frames) demands. No product over heads side by side can do that, so p1 and p2 are matrices of
frames x frames per head, to which the attentions add in place. The encoder's are not kept for its 8 levels but computed
again from queries and keys, a few rows at a time, and mixed into p2 in place. At the released size (4 maps of 8 heads)
and the 2048 frames of a usual crop that makes 0.54 GB each for p1 and p2, 0.13 GB for the queries and keys and a few
rows in work, in float32; the original holds ten such matrices, and some more within a gate. The bridge is one attention
over heads side by side, so that its 8192 tokens never have a matrix.

In the generator `vout_norm` is dead: the original overwrites what it computes.

Source: carperbr/frame-transformer at 5000d3da, app/libft2/frame_transformer.py and app/libft2gan/frame_transformer.py
(MIT). The weights were never published.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vocalremover.networks.layers import (
    ConvolutionalEmbedding,
    MultichannelLayerNorm,
    MultichannelLinear,
    Pair,
    ResBlock,
    Rotary,
    SquaredReLU,
    count_heads,
    join_heads,
    mask,
    residual_attention,
    resize,
    row_blocks,
    running_attention,
    split_heads,
)

WIDTHS = (1, 2, 4, 6, 8, 10, 12, 14, 16)
DEEPEST = len(WIDTHS)
REACH = 2  # rows above and below that a gate's two convolutions see


class Level(nn.Module):
    """The convolutional part of a level, below the name that the checkpoints give it."""

    def __init__(
        self, in_channels: int, out_channels: int, features: int, stride: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.body = ResBlock(in_channels, out_channels, features, SquaredReLU(), stride=(stride, 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.body(x))


class FrameConv(MultichannelLinear):
    """A filter over features and frames for every map, then a matrix over its features."""

    def __init__(self, maps: int, features: int, kernel_size: int) -> None:
        super().__init__(maps, maps, features, features)
        self.conv = nn.Conv2d(maps, maps, kernel_size, padding=kernel_size // 2, groups=maps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.conv(x))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "b c f t -> b f t c")), "b f t c -> b c f t")


class Attention(nn.Module):
    """The projections of an attention over frames of every map."""

    def __init__(self, maps: int, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = Rotary(features // heads)
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Sequential(
                MultichannelLinear(maps, maps, features, features), nn.Conv2d(maps, maps, (1, 3), padding=(0, 1))
            )
            for _ in range(3)
        )
        self.o_proj = MultichannelLinear(maps, maps, features, features)

    def split(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, `[batch, maps * heads, frames, features / heads]`."""
        return split_heads(self.q_proj(x), self.k_proj(memory), self.v_proj(memory), self.heads, self.embedding)

    def join(self, attended: Tensor) -> Tensor:
        """What was attended, as maps `[batch, maps, features, frames]`."""
        return self.o_proj(join_heads(attended, self.heads))

    def forward(self, x: Tensor, memory: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """The attended maps and the sum of the logits, which is written over those handed in."""
        attended, logits = running_attention(*self.split(x, memory), logits)
        return self.join(attended), logits


class ConvolutionalAttention(nn.Module):
    """Self-attention of every place in features and frames to every other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = Rotary(channels // heads)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)
        )

    def forward(self, x: Tensor, earlier: Sequence[Pair]) -> tuple[Tensor, list[Pair]]:
        # One map whose features are the channels and whose frames are all places, frequency by frequency.
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        query, key, value = (rearrange(each, "b c f t -> b 1 c (f t)") for each in projected)
        attended, pairs = residual_attention(query, key, value, self.heads, self.embedding, earlier)
        return self.o_proj(rearrange(attended, "b 1 c (f t) -> b c f t", f=x.shape[2])), pairs


class ConvolutionalTransformerEncoder(nn.Module):
    """A layer of the bridge; returns the logits, as a list of pairs, too."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.activation, self.dropout = SquaredReLU(), nn.Dropout(dropout)
        self.norm1 = ChannelNorm(channels)
        self.glu = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GLU(dim=1))
        self.norm2 = ChannelNorm(channels)
        self.conv1a = nn.Conv2d(channels, channels, 1)
        self.conv1b = self.separable(channels, 3)
        self.norm3 = ChannelNorm(channels)
        self.conv2 = self.separable(channels, 9)
        self.norm4 = ChannelNorm(channels)
        self.attn = ConvolutionalAttention(channels, heads)
        self.norm5 = ChannelNorm(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.conv4 = nn.Conv2d(4 * channels, channels, 3, padding=1)

    @staticmethod
    def separable(channels: int, kernel_size: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor, earlier: Sequence[Pair]) -> tuple[Tensor, list[Pair]]:
        h = x + self.dropout(self.glu(self.norm1(x)))
        normal = self.norm2(h)
        h = h + self.dropout(self.activation(self.conv1a(normal)) + self.activation(self.conv1b(normal)))
        h = h + self.dropout(self.conv2(self.norm3(h)))
        attended, pairs = self.attn(self.norm4(h), earlier)
        h = x + self.dropout(attended)  # as the original: what came before reaches the attention only
        return h + self.dropout(self.conv4(self.activation(self.conv3(self.norm5(h))))), pairs


class FrameTransformerEncoder(nn.Module):
    """Gated units, filters, self-attention and a feed-forward part over a few maps made of all channels.

    Returns channels + maps channels, the maps alone, the running logits and this attention's own pair.
    """

    def __init__(self, channels: int, maps: int, features: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.activation, self.dropout = SquaredReLU(), nn.Dropout(dropout)
        self.embed = embedding(channels, maps)
        self.norm1 = MultichannelLayerNorm(maps, features)
        self.glu = nn.Sequential(MultichannelLinear(maps, maps, features, 2 * features), nn.GLU(dim=2))
        self.norm2 = MultichannelLayerNorm(maps, features)
        self.conv1a = MultichannelLinear(maps, maps, features, features)
        self.conv1b = FrameConv(maps, features, 3)
        self.norm3 = MultichannelLayerNorm(maps, features)
        self.conv2 = FrameConv(maps, features, 9)
        self.norm4 = MultichannelLayerNorm(maps, features)
        self.attn = Attention(maps, heads, features)
        self.norm5 = MultichannelLayerNorm(maps, features)
        self.conv3 = MultichannelLinear(maps, maps, features, expansion)
        self.conv4 = MultichannelLinear(maps, maps, expansion, features)

    def forward(self, x: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Pair]:
        h = self.embed(x)
        h = h + self.dropout(self.glu(self.norm1(h)))
        normal = self.norm2(h)
        h = h + self.dropout(self.activation(self.conv1a(normal)) + self.activation(self.conv1b(normal)))
        h = h + self.dropout(self.conv2(self.norm3(h)))
        normal = self.norm4(h)
        query, key, value = self.attn.split(normal, normal)
        attended, logits = running_attention(query, key, value, logits)
        h = h + self.dropout(self.attn.join(attended))
        h = h + self.dropout(self.conv4(self.activation(self.conv3(self.norm5(h)))))
        return torch.cat((x, h), dim=1), h, logits, (query, key)


class FrameTransformerDecoder(nn.Module):
    """Two pairs of self-attention and attention to the encoder's maps, with filters between and a feed-forward part.

    Returns channels + maps channels and the running logits of the self-attentions and of the others. `first` is the
    deepest decoder, which has no logits of its own to mix with the encoder's, hence no first gate.
    """

    def __init__(
        self, channels: int, maps: int, features: int, heads: int, expansion: int, dropout: float, first: bool
    ) -> None:
        super().__init__()
        self.activation, self.dropout = SquaredReLU(), nn.Dropout(dropout)
        self.gate1 = None if first else gate(maps)
        self.gate2 = gate(maps)
        self.embed = embedding(channels, maps)
        self.norm1 = MultichannelLayerNorm(maps, features)
        self.attn1a = Attention(maps, heads, features)
        self.attn1b = Attention(maps, heads, features)
        self.norm2 = MultichannelLayerNorm(maps, features)
        self.conv1a = FrameConv(maps, features, 11)
        self.conv1b = FrameConv(maps, features, 7)
        self.norm3 = MultichannelLayerNorm(maps, features)
        self.conv2 = FrameConv(maps, features, 7)
        self.norm4 = MultichannelLayerNorm(maps, features)
        self.attn2 = Attention(maps, heads, features)
        self.norm5 = MultichannelLayerNorm(maps, features)
        self.attn3 = Attention(maps, heads, features)
        self.norm6 = MultichannelLayerNorm(maps, features)
        self.conv3 = MultichannelLinear(maps, maps, features, expansion)
        self.conv4 = MultichannelLinear(maps, maps, expansion, features)

    def forward(
        self, x: Tensor, memory: Tensor, own: Tensor | None, other: Tensor | None, encoder: Pair
    ) -> tuple[Tensor, Tensor, Tensor]:
        """own, other: running logits of the decoders below; encoder: what the logits of this level's encoder are."""
        h = self.embed(x)
        normal = self.norm1(h)
        attended, own = self.attn1a(normal, normal, own)
        other = product(encoder) if self.gate1 is None else mix(self.gate1, other, encoder)
        remembered, other = self.attn1b(normal, memory, other)
        h = h + self.dropout(attended + remembered)
        normal = self.norm2(h)
        filtered = self.norm3(self.activation(self.conv1a(normal)) + self.conv1b(normal))
        h = h + self.dropout(self.conv2(filtered))
        normal = self.norm4(h)
        attended, own = self.attn2(normal, normal, own)
        h = h + self.dropout(attended)
        remembered, other = self.attn3(self.norm5(h), memory, mix(self.gate2, other, encoder))
        h = h + self.dropout(remembered)
        h = h + self.dropout(self.conv4(self.activation(self.conv3(self.norm6(h)))))
        return torch.cat((x, h), dim=1), own, other


def embedding(channels: int, maps: int) -> nn.Module:
    """What reduces the channels of a level to its maps."""
    return nn.Identity() if channels == maps else nn.Conv2d(channels, maps, 1)


def gate(maps: int) -> nn.Sequential:
    """From two sets of logits `[batch, 2 * maps, heads, frames, frames]` to how much of the first counts, 0..1."""
    return nn.Sequential(
        nn.Conv3d(2 * maps, maps, 3, padding=1), SquaredReLU(), nn.Conv3d(maps, 1, 3, padding=1), nn.Sigmoid()
    )


def product(pair: Pair) -> Tensor:
    """The logits of a pair, in float32 or wider."""
    query, key = pair
    return (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32))


def mix(gate: nn.Sequential, logits: Tensor, encoder: Pair) -> Tensor:
    """g * logits + (1 - g) * the encoder's logits, where g is what the gate makes of both.

    Except where gradients are recorded it is written over `logits`, a few rows at a time.
    """
    query, key = encoder
    maps = gate[0].out_channels
    grid = rearrange(logits, "b (m h) t s -> b m h t s", m=maps)
    if torch.is_grad_enabled():
        other = rearrange(product(encoder), "b (m h) t s -> b m h t s", m=maps)
        opened = gate(torch.cat((grid, other), dim=1)).to(grid.dtype)
        return rearrange(torch.lerp(other, grid, opened), "b m h t s -> b (m h) t s")
    frames = logits.shape[-2]
    above = grid[..., :0, :]
    for rows in row_blocks(frames, logits[..., 0, :].numel()):
        low, high = max(rows.start - REACH, 0), min(rows.stop + REACH, frames)
        # The rows above have been written over already, hence the copy of what they were.
        own = torch.cat((above, grid[..., rows.start : high, :]), dim=-2)
        other = product((query[..., low:high, :], key))
        other = rearrange(other, "b (m h) t s -> b m h t s", m=maps)
        opened = gate(torch.cat((own, other), dim=1)).to(own.dtype)
        inner = slice(rows.start - low, rows.stop - low)
        grid[..., rows, :] = torch.lerp(other[..., inner, :], own[..., inner, :], opened[..., inner, :])
        above = own[..., max(inner.stop - REACH, 0) : inner.stop, :].clone()
    return logits


class Encoder(nn.Module):
    """What the three networks have in common: the embedding, the levels going down, and the bridge."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        dropout: float,
        n_fft: int,
        num_heads: int,
        expansion: int,
        num_bridge_layers: int,
        num_attention_maps: int,
    ) -> None:
        super().__init__()
        self.max_bin, maps = n_fft // 2, num_attention_maps
        self.widths = [channels * width for width in WIDTHS]
        self.features = [self.max_bin // 2**level for level in range(DEEPEST)]
        self.positional_embedding = ConvolutionalEmbedding(in_channels, self.max_bin, SquaredReLU())
        shared = (num_heads, expansion, dropout)
        wide, above = in_channels + 1, self.max_bin
        for level, (width, size) in enumerate(zip(self.widths, self.features, strict=True), start=1):
            self.add_module(f"enc{level}", Level(wide, width, above, stride=1 if level == 1 else 2))
            if level < DEEPEST:
                self.add_module(f"enc{level}_transformer", FrameTransformerEncoder(width, maps, size, *shared))
            wide, above = width + maps, size
        self.enc9_transformer = nn.ModuleList(
            ConvolutionalTransformerEncoder(self.widths[-1], num_heads, dropout) for _ in range(num_bridge_layers)
        )

    def encode(self, magnitude: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]], list[Pair]]:
        """`[batch, in_channels, n_fft / 2, frames]` -> the bridge's output; each level's channels with maps, and the
        maps alone; and each level's pair of query and key."""
        x = torch.cat((magnitude, self.positional_embedding(magnitude)), dim=1)
        logits, skips, pairs = None, [], []
        for level in range(1, DEEPEST):
            x = self.get_submodule(f"enc{level}")(x)
            x, attended, logits, pair = self.get_submodule(f"enc{level}_transformer")(x, logits)
            skips.append((x, attended))
            pairs.append(pair)
        x = self.enc9(x)
        earlier: list[Pair] = []
        for layer in self.enc9_transformer:
            x, earlier = layer(x, earlier)
        return x, skips, pairs


class UNet(Encoder):
    """The encoder with the levels going up, as the frame transformer and the generator have them."""

    def add_decoder(
        self, heads: int, expansion: int, dropout: float, maps: int, out_channels: int, extra: int = 0, strong: int = 9
    ) -> None:
        """The levels going up; `extra` channels join the bridge's, and from level `strong` down dropout is 0.5."""
        wide = self.widths[-1] + extra
        for level in range(DEEPEST - 1, 0, -1):
            width, size = self.widths[level - 1], self.features[level - 1]
            heavy = 0.5 if level >= strong else 0.0
            transformer = FrameTransformerDecoder(
                width, maps, size, heads, expansion, dropout, first=level == DEEPEST - 1
            )
            self.add_module(f"dec{level}", Level(wide + width + maps, width, size, dropout=heavy))
            self.add_module(f"dec{level}_transformer", transformer)
            wide = width + maps
        self.out = nn.Conv2d(wide, out_channels, 1)

    def decode(self, x: Tensor, skips: list[tuple[Tensor, Tensor]], pairs: list[Pair]) -> Tensor:
        """What `encode` returns -> logits `[batch, out_channels, n_fft / 2, frames]`."""
        own = other = None
        for level in range(DEEPEST - 1, 0, -1):
            skip, memory = skips.pop()
            query, key = (torch.cat(side, dim=-1) for side in zip(*pairs[:level], strict=True))
            x = self.get_submodule(f"dec{level}")(torch.cat((resize(x, skip.shape[-2:]), skip), dim=1))
            x, own, other = self.get_submodule(f"dec{level}_transformer")(x, memory, own, other, (query, key))
        return self.out(x)


class FrameTransformer(UNet):
    """The new frame transformer. The keywords are those of the original; `dropout` acts in training only.

    expansion is the hidden size of every feed-forward part, not a factor.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        channels: int = 2,
        dropout: float = 0.1,
        n_fft: int = 2048,
        num_heads: int = 4,
        expansion: int = 4096,
        num_bridge_layers: int = 4,
        num_attention_maps: int = 4,
    ) -> None:
        shape = (n_fft, num_heads, expansion, num_bridge_layers, num_attention_maps)
        super().__init__(in_channels, channels, dropout, *shape)
        self.add_decoder(num_heads, expansion, dropout, num_attention_maps, out_channels)

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2, frames]` -> logits `[batch, out_channels, n_fft / 2, frames]`."""
        return self.decode(*self.encode(magnitude))

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2 + 1, frames]` -> mask `[batch, out_channels, n_fft / 2 + 1, frames]`."""
        return mask(self.logits(magnitude[:, :, : self.max_bin]))


class FrameTransformerGenerator(UNet):
    """The generator, which also hears in which of n_fft / 512 bands a voice is; `vout_norm` is a dead parameter."""

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        channels: int = 2,
        dropout: float = 0.1,
        n_fft: int = 2048,
        num_heads: int = 4,
        expansion: int = 4096,
        num_bridge_layers: int = 4,
        num_attention_maps: int = 1,
    ) -> None:
        shape = (n_fft, num_heads, expansion, num_bridge_layers, num_attention_maps)
        super().__init__(in_channels, channels, dropout, *shape)
        wide = self.widths[-1]
        self.vout_norm = ChannelNorm(wide)
        self.vout_transform = ConvolutionalTransformerEncoder(wide, num_heads, dropout)
        self.vout_conv = nn.Conv2d(wide, out_channels, 1)
        self.add_decoder(num_heads, expansion, dropout, num_attention_maps, out_channels, extra=out_channels, strong=5)

    def logits(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, in_channels, n_fft / 2, frames]` -> the mask's logits `[batch, out_channels, n_fft / 2, frames]` and
        those of a voice being in a band, `[batch, out_channels, n_fft / 512, frames]`."""
        x, skips, pairs = self.encode(magnitude)
        voice, _ = self.vout_transform(x, [])
        voice = self.vout_conv(voice)
        return self.decode(torch.cat((x, voice), dim=1), skips, pairs), voice

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2 + 1, frames]` -> mask `[batch, out_channels, n_fft / 2 + 1, frames]`."""
        logits, _ = self.logits(magnitude[:, :, : self.max_bin])
        return mask(logits)


class FrameTransformerDiscriminator(Encoder):
    """The discriminator, for training alone: it tells true instrumentals from masked mixtures, patch by patch.

    Its input is the mixture and, after it, the candidate for its instrumental.
    """

    def __init__(
        self,
        in_channels: int = 4,
        channels: int = 2,
        dropout: float = 0.1,
        n_fft: int = 2048,
        num_heads: int = 4,
        expansion: int = 4096,
        num_bridge_layers: int = 4,
        num_attention_maps: int = 1,
    ) -> None:
        shape = (n_fft, num_heads, expansion, num_bridge_layers, num_attention_maps)
        super().__init__(in_channels, channels, dropout, *shape)
        wide = self.widths[-1]
        self.out = nn.Sequential(
            nn.Conv2d(wide, 2 * wide, (1, 3), stride=(1, 2), padding=(0, 1)), SquaredReLU(), nn.Conv2d(2 * wide, 1, 1)
        )

    def logits(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2, frames]` -> `[batch, 1, n_fft / 512, frames / 2]`, frames rounded up."""
        x, _, _ = self.encode(magnitude)
        return self.out(x)

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, in_channels, n_fft / 2 + 1, frames]` -> logits that a patch is true."""
        return self.logits(magnitude[:, :, : self.max_bin])


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The frame transformer's keywords, read off the shapes of a state dict; KeyError or ValueError if not its own."""
    if "vout_conv.weight" in shapes:
        raise ValueError("this is a generator")
    return shared_arguments(shapes) | {"out_channels": shapes["out.weight"][0]}


def generator_arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The generator's keywords; KeyError if a telling tensor is absent."""
    return shared_arguments(shapes) | {"out_channels": shapes["vout_conv.weight"][0]}


def discriminator_arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The discriminator's keywords; KeyError if a telling tensor is absent."""
    if "out.0.weight" not in shapes:
        raise KeyError("out.0.weight")
    return shared_arguments(shapes)


def shared_arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The keywords that all three networks have; KeyError if a telling tensor is absent."""
    maps, _, features = shapes["enc1_transformer.norm1.weight"]
    return {
        "in_channels": shapes["enc1.body.norm.weight"][0] - 1,
        "channels": shapes["enc1.body.conv1.weight"][0],
        "dropout": 0.1,
        "n_fft": 2 * features,
        "num_heads": count_heads(features, shapes["enc1_transformer.attn.embedding.freqs"][0]),
        "expansion": shapes["enc1_transformer.conv3.weight_pw"][1],
        "num_bridge_layers": len({key.split(".")[1] for key in shapes if key.startswith("enc9_transformer.")}),
        "num_attention_maps": maps,
    }
