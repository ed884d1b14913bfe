"""The waveform fixtures: songs as `demix` of ZFTurbo's Music-Source-Separation-Training separated them, and as we do.

utils/model_utils.py at ccc011ab. Its windows are ours, but not everywhere: `sane` tells where its numbers are those of
its windows alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vocalremover.chunks import trapezoid
from vocalremover.models import ModelSpec
from vocalremover.separate import Separator
from vocalremover.separate.inference import Inference, choose_chunking, choose_passes
from vocalremover.separate.runner import Network, Runner
from vocalremover.separate.waves import Waves
from vocalremover.spectrogram import STFT


def placed(windows: Tensor, network: Network | None = None) -> Tensor:
    """The fixtures' dummy of `[batch, sides, samples]`: louder from a window's start to its end, plus an offset."""
    slope = 1 + torch.arange(windows.shape[-1]) / (windows.shape[-1] - 1)
    return (torch.tanh(2 * windows) * slope + 0.01)[:, None]


def recipe(case: Mapping[str, Any]) -> tuple[ModelSpec, Inference]:
    """The model of a fixture and how it was run."""
    args = case.get("ctor", {"stereo": True})
    stft = STFT(args.get("stft_n_fft", 2048), args.get("stft_hop_length", 512), pad_mode="reflect")
    overlap = 1 - 1 / case["overlap"]
    spec = ModelSpec(
        "demix", "bs_roformer", args, "vocals", domain="waveform", reads="complex", stft=stft,
        chunking=trapezoid(case["chunk"], overlap), peak=False,
    )  # fmt: skip
    return spec, Inference(batch=case["batch"], overlap=overlap)


def separate(case: Mapping[str, Any], song: Tensor, network: nn.Module | None) -> Tensor:
    """Our vocals `[2, samples]` of a song; without a network those of the dummy."""
    spec, inference = recipe(case)
    if network is not None:
        return Separator(spec, network, inference=inference).separate(song, spec.rate)["vocals"]
    runner = Runner(nn.Identity(), torch.device("cpu"), batch=case["batch"], around=placed)
    chunking = choose_chunking(spec, torch.device("cpu"), inference)
    waves = Waves(spec, runner, choose_passes(spec, chunking, inference), None, rest=False)
    return torch.cat([part[0, 0] for part in waves.parts([song[None]])], dim=-1)


def sane(case: Mapping[str, Any]) -> Tensor:
    """`[samples]`: where what `demix` gives is the mean of what all windows give that our grid also has.

    Not near the ends, where it mirrors the song. Not on the last fades of its last batch, all of which it switches
    off, nor on the first fade if its first batch is one window; and not where all weights are zero.
    """
    total, chunk, step = case["n"], case["chunk"], case["chunk"] // case["overlap"]
    fade, border = chunk // 10, chunk - step
    mirrored = border if total > 2 * border else 0
    starts = [start - mirrored for start in range(0, total + 2 * mirrored, step)]
    if len(starts) == 1:
        return torch.ones(total, dtype=torch.bool)
    answer = torch.zeros(total, dtype=torch.bool)
    answer[border : total - border] = True
    batch, reaches_over = case["batch"], case["model"] != "dummy"
    last = len(starts) - (len(starts) % batch or batch)
    for number, start in enumerate(starts):
        if number >= last:
            answer[_within(start + chunk - fade, start + chunk)] = False
        if number == 0 and batch == 1:
            answer[_within(start, start + fade)] = False
        if reaches_over and (start < 0 or start + chunk > total):
            answer[_within(start, start + chunk)] = False
        if case["overlap"] == 1:
            answer[_within(start, start + 1)] = answer[_within(start + chunk - 1, start + chunk)] = False
    return answer


def _within(first: int, last: int) -> slice:
    return slice(max(first, 0), max(last, 0))


def compared(
    fixture: Mapping[str, Any], stored: Tensor, song: Tensor, network: nn.Module | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Our samples and those of `demix`, `[2, n]` each: where it is sane, and the others."""
    case, slices = fixture["case"], tuple(slice(*one) for one in fixture["output"]["slices"])
    ours = separate(case, song, network)[slices]
    good = sane(case)[slices[1]]
    return {"sane": (ours[:, good], stored[:, good]), "other": (ours[:, ~good], stored[:, ~good])}
