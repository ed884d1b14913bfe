"""BS-RoFormer: a complex mask from attention over time and over bands that lie side by side.

In: spectrograms `[batch, channels, bins, frames, 2]` (real and imaginary part) of a song at any level, two channels or
one, any number of frames. The STFT is made outside, with `stft_n_fft`, `stft_hop_length` and `stft_win_length`.
Out: complex masks `[batch, stems, channels, bins, frames, 2]`, to be multiplied with the spectrogram.

The bins are cut into bands, by default 62, narrow at the bottom and wide at the top. A band's token goes through
`depth` blocks of attention along time and along bands, one norm at the end, and the mask estimators of its stems.

Layout "msst" is what community checkpoints (viperx and others) are in; "lucidrains" is that of the package
BS-RoFormer 1.2.4, whose attentions always mix in the values of the first block. The parts are in `roformer`.

Sources, both under the MIT License: lucidrains/BS-RoFormer, Copyright (c) 2023 Phil Wang, PyPI release 1.2.4,
bs_roformer.py; ZFTurbo/Music-Source-Separation-Training, Copyright (c) 2024 Roman Solovyev, commit ccc011abf7f8,
models/bs_roformer/bs_roformer.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from vocalremover.errors import ModelError
from vocalremover.networks.roformer import (
    Attention,
    Bands,
    BandSplit,
    Blocks,
    Layout,
    LinearAttention,
    MaskEstimator,
    PolarEmbedding,
    RMSNorm,
    Shapes,
    Transformer,
    body_arguments,
    connect,
    estimate,
)

FREQS_PER_BANDS = (*[2] * 24, *[4] * 12, *[12] * 8, *[24] * 8, *[48] * 8, 128, 129)
"""The bins of each band, from the lowest up, for an STFT of 2048 samples."""


class MixingAttention(Attention):
    """Attention that moves its values towards those of the first block, by a share for each token and head."""

    def __init__(
        self, dim: int, heads: int, dim_head: int, dropout: float = 0.0, polar: PolarEmbedding | None = None
    ) -> None:
        super().__init__(dim, heads, dim_head, dropout, polar)
        self.to_value_residual_mix = nn.Linear(dim, heads)

    def mix(self, normal: Tensor, value: Tensor, first: Tensor | None) -> Tensor:
        share = rearrange(self.to_value_residual_mix(normal), "rows n h -> rows h n 1").sigmoid()
        return value + share * (first - value)


class BSRoformer(nn.Module):
    """BS-RoFormer. The keywords are those of the originals, `layout` says of which.

    freqs_per_bands: bins of each band; they sum up to stft_n_fft / 2 + 1. mask_estimator_depth: linear layers of a mask
    estimator. skip_connection: a block sees all earlier blocks' outputs. zero_dc: the lowest bin gets no mask (default:
    True for "msst"). use_pope: polar position embeddings in place of rotary ones. dropout acts in training only,
    use_torch_checkpoint there saves memory. freq_range (lowest bin, first bin above, -1 for the end),
    num_residual_streams and mc_hyper_conn_sinkhorn_iters are of "lucidrains" only.

    What changes no mask is accepted and not used: the kernel of attention, the hop, the window and the scaling of the
    STFT (bands are normalised), the resolutions of the loss. Raises ModelError for settings that contradict each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        layout: Layout = "msst",
        stereo: bool = False,
        num_stems: int = 1,
        time_transformer_depth: int = 2,
        freq_transformer_depth: int = 2,
        linear_transformer_depth: int = 0,
        freqs_per_bands: Sequence[int] = FREQS_PER_BANDS,
        freq_range: tuple[int, int] | None = None,
        dim_head: int = 64,
        heads: int = 8,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        flash_attn: bool = True,
        num_residual_streams: int | None = None,
        num_residual_fracs: int = 1,
        mc_hyper_conn_sinkhorn_iters: int = 2,
        dim_freqs_in: int = 1025,
        stft_n_fft: int = 2048,
        stft_hop_length: int = 512,
        stft_win_length: int = 2048,
        stft_normalized: bool = False,
        stft_window_fn: Callable | None = None,
        zero_dc: bool | None = None,
        mask_estimator_depth: int = 2,
        multi_stft_resolution_loss_weight: float = 1.0,
        multi_stft_resolutions_window_sizes: Sequence[int] = (4096, 2048, 1024, 512, 256),
        multi_stft_hop_size: int = 147,
        multi_stft_normalized: bool = False,
        multi_stft_window_fn: Callable | None = None,
        mlp_expansion_factor: int = 4,
        use_torch_checkpoint: bool = False,
        skip_connection: bool = False,
        use_pope: bool = False,
    ) -> None:
        super().__init__()
        msst = layout == "msst"
        if not msst and linear_transformer_depth:
            raise ModelError("the lucidrains layout of BS-RoFormer has no linear attention")
        streams, connection = connect(
            layout, dim, num_residual_streams, num_residual_fracs, mc_hyper_conn_sinkhorn_iters
        )
        self.bands = side_by_side(freqs_per_bands, stft_n_fft // 2 + 1, 2 if stereo else 1, freq_range,
                                  zero_dc=msst if zero_dc is None else zero_dc)  # fmt: skip
        time, frequency = (PolarEmbedding(heads, dim_head) if use_pope else None for _ in range(2))
        self.layers = nn.ModuleList()
        for block in range(depth):
            kind = Attention if msst or block == 0 else MixingAttention
            sizes = (dim, heads, dim_head, attn_dropout)
            parts = [(linear_transformer_depth, partial(LinearAttention, *sizes))] if linear_transformer_depth else []
            parts += [(time_transformer_depth, partial(kind, *sizes, time))]
            parts += [(freq_transformer_depth, partial(kind, *sizes, frequency))]
            transformers = [Transformer(dim, count, part, ff_dropout, connection) for count, part in parts]
            self.layers.append(nn.ModuleList(transformers))
        self.blocks = Blocks(self.layers, dim_head, streams, not msst, skip_connection, use_torch_checkpoint)
        self.final_norm = RMSNorm(dim)
        self.band_split = BandSplit(dim, self.bands)
        self.mask_estimators = nn.ModuleList(
            MaskEstimator(dim, self.bands, mask_estimator_depth, mlp_expansion_factor) for _ in range(num_stems)
        )

    def forward(self, spectrogram: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        """`[batch, channels, bins, frames, 2]` -> masks `[batch, stems, channels, bins, frames, 2]`, float32 or wider.

        stems: indices of the stems to compute, in the order wanted; all by default.
        """
        tokens = self.blocks.run(self.band_split(spectrogram))
        return estimate(self.mask_estimators, self.final_norm(tokens), self.bands, stems)


def side_by_side(
    counts: Sequence[int], total: int, channels: int, freq_range: tuple[int, int] | None, zero_dc: bool
) -> Bands:
    """Bands of so many bins each, one above the other; ModelError if they do not fill the range."""
    lowest, end = freq_range or (-1, -1)
    lowest, end = max(lowest, 0), total if end == -1 else end
    if sum(counts) != end - lowest or not 0 <= lowest < end <= total:
        raise ModelError(f"freqs_per_bands sum up to {sum(counts)} bins, but there are {end - lowest} to be covered")
    bins = [range(*edges) for edges in pairwise(accumulate(counts, initial=lowest))]
    return Bands(bins, total, channels, silent=(0,) if zero_dc else ())


def arguments(shapes: Shapes) -> dict[str, Any]:
    """The constructor's keywords, read off the shapes of a state dict; KeyError or ValueError if it is no BS-RoFormer.

    Widths of bands do not tell stereo from twice the bins: the one is believed that makes n_fft a power of two, or
    else stereo.
    """
    if "final_norm.gamma" not in shapes:
        raise KeyError("final_norm.gamma")
    found = body_arguments(shapes)
    widths, linears = found.pop("widths"), found.pop("linears")
    sizes = [size for size in (4, 2) if all(width % size == 0 for width in widths)]
    lengths = {size: 2 * (sum(widths) // size - 1) for size in sizes}
    likely = [size for size in sizes if lengths[size] & (lengths[size] - 1) == 0] or sizes
    if not likely or lengths[likely[0]] < 2:
        raise ValueError(f"bands of {widths} numbers are no bands of a spectrogram")
    return found | {
        "stereo": likely[0] == 4,
        "freqs_per_bands": [width // likely[0] for width in widths],
        "stft_n_fft": lengths[likely[0]],
        "stft_win_length": lengths[likely[0]],
        "mask_estimator_depth": linears,
    }
