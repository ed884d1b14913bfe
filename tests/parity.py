"""Compares our networks and our pipeline with numbers that the original code gave: `parity.py FIXTURE.json...`

A fixture is a JSON file with the array file (.npz) of the same name beside it. It says how weights and input are drawn;
the arrays are what the original made of them. One line is printed per compared array, `name  max error  tolerance
ok|FAIL`, and the exit status is 1 if any of them fails. Every network that lands adds one line to `FAMILIES`.
"""

import argparse
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The tests belong to the sources beside them, wherever another copy may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import demix

from vocalremover.chunks import Chunking
from vocalremover.ensemble import Choir, Rule
from vocalremover.models import NETWORKS, ModelSpec
from vocalremover.networks.bs_roformer import BSRoformer
from vocalremover.networks.layers import mask
from vocalremover.networks.mel_roformer import MelBandRoformer
from vocalremover.separate import Inference, Separator
from vocalremover.spectrogram import STFT

EXCEPTED = re.compile(r"(^|\.)(freqs|pe|num_batches_tracked)$")
POSITION_TABLE = re.compile(r"(^|\.)(attn\d*|positional_encoding)\.weight$")
NORM = re.compile(r"^norm\d*$")


@dataclass(frozen=True)
class Family:
    """What the fixtures of one original network are compared with.

    file and cls: where the original defines it, for fixtures of unfamiliar name; commit tells files of one name apart.
    extra: constructor keywords of ours on top of the fixture's. tolerance: absolute, for networks that round on
    purpose. recurrent: True where a crop depends on those before. outputs: what the original's forward returned.
    """

    network: Callable[..., nn.Module]
    file: str
    cls: str = "FrameTransformer"
    commit: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    recurrent: bool = False
    outputs: Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, ...]] = lambda network, x: network.logits(x)


@dataclass(frozen=True)
class Roformer:
    """Makes a RoFormer that knows its STFT, and runs it on audio `[batch, channels, samples]` as the originals do.

    squeezed: whether a single stem loses its axis. whole: whether the result is as long as the input, not as the hops.
    """

    network: Callable[..., nn.Module]
    layout: str
    squeezed: bool = True
    whole: bool = False

    def __call__(self, **ctor: object) -> nn.Module:
        network = self.network(layout=self.layout, **ctor)
        network.stft = STFT(ctor["stft_n_fft"], ctor["stft_hop_length"], pad_mode="reflect")
        return network

    def outputs(self, network: nn.Module, audio: Tensor) -> Tensor:
        spectrogram = network.stft.forward(audio)
        masks = torch.view_as_complex(network(torch.view_as_real(spectrogram)))
        samples = audio.shape[-1] if self.whole else network.stft.hop * (spectrogram.shape[-1] - 1)
        stems = network.stft.inverse(spectrogram[:, None] * masks, samples)
        return stems[:, 0] if self.squeezed and stems.shape[1] == 1 else stems


BS_MSST = Roformer(BSRoformer, "msst", squeezed=False, whole=True)
MEL_MSST = Roformer(MelBandRoformer, "msst")
BS_LUCID = Roformer(BSRoformer, "lucidrains")
MEL_LUCID = Roformer(MelBandRoformer, "lucidrains")


class Dummy(nn.Module):
    """A mask without a network: logits = 6 x - 1 + 2 * (x one frame later), which shows where the crops begin."""

    def forward(self, magnitude: Tensor) -> Tensor:
        x = magnitude[:, :, :-1]
        return mask(6 * x - 1 + 2 * nn.functional.pad(x, (1, 0))[..., :-1])


FAMILIES = {
    "dummy": Family(Dummy, file=""),
    "thin": Family(NETWORKS["thin"], "frame_transformer_thin.py"),
    "full": Family(NETWORKS["full"], "frame_transformer.py", commit="85e7f18b"),
    "v2b": Family(NETWORKS["v2b"], "libft/frame_transformer_embedded.py", commit="5000d3d"),
    "v2b_6a1d178": Family(
        NETWORKS["v2b"], "libft/frame_transformer_embedded.py", commit="6a1d178", extra={"sinusoid": "map"}
    ),
    "v2b_d00ad29": Family(
        NETWORKS["v2b"], "libft/frame_transformer_embedded.py", commit="d00ad29", extra={"sinusoid": "none"}
    ),
    "newft": Family(NETWORKS["newft"], "libft2/frame_transformer.py"),
    "newft_gan": Family(NETWORKS["newft_gan"], "libft2gan/frame_transformer.py", cls="FrameTransformerGenerator"),
    "newft_disc": Family(NETWORKS["newft_disc"], "libft2gan/frame_transformer.py", cls="FrameTransformerDiscriminator"),
    "v3": Family(NETWORKS["v3"], "libft/frame_transformer.py", commit="1e89a97"),
    "v3_d00ad29": Family(NETWORKS["v3"], "libft/frame_transformer.py", commit="d00ad29", extra={"rotary": True}),
    "primer": Family(
        NETWORKS["primer"], "frame_primer.py", "FramePrimer", outputs=lambda network, x: network.logits(x).sigmoid()
    ),
    "resnet": Family(NETWORKS["resnet"], "frame_resnet.py", "FrameResUNet"),
    "v7": Family(NETWORKS["v7"], "v7/libft2gan/frame_transformer4.py", "FrameTransformerGenerator"),
    "v8": Family(
        NETWORKS["v8"],
        "inference/v8/libft2gan/frame_transformer5.py",
        extra={"bfloat16_upsampling": True},
        tolerance=0.25,
    ),
    "v8_snapshot": Family(NETWORKS["v8"], "snapshots/v8.1/libft2gan/frame_transformer5.py"),
    "v9": Family(NETWORKS["v9"], "v9r/libft2gan/frame_transformer12.py", recurrent=True),
    "v10": Family(NETWORKS["v10"], "v10/libft2gan/frame_transformer13.py"),
    "bs_msst": Family(BS_MSST, "models/bs_roformer/bs_roformer.py", "BSRoformer", outputs=BS_MSST.outputs),
    "mel_msst": Family(
        MEL_MSST, "bs_roformer/mel_band_roformer.py", "MelBandRoformer", "ccc011abf7f8", outputs=MEL_MSST.outputs
    ),
    "bs_lucid": Family(BS_LUCID, "bs_roformer/bs_roformer.py", "BSRoformer", "PyPI", outputs=BS_LUCID.outputs),
    "mel_lucid": Family(
        MEL_LUCID, "bs_roformer/mel_band_roformer.py", "MelBandRoformer", "PyPI", outputs=MEL_LUCID.outputs
    ),
}


@dataclass(frozen=True)
class Line:
    """One compared array."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def __str__(self) -> str:
        return f"{self.name:<48} {self.error:10.3e} {self.tolerance:10.3e}  {'ok' if self.ok else 'FAIL'}"


def find_family(fixture: Mapping[str, Any]) -> Family:
    """By the longest family name that the fixture's name begins with, else by the original's file, class and commit."""
    name = fixture["name"]
    named = [key for key in FAMILIES if name == key or name.startswith(f"{key}_")]
    if named:
        return FAMILIES[max(named, key=len)]
    for family in FAMILIES.values():
        same = fixture.get("cls") == family.cls and fixture.get("commit", "").startswith(family.commit)
        if same and family.file and fixture.get("file", "").endswith(family.file):
            return family
    raise LookupError(f"{name}: no network here is compared with {fixture.get('file')}")


def weights(key: str, shape: tuple[int, ...], seed: int, gain: float) -> np.ndarray | None:
    """The tensor that the fixtures' rule puts under a key, float32; None where the constructor's value stays."""
    if EXCEPTED.search(key):
        return None
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + seed))
    drawn = np.asarray(generator.standard_normal(shape, dtype=np.float32))
    parent, last = ["", *key.split(".")][-2:]
    if last == "running_var":
        return np.float32(1) + np.float32(0.1) * np.abs(drawn)
    if last in ("running_mean", "bias", "bias_pw", "bias_dw"):
        return np.float32(0.1) * drawn
    if last == "gamma" or (last == "weight" and (len(shape) == 1 or NORM.match(parent))):
        return np.float32(1) + np.float32(0.1) * drawn
    if POSITION_TABLE.search(key):
        return drawn
    if last in ("weight_pw", "weight_dw"):
        return np.float32(gain / np.sqrt(shape[-1])) * drawn
    if len(shape) >= 2:
        return np.float32(gain / np.sqrt(np.prod(shape[1:]))) * drawn
    return np.float32(0.1) * drawn


def build(family: Family, ctor: Mapping[str, Any], seed: int, gain: float) -> nn.Module:
    """The network with its weights drawn by the rule, in place and one at a time: released models fill gigabytes."""
    network = family.network(**{**ctor, **family.extra}).eval().requires_grad_(False)
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = weights(key, tuple(tensor.shape), seed, gain)
            if drawn is not None:
                tensor.copy_(torch.from_numpy(np.asarray(drawn)))
    return network


def network_input(fixture: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Tensor:
    """The stored input, or else the one that the rule draws."""
    if "input" in arrays:
        return torch.from_numpy(arrays["input"])
    rule = fixture["input_rule"]
    generator = np.random.Generator(np.random.PCG64(rule["seed"]))
    if rule["kind"] == "uniform":
        return torch.from_numpy(generator.random(rule["shape"], dtype=np.float32))
    return torch.from_numpy(generator.standard_normal(rule["shape"], dtype=np.float32) * np.float32(rule["scale"]))


def compare(name: str, ours: Tensor, stored: np.ndarray, slices: list | None, tolerance: float) -> Line:
    """The largest absolute difference; infinite where the shapes differ."""
    if slices is not None:
        ours = ours[tuple(slice(*one) for one in slices)]
    if tuple(ours.shape) != stored.shape:
        return Line(name, float("inf"), tolerance)
    return Line(name, float(np.abs(ours.numpy() - stored).max()), tolerance)


def check_network(fixture: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """One network: names and shapes of its state dict, then everything its forward pass returned."""
    family = find_family(fixture)
    network = build(family, fixture["ctor"], fixture["seed"], fixture["gain"])
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    expected = {key: shape for key, (shape, _) in fixture["state_dict"].items()}
    differing = sum(shapes.get(key) != expected.get(key) for key in shapes.keys() | expected.keys())
    yield Line(f"{fixture['name']}:state_dict", differing, 0)
    with torch.inference_mode():
        outputs = family.outputs(network, network_input(fixture, arrays))
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    noise = fixture["f32_vs_f64_maxabs"] or [None] * len(outputs)
    for ours, meta, rounding in zip(outputs, fixture["outputs"], noise, strict=True):
        absmax = meta["stats"]["absmax"]
        tolerance = 1e-3 * absmax if rounding is None else max(20 * rounding, 1e-5 * absmax)
        tolerance = tolerance if family.tolerance is None else family.tolerance
        suffix = f":{meta['npz_key']}" if len(outputs) > 1 else ""
        yield compare(fixture["name"] + suffix, ours, arrays[meta["npz_key"]], meta["slices"], tolerance)


def signal(case: Mapping[str, Any]) -> Tensor:
    """The song of a pipeline fixture `[2, samples]`: six amplitude-modulated, panned partials and some noise."""
    generator = np.random.Generator(np.random.PCG64(case["signal_seed"]))
    seconds = np.arange(case["n"]) / case["sr"]
    song = np.zeros((2, case["n"]))
    for _ in range(6):
        frequency = generator.uniform(60, 0.45 * case["sr"])
        amplitude, phase = generator.uniform(0.02, 0.2), generator.uniform(0, 2 * np.pi)
        pan, rate = generator.uniform(0, 1), generator.uniform(0.5, 3)
        swell = 0.6 + 0.4 * np.sin(2 * np.pi * rate * seconds)
        partial = amplitude * np.sin(2 * np.pi * frequency * seconds + phase) * swell
        song += np.stack((partial * pan, partial * (1 - pan)))
    song += 0.02 * generator.standard_normal((2, case["n"]))
    return torch.from_numpy(song.astype(np.float32))


def with_crops(case: Mapping[str, Any], family: Family, network: nn.Module) -> Separator:
    """Our Separator with the original's crops, those of its test-time augmentation too."""
    size, context = case["cropsize"], case["cropsize"] // 2 if case["padding"] is None else case["padding"]
    inference = Inference("fp32", case["batchsize"], crops=((size, context),))
    if case["method"] == "separate_tta":
        pairs = zip(case["tta_cropsizes"], case["tta_paddings"], strict=True)
        inference = replace(inference, crops=tuple(pairs))
    # The original gives a recurrent network the padding as more crop.
    size, inference = (size + 2 * context, replace(inference, crops=())) if family.recurrent else (size, inference)
    spec = ModelSpec("", "", {}, chunking=Chunking(size=size, multiple=size), recurrent=family.recurrent)
    return Separator(spec, network, inference=inference)


def song_mask(separator: Separator, spectrogram: Tensor) -> Tensor:
    """The mask of a whole song."""
    joined = torch.cat(list(separator.masks([spectrogram], spectrogram.abs().max().item())), dim=-1)
    # The original gives the Nyquist bin, which no network sees, to the vocals; ours keeps it in the instrumental.
    joined[:, -1] = 0
    return joined


def check_pipeline(fixture: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """STFT, crops, mask, ensemble and inverse STFT; y is the instrumental, v the vocals."""
    case = fixture["case"]
    stft = STFT(case["n_fft"], case["hop"], pad_mode=case["pad_mode"])
    separators, families = [], []
    with torch.inference_mode():
        spectrogram = stft.forward(signal(case))
        for name, ctor, seed in case["models"]:
            families.append(FAMILIES[name])
            network = build(families[-1], ctor, seed, fixture["gain"])
            separators.append(with_crops(case, families[-1], network))
        # An ensemble keeps the smallest instrumental. Its vocals are those of the last model alone: a slip of the
        # original, whose loop over the vocals went over the instrumentals.
        instrumental = spectrogram * song_mask(Choir(separators, Rule("original")), spectrogram)
        vocals = spectrogram * (1 - song_mask(separators[-1], spectrogram))
        samples = stft.hop * (spectrogram.shape[-1] - 1)
        results = {
            "x_spec_mag": spectrogram.abs(),
            "y_spec_mag": instrumental.abs(),
            "v_spec_mag": vocals.abs(),
            "y_wav": stft.inverse(instrumental, samples),
            "v_wav": stft.inverse(vocals, samples),
        }
    # These fixtures carry no rounding noise of their own: 1e-4 is a hundred times ours, and a tenth of what shows a
    # wrong edge or bin. Logits that are rounded on purpose make a mask, by the sigmoid's slope, a quarter as uncertain.
    loose = max((family.tolerance or 0) / 4 for family in families)
    for key, meta in fixture["outputs"].items():
        tolerance = meta["stats"]["absmax"] * max(1e-4, loose)
        yield compare(f"{fixture['name']}:{key}", results[key], arrays[key], meta["slices"], tolerance)


def check_demix(fixture: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """A song in overlapping windows of samples, where the reference's numbers are those of its windows alone."""
    case, output = fixture["case"], fixture["output"]
    network = None
    if case["model"] != "dummy":
        network = build(FAMILIES[f"{case['model']}_msst"], case["ctor"], case["weight_seed"], fixture["gain"])
    stored = torch.from_numpy(arrays["output"])
    ours, theirs = demix.compared(fixture, stored, network_input(fixture, arrays), network)["sane"]
    # A place is a mean over some windows, with a product each; networks round about as much.
    yield compare(fixture["name"], ours, theirs.numpy(), None, 1e-5 * output["stats"]["absmax"])


def check(path: Path) -> list[Line]:
    """All comparisons of one fixture file."""
    fixture = json.loads(path.read_text())
    fixture.setdefault("name", path.stem)
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    kind = check_network if "state_dict" in fixture else check_demix if "output" in fixture else check_pipeline
    return list(kind(fixture, arrays))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixtures", nargs="+", type=Path, metavar="FIXTURE.json")
    failed = False
    for path in parser.parse_args(arguments).fixtures:
        try:
            lines = check(path)
        except (OSError, LookupError, ValueError) as error:
            print(f"{path.stem:<48} {'-':>10} {'-':>10}  FAIL ({error})", flush=True)
            failed = True
            continue
        for line in lines:
            print(line, flush=True)
            failed |= not line.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
