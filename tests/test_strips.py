"""What the strips promise: cut or whole, the numbers are the same, whatever the order in memory and the precision."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from vocalremover.networks import strips
from vocalremover.networks.layers import MultichannelLayerNorm
from vocalremover.networks.strips import convolve, has_winograd, moments, prepare, project, residual

FEATURES, FRAMES = 70, 13


@pytest.fixture(autouse=True)
def low_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of 16 features: four whole ones and one of six."""
    monkeypatch.setattr(strips, "NUMBERS", 1)


@pytest.fixture
def generator() -> Iterator[torch.Generator]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield torch.Generator().manual_seed(0)


def draw(generator: torch.Generator, *channels: int, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, count, FEATURES, FRAMES, generator=generator) for count in channels]


def drawn_norm(generator: torch.Generator, channels: int) -> MultichannelLayerNorm:
    norm = MultichannelLayerNorm(channels, FEATURES)
    norm.weight.data = torch.rand(norm.weight.shape, generator=generator)
    norm.bias.data = torch.rand(norm.bias.shape, generator=generator)
    return norm


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, stride=(1, stride), bias=False)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "hidden", "batch"), [((5,), 7, 1), ((4, 1, 2), 9, 2), ((40,), 48, 1)])
def test_strips_of_a_residual_are_the_whole(
    channels: tuple[int, ...], hidden: int, batch: int, stride: int, generator: torch.Generator
) -> None:
    total, maps = sum(channels), draw(generator, *channels, batch=batch)
    norm, conv1, conv2 = drawn_norm(generator, total), conv(total, hidden), conv(hidden, channels[0], stride)
    shortcut = nn.Conv2d(total, channels[0], 1, stride=(1, stride)) if stride > 1 else None
    whole = residual(maps, norm, conv1, F.leaky_relu, conv2, shortcut)  # gradients are on
    with torch.inference_mode():
        cut = residual([prepare(x) for x in maps], norm, conv1, F.leaky_relu, conv2, shortcut)
    # Winograd's products, at most 40 channels deep, round to some 1e-5 of the largest number.
    assert_close(cut, whole.detach(), rtol=0, atol=5e-5 * whole.abs().max().item())


@pytest.mark.parametrize("kernel", [1, 3])
def test_strips_of_projections_are_the_whole(kernel: int, generator: torch.Generator) -> None:
    maps, norm = draw(generator, 3, 1), drawn_norm(generator, 4)
    convs = [nn.Conv2d(4, outputs, kernel, padding=kernel // 2, bias=False) for outputs in (2, 1)]
    for chosen in (norm, None):
        whole = project(maps, chosen, convs)
        with torch.inference_mode():
            cut = project([prepare(x) for x in maps], chosen, convs)
        for one, other in zip(cut, whole, strict=True):
            assert_close(one, other.detach(), rtol=0, atol=1e-5)


def test_a_dropout_that_drops_all_leaves_the_shortcut(generator: torch.Generator) -> None:
    (x,) = draw(generator, 3)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            kept = residual([prepare(x)], drawn_norm(generator, 3), conv(3, 4), F.relu, conv(4, 3), None, nn.Dropout(1))
        assert_close(kept.detach(), x, rtol=0, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_are_those_of_layer_norm(offset: float, generator: torch.Generator) -> None:
    (x,) = draw(generator, 3, batch=2)
    x = x + offset
    mean, scale = moments(prepare(x), 1e-8)
    columns = F.layer_norm(x.double().movedim(2, -1), (FEATURES,), eps=1e-8).movedim(-1, 2)
    # An offset of 1000 leaves 1e-4 of a spread of 1 in float32; squares before the mean would leave nothing.
    assert_close((x - mean) * scale, columns.float(), rtol=0, atol=1e-5 + 1e-6 * offset)


@pytest.mark.parametrize("channels", [1, 3])
def test_prepared_maps_say_that_their_channels_are_last(channels: int, generator: torch.Generator) -> None:
    with torch.inference_mode():
        (x,) = draw(generator, channels)
        prepared, wide = prepare(x), prepare(draw(generator, 4)[0])
        assert torch.cat((prepared, wide), dim=1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(prepared, x)


def test_without_winograd_the_numbers_are_the_same(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    (x,) = draw(generator, 48)
    weight = torch.randn(32, 48, 3, 3, generator=generator) / 20
    with torch.inference_mode():
        fast = convolve(x, weight)
        monkeypatch.setattr(strips, "has_winograd", lambda: False)
        direct = convolve(x, weight)
        exact = F.conv2d(x.double(), weight.double(), padding=(0, 1)).float()
    assert_close(direct, exact, rtol=0, atol=1e-5)
    assert_close(fast, exact, rtol=0, atol=5e-5 * exact.abs().max().item())
    assert torch.equal(fast, direct) != has_winograd()


def test_other_precisions_are_kept(generator: torch.Generator) -> None:
    (x,) = draw(generator, 32)
    weight = torch.randn(32, 32, 3, 3, generator=generator) / 17
    with torch.inference_mode():
        assert convolve(x.double(), weight.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert convolve(x, weight).dtype == torch.bfloat16
