"""Statistics of whole tensors: thresholds, random fields and sums."""

import merge_reference as reference
import numpy as np
import pytest
import torch

from hf_evomerge.merging.statistics import Drop, Magnitudes, RandomField, sum_magnitudes


def blocks_of(values, size=1000):
    """Cut an array into blocks."""
    return lambda: ((start, values[start : start + size]) for start in range(0, values.size, size))


@pytest.fixture(params=["sorting", "counting"])
def magnitudes(request):
    """Each way to a threshold: by sorting once, and by counting."""
    return lambda values: Magnitudes(
        blocks_of(values), values.size, keep=request.param == "sorting"
    )


@pytest.mark.parametrize("steps", [None, 4, 0.5])
def test_a_cut_keeps_the_k_largest(magnitudes, steps):
    """All ways to a threshold keep the k elements that a stable sort puts first, with few or many
    equal magnitudes."""
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    if steps is not None:
        values = np.round(values * steps) / np.float32(steps)
    found = magnitudes(values)
    for k in (1, 2, 17, 2500, 3999, 4999, 5000):
        kept = found.cut(k).apply(torch.from_numpy(values)).numpy()
        assert np.array_equal(kept, reference.trim(values, k / values.size))


def test_a_cut_of_tiny_and_equal_numbers(magnitudes):
    """Denormal magnitudes, zeros and a constant tensor are cut like any other."""
    for values in (np.full(50, 1e-42), np.zeros(50), np.arange(50) * 1e-44, np.full(50, -3.0)):
        values = values.astype(np.float32)
        for k in (1, 20, 49):
            kept = magnitudes(values).cut(k).apply(torch.from_numpy(values)).numpy()
            assert np.array_equal(kept, reference.trim(values, k / 50 + 1e-9))


def test_nan_counts_as_the_largest(magnitudes):
    """All ways to a threshold take NaN for larger than any number, so that they agree on what else
    is kept."""
    values = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    values[[3, 700, 2999]] = np.nan
    for k in (4, 100, 2000):
        kept = magnitudes(values).cut(k).apply(torch.from_numpy(values)).numpy()
        assert np.count_nonzero(kept[np.isfinite(values)]) == k - 3


@pytest.mark.parametrize(
    ("limit", "kept"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (65535, [1, 1, 0]), (65536, [1, 1, 1])]
)
def test_a_drop_at_its_limits(limit, kept, monkeypatch):
    """The smallest number is kept first and the largest last."""
    field = RandomField(0, 0, "x", 3)
    monkeypatch.setattr(
        field, "numbers", lambda start, stop: np.array([0, 65534, 65535], np.uint16)[start:stop]
    )
    assert Drop(limit, field).apply(torch.ones(3)).tolist() == kept


def test_sums_are_accurate():
    """Sums of many small numbers next to a large one lose nothing to float32."""
    values = np.full(1 << 16, 1e-4, np.float32)
    values[0] = -1e6
    assert sum_magnitudes(values) == pytest.approx(1e6 + 65535 * float(np.float32(1e-4)), rel=1e-14)
