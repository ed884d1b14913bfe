"""SDR against what its definition gives by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from vocalremover.errors import UsageError
from vocalremover.evaluate import ideal_ratio_mask, sdr


def test_sdr_of_a_scaled_estimate_is_known() -> None:
    reference = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    assert sdr(0.9 * reference, reference) == pytest.approx(20, abs=1e-4)  # error 0.1 of the reference: 20 dB
    assert sdr(torch.zeros_like(reference), reference) == pytest.approx(0, abs=1e-9)


def test_sdr_at_its_ends() -> None:
    reference = torch.ones(1, 10)
    assert sdr(reference, reference) == math.inf
    assert sdr(reference, torch.zeros(1, 10)) == -math.inf


def test_sdr_refuses_stems_of_different_length() -> None:
    with pytest.raises(UsageError, match="cannot be held against"):
        sdr(torch.ones(2, 10), torch.ones(2, 11))


def test_ideal_ratio_masks_of_two_stems_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(2)
    vocals, instrumental = torch.randn(2, 2, 5, 7, dtype=torch.complex64, generator=generator)
    assert_close(ideal_ratio_mask(vocals, instrumental) + ideal_ratio_mask(instrumental, vocals), torch.ones(2, 5, 7))
    assert_close(ideal_ratio_mask(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1))
