"""What half precision changes: SDR between the stems of a network in half and in single precision, in dB.

A rounding to 11 bits is 72 dB below what is rounded, one to 8 bits 54 dB, and a network has many, of which norms and
attention make some larger. Weights are drawn by the fixtures' rule, those of the default model are its own.
"""

import json
from pathlib import Path

import parity
import pytest
import torch
from torch import Tensor, nn

from vocalremover import checkpoint
from vocalremover.models import COARSEST
from vocalremover.separate.runner import Runner
from vocalremover.spectrogram import STFT

FIXTURES = Path(__file__).parent / "fixtures"
# What a network gives at fp16, which is the default on a GPU, less some dB for other kernels; bf16 has three bits less.
LEAST = {"v7": 46, "v8": 48, "v9": 50, "v10": 50, "thin": 46, "default": 52}


def load(name: str) -> tuple[nn.Module, STFT]:
    """The default model, or a fixture's network; V7's has as many bins as the true one, or its deepest norm has two."""
    if name == "default":
        spec, network = checkpoint.load("default")
        return network, spec.stft
    fixture = json.loads((FIXTURES / f"{name}_small.json").read_text())
    ctor = {**fixture["ctor"], **({"n_fft": 2048} if name == "v7" else {})}
    network = parity.build(parity.find_family(fixture), ctor, fixture["seed"], fixture["gain"])
    return network, STFT(ctor["n_fft"], ctor["n_fft"] // 2)


def magnitudes(stft: STFT, frames: int, sets: int) -> Tensor:
    """Of a song of partials and noise, `[1, 2 * sets, bins, frames]`."""
    song = parity.signal({"signal_seed": 3, "n": stft.hop * (frames - 1), "sr": 44100})
    spectrogram = stft.forward(song).abs()
    return (spectrogram / spectrogram.amax())[None].repeat(1, sets, 1, 1)


def signal_to_distortion(exact: Tensor, found: Tensor) -> float:
    """In dB."""
    power, error = exact.double().square().sum(), (exact.double() - found.double()).square().sum()
    return 10 * (power / error).log10().item()


def distortions(name: str, device: str = "cpu") -> dict[str, float]:
    """Of the stem in either half precision, in dB."""
    network, stft = load(name)
    network = network.to(device)
    shown = magnitudes(stft, 16, 5 if name == "v9" else 1).to(device)

    def stem(precision: str) -> Tensor:
        return Runner(network, torch.device(device), precision).once(shown).cpu() * shown[:, :2].cpu()

    exact = stem("fp32")
    return {precision: signal_to_distortion(exact, stem(precision)) for precision in ("fp16", "bf16")}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", LEAST)
def test_half_precision_is_close(name: str, device: str) -> None:
    sdr = distortions(name, device)
    assert sdr["fp16"] > LEAST[name]
    assert sdr["bf16"] < sdr["fp16"] - 8  # three bits are 18 dB: why fp16 is what auto chooses


@pytest.mark.parametrize("name", sorted(name for name, coarsest in COARSEST.items() if coarsest == "fp32"))
def test_delicate_networks_need_single_precision(name: str) -> None:
    """They are where it is otherwise, and nowhere else: `auto` would be slow for nothing."""
    assert distortions(name)["fp16"] < min(LEAST.values())
