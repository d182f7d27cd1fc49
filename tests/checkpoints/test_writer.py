"""The writer of checkpoints: which numbers it calls finite."""

import math

import pytest
import torch

from hf_evomerge.checkpoints.writer import _is_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_is_exact(dtype):
    """Numbers up to the dtype's largest are finite, however many there are; one that is infinite or NaN is found anywhere."""
    largest = torch.finfo(dtype).max
    fine = torch.tensor([largest, -largest, 0.0, -0.0, largest, 1.0, -largest]).double().clamp(-largest, largest).to(dtype)
    assert _is_finite(fine)
    assert _is_finite(fine[:0])
    others = [math.nan] if dtype.itemsize == 1 else [math.nan, -math.nan, math.inf, -math.inf]  # this one has no infinity
    for position in range(fine.numel()):
        for other in others:
            damaged = fine.clone()
            damaged[position] = other
            assert not _is_finite(damaged)
