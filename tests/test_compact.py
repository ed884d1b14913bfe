"""The network of the default weights: bands of unequal width over any number of frames."""

import pytest
import torch

from vocalremover.checkpoint import load
from vocalremover.networks import compact

SMALL = {"n_fft": 512, "channels": (4, 4, 4, 4, 4), "maps": 2, "num_layers": 1, "num_heads": 1}


def network(bands: tuple[tuple[int, int], ...]) -> compact.CompactFrameTransformer:
    torch.manual_seed(0)
    return compact.CompactFrameTransformer(bands=bands, **SMALL).eval()


@pytest.mark.parametrize("bands", [((256, 4),), ((64, 2), (192, 6)), ((32, 1), (32, 2), (192, 12))])
@pytest.mark.parametrize("frames", [1, 2, 37])
def test_a_mask_has_the_shape_of_the_magnitudes(bands: tuple[tuple[int, int], ...], frames: int) -> None:
    mask = network(bands)(torch.rand(2, 2, 257, frames))
    assert mask.shape == (2, 2, 257, frames)
    assert (mask[:, :, -1] == 0).all() and (mask[:, :, :-1] > 0).all() and (mask < 1).all()


def test_the_bands_are_found_again_in_the_tensors() -> None:
    bands = ((32, 1), (32, 2), (192, 12))
    found = compact.arguments({name: tuple(value.shape) for name, value in network(bands).state_dict().items()})
    assert found["bands"] == list(bands) and found["n_fft"] == 512
    again = compact.CompactFrameTransformer(**found)
    again.load_state_dict(network(bands).state_dict())


def test_the_depth_of_the_levels_is_found_again_in_the_tensors() -> None:
    deep = compact.CompactFrameTransformer(bands=((256, 4),), depth=3, **SMALL)
    shapes = {name: tuple(value.shape) for name, value in deep.state_dict().items()}
    assert compact.arguments(shapes)["depth"] == 3
    assert all(len(level) == 3 for level in (*deep.encoders, *deep.decoders))


def test_bands_that_leave_bins_out_are_refused() -> None:
    with pytest.raises(ValueError, match="the bands have 192 bins in all, not the 256 of n_fft 512"):
        network(((64, 2), (128, 4)))


def test_a_band_decides_about_its_own_bins() -> None:
    tuned = network(((64, 2), (192, 6)))
    magnitude = torch.rand(1, 2, 257, 16)
    before = tuned(magnitude)
    with torch.no_grad():
        tuned.bands[1].head.bias.add_(3.0)
    after = tuned(magnitude)
    assert torch.equal(before[:, :, :64], after[:, :, :64])
    assert (after[:, :, 64:256] > before[:, :, 64:256]).all()


def test_calibration_centres_every_bin() -> None:
    tuned = network(((64, 2), (192, 6)))
    torch.manual_seed(1)
    loudness = torch.logspace(-2, 2, 257)[:, None]
    magnitude = loudness * torch.exp(torch.randn(4, 2, 257, 60))
    tuned.calibrate(magnitude)
    level = tuned.level(magnitude[:, :, :-1])
    means, scales = (torch.cat([getattr(band, name) for band in tuned.bands]) for name in ("mean", "scale"))
    seen = (level - means) * scales
    torch.testing.assert_close(seen.mean(dim=(0, 1, 3)), torch.zeros(256), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=(0, 1, 3)), torch.ones(256), atol=0.02, rtol=0)


def test_no_level_can_outgrow_the_others() -> None:
    """However large the maps of a level become in training, the rest is still heard, and learns."""
    tuned = network(((64, 2), (192, 6))).train()
    magnitude = torch.rand(2, 2, 257, 64)
    before = tuned(magnitude)
    with torch.no_grad():
        for change in (*tuned.downs, *tuned.ups, *(decoder[0].shortcut for decoder in tuned.decoders)):
            change[0].weight.mul_(1000.0)
    after = tuned(magnitude)
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)
    after.mean().backward()
    for name, parameter in tuned.named_parameters():
        assert parameter.grad.any(), name


def test_frames_far_apart_are_heard_by_attention_alone() -> None:
    tuned = network(((64, 2), (192, 6)))
    magnitude = torch.rand(1, 2, 257, 600)
    other = torch.cat((magnitude[..., :300], torch.rand(1, 2, 257, 300)), dim=-1)
    assert not torch.equal(tuned(magnitude)[..., :50], tuned(other)[..., :50])
    tuned.attend = torch.zeros_like
    assert torch.equal(tuned(magnitude)[..., :50], tuned(other)[..., :50])


def test_every_level_of_the_default_weights_is_heard() -> None:
    """Of some of its forerunners nothing below the second level reached the mask, and nobody noticed."""
    _, tuned = load("default")
    torch.manual_seed(2)
    tones = torch.rand(2, 1, 1) * torch.randn(1, 2049, 1).exp() * (1 + torch.sin(torch.arange(200) / 7))
    magnitude = (tones + torch.rand(2, 2049, 200))[None]
    with torch.no_grad():
        whole = tuned(magnitude)
        for part in (*tuned.ups, tuned.unembed):
            hook = part.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
            assert float((tuned(magnitude) - whole).abs().max()) > 1e-3
            hook.remove()
