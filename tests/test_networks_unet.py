"""The U-Nets over frequency and V3: what they are for any number of frames and however they compute their attention."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover import checkpoint
from vocalremover.checkpoint import recognition
from vocalremover.models import MODELS, NETWORKS, ModelSpec
from vocalremover.networks import layers, newft, thin

FAMILIES = ("thin", "full", "v2b", "v3", "newft")
FOLDER = Path(__file__).parent / "fixtures"
FIXTURES = sorted(path for name in FAMILIES for path in FOLDER.glob(f"{name}_*small.json"))
RENAMES = ((".rotary_embedding.freqs", ".embedding.freqs"), (".out_proj.", ".o_proj."))
MAPS = {"num_attention_maps": 2, "expansion": 9, "num_bridge_layers": 2}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "thin": ("thin", {"expansion": 2, "n_fft": 128, "num_heads": 2}),
    "full": ("full", {"expansion": 2, "n_fft": 128, "num_layers": 2}),
    "v2b": ("v2b", {"expansion": 2, "n_fft": 512, "transformer_channels": [3] * 7}),
    "v2b_map": ("v2b", {"expansion": 2, "n_fft": 512, "transformer_channels": [2] * 7, "sinusoid": "map"}),
    "v2b_none": ("v2b", {"expansion": 2, "n_fft": 512, "transformer_channels": [2] * 7, "sinusoid": "none"}),
    "v3": ("v3", {"expansion": 2, "n_fft": 512, "num_layers": 3}),
    "v3_rotary": ("v3", {"expansion": 2, "n_fft": 512, "num_layers": 3, "rotary": True}),
    "newft": ("newft", {"n_fft": 512, "num_heads": 2} | MAPS),
    "newft_gan": ("newft_gan", {"n_fft": 512, "num_heads": 2} | MAPS),
    "newft_disc": ("newft_disc", {"n_fft": 512, "num_heads": 2} | MAPS),
}
MASKS = [name for name in SMALL if name != "newft_disc"]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network, args = SMALL[name]
    return NETWORKS[network](**args).eval()


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, rotary: layers.Rotary | None, earlier: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Residual attention by its definition; what it hands on is a list of one matrix of logits."""
    q, k, v = layers.split_heads(query, key, value, heads, rotary)
    attended, logits = plain_running(q, k, v, earlier[0] if earlier else None)
    return layers.join_heads(attended, heads), [logits]


def plain_running(query: Tensor, key: Tensor, value: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = query @ key.mT + (0 if logits is None else logits)
    return logits.softmax(-1) @ value, logits


def plain_rows(pairs: Sequence[layers.Pair], value: Tensor) -> Tensor:
    return sum(query @ key.mT for query, key in pairs).softmax(-1) @ value


def plain_mix(gate: nn.Sequential, logits: Tensor, encoder: layers.Pair) -> Tensor:
    other = encoder[0] @ encoder[1].mT
    grids = [rearrange(each, "b (m h) t s -> b m h t s", m=gate[0].out_channels) for each in (logits, other)]
    opened = gate(torch.cat(grids, dim=1))
    return rearrange(opened * grids[0] + (1 - opened) * grids[1], "b m h t s -> b (m h) t s")


def narrow_blocks(frames: int, width: int) -> list[slice]:
    """Rows three at a time, so that a short crop has many blocks and a last one of another size."""
    return [slice(start, min(start + 3, frames)) for start in range(0, frames, 3)]


@pytest.mark.parametrize("name", SMALL)
def test_economical_attention_is_plain_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, in place, a few rows at a time, or as the backward pass wants it: always the same logits."""
    network = build(name).double()
    magnitude = torch.rand(2, 4 if name == "newft_disc" else 2, network.max_bin, 23, dtype=torch.float64)
    answers = []
    for blocks in (layers.row_blocks, narrow_blocks):
        monkeypatch.setattr(layers, "row_blocks", blocks)
        monkeypatch.setattr(newft, "row_blocks", blocks)
        with torch.inference_mode():
            answers.append(network.logits(magnitude))
    recorded = network.logits(magnitude)
    module = sys.modules[type(network).__module__]
    plain = {
        "residual_attention": plain_attention,
        "running_attention": plain_running,
        "attend_rows": plain_rows,
        "mix": plain_mix,
    }
    replaced = [word for word in plain if hasattr(module, word)]
    assert replaced
    for word in replaced:
        monkeypatch.setattr(module, word, plain[word])
    with torch.inference_mode():
        expected = network.logits(magnitude)
    for answer in (*answers, recorded):
        assert_close(answer, expected, rtol=1e-8, atol=1e-8)  # float64; norms over one feature enlarge roundings


@pytest.mark.parametrize("name", MASKS)
def test_any_number_of_frames(name: str) -> None:
    network = build(name)
    bins = network.max_bin + 1
    # oneDNN compiles every convolution anew for every number of frames, which takes a second each time.
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        for frames in (1, 2, 3, 15, 16, 17, 31, 50):
            mask = network(torch.rand(1, 2, bins, frames))
            assert mask.shape == (1, 2, bins, frames)
            assert mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1
            assert (mask[:, :, -1] == 1).all()  # the bin it never sees stays in the instrumental


def test_full_takes_silence_for_the_frames_it_lacks() -> None:
    network = build("full")
    magnitude = torch.rand(1, 2, network.max_bin, 21)
    with torch.inference_mode():
        padded = network.logits(nn.functional.pad(magnitude, (0, 11)))
        assert_close(network.logits(magnitude), padded[..., :21])


@pytest.mark.parametrize("frames", [1, 7, 16])
def test_side_outputs(frames: int) -> None:
    """The generator's voices are in bands of 256 bins and whole frames, the discriminator's patches two frames long."""
    generator, discriminator = build("newft_gan"), build("newft_disc")
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        logits, voice = generator.logits(torch.rand(2, 2, 256, frames))
        assert logits.shape == (2, 2, 256, frames) and voice.shape == (2, 2, 1, frames)
        assert discriminator(torch.rand(2, 4, 257, frames)).shape == (2, 1, 1, (frames + 1) // 2)


@pytest.mark.parametrize("name", ["thin", "full", "v2b", "v3", "newft", "newft_gan"])
def test_songs_of_a_batch_are_not_mixed(name: str) -> None:
    network = build(name).double()
    songs = torch.rand(3, 2, network.max_bin + 1, 13, dtype=torch.float64)
    with torch.inference_mode():
        alone = torch.cat([network(song[None]) for song in songs])
        assert_close(network(songs), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_everything_alive_learns(name: str) -> None:
    """Every parameter gets a gradient but those that the docstrings call dead."""
    network = build(name).train()
    with torch.backends.mkldnn.flags(enabled=False):
        logits = network.logits(torch.rand(1, 4 if name == "newft_disc" else 2, network.max_bin, 16))
        sum(each.square().sum() for each in (logits if isinstance(logits, tuple) else (logits,))).backward()
    dead = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    expected = {
        "thin": {f"dec{k}_transformer.norm3.norm.{kind}" for k in range(1, 6) for kind in ("weight", "bias")},
        "newft_gan": {"vout_norm.norm.weight", "vout_norm.norm.bias"},
    }
    assert dead == expected.get(name, set())


@pytest.mark.parametrize("sinusoid", ["input", "map", "none"])
def test_embedding_beyond_its_table(sinusoid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop longer than the table of the checkpoints continues it, and where the table is long enough it is used."""
    torch.manual_seed(0)
    monkeypatch.setattr(layers, "PE_FRAMES", 40)
    embedding = layers.ConvolutionalEmbedding(1, 256, layers.SquaredReLU(), sinusoid)
    assert hasattr(embedding, "pe") == (sinusoid != "none")
    with torch.inference_mode():
        assert embedding(torch.rand(1, 1, 256, layers.PE_FRAMES + 5)).isfinite().all()
    if sinusoid != "none":
        waves = embedding.waves(torch.rand(2, 1, 256, layers.PE_FRAMES + 5))
        assert_close(waves[1:, ..., : layers.PE_FRAMES], embedding.pe)
        assert_close(waves[0, 0], layers.sinusoids(256, layers.PE_FRAMES + 5))
        monkeypatch.delattr(layers, "sinusoids")  # widths up to the next power of two share a table that is kept
        assert_close(embedding.waves(torch.rand(1, 1, 256, 64))[..., :45], waves[:1])
        embedding.pe.zero_()
        assert not embedding.waves(torch.rand(1, 1, 256, 9)).any()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_file_of_any_name_is_recognised(path: Path, tmp_path: Path) -> None:
    fixture = json.loads(path.read_text())
    family = parity.find_family(fixture)
    network = parity.build(family, fixture["ctor"], fixture["seed"], fixture["gain"])
    torch.save({"epoch": 3, "state": network.state_dict()}, tmp_path / "holiday.bin")
    spec, loaded = checkpoint.load(tmp_path / "holiday.bin")
    assert type(loaded) is type(network)
    wanted = fixture["ctor"] | dict(family.extra)
    assert {key: spec.args[key] for key in wanted} == wanted
    assert spec.stft.n_fft == wanted["n_fft"]
    theirs = network.state_dict()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("name", SMALL)
def test_arguments_are_read_off_the_shapes(name: str) -> None:
    network, args = SMALL[name]
    state = ModelSpec("", network, args).build().state_dict()
    spec = recognition.match({key: tuple(tensor.shape) for key, tensor in state.items()})
    assert spec.network == network
    assert {key: spec.args[key] for key in args} == args


@pytest.mark.parametrize("name", ["thin", "full", "v2b", "v3", "newft", "newft_gan"])
def test_released_size_is_its_recipe(name: str) -> None:
    recipe = MODELS[name]
    state = recipe.build().state_dict()
    found = recognition.match({key: tuple(tensor.shape) for key, tensor in state.items()})
    # thin and v1 are one network, so what tells their files apart is not told here.
    assert replace(found, filename=recipe.filename, url=recipe.url, note=recipe.note) == recipe
    assert MODELS["v1"].args == MODELS["thin"].args  # one architecture: a file alone cannot tell them apart


def test_thin_under_its_later_names(tmp_path: Path) -> None:
    state = build("thin").state_dict()
    later = {}
    for key, tensor in state.items():
        for ours, theirs in RENAMES:
            key = key.replace(ours, theirs)
        later[key] = tensor
    assert len(later.keys() - state.keys()) == 2 * (7 + 2 * 5)
    assert {thin.renamed(key) for key in later} == state.keys() == {thin.renamed(key) for key in state}
    torch.save(later, tmp_path / "weights")
    spec, loaded = checkpoint.load(tmp_path / "weights")
    assert spec.network == "thin"
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
