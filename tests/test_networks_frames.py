"""V7, V8, V9, the frame primer and FrameResUNet: lengths, fused attention, recognition, crops that depend on crops."""

import json
from pathlib import Path

import parity
import pytest
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover import checkpoint
from vocalremover.checkpoint import recognition
from vocalremover.chunks import Chunking
from vocalremover.errors import UsageError
from vocalremover.models import MODELS, NETWORKS, ModelSpec
from vocalremover.networks import primer, resnet, v7, v8, v9
from vocalremover.separate import Inference, Separator
from vocalremover.spectrogram import STFT

FIXTURES = Path(__file__).parent / "fixtures"
TINY = {
    "v7": {"channels": 1, "n_fft": 512, "num_heads": 2, "num_attention_maps": 1, "expansions": [4] * 9},
    "v8": {"channels": 1, "n_fft": 128, "num_heads": 2, "expansions": [-1, 2.1, 3, 3, 4, 4, 5]},
    "v9": {"channels": 1, "expansion": 8, "n_fft": 64, "num_heads": 2, "num_layers": 3, "chunk_size": 4},
    "primer": {"depth": 3, "num_transformer_encoders": 1, "num_transformer_decoders": 2, "n_fft": 64, "cropsize": 12}
    | {"num_bands": 2, "feedforward_dim": 8},
    "resnet": {"nin": 2, "nout": 1, "cropsize": 12, "num_res_blocks": 1},
}
EXPONENT = {"v7": 8, "v8": 6, "v9": 5, "primer": 5, "resnet": 10}  # of the bins
INPUTS = {"v9": 10}


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name](**TINY[name]).eval()


def songs(name: str, count: int, frames: int) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, INPUTS.get(name, 2), 2 ** EXPONENT[name] + 1, frames)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("v7", (1, 2, 21)),
        ("v8", (1, 2, 21)),
        ("v9", (1, 31, 32, 33, 64)),
        ("primer", (1, 2, 11, 12)),
        ("resnet", (1, 12)),
    ],
)
def test_any_number_of_frames(name: str, lengths: tuple[int, ...]) -> None:
    network = tiny(name)
    with torch.inference_mode():
        for frames in lengths:
            mask = network(songs(name, 1, frames))
            assert mask.shape == (1, 2, 2 ** EXPONENT[name] + 1, frames)
            assert mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1
            assert (mask[:, :, -1] == 1).all()  # the bin it never sees stays in the instrumental


def test_v7_goes_on_where_its_table_ends() -> None:
    """The table of the checkpoints has 4096 frames; the next one is what the formula says."""
    network = tiny("v7")
    waves = network.positional_embedding.waves(torch.zeros(1, 2, 256, 4097))
    assert torch.equal(waves[0, 0, :, :4096], network.positional_embedding.pe[0, 0])
    assert_close(waves[0, 0, :, -1], v7_table_column(256, 4096), rtol=0, atol=1e-3)  # float32 angles of 4096 radians


def v7_table_column(features: int, frame: int) -> Tensor:
    even = torch.arange(0, features, 2, dtype=torch.float64)
    angles = frame * 10000 ** (-even / features)
    return torch.stack((angles.sin(), angles.cos()), dim=1).flatten().float()


@pytest.mark.parametrize("name", TINY)
def test_songs_of_a_batch_do_not_mix(name: str) -> None:
    network, batch = tiny(name), songs(name, 2, 12)
    with torch.inference_mode():
        alone = torch.cat([network(song[None]) for song in batch])
        assert_close(network(batch), alone, rtol=0, atol=2e-5)  # convolutions may add in another order


DEAD = ("identity.weight", "norm2.weight", "norm2.bias", "attention.attn.weight")


@pytest.mark.parametrize("name", TINY)
def test_learning_reaches_every_parameter(name: str) -> None:
    """Nothing is overwritten that backward needs; what FrameResUNet's docstring calls dead gets no gradient."""
    network = tiny(name).train()
    network(songs(name, 1, 12)).sum().backward()
    untouched = {key for key, parameter in network.named_parameters() if parameter.grad is None}
    dead = {key for key, _ in network.named_parameters() if name == "resnet" and key.endswith(DEAD)}
    assert untouched == dead


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, rotary: nn.Module, earlier: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Residual attention as the original does it: logits of frames x frames, added to those handed in."""
    q, k, v = (rearrange(x, "b m (h d) t -> b m h t d", h=heads) for x in (query, key, value))
    logits = einsum(rotary(q), rotary(k), "b m h t d, b m h s d -> b m h t s") / query.shape[2] ** 0.5
    logits = logits + sum(earlier)
    attended = einsum(logits.softmax(-1), v, "b m h t s, b m h s d -> b m h t d")
    return rearrange(attended, "b m h t d -> b m (h d) t"), [logits]


@pytest.mark.parametrize("module", [v7, v8], ids=["v7", "v8"])
def test_fused_attention_is_the_plain_one(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole network in float64, its logits carried as queries and keys or as they are."""
    name = module.__name__.rpartition(".")[2]
    network = tiny(name).double()
    magnitude = songs(name, 2, 13)[:, :, :-1].double()
    with torch.inference_mode():
        fused = network.logits(magnitude)
        monkeypatch.setattr(module, "residual_attention", plain_attention)
        if module is v7:
            monkeypatch.setattr(v7, "add", lambda *logits: [sum(one for some in logits for one in some)])
        plain = network.logits(magnitude)
    # Layer norms over one or two features with an eps of 1e-8 blow 1e-16 up by several powers of ten.
    assert_close(fused, plain, rtol=1e-7, atol=1e-7)


def band_attention(network: nn.Module, table: Tensor, x: Tensor, memory: Tensor, earlier: Tensor | float) -> Tensor:
    """Logits `[batch, bands, frames, frames]` of the primer's attention by their definition."""
    query, key = network.heads(x, "q"), network.heads(memory, "k")
    content = einsum(query, key, "b h i d, b h j d -> b h i j")
    place = einsum(query, table[:, : x.shape[1]], "b h j d, d i -> b h i j")
    return (content + place) / x.shape[-1] ** 0.5 + earlier


def test_primer_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    network = primer.MultibandFrameAttention(12, 3, 9).double()
    x, memory = torch.randn(2, 2, 7, 12, dtype=torch.float64)
    logits = None
    expected = 0.0
    with torch.inference_mode():
        for _ in range(3):
            attended, logits = network(x, memory, logits)
            expected = band_attention(network, network.weight, x, memory, expected)
            assert_close(logits.reshape(expected.shape), expected)
            assert_close(attended, network.join(expected.softmax(-1) @ network.heads(memory, "v")))
            x = attended


def test_resnet_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    network = resnet.MultibandFrameAttention(32, 9).double()
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    with torch.inference_mode():
        logits = band_attention(network, network.positional_encoding.weight, x, x, 0.0)
        assert_close(network(x), network.join(logits.softmax(-1) @ network.heads(x, "v")))


def test_v9_attention_is_its_definition() -> None:
    """Every channel and head of two songs with five chunks each attends on its own; two of eight features turn."""
    torch.manual_seed(0)
    network = v9.Attention(channels=3, chunk_size=4, num_heads=2).double()
    x = torch.randn(10, 3, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        query, key, value = (
            rearrange(projection(x), "(b l) c f t -> b c l (f t)", l=5)
            for projection in (network.q_proj, network.k_proj, network.v_proj)
        )
        angles = torch.arange(5).double()
        turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).reshape(5, 2, 2)
        attended, logits = network(x, 5, None)
        again, twice = network(x, 5, logits.clone())
        for head in range(2):
            q, k, v = (one[..., 8 * head : 8 * head + 8] for one in (query, key, value))
            q, k = (torch.cat((einsum(turn, x[..., :2], "l i j, b c l j -> b c l i"), x[..., 2:]), -1) for x in (q, k))
            expected = q @ k.mT / 4**0.5
            for factor, found in ((1, logits), (2, twice)):
                assert_close(found.reshape(2, 3, 2, 5, 5)[:, :, head], factor * expected, rtol=1e-6, atol=1e-6)
            value[..., 8 * head : 8 * head + 8] = (2 * expected).softmax(-1) @ v
        assert_close(again, network.o_proj(rearrange(value, "b c l (f t) -> (b l) c f t", f=4)), rtol=1e-6, atol=1e-6)
        assert not torch.equal(again, attended)


SMALL = ("v7_small", "v8_small", "v9_small", "primer_small", "primer_pre_small", "resnet_small")


@pytest.mark.parametrize("name", SMALL)
def test_a_renamed_file_is_recognised(name: str, tmp_path: Path) -> None:
    fixture = json.loads((FIXTURES / f"{name}.json").read_text())
    network = parity.build(parity.find_family(fixture), fixture["ctor"], fixture["seed"], fixture["gain"])
    path = tmp_path / "song.mp3"
    torch.save({"state": network.state_dict()}, path)
    spec, loaded = checkpoint.load(path)
    assert spec.network == name.split("_")[0]
    untold = {"n_fft"} if spec.network == "v9" else set()  # no tensor of V9 depends on it
    told = json.loads(json.dumps(dict(spec.args)))
    assert {key: told[key] for key in fixture["ctor"].keys() - untold} == {
        key: value for key, value in fixture["ctor"].items() if key not in untold
    }
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["v7", "v8", "v9", "primer", "primer_pre", "resnet"])
def test_released_configurations_have_their_own_recipe(name: str) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in MODELS[name].build("meta").state_dict().items()}
    found = recognition.match(shapes)
    assert (found.name, found.chunking) == (name, MODELS[name].chunking)


def test_v8_with_other_hidden_sizes_is_recognised() -> None:
    """The multipliers come back as numbers that give the same hidden sizes."""
    args = TINY["v8"] | {"expansions": [-1, 1.7, 2.3, 3, 3.1, 1.3, 2.6]}
    network = v8.FrameTransformer(**args)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert recognition.match(shapes).network == "v8"


def test_v8_rounds_only_if_asked_to() -> None:
    exact, magnitude = tiny("v8"), songs("v8", 1, 12)[:, :, :-1]
    rounded = v8.FrameTransformer(**TINY["v8"], bfloat16_upsampling=True).eval()
    rounded.load_state_dict(exact.state_dict())
    with torch.inference_mode():
        error = (rounded.logits(magnitude) - exact.logits(magnitude)).abs().max()
    assert 1e-4 < error < 0.5


@pytest.mark.parametrize("name", ["v7", "v8", "v9", "primer", "resnet"])
def test_bins_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"bins|n_fft"):
        NETWORKS[name](**{**TINY[name], "n_fft": 100})


def test_v9_reads_what_it_left_of_two_crops() -> None:
    """Separator against the original's loop, written out; the last crop is filled up to a multiple of 32 only."""
    network = tiny("v9")
    spec = ModelSpec(
        "mine", "v9", TINY["v9"], stft=STFT(64, 32), chunking=Chunking(size=64, multiple=32), recurrent=True
    )
    song = torch.randn(2, 33, 64 * 4 + 20, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    peak = song.abs().max().item()
    blocks = song.split(37, dim=-1)
    masks = torch.cat(list(Separator(spec, network).masks(blocks, peak)), dim=-1)
    expected = []
    x1, y1, x2, y2 = torch.zeros(4, 2, 33, 64)
    with torch.inference_mode():
        for start in range(0, song.shape[-1], 64):
            x = song[..., start : start + 64].abs() / peak
            size = x.shape[-1]
            x = nn.functional.pad(x, (0, -size % 32))
            state = [past[..., : x.shape[-1]] for past in (x1, y1, x2, y2)]
            mask = network(torch.cat((x, *state))[None])[0]
            x1, y1, x2, y2 = x, x * mask, x1, y1
            expected.append(mask[..., :size])
    expected = torch.cat(expected, dim=-1)
    assert masks.shape == song.shape
    assert_close(masks, expected, rtol=0, atol=1e-5)
    assert not torch.equal(expected[..., :64], expected[..., 64:128])


def test_v9_separates_a_song() -> None:
    spec = ModelSpec(
        "mine", "v9", TINY["v9"], stft=STFT(64, 32), chunking=Chunking(size=64, multiple=32), recurrent=True
    )
    song = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    stems = Separator(spec, tiny("v9")).separate(song, spec.rate)
    assert_close(stems["vocals"] + stems["instrumental"], song, rtol=0, atol=1e-6)  # two roundings
    with pytest.raises(UsageError, match="multiple of 32"):
        Separator(spec, tiny("v9"), inference=Inference(size=100))


@pytest.mark.parametrize("name", ["primer", "primer_pre", "resnet"])
def test_crops_end_where_the_positions_end(name: str) -> None:
    spec = MODELS[name]
    most = spec.args["cropsize"]
    network = nn.Identity()
    assert Separator(spec, network, inference=Inference(size=most)).chunking.whole == most
    assert Separator(spec, network, inference=Inference(context=most // 2 - 1)).chunking.whole <= most
    for wanted in ({"size": most + 1}, {"size": most, "context": 1}, {"context": most // 2}):
        with pytest.raises(UsageError, match=f"positions for {most} frames"):
            Separator(spec, network, inference=Inference(**wanted))
