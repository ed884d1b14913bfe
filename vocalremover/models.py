"""The recipe book: what each model is, how its input is made and where its author published the weights.

A recipe never holds weights; `checkpoint.load` brings the two together. A new network adds one line to `NETWORKS` and
`ARGUMENTS`, a new model one entry to the table in `recipes`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from vocalremover.chunks import Chunking
from vocalremover.networks import (
    bs_roformer,
    compact,
    full,
    mel_roformer,
    newft,
    primer,
    resnet,
    thin,
    v2b,
    v3,
    v7,
    v8,
    v9,
    v10,
)
from vocalremover.recipes import TABLE, UNSTATED
from vocalremover.spectrogram import STFT

NETWORKS: dict[str, type[nn.Module]] = {
    "bs_roformer": bs_roformer.BSRoformer,
    "compact": compact.CompactFrameTransformer,
    "full": full.FrameTransformer,
    "mel_roformer": mel_roformer.MelBandRoformer,
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
    "bs_roformer": bs_roformer.arguments,
    "compact": compact.arguments,
    "full": full.arguments,
    "mel_roformer": mel_roformer.arguments,
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

COARSEST: dict[str, str] = {"compact": "bf16", "newft_gan": "fp32", "v2b": "fp32"}
"""The coarsest precision that "auto" chooses, of networks for which it is not fp16. What it changes lies some 50 dB
below the stems; what fp16 changes in newft_gan and v2b lies 39 to 45 dB below."""


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
    sha256: that of this file, where it is known; in a converted file, that of the one it was made from. aliases: other
    names under which the same file is handed on. warnings: a sentence for everything about a file that was guessed or
    left out. read_digest: what `digest` asks. These two are of the moment and never stored.
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
    aliases: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    read_digest: Callable[[], str | None] | None = field(default=None, compare=False)

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the file that was loaded, which is read for it; None where that is no longer the same file."""
        return self.read_digest() if self.read_digest else None

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
    def coarsest(self) -> str:
        """The coarsest precision that "auto" may choose for it."""
        return COARSEST.get(self.network, "fp16")

    @property
    def most_frames(self) -> int | None:
        """The frames of the widest crop, padding included, where a network's table of positions ends; None for any."""
        return self.args.get("cropsize")

    @property
    def filenames(self) -> tuple[str, ...]:
        """What a file with the weights of this model in MODELS may be called."""
        own = f"{self.name}.safetensors"
        return tuple(dict.fromkeys((self.filename or own, *self.aliases, own)))

    def build(self, device: str | torch.device = "meta") -> nn.Module:
        """The network in eval mode; on the default device `meta` it takes no memory and waits for its weights."""
        with torch.device(device):
            return NETWORKS[self.network](**self.args).eval()


MODELS: dict[str, ModelSpec] = {name: ModelSpec(name=name, **recipe) for name, recipe in TABLE.items()}
"""The known models by their names."""
