"""The recipe book: what each model is, how its input is made and where its author published the weights.

A recipe never holds weights; `checkpoint.load` brings the two together. A new network adds one line to `NETWORKS` and
`ARGUMENTS`, a new model one entry to `MODELS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from vocalremover.chunks import Chunking
from vocalremover.networks import compact, full, newft, primer, resnet, thin, v2b, v3, v7, v8, v9, v10
from vocalremover.spectrogram import STFT

NETWORKS: dict[str, type[nn.Module]] = {
    "compact": compact.CompactFrameTransformer,
    "full": full.FrameTransformer,
    "newft": newft.FrameTransformer,
    "newft_disc": newft.FrameTransformerDiscriminator,
    "newft_gan": newft.FrameTransformerGenerator,
    "primer": primer.FramePrimer,
    "resnet": resnet.FrameResUNet,
    "thin": thin.FrameTransformer,
    "v2b": v2b.FrameTransformer,
    "v3": v3.FrameTransformer,
    "v7": v7.FrameTransformerGenerator,
    "v8": v8.FrameTransformer,
    "v9": v9.FrameTransformer,
    "v10": v10.FrameTransformer,
}

ARGUMENTS: dict[str, Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]]] = {
    "compact": compact.arguments,
    "full": full.arguments,
    "newft": newft.arguments,
    "newft_disc": newft.discriminator_arguments,
    "newft_gan": newft.generator_arguments,
    "primer": primer.arguments,
    "resnet": resnet.arguments,
    "thin": thin.arguments,
    "v2b": v2b.arguments,
    "v3": v3.arguments,
    "v7": v7.arguments,
    "v8": v8.arguments,
    "v9": v9.arguments,
    "v10": v10.arguments,
}
"""For every network: from the shapes in its state dict to its constructor arguments."""

RENAMED: dict[str, Callable[[str], str]] = {"thin": thin.renamed}
"""Networks some of whose tensors have had other names: from any of them to the one used here."""

JUDGES = frozenset({"newft_disc"})
"""Networks of training that judge a separation instead of making one."""

UNSTATED = "not stated for the weights (the code is MIT)"


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its weights.

    name: the key in MODELS. network: the key in NETWORKS; args: its constructor's keywords. target: the stem that a
    network of one output gives. instruments: the stems of a network of several outputs, in their order, or the two that
    one output tells apart; empty where there is only the target. domain: what is cut into windows. reads: what the
    network is shown. stft, chunking (in frames of a spectrogram, in samples of a waveform; a waveform's overlap is the
    author's) and rate (Hz): how a song is cut for it.
    peak: True where magnitudes are divided by the largest of the whole song. recurrent: True where a crop depends on
    the output of the crops before. filename and url: what the author's file is called and where he published it.
    sha256: that of this file, where it is known; in a converted file, that of the one it was made from.
    """

    name: str
    network: str
    args: Mapping[str, Any]
    target: str = "instrumental"
    instruments: tuple[str, ...] = ()
    domain: Literal["spectrogram", "waveform"] = "spectrogram"
    reads: Literal["magnitude", "complex"] = "magnitude"
    stft: STFT = field(default_factory=STFT)
    chunking: Chunking = field(default_factory=lambda: Chunking(size=2048, context=128))
    rate: int = 44100
    peak: bool = True
    recurrent: bool = False
    filename: str | None = None
    url: str | None = None
    license: str = UNSTATED
    sha256: str | None = None
    note: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The stems that the network itself gives, in their order; all others are the song minus one of these."""
        return self.instruments if self.args.get("num_stems", 1) > 1 else (self.target,)

    @property
    def stems(self) -> tuple[str, ...]:
        """Every stem a separator can give: the network's own and what is left of the song without one of them.

        One output: that stem and its counterpart, vocals first. Several: all of them, and the instrumental where the
        vocals are among them.
        """
        if len(self.outputs) > 1:
            missing = "vocals" in self.outputs and "instrumental" not in self.outputs
            return (*self.outputs, "instrumental") if missing else self.outputs
        if self.target in ("vocals", "instrumental"):
            return ("vocals", "instrumental")
        others = [name for name in self.instruments if name != self.target]
        return (self.target, others[0] if len(others) == 1 else f"no_{self.target}")

    @property
    def most_frames(self) -> int | None:
        """The frames of the widest crop, padding included, where a network's table of positions ends; None for any."""
        return self.args.get("cropsize")

    def build(self, device: str | torch.device = "meta") -> nn.Module:
        """The network in eval mode; on the default device `meta` it takes no memory and waits for its weights."""
        with torch.device(device):
            return NETWORKS[self.network](**self.args).eval()


THIN: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 2,
    "channels": 8,
    "dropout": 0.1,
    "n_fft": 2048,
    "num_heads": 8,
    "expansion": 24,
}
"""What thin and V1, two sets of weights of one network, have in common."""

RECIPES = (
    ModelSpec(
        name="default",
        network="compact",
        args={},
        target="vocals",
        chunking=Chunking(size=512, context=64),
        peak=False,
        filename="default.safetensors",
        license="MIT",
        note="Small and fast; trained for this project and shipped with it.",
    ),
    ModelSpec(
        name="full",
        network="full",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 5,
            "num_layers": 15,
        },
        chunking=Chunking(size=1024, context=512),
        filename="model.full.pth",
        note="carperbr, 2022: a U-Net over time and frequency whose every channel attends; its weights never appeared.",
    ),
    ModelSpec(
        name="thin",
        network="thin",
        args=THIN,
        chunking=Chunking(size=1024, context=512),
        filename="model.thin.pth",
        url="https://mega.nz/file/3ggnHC6Y#mZl-gjUSKpvstuGZrUQmOxM-QyqCxrUgjthBrHIU0gc",
        note=(
            "carperbr, 2022, local.87 (about a million steps); its author also names crops of 2048 without padding. "
            "Epoch 6 is https://mega.nz/file/rw4RkBrD#2MbnMFujw8hGqsTZxaW16FWwi-m-GW4vqtask45wJBM"
        ),
    ),
    ModelSpec(
        name="v1",
        network="thin",
        args=THIN,
        chunking=Chunking(size=1024, context=512),
        filename="model.v1.pth",
        url="https://mega.nz/file/C5pGXYYR#ndHuj-tYWtttoj8Y4QqAkAruvZDYcQONkTHfZoOyFaQ",
        note="carperbr, 2023: the thin frame transformer after about 1.2 million steps.",
    ),
    ModelSpec(
        name="v2b",
        network="v2b",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 6,
            "transformer_channels": [12] * 7,
            "sinusoid": "input",
        },
        chunking=Chunking(size=1024, context=512),
        filename="model.v2b.pth",
        url="https://mega.nz/file/a843wbTQ#E319mlp5qjsyky6PRp-zikou-YtWb9TVpbtHGaVh2AA",
        note="carperbr, 2023: a dozen attention maps beside every level of a U-Net over frequency.",
    ),
    ModelSpec(
        name="v3",
        network="v3",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 4,
            "num_layers": 12,
            "rotary": False,
        },
        chunking=Chunking(size=1024, context=512),
        filename="model.v3.pth",
        note="carperbr, 2023: twelve layers at the full resolution; its weights never appeared.",
    ),
    ModelSpec(
        name="newft",
        network="newft",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 16,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 10240,
            "num_bridge_layers": 4,
            "num_attention_maps": 4,
        },
        chunking=Chunking(size=1024, context=512),
        filename="model.newft.pth",
        note='carperbr, 2023: the "new frame transformer", nine levels, gated logits; its weights never appeared.',
    ),
    ModelSpec(
        name="newft_gan",
        network="newft_gan",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 10240,
            "num_bridge_layers": 4,
            "num_attention_maps": 1,
        },
        chunking=Chunking(size=1024, context=512),
        filename="model.newft_gan.pth",
        note="carperbr, 2023: the generator of its adversarial training, which also finds voices; never published.",
    ),
    ModelSpec(
        name="primer",
        network="primer",
        args={
            "in_channels": 2,
            "channels": 2,
            "depth": 5,
            "num_transformer_encoders": 0,
            "num_transformer_decoders": 4,
            "n_fft": 2048,
            "cropsize": 2048,
            "num_bands": 4,
            "feedforward_dim": 6144,
            "bias": True,
        },
        chunking=Chunking(size=2048),
        note="carperbr's frame primer of July 2022, the run with 150,617,664 parameters.",
    ),
    ModelSpec(
        name="primer_pre",
        network="primer",
        args={
            "in_channels": 2,
            "channels": 2,
            "depth": 5,
            "num_transformer_encoders": 0,
            "num_transformer_decoders": 2,
            "n_fft": 2048,
            "cropsize": 512,
            "num_bands": 16,
            "feedforward_dim": 4096,
            "bias": True,
        },
        chunking=Chunking(size=512),
        note="The frame primer as its pre-training script makes it.",
    ),
    ModelSpec(
        name="resnet",
        network="resnet",
        args={"nin": 2, "nout": 8, "cropsize": 1024, "n_fft": 2048, "num_res_blocks": 2},
        chunking=Chunking(size=1024),
        note="carperbr's FrameResUNet of July 2022, of which no trained weights are known.",
    ),
    ModelSpec(
        name="v7",
        network="v7",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 2,
        },
        chunking=Chunking(size=4096),
        filename="model.v7.pth",
        url="https://mega.nz/file/L55UwZAC#leWuP1ic9Rt4SpDVHeo6tnimaEIw5095ORoiaosF1Do",
        note="carperbr, 2024: a U-Net over frequency down to four features.",
    ),
    ModelSpec(
        name="v8",
        network="v8",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "expansion": 2.2,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 1,
        },
        chunking=Chunking(size=4096),
        filename="model.v8.pth",
        url="https://mega.nz/file/n8IUwJZK#D9-1u7RqYZF4lt_lJ5By58PPj4a0itdojF-fUZf_WQA",
        note="carperbr, 2024: every level also attends to the input itself.",
    ),
    ModelSpec(
        name="v9",
        network="v9",
        args={
            "in_channels": 10,
            "out_channels": 2,
            "channels": 16,
            "expansion": 512,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 1,
            "num_layers": 17,
        },
        chunking=Chunking(size=4096, multiple=256),
        recurrent=True,
        filename="model.v9.pth",
        url="https://mega.nz/file/q4YhCAqZ#j-8LhhTFl5sd81-epvg0-GcBGaVXCutM6GKR7Nhjodc",
        note="carperbr, 2024: also reads what it left of the two crops before, so crops are not independent.",
    ),
    ModelSpec(
        name="v10",
        network="v10",
        args={
            "in_channels": 2,
            "out_channels": 2,
            "embedding": 8,
            "expansion": 4,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 1,
        },
        chunking=Chunking(size=4096),
        filename="model.v10.pth",
        url="https://mega.nz/file/GwpXBBgb#eJLKvJaO589F-w5aOz6rzNMuanb2XKyNpPPGAXZoNj4",
        note="carperbr's last and largest frame transformer (2024), a U-Net over time.",
    ),
)

MODELS: dict[str, ModelSpec] = {recipe.name: recipe for recipe in RECIPES}
