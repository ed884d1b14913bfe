"""The RoFormers are what a plain walk through their named modules gives, however they are packed, cut and cast."""

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover.errors import ModelError
from vocalremover.networks import bs_roformer, mel_roformer, roformer
from vocalremover.networks.bs_roformer import BSRoformer
from vocalremover.networks.mel_roformer import MelBandRoformer, mel_bands

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of bands without bins

BS = {"dim": 16, "depth": 2, "stereo": True, "freqs_per_bands": (1, 2, 2, 3, 4, 5, 9, 7), "stft_n_fft": 64,
      "dim_head": 8, "heads": 2, "time_transformer_depth": 1, "freq_transformer_depth": 1}  # fmt: skip
MEL = {"dim": 16, "depth": 2, "stereo": True, "num_bands": 6, "stft_n_fft": 64, "dim_head": 8, "heads": 2,
       "time_transformer_depth": 1, "freq_transformer_depth": 1, "attn_dropout": 0, "ff_dropout": 0}  # fmt: skip
LUCID = {"layout": "lucidrains"}
NETWORKS = {
    "bs": (BSRoformer, BS),
    "bs linear": (BSRoformer, BS | {"linear_transformer_depth": 1, "skip_connection": True, "num_stems": 2}),
    "bs polar": (BSRoformer, BS | {"use_pope": True}),
    "mel": (MelBandRoformer, MEL),
    "mel linear": (MelBandRoformer, MEL | {"linear_transformer_depth": 1, "skip_connection": True, "stereo": False}),
    "bs lucid": (BSRoformer, BS | LUCID | {"num_stems": 2}),
    "bs lucid 1": (BSRoformer, BS | LUCID | {"num_residual_streams": 1}),
    "mel empty": (MelBandRoformer, MEL | {"num_bands": 16}),  # some bands have no bin at all
    "mel lucid": (MelBandRoformer, MEL | LUCID),
    "mel lucid 1": (MelBandRoformer, MEL | LUCID | {"num_residual_streams": 1, "linear_transformer_depth": 0}),
}
MSST = [name for name in NETWORKS if "lucid" not in name]


def make(name: str, seed: int = 0, **changes: Any) -> nn.Module:  # noqa: ANN401
    """One of NETWORKS with every parameter drawn, in eval mode and float64."""
    kind, args = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(**args | changes).double().eval()
        for parameter in network.parameters():
            nn.init.normal_(
                parameter, std=max(math.prod(parameter.shape[1:]), 1) ** -0.5 if parameter.dim() > 1 else 0.3
            )
    return network


def noise(network: nn.Module, batch: int = 1, frames: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    bands = network.bands
    return torch.randn(batch, bands.channels, bands.total, frames, 2, dtype=torch.float64, generator=generator)


def normalise(x: Tensor, gamma: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) * x.shape[-1] ** 0.5 * gamma


def rotate(x: Tensor) -> Tensor:
    """Each interleaved pair of `[..., tokens, features]` as a complex number that its position turns."""
    rates = 10000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = torch.arange(x.shape[-2])[:, None] * rates
    turned = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.polar(torch.ones_like(angles), angles)
    return torch.stack((turned.real, turned.imag), dim=-1).flatten(-2)


def polar_products(embedding: nn.Module, head: int, query: Tensor, key: Tensor) -> Tensor:
    """Products of complex numbers: magnitudes from what is said, phases from positions and, for keys, a learned one."""
    positions = torch.arange(len(query), dtype=query.dtype)[:, None]
    phases = positions * 10000.0 ** (-torch.arange(query.shape[-1], dtype=query.dtype) / query.shape[-1])
    moved = phases + embedding.bias[head].clamp(-2 * math.pi, 0)
    return (torch.polar(F.softplus(query), phases) @ torch.polar(F.softplus(key), moved).mH).real


def plain_attention(module: nn.Module, x: Tensor) -> Tensor:
    """Softmax attention of one sequence after the other, by its definition; or the linear one, if it is that."""
    rows = []
    for row in x:
        normal = normalise(row, module.norm.gamma)
        linear = hasattr(module, "temperature")
        weight = module.to_qkv[0].weight if linear else module.to_qkv.weight
        q, k, v = rearrange(normal @ weight.T, "n (three h d) -> three h n d", three=3, h=module.heads)
        heads = []
        for head in range(module.heads):
            if linear:
                queries, keys = (one / one.norm(dim=0, keepdim=True).clamp(min=1e-12) for one in (q[head], k[head]))
                logits = 8 * module.temperature[head].exp() * queries.T @ keys
                heads.append(v[head] @ logits.softmax(-1).T)
                continue
            products = rotate(q[head]) @ rotate(k[head]).T
            if module.pope_embed is not None:
                products = polar_products(module.pope_embed, head, q[head], k[head])
            logits = products / q.shape[-1] ** 0.5
            gate = (normal @ module.to_gates.weight[head] + module.to_gates.bias[head]).sigmoid()
            heads.append(logits.softmax(-1) @ v[head] * gate[:, None])
        out = module.to_out[1] if linear else module.to_out[0]
        rows.append(torch.cat(heads, dim=-1) @ out.weight.T)
    return torch.stack(rows)


def plain_transformer(module: nn.Module, x: Tensor) -> Tensor:
    for attention, feed_forward in module.layers:
        x = x + plain_attention(attention, x)
        norm, first, _, _, second, _ = feed_forward.net
        x = x + second(F.gelu(first(normalise(x, norm.gamma))))
    return normalise(x, module.norm.gamma) if hasattr(module.norm, "gamma") else x


def plain_ends(network: nn.Module, bins: list, body: Callable[[Tensor], Tensor], spectrogram: Tensor) -> Tensor:
    """Band split, what `body` makes of tokens `[batch, frames, bands, dim]`, and masks; one band after the other."""
    numbers = rearrange(spectrogram, "b s f t c -> b t f s c")
    tokens = []
    for band, (norm, linear) in zip(bins, network.band_split.to_features, strict=True):
        tokens.append(linear(normalise(numbers[:, :, list(band)].flatten(2), norm.gamma)))
    tokens = body(torch.stack(tokens, dim=2))
    masks = []
    for estimator in network.mask_estimators:
        total = torch.zeros_like(numbers)
        covered = torch.zeros(numbers.shape[2], 1, 1, dtype=numbers.dtype)
        for index, (band, mlp) in enumerate(zip(bins, estimator.to_freqs, strict=True)):
            part = rearrange(mlp(tokens[:, :, index]), "b t (f s c) -> b t f s c", s=numbers.shape[3], c=2)
            total[:, :, list(band)] += part
            covered[list(band)] += 1
        masks.append(rearrange(total / covered.clamp(min=1), "b t f s c -> b s f t c"))
    return torch.stack(masks, dim=1)


def plain_body(network: nn.Module, x: Tensor, skip: bool) -> Tensor:
    """The blocks of the msst layout on `[batch, frames, bands, dim]`."""
    batch, frames, _, _ = x.shape
    store = []
    for *linear, time, band in network.layers:
        for module in linear:
            x = plain_transformer(module, x.flatten(1, 2)).view_as(x)
        x = x + sum(store) if skip and store else x
        x = plain_transformer(time, rearrange(x, "b t f d -> (b f) t d"))
        x = plain_transformer(band, rearrange(x, "(b f) t d -> (b t) f d", b=batch))
        x = rearrange(x, "(b t) f d -> b t f d", t=frames)
        store.append(x)
    return normalise(x, network.final_norm.gamma) if hasattr(network, "final_norm") else x


def bins_of(name: str) -> list:
    kind, args = NETWORKS[name]
    if kind is MelBandRoformer:
        return list(mel_bands(args["num_bands"], args["stft_n_fft"], 44100))
    edges = torch.tensor((0, *args["freqs_per_bands"])).cumsum(0).tolist()
    return [range(*pair) for pair in pairwise(edges)]


def plain(name: str, network: nn.Module, spectrogram: Tensor) -> Tensor:
    """A network of the msst layout, with nothing but its named modules; float64, no bin silent."""
    skip = NETWORKS[name][1].get("skip_connection", False)
    return plain_ends(network, bins_of(name), lambda x: plain_body(network, x, skip), spectrogram)


def same(ours: Tensor, expected: Tensor) -> None:
    """Equal but for float32 angles of the rotations: turns of up to 20 radians, wrong by 1e-6, of numbers near one."""
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 7, 16])
@pytest.mark.parametrize("name", MSST)
def test_a_network_is_the_plain_walk_through_its_modules(name: str, frames: int) -> None:
    network = make(name, zero_dc=False)
    spectrogram = noise(network, batch=2, frames=frames)
    with torch.no_grad():
        same(network(spectrogram), plain(name, network, spectrogram))


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_ends_are_the_plain_ones(name: str) -> None:
    """Without the blocks between them, both ways are the same to the last roundings of float64."""
    network = make(name, zero_dc=False)
    spectrogram = noise(network, batch=2)
    with torch.no_grad():
        tokens = network.band_split(spectrogram)
        ours = roformer.estimate(network.mask_estimators, tokens, network.bands, None)
        expected = plain_ends(network, bins_of(name), lambda x: x, spectrogram)
        assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@given(widths=st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_bands_of_any_widths(widths: list[int]) -> None:
    """Groups cover the bands in order and pad none by more than half its width; every number comes back in place."""
    total = sum(widths) + 1  # the last bin belongs to no band
    edges = [0, *torch.tensor(widths).cumsum(0).tolist()]
    bins = [range(*pair) for pair in pairwise(edges)]
    bands = roformer.Bands(bins, total, 2)
    assert [index for group in bands.groups for index in range(len(widths))[group]] == list(range(len(widths)))
    spectrogram = torch.randn(2, 2, total, 3, 2)
    outputs = []
    for group, part in zip(bands.groups, bands.split(spectrogram), strict=True):
        assert max(bands.widths[group]) <= 1.5 * min(bands.widths[group])
        padded = torch.zeros(part.shape[0], 2 * part.shape[1], part.shape[2])
        for row, one, width in zip(padded, part, bands.widths[group], strict=True):
            assert not one[width:].any()
            row[:width], row[width : 2 * width] = one[:width], 40  # the sigmoid of 40 is one
        outputs.append(padded.flatten(0, 1))
    mask = bands.masks(torch.cat(outputs), batch=2)
    assert torch.equal(mask[:, :, :-1], spectrogram[:, :, :-1])
    assert not mask[:, :, -1].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_training_reaches_every_parameter_and_inference_sees_its_steps(name: str) -> None:
    network = make(name)
    spectrogram = noise(network)
    with torch.inference_mode():
        network(spectrogram)  # packs
    network.train()
    for _ in range(2):
        network.zero_grad()
        recorded = network(spectrogram)
        recorded.square().sum().backward()
        assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []
        with torch.inference_mode():
            assert_close(network.eval()(spectrogram), recorded.detach(), rtol=1e-9, atol=1e-9)
        torch.optim.SGD(network.train().parameters(), lr=1e-3).step()
    with torch.inference_mode():
        stepped = network.eval()(spectrogram)
    assert (stepped - recorded).abs().max() > 1e-6
    assert_close(stepped, network(spectrogram).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["bs linear", "mel lucid"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    network = make(name).train()
    spectrogram = noise(network, frames=3)
    weight = network.mask_estimators[0].to_freqs[4][0][0].weight
    network(spectrogram).sum().backward()
    with torch.no_grad():
        step = torch.zeros_like(weight)
        step[1, 2] = 1e-5
        ends = []
        for sign in (1, -1):
            weight += sign * step
            ends.append(network.eval()(spectrogram).sum())
            weight -= sign * step
    assert_close((ends[0] - ends[1]) / 2e-5, weight.grad[1, 2], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["bs", "mel"])
def test_weights_are_held_once(name: str) -> None:
    """The named parameters are views of the packed tensors; only padding, less than half of it all, comes on top."""
    network = make(name)
    with torch.inference_mode():
        network(noise(network))
    estimators = list(network.mask_estimators.parameters())
    storages = {parameter.untyped_storage().data_ptr(): parameter.untyped_storage() for parameter in estimators}
    held = sum(storage.nbytes() for storage in storages.values())
    assert len(storages) < len(estimators)
    assert held <= 1.5 * sum(parameter.nbytes for parameter in estimators)
    packed = [stack.packed for group in network.mask_estimators[0].stacks for pair in group for stack in pair]
    assert {one.untyped_storage().data_ptr() for one in packed} == storages.keys()
    assert all(parameter.is_contiguous() for parameter in estimators)


def change_in_place(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.load_state_dict(state)
    return network


def change_by_assigning(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.load_state_dict(state, assign=True)
    return network


def change_through_data(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    for key, parameter in network.named_parameters():
        parameter.data.copy_(state[key])
    return network


def change_a_copy(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    other = copy.deepcopy(network)
    for key, parameter in network.named_parameters():
        parameter.data.zero_()
        other.get_parameter(key).data.copy_(state[key])
    return other


def change_by_casting(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    return change_in_place(network.float(), state).double()


def change_through_a_file(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    stream = io.BytesIO()
    network.load_state_dict(state)
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    network.load_state_dict({key: torch.zeros_like(value) for key, value in state.items()})
    network.load_state_dict(torch.load(stream, weights_only=True))
    return network


@pytest.mark.parametrize("name", ["bs", "mel lucid"])
@pytest.mark.parametrize("change", [
    change_in_place, change_by_assigning, change_through_data, change_a_copy, change_by_casting, change_through_a_file
], ids=lambda change: change.__name__)  # fmt: skip
def test_packing_never_goes_stale(name: str, change: Callable) -> None:
    network, other = make(name, seed=1), make(name, seed=2)
    spectrogram = noise(network)
    # Numbers that float32 has, for the way through it.
    other.load_state_dict({key: value.float().double() for key, value in other.state_dict().items()})
    with torch.inference_mode():
        network(spectrogram)
        expected = other(spectrogram)
    changed = change(network, {key: value.clone() for key, value in other.state_dict().items()})
    with torch.inference_mode():
        assert_close(changed(spectrogram), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_built_on_meta_a_network_needs_nothing_but_its_state(name: str) -> None:
    network = make(name)
    kind, args = NETWORKS[name]
    with torch.device("meta"):
        empty = kind(**args).eval()
    empty.load_state_dict(network.state_dict(), strict=True, assign=True)
    assert not [key for key, tensor in (*empty.named_parameters(), *empty.named_buffers()) if tensor.is_meta]
    spectrogram = noise(network)
    with torch.inference_mode():
        assert torch.equal(empty(spectrogram), network(spectrogram))


@pytest.mark.parametrize("name", NETWORKS)
def test_songs_of_a_batch_and_parts_of_it_do_not_mix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(name)
    songs = noise(network, batch=3, frames=5)
    with torch.inference_mode():
        together = network(songs)
        alone = torch.cat([network(song[None]) for song in songs])
        assert_close(together, alone, rtol=1e-10, atol=1e-10)
        monkeypatch.setitem(roformer.AT_ONCE, "cpu", 8)  # a band or a frame at a time
        assert_close(network(songs), together, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["bs", "mel lucid"])
def test_stems_are_picked(name: str) -> None:
    network = make(name, num_stems=3)
    spectrogram = noise(network)
    ran = []
    for index, estimator in enumerate(network.mask_estimators):
        estimator.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.inference_mode():
        every = network(spectrogram)
        assert every.shape == (1, 3, *spectrogram.shape[1:])
        ran.clear()
        assert torch.equal(network(spectrogram, stems=[2, 0]), every[:, [2, 0]])
    assert ran == [2, 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_lowest_bin_is_silenced_where_the_layout_does_so(name: str) -> None:
    silent, loud = make(name, zero_dc=True), make(name, zero_dc=False)
    by_default = make(name)
    spectrogram = noise(silent)
    with torch.inference_mode():
        masks = silent(spectrogram)
        assert not masks[:, :, :, 0].any()
        assert loud(spectrogram)[:, :, :, 0].abs().min() > 0
        assert torch.equal(masks[:, :, :, 1:], loud(spectrogram)[:, :, :, 1:])
        expected = silent if name in MSST else loud
        assert torch.equal(by_default(spectrogram), expected(spectrogram))


def signal_to_distortion(expected: Tensor, found: Tensor) -> float:
    return 10 * torch.log10(expected.square().sum() / (expected - found).square().sum()).item()


@pytest.mark.parametrize("level", [1e-3, 1e3])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision(name: str, level: float) -> None:
    """A half rounds to 2^-11, a bfloat16 to 2^-8 of a number: 66 and 48 dB below it. Two blocks may cost 10 dB of that.

    The level is that of quiet and of loud songs' spectrograms, whose squares no half can hold.
    """
    network = make(name).float()
    spectrogram = level * noise(network, frames=20).float()
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(spectrogram.double())
        assert network(spectrogram).dtype == torch.float32
        assert signal_to_distortion(exact, network(spectrogram)) > 100
        for convert, bound in ((nn.Module.half, 56), (nn.Module.bfloat16, 38)):
            masks = convert(copy.deepcopy(network))(spectrogram)
            assert masks.dtype == torch.float32
            assert signal_to_distortion(exact, masks) > bound


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_autocast(name: str, cast: bool) -> None:
    """Also where the weights are of half precision already."""
    network = make(name).float()
    spectrogram = noise(network, frames=20).float()
    with torch.inference_mode():
        exact = network(spectrogram)
        network = network.bfloat16() if cast else network
        with torch.autocast("cpu", torch.bfloat16):
            masks = network(spectrogram)
    assert masks.dtype == torch.float32
    assert signal_to_distortion(exact, masks) > 38


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_gives_the_same(name: str) -> None:
    """In double precision; and in half about as well as autocast, whichever kernels there are."""
    network = make(name)
    spectrogram = noise(network, batch=2, frames=20)
    with torch.inference_mode():
        exact = network(spectrogram)
        same(network.cuda()(spectrogram.cuda()).cpu(), exact)
        masks = network.half()(spectrogram.float().cuda()).cpu()
    assert signal_to_distortion(exact, masks.double()) > 56


@pytest.mark.parametrize("name", NETWORKS)
def test_silence_makes_no_holes(name: str) -> None:
    network = make(name).float()
    with torch.inference_mode():
        for convert in (nn.Module.float, nn.Module.half):
            assert convert(network)(torch.zeros_like(noise(network)).float()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotations_without_complex_numbers(dtype: torch.dtype) -> None:
    x = torch.randn(3, 500, 16).to(dtype)
    exact, ours = rotate(x.double()), roformer.Rotation.of(500, 16, x).turn(x)
    assert ours.dtype == dtype
    # cosine, sine and two products and a sum are each rounded once
    assert_close(ours.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps * x.abs().max().item())


def test_norm_is_that_of_the_fused_kernel() -> None:
    """The kernel that runs elsewhere than on a CPU adds its epsilon: it makes no difference, nor a hole of silence."""
    x = torch.randn(5, 24) * torch.tensor([1e4, 1, 1e-4, 1e-8, 0])[:, None]
    gamma = torch.rand(24)
    fused = F.rms_norm(x, (24,), gamma, 1e-24 / 24)
    assert_close(roformer.rms_norm(x, gamma), fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bs linear", "mel lucid"])
def test_recomputing_changes_no_gradient(name: str) -> None:
    networks = [make(name, use_torch_checkpoint=recompute).train() for recompute in (False, True)]
    for network in networks:
        network(noise(network)).square().sum().backward()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    network = make("mel linear", attn_dropout=0.5, ff_dropout=0.5)
    spectrogram = noise(network)
    calm = make("mel linear")(spectrogram)
    assert_close(network(spectrogram), calm, rtol=1e-9, atol=1e-9)
    assert (network.train()(spectrogram) - calm).abs().max() > 1e-3


def test_new_hyper_connections_are_plain_residuals() -> None:
    """Untrained, each stream keeps to itself and takes up the whole change of the streams' mean, twice, half read."""
    torch.manual_seed(0)
    branch = roformer.FeedForward(6)
    connection = roformer.HyperConnection(branch, 6, streams=4)
    x = torch.randn(8, 5, 6)
    changed, _ = connection(x, None, None)
    read = rearrange(x, "(rows s) n d -> rows s n d", s=4).sum(1) / 2
    expected = x + branch(read)[0].repeat_interleave(4, dim=0)
    assert_close(changed, expected, rtol=0, atol=0.01)  # e^-8, three times, of numbers up to four


@pytest.mark.parametrize("count", [8, 30, 60, 64])
@pytest.mark.parametrize("n_fft", [512, 2048, 4096])
@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_mel_bands_are_librosas(count: int, n_fft: int, rate: int) -> None:
    from librosa.filters import mel

    bank = mel(sr=rate, n_fft=n_fft, n_mels=count)
    for corners in (True, False):
        covered = bank.copy()
        covered[0, 0] = 1.0 if corners else covered[0, 1] * 0.25
        covered[-1, -1] = 1.0 if corners else covered[-1, -2] * 0.25
        covered = covered > 0
        if not covered.any(axis=0).all():
            with pytest.raises(ModelError, match="uncovered"):
                mel_bands(count, n_fft, rate, corners)
            continue
        assert mel_bands(count, n_fft, rate, corners) == tuple(tuple(row.nonzero()[0].tolist()) for row in covered)


def test_a_bank_of_too_many_bands_is_refused_before_it_is_made() -> None:
    with pytest.raises(ModelError, match="30000 mel bands"):
        mel_bands(30000, 8192, 44100)


def test_released_bank() -> None:
    """60 bands of 2048 samples have 1979 bins, and no bin lies in more than two of them."""
    bands = mel_bands(60, 2048, 44100)
    assert sum(map(len, bands)) == 1979
    every = [bin_ for band in bands for bin_ in band]
    assert set(every) == set(range(1025))
    assert max(every.count(bin_) for bin_ in range(1025)) == 2


COMMON = {
    "dim": st.sampled_from([4, 6, 16]),
    "depth": st.integers(1, 3),
    "stereo": st.booleans(),
    "num_stems": st.integers(1, 3),
    "time_transformer_depth": st.integers(1, 2),
    "freq_transformer_depth": st.integers(1, 2),
    "dim_head": st.sampled_from([2, 4, 8]),
    "heads": st.integers(1, 3),
    "mlp_expansion_factor": st.integers(1, 4),
    "use_pope": st.booleans(),
}


def shapes_of(kind: type[nn.Module], config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in kind(**config).state_dict().items()}


def check_arguments(kind: type[nn.Module], tell: Callable, config: dict[str, Any]) -> None:
    """What the shapes tell is what made them, and makes the same ones again."""
    shapes = shapes_of(kind, config)
    told = tell(shapes)
    assert shapes_of(kind, told) == shapes
    assert {key: told[key] for key in config if key in told} == {key: config[key] for key in config if key in told}
    missing = config.keys() - told.keys()
    assert missing <= {"attn_dropout"}


@given(data=st.data(), layout=st.sampled_from(["msst", "lucidrains"]), bits=st.integers(4, 7))
@settings(deadline=None, max_examples=25)
def test_arguments_of_bs(data: st.DataObject, layout: str, bits: int) -> None:
    config = {key: data.draw(value, key) for key, value in COMMON.items()} | {"layout": layout}
    config["mask_estimator_depth"] = data.draw(st.integers(2, 3))
    if layout == "msst":
        config["linear_transformer_depth"] = data.draw(st.integers(0, 2))
    else:
        config["num_residual_streams"] = data.draw(st.sampled_from([1, 2, 4]))
    bins, counts = 2 ** (bits - 1) + 1, []
    while sum(counts) < bins:
        counts.append(min(data.draw(st.integers(1, 12)), bins - sum(counts)))
    check_arguments(BSRoformer, bs_roformer.arguments, config | {"freqs_per_bands": counts, "stft_n_fft": 2**bits})


@given(data=st.data(), layout=st.sampled_from(["msst", "lucidrains"]), n_fft=st.sampled_from([256, 512, 2048]))
@settings(deadline=None, max_examples=25)
def test_arguments_of_mel(data: st.DataObject, layout: str, n_fft: int) -> None:
    config = {key: data.draw(value, key) for key, value in COMMON.items()} | {"layout": layout, "stft_n_fft": n_fft}
    config["mask_estimator_depth"] = data.draw(st.integers(1, 2))
    config["num_bands"] = data.draw(st.integers(4, 24))
    config["linear_transformer_depth"] = data.draw(st.integers(0, 2))
    config["sample_rate"] = data.draw(st.sampled_from([44100, 48000]))
    if layout == "lucidrains":
        config["num_residual_streams"] = data.draw(st.sampled_from([1, 2, 4]))
        config["add_value_residual"] = config["depth"] == 1 or data.draw(st.booleans())
    shapes = shapes_of(MelBandRoformer, config)
    told = mel_roformer.arguments(shapes)
    assert shapes_of(MelBandRoformer, told) == shapes
    # Some rates have banks of the same widths, and any of them will do that has the same bins.
    rate, found = config.pop("sample_rate"), told.pop("sample_rate")
    assert mel_bands(told["num_bands"], told["stft_n_fft"], found) == mel_bands(config["num_bands"], n_fft, rate)
    assert {key: told[key] for key in config} == config


def test_arguments_of_the_released_models() -> None:
    viperx = {"dim": 512, "depth": 12, "stereo": True, "time_transformer_depth": 1, "freq_transformer_depth": 1,
              "freqs_per_bands": list(bs_roformer.FREQS_PER_BANDS), "num_stems": 1}  # fmt: skip
    kim = {"dim": 384, "depth": 6, "stereo": True, "num_bands": 60, "mask_estimator_depth": 2, "sample_rate": 44100,
           "time_transformer_depth": 1, "freq_transformer_depth": 1, "num_stems": 1}  # fmt: skip
    check_arguments(BSRoformer, bs_roformer.arguments, viperx)
    check_arguments(MelBandRoformer, mel_roformer.arguments, kim)
    for kind, tell in ((BSRoformer, mel_roformer.arguments), (MelBandRoformer, bs_roformer.arguments)):
        with pytest.raises((KeyError, ValueError)):
            tell(shapes_of(kind, viperx if kind is BSRoformer else kim))


def test_a_range_of_bins() -> None:
    """The lucidrains layout may leave out bins at both ends; they get no mask and change none."""
    network = make("bs lucid 1", freq_range=(3, -1), stft_n_fft=70)
    spectrogram = noise(network)
    other = spectrogram.clone()
    other[:, :, :3] = 100
    with torch.inference_mode():
        masks = network(spectrogram)
        assert not masks[:, :, :, :3].any()
        assert masks[:, :, :, 3:].abs().min() > 0
        assert torch.equal(network(other), masks)


@pytest.mark.parametrize(("name", "changes", "words"), [
    ("bs", {"freqs_per_bands": (2, 3)}, "sum up to 5 bins"),
    ("bs", {"num_residual_streams": 4}, "one residual stream"),
    ("bs lucid", {"linear_transformer_depth": 1}, "no linear attention"),
    ("bs lucid", {"num_residual_fracs": 2}, "num_residual_fracs"),
    ("mel", {"num_residual_streams": 4}, "one residual stream"),
    ("mel lucid", {"num_residual_fracs": 2}, "num_residual_fracs"),
    ("mel lucid", {"num_bands": 40}, "uncovered"),
    ("mel", {"dim_head": 7}, "even"),
])  # fmt: skip
def test_settings_that_contradict_each_other(name: str, changes: dict[str, Any], words: str) -> None:
    kind, args = NETWORKS[name]
    with pytest.raises(ModelError, match=words):
        kind(**args | changes)


def test_a_foreign_spectrogram_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\(2, 33\), but the spectrogram has \(1, 33\)"):
        make("bs")(torch.zeros(1, 1, 33, 4, 2))
