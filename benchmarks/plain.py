"""A spectrogram network run as the original runs it, without any of our ways to save time or memory.

    python -m benchmarks.plain MODEL FILE.pth SONG FOLDER [--crop FRAMES]

The network is constructed with weights that are thrown away, loaded from a PyTorch file, and shown the whole song's
STFT by librosa in crops without padding, the last one filled up with zeros; both stems are made with numpy and written.
V10 is computed operation by operation as its mathematics say (`PlainV10`). The other networks run their own modules on
whole maps, with attentions that hold their logits, frames x frames for every head, add those of earlier attentions to
them and take the softmax at once. V2b and the new frame transformers do not keep the logits of their encoders even
then, and the default network has no residual attention.

Source of the order of things: carperbr/frame-transformer at a6786372, inference/inference.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vocalremover.models import MODELS, NETWORKS, ModelSpec
from vocalremover.networks import strips
from vocalremover.networks.layers import Pair, Rotary, join_heads, split_heads

CROP = 512


class PlainV10(nn.Module):
    """V10's forward pass over the modules of our network: every step a map of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, magnitude: Tensor) -> Tensor:
        """`[batch, channels, bins, frames]` -> the mask, the last bin 1."""
        x, met = magnitude[:, :, :-1], []
        for level in range(1, 7):
            x = self.block(f"enc{level}", x)
            own, logits = self.attend(f"enc{level}_transformer.attn", self.norm(f"enc{level}_transformer.norm1", x))
            x = torch.cat((self.feed_forward(f"enc{level}_transformer", "norm2", x, own), own), dim=1)
            met.append((x, own, logits))
        for level in range(5, 0, -1):
            skip, skip_own, logits = met[level - 1]
            up = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
            x, name = self.block(f"dec{level}", torch.cat((skip, up), dim=1)), f"dec{level}_transformer"
            own, _ = self.attend(f"{name}.self_attn", self.norm(f"{name}.norm1", x), earlier=logits)
            query = self.norm(f"{name}.norm2", torch.cat((x, own), dim=1))
            other, _ = self.attend(f"{name}.skip_attn", query, torch.cat((skip, skip_own), dim=1), logits)
            attended = torch.cat((skip_own, own, other), dim=1)
            x = torch.cat((self.feed_forward(name, "norm3", x, attended), attended), dim=1)
        return F.pad(self.network.out(x).sigmoid(), (0, 0, 0, 1), value=1.0)

    def part(self, name: str) -> nn.Module:
        return self.network.get_submodule(name)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Every column normalised over its features, then scaled and shifted."""
        norm = self.part(name)
        normal = F.layer_norm(x.transpose(2, 3), x.shape[2:3], eps=norm.eps)
        return (normal * norm.weight + norm.bias).transpose(2, 3)

    def block(self, name: str, x: Tensor) -> Tensor:
        """Norm, convolution, activation, convolution, and a shortcut."""
        hidden = F.leaky_relu(self.part(f"{name}.conv1")(self.norm(f"{name}.norm1", x)))
        return self.part(f"{name}.idt")(x) + self.part(f"{name}.conv2")(hidden)

    def feed_forward(self, name: str, norm: str, x: Tensor, attended: Tensor) -> Tensor:
        """x and what becomes of it and the attended maps in a wider layer."""
        normal = self.norm(f"{name}.{norm}", torch.cat((x, attended), dim=1))
        return x + self.part(f"{name}.conv2")(F.leaky_relu(self.part(f"{name}.conv1")(normal)))

    def attend(
        self, name: str, x: Tensor, memory: Tensor | None = None, earlier: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention over the frames and its logits, `[batch, maps, heads, frames, frames]`."""
        heads = self.part(name).heads

        def project(role: str, source: Tensor) -> Tensor:
            narrow, linear, filters = self.part(f"{name}.{role}_proj")
            maps = filters(linear.weight_pw @ narrow(source))
            return maps.unflatten(2, (heads, -1)).transpose(3, 4)

        memory = x if memory is None else memory
        query, key = (self.turn(name, project(role, of)) for role, of in (("q", x), ("k", memory)))
        logits = query @ key.transpose(3, 4) / x.shape[2] ** 0.5
        if earlier is not None:
            logits = logits + earlier
        attended = logits.softmax(dim=-1) @ project("v", memory)
        return self.part(f"{name}.o_proj").weight_pw @ attended.transpose(3, 4).flatten(2, 3), logits

    def turn(self, name: str, x: Tensor) -> Tensor:
        """Interleaved pairs turned by the angle of their frame."""
        angles = torch.arange(x.shape[-2])[:, None] * self.part(f"{name}.embedding").freqs.repeat_interleave(2)
        even, odd = x[..., : angles.shape[1]].unflatten(-1, (-1, 2)).unbind(-1)
        across = torch.stack((-odd, even), dim=-1).flatten(-2)
        turned = x[..., : angles.shape[1]] * angles.cos() + across * angles.sin()
        return torch.cat((turned, x[..., angles.shape[1] :]), dim=-1)


def plain_running_attention(query: Tensor, key: Tensor, value: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(earlier + q k^T) value, and the sum of the logits `[batch, heads, frames, frames]`."""
    logits = query @ key.mT
    if earlier is not None:
        logits = earlier + logits
    return logits.softmax(-1) @ value, logits


def plain_residual_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, rotary: Rotary | None, earlier: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """As `layers.residual_attention`, but what is handed on is one matrix: the sum of the logits."""
    split = split_heads(query, key, value, heads, rotary)
    attended, logits = plain_running_attention(*split, earlier[0] if earlier else None)
    return join_heads(attended, heads), [logits]


def plain_attend(pairs: Sequence[Pair], value: Tensor) -> Tensor:
    """As `layers.attend`, one summand of the logits after the other."""
    logits = sum(query @ key.mT for query, key in pairs)
    return logits.softmax(-1) @ value


def plain_add(*logits: Sequence[Tensor]) -> list[Tensor]:
    """The sum of several logits, any of which may be missing."""
    held = [one for some in logits for one in some]
    return [sum(held[1:], start=held[0])] if held else []


PLAIN = {
    "residual_attention": plain_residual_attention,
    "running_attention": plain_running_attention,
    "attend": plain_attend,
    "attend_rows": plain_attend,
    "add": plain_add,
}


def make_plain(spec: ModelSpec, network: nn.Module) -> nn.Module:
    """The network in its plain formulation. Changes the functions of its module in this process for good."""
    if spec.network == "v10":
        return PlainV10(network)
    strips.in_strips = lambda x: False
    module = sys.modules[NETWORKS[spec.network].__module__]
    for name in PLAIN:
        if hasattr(module, name):
            setattr(module, name, PLAIN[name])
    return network


def separate(spec: ModelSpec, network: nn.Module, song: Path, folder: Path, crop: int) -> None:
    """Both stems of a song at the model's rate."""
    stft = spec.stft
    audio, _ = librosa.load(song, sr=spec.rate, mono=False)
    spectrogram = np.stack([librosa.stft(side, n_fft=stft.n_fft, hop_length=stft.hop) for side in audio])
    magnitude, phase = np.abs(spectrogram), np.angle(spectrogram)
    frames = magnitude.shape[-1]
    missing = crop - frames % crop  # a whole crop of zeros where nothing is missing
    shown = np.pad(magnitude / magnitude.max() if spec.peak else magnitude, ((0, 0), (0, 0), (0, missing)))
    with torch.inference_mode():
        crops = torch.from_numpy(shown)[None].split(crop, dim=-1)
        mask = np.concatenate([network(one)[0].numpy() for one in crops], axis=-1)[..., :frames]
    for stem, kept in ((spec.target, mask), ("rest", 1 - mask)):
        made = kept * magnitude * np.exp(1j * phase)
        sides = np.stack([librosa.istft(side, hop_length=stft.hop) for side in made])
        soundfile.write(folder / f"{stem}.wav", sides.T, spec.rate)


def main() -> None:
    """Loads the weights as the original does and separates one song."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain", description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("song", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crop", type=int, default=CROP)
    options = parser.parse_args()
    spec = MODELS[options.model]
    network = spec.build("cpu")
    network.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
    separate(spec, make_plain(spec, network), options.song, options.folder, options.crop)


if __name__ == "__main__":
    main()
