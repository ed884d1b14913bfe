"""Mel-Band RoFormer: a complex mask from attention over time and over the overlapping bands of a mel filter bank.

In: spectrograms `[batch, channels, bins, frames, 2]` (real and imaginary part) of a song at any level, two channels or
one, any number of frames. The STFT is made outside, with `stft_n_fft`, `stft_hop_length` and `stft_win_length`.
Out: complex masks `[batch, stems, channels, bins, frames, 2]`, to be multiplied with the spectrogram.

A band has all bins to which a filter of the bank gives weight, so that most bins lie in two bands; their mask is the
mean of both. A band's token goes through `depth` blocks of attention along time and along bands, each of which ends
with a norm, and the mask estimators of its stems.

Layout "msst" is what community checkpoints (Kim's and others) are in; "lucidrains" is that of the package BS-RoFormer
1.2.4, with a linear attention over all tokens at once in front of the other two, hyper-connections and attentions that
mix in the values of the first block. The parts are in `roformer`.

Sources, both under the MIT License: lucidrains/BS-RoFormer, Copyright (c) 2023 Phil Wang, PyPI release 1.2.4,
mel_band_roformer.py; ZFTurbo/Music-Source-Separation-Training, Copyright (c) 2024 Roman Solovyev, commit ccc011abf7f8,
models/bs_roformer/mel_band_roformer.py.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
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
    Shapes,
    Transformer,
    body_arguments,
    connect,
    estimate,
)

MOST_BANDS = 512  # the filters of more would take gigabytes; published models have 60
RATES = (44100, 48000, 32000, 24000, 22050, 16000)
LENGTHS = (2048, 4096, 1024, 512, 256, 128, 8192)
"""The sample rates (Hz) and STFT lengths that are tried to find the bank whose bands have given widths."""


class MixingAttention(Attention):
    """Attention that mixes in the values of the first block, by a share for each token and head.

    The original hands its interpolation the share and the first values in the wrong order: what it computes is
    value + first * (share - value). Weights are trained so.
    """

    def __init__(
        self, dim: int, heads: int, dim_head: int, dropout: float = 0.0, polar: PolarEmbedding | None = None
    ) -> None:
        super().__init__(dim, heads, dim_head, dropout, polar)
        self.learned_value_residual_mix = nn.Sequential(nn.Linear(dim, heads))

    def mix(self, normal: Tensor, value: Tensor, first: Tensor | None) -> Tensor:
        share = rearrange(self.learned_value_residual_mix(normal), "rows n h -> rows h n 1").sigmoid()
        return value + first * (share - value)


class MixingLinearAttention(LinearAttention):
    """Linear attention that moves its values towards those of the first block, by a share for each token and head."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float = 0.0, temperature: float = 1.0) -> None:
        super().__init__(dim, heads, dim_head, dropout, temperature)
        self.learned_value_residual_mix = nn.Sequential(nn.Linear(dim, heads))

    def mix(self, normal: Tensor, value: Tensor, first: Tensor | None) -> Tensor:
        share = rearrange(self.learned_value_residual_mix(normal), "rows n h -> rows h 1 n").sigmoid()
        return value + share * (first - value)


class MelBandRoformer(nn.Module):
    """Mel-Band RoFormer. The keywords are those of the originals, `layout` says of which.

    num_bands and sample_rate make the mel filter bank. mask_estimator_depth: hidden layers of a mask estimator.
    skip_connection: a block sees all earlier blocks' outputs. zero_dc: the lowest bin gets no mask (default: True for
    "msst"). linear_transformer_depth: by default 0 for "msst", 1 for "lucidrains". use_pope: polar position
    embeddings in place of rotary ones. dropout acts in training only, use_torch_checkpoint there saves memory.
    num_residual_streams and add_value_residual are of "lucidrains" only.

    What changes no mask is accepted and not used: the kernel of attention, the hop, the window and the scaling of the
    STFT (bands are normalised), the length of the inverse, the resolutions of the loss. Raises ModelError for settings
    that contradict each other.
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
        linear_transformer_depth: int | None = None,
        num_bands: int = 60,
        dim_head: int = 64,
        heads: int = 8,
        attn_dropout: float = 0.1,
        ff_dropout: float = 0.1,
        flash_attn: bool = True,
        linear_flash_attn: bool | None = None,
        num_residual_streams: int | None = None,
        num_residual_fracs: int = 1,
        add_value_residual: bool = True,
        dim_freqs_in: int = 1025,
        sample_rate: int = 44100,
        stft_n_fft: int = 2048,
        stft_hop_length: int = 512,
        stft_win_length: int = 2048,
        stft_normalized: bool = False,
        stft_window_fn: Callable | None = None,
        zero_dc: bool | None = None,
        mask_estimator_depth: int = 1,
        multi_stft_resolution_loss_weight: float = 1.0,
        multi_stft_resolutions_window_sizes: Sequence[int] = (4096, 2048, 1024, 512, 256),
        multi_stft_hop_size: int = 147,
        multi_stft_normalized: bool = False,
        multi_stft_window_fn: Callable | None = None,
        match_input_audio_length: bool = False,
        mlp_expansion_factor: int = 4,
        use_torch_checkpoint: bool = False,
        skip_connection: bool = False,
        use_pope: bool = False,
    ) -> None:
        super().__init__()
        msst = layout == "msst"
        streams, connection = connect(layout, dim, num_residual_streams, num_residual_fracs)
        linears = (0 if msst else 1) if linear_transformer_depth is None else linear_transformer_depth
        self.bands = Bands(
            mel_bands(num_bands, stft_n_fft, sample_rate, corners=msst),
            stft_n_fft // 2 + 1,
            2 if stereo else 1,
            silent=(0,) if (msst if zero_dc is None else zero_dc) else (),
        )
        values = add_value_residual and not msst
        time, frequency = (PolarEmbedding(heads, dim_head) if use_pope else None for _ in range(2))
        self.layers = nn.ModuleList()
        for block in range(depth):
            mixes = values and block > 0
            sizes = (dim, heads, dim_head, attn_dropout)
            attention = partial(MixingAttention if mixes else Attention, *sizes)
            linear = partial(MixingLinearAttention if mixes else LinearAttention, *sizes, float(msst))
            depths = (
                (linears, linear),
                (time_transformer_depth, partial(attention, time)),
                (freq_transformer_depth, partial(attention, frequency)),
            )
            parts = [
                Transformer(dim, count, kind, ff_dropout, connection, norm_output=True) if count else None
                for count, kind in depths
            ]
            # Without linear attention, this layout counts from one, and the other has no such slot.
            self.layers.append(nn.ModuleList(parts if linears or not msst else parts[1:]))
        self.blocks = Blocks(self.layers, dim_head, streams, values, skip_connection, use_torch_checkpoint)
        self.band_split = BandSplit(dim, self.bands)
        self.mask_estimators = nn.ModuleList(
            MaskEstimator(dim, self.bands, mask_estimator_depth + 1, mlp_expansion_factor) for _ in range(num_stems)
        )

    def forward(self, spectrogram: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        """`[batch, channels, bins, frames, 2]` -> masks `[batch, stems, channels, bins, frames, 2]`, float32 or wider.

        stems: indices of the stems to compute, in the order wanted; all by default.
        """
        tokens = self.blocks.run(self.band_split(spectrogram))
        return estimate(self.mask_estimators, tokens, self.bands, stems)


@lru_cache(maxsize=64)
def mel_bands(count: int, n_fft: int, rate: int, corners: bool = True) -> tuple[tuple[int, ...], ...]:
    """The bins that each of `count` mel filters covers, as `librosa.filters.mel` of 0.11 with its defaults has them.

    The filters are triangles whose corners are equally spaced on Slaney's mel scale: linear up to 1 kHz, logarithmic
    above. They leave out bin 0 and, but for rounding, the last one. Both originals add these two to the outermost
    bands: with `corners` always, else where the band has the neighbouring bin. ModelError if a bin is in no band.
    """
    if not 1 <= count <= MOST_BANDS:
        raise ModelError(f"{count} mel bands are not from 1 to {MOST_BANDS}")
    # In numpy, operation by operation like librosa: a rounding decides whether a filter's foot touches a bin.
    spacing, knee = 200.0 / 3, 1000.0
    knee_mel, step = knee / spacing, np.log(6.4) / 27.0
    top = rate / 2
    top_mel = knee_mel + np.log(top / knee) / step if top >= knee else top / spacing
    mels = np.linspace(0.0, top_mel, count + 2)
    edges = spacing * mels
    upper = mels >= knee_mel
    edges[upper] = knee * np.exp(step * (mels[upper] - knee_mel))
    ramps = np.subtract.outer(edges, np.fft.rfftfreq(n=n_fft, d=1.0 / rate))
    widths = np.diff(edges)
    rising, falling = -ramps[:count] / widths[:count, None], ramps[2:] / widths[1:, None]
    covered = np.minimum(rising, falling).astype(np.float32) > 0
    covered[0, 0] = corners or covered[0, 1]
    covered[-1, -1] = corners or covered[-1, -2]
    if not covered.any(axis=0).all():
        raise ModelError(f"{count} mel bands leave bins of an STFT of {n_fft} samples uncovered; fewer bands do not")
    return tuple(tuple(np.flatnonzero(band).tolist()) for band in covered)


def arguments(shapes: Shapes) -> dict[str, Any]:
    """The constructor's keywords, read off the shapes of a state dict; KeyError or ValueError if it is none of these.

    The sample rate and n_fft are found by trying which mel filter bank has bands of these widths.
    """
    if "final_norm.gamma" in shapes:
        raise ValueError("a norm after the blocks is not of a Mel-Band RoFormer")
    found = body_arguments(shapes)
    widths, linears = found.pop("widths"), found.pop("linears")
    if found["layout"] == "lucidrains":
        mixes = any(".learned_value_residual_mix." in key for key in shapes)
        found["add_value_residual"] = mixes or found["depth"] == 1
    return found | bank_arguments(widths) | {"num_bands": len(widths), "mask_estimator_depth": linears - 1}


def bank_arguments(widths: Sequence[int]) -> dict[str, Any]:
    """Stereo, n_fft and sample rate of the mel filter bank whose bands have so many numbers; ValueError if none has."""
    for rate in RATES:
        for n_fft in LENGTHS:
            for size in (4, 2):
                if not n_fft // 2 < sum(widths) // size < 4 * n_fft:
                    continue
                try:
                    bands = mel_bands(len(widths), n_fft, rate)
                except ModelError:
                    continue
                if [size * len(band) for band in bands] == list(widths):
                    return {
                        "stereo": size == 4,
                        "sample_rate": rate,
                        "stft_n_fft": n_fft,
                        "stft_win_length": n_fft,
                    }
    raise ValueError(f"no known mel filter bank has bands of {list(widths)} numbers")
