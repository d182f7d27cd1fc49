"""The arithmetic of the merge methods, against float64 reference code and against what must always
hold."""

import hashlib
import itertools
import math

import merge_reference as reference
import numpy as np
import pytest
import torch
from method_cases import NAME, RANDOM, added_or_voted, assert_close, deltas, exact, merge, tensors

from hf_evomerge.merging.registry import all_methods

TASK_VECTOR_METHODS = ["task_arithmetic", "ties", "dare_linear", "dare_ties"]
WEIGHTS = [
    [0.6, 0.7],
    [1.0, 1.0],
    [0.9, -0.4],
    [-0.5, -0.25],
    [0.0, 0.8],
    [0.7, 0.4, 0.3],
    [0.5, 0.0, 1.5],
    [0.4, -0.3, 0.2],
]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear(weights, normalize):
    """linear is the weighted mean, and the weighted sum without normalize."""
    _, sources = tensors(len(weights))
    found = merge(
        "linear", None, sources, [{"weight": w} for w in weights], {"normalize": normalize}
    )
    assert_close(found, reference.linear([exact(x) for x in sources], weights, normalize), 1e-5)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("spread", [3.0, 0.5, 0.1, 0.001])
def test_slerp(t, spread):
    """slerp goes along the great circle, and straight where the two are nearly parallel."""
    _, (first, second) = tensors(2, spread=spread)
    assert_close(
        merge("slerp", None, [first, second], (), {"t": t}),
        reference.slerp(exact(first), exact(second), t),
        3e-6,
    )


@pytest.mark.parametrize(
    ("cosine", "length"), [(0.995, 1.0), (0.9997, math.cos(math.acos(0.9997) / 2))]
)
def test_slerp_is_straight_where_nearly_parallel(cosine, length):
    """At a cosine of 0.995 slerp keeps the length; at 0.9997 it is the straight line, which is
    shorter in the middle."""
    first = torch.tensor([1.0, 0.0])
    second = torch.tensor([cosine, math.sin(math.acos(cosine))])
    found = merge("slerp", None, [first, second], (), {"t": 0.5})
    assert float(found.double().norm()) == pytest.approx(length, abs=1e-6)


def test_slerp_from_the_base():
    """With one source slerp begins at the base, and t = 0 gives it back exactly."""
    base, (source, _) = tensors(2, spread=2.0)
    assert_close(
        merge("slerp", base, [source], (), {"t": 0.3}),
        reference.slerp(exact(base), exact(source), 0.3),
    )
    assert torch.equal(merge("slerp", base, [source], (), {"t": 0.0}), base)
    assert torch.equal(merge("slerp", base, [source], (), {"t": 1.0}), source)


def test_slerp_of_zeros():
    """slerp from an all-zero tensor, which has no direction, is a straight line."""
    _, (source, _) = tensors(2)
    assert torch.equal(
        merge("slerp", torch.zeros_like(source), [source], (), {"t": 0.5}), source * 0.5
    )


@pytest.mark.parametrize("lam", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_task_arithmetic(weights, normalize, lam):
    """task_arithmetic adds the weighted task vectors to the base."""
    base, sources = tensors(len(weights))
    found = merge(
        "task_arithmetic",
        base,
        sources,
        [{"weight": w} for w in weights],
        {"normalize": normalize, "lambda": lam},
    )
    expected = reference.task_arithmetic(
        exact(base), [exact(x) for x in sources], weights, normalize, lam
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("method", TASK_VECTOR_METHODS)
def test_weights_that_cancel_are_not_divided_by(method):
    """With weights that add up to 0, normalize leaves the task vectors as they are rather than
    dividing by 0."""
    base, sources = tensors(2)
    found = merge(method, base, sources, [{"weight": 0.5}, {"weight": -0.5}], {"normalize": True})
    assert torch.isfinite(found).all()
    if method in ("task_arithmetic", "dare_linear"):
        assert_close(found, exact(base) + 0.5 * (exact(sources[0]) - exact(sources[1])))


@pytest.mark.parametrize("keep", [False, True])
def test_task_vectors_of_half_precision_are_float32(keep):
    """The difference of two bfloat16 models is made in float32: it is exact, and so is the model it
    gives back."""
    base, (source, _) = tensors(2, spread=1.0)
    base = base.bfloat16()
    source = source.bfloat16()
    found = merge("task_arithmetic", base, [source], keep=keep)
    assert torch.equal(found, base.float() + (source.float() - base.float()))
    assert not torch.equal(found, base.float() + (source - base).float())


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.0015, 0.0001, 0.0])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties(weights, density):
    """ties trims, elects the sign of the weighted sum, and merges what agrees with it."""
    base, sources = tensors(len(weights))
    densities = [density, min(1.0, density * 1.5), density][: len(weights)]
    parameters = [{"weight": w, "density": d} for w, d in zip(weights, densities, strict=True)]
    for normalize, rescale, keep in itertools.product([True, False], ["none", "l1"], [False, True]):
        found = merge(
            "ties",
            base,
            sources,
            parameters,
            {"normalize": normalize, "rescale": rescale, "lambda": 0.9},
            keep=keep,
        )
        kept = [
            reference.trim(d, rho, rescale)
            for d, rho in zip(deltas(base, sources), densities, strict=True)
        ]
        # Where weighted task vectors nearly cancel, the divisor may be tiny
        scale = max(
            1.0, float(np.abs(reference.vote(exact(base), kept, weights, normalize, 0.9)).max())
        )
        assert_close(
            found, reference.vote(exact(base), kept, weights, normalize, 0.9), 1e-5 * scale
        )


@pytest.mark.parametrize("density", [1.0, 0.5, 0.25, 0.0])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare(method, weights, density):
    """DARE keeps the elements whose random number is below the density, rescales them, and adds up
    or votes."""
    base, sources = tensors(len(weights))
    parameters = [{"weight": w, "density": density} for w in weights]
    for normalize, rescale in itertools.product([True, False], ["l1", "expected", "none"]):
        options = {"normalize": normalize, "rescale": rescale, "lambda": 1.1}
        found = merge(method, base, sources, parameters, options, seed=5)
        fields = [
            reference.random_field(5, index, NAME, base.numel()) for index in range(len(weights))
        ]
        kept = [
            reference.drop(d, density, field, rescale)
            for d, field in zip(deltas(base, sources), fields, strict=True)
        ]
        assert_close(found, added_or_voted(method, base, kept, weights, normalize, 1.1), 2e-5)


def test_defaults_are_those_of_the_field():
    """Only linear, ties and della normalise by default, and DARE and DELLA restore the sum of the
    absolute values."""
    defaults = {
        name: {option.name: option.default for option in method.options}
        for name, method in all_methods().items()
    }
    assert {name for name, options in defaults.items() if options.get("normalize")} == {
        "linear",
        "ties",
        "della",
    }
    rescale = {"ties": "none", "breadcrumbs": "none", "breadcrumbs_ties": "none"} | dict.fromkeys(
        RANDOM, "l1"
    )
    assert {
        name: options["rescale"] for name, options in defaults.items() if "rescale" in options
    } == rescale
    assert {options["lambda"] for options in defaults.values() if "lambda" in options} == {1.0}


def test_ties_golden():
    """A trim, a vote and a division worked out by hand: zero sums elect plus, and only what agrees
    is counted."""
    base = torch.zeros(6)
    a = torch.tensor([4.0, -3.0, 2.0, 1.0, 0.5, 5.0])
    b = torch.tensor([-4.0, -6.0, 1.0, -2.0, 0.5, -1.0])
    # density 0.7 keeps 4 of 6: a without 1 and 0.5, b without 0.5 and the later of its ones
    found = merge(
        "ties", base, [a, b], [{"weight": 1, "density": 0.7}, {"weight": 0.5, "density": 0.7}]
    )
    assert found.tolist() == [4.0, -4.0, pytest.approx((2.0 + 0.5) / 1.5), -2.0, 0.0, 5.0]
    assert merge("ties", base, [a, -a]).tolist() == [4.0, 3.0, 2.0, 1.0, 0.5, 5.0]


def test_ties_keeps_exactly_k_where_magnitudes_are_equal():
    """Where magnitudes tie at the threshold the earlier elements stay, whatever the slices, sorted
    or not."""
    base = torch.zeros(100)
    source = torch.tensor([1.0, -1.0] * 50)
    for keep, slice_size in itertools.product((False, True), (7, 1000)):
        found = merge("ties", base, [source], [{"density": 0.33}], keep=keep, slice_size=slice_size)
        assert torch.equal(found, torch.where(torch.arange(100) < 33, source, 0.0))


def test_dare_bits_are_pinned():
    """The bits of a DARE merge never change from one version of the package to the next."""
    base = torch.arange(1000, dtype=torch.float32) / 64
    sources = [base + (torch.arange(1000) % 7 - 3) / 32, base + (torch.arange(1000) % 11 - 5) / 64]
    digests = {}
    for rescale in ("l1", "expected", "none"):
        parameters = [{"weight": 0.75, "density": 0.5}, {"weight": 0.5, "density": 0.25}]
        found = merge("dare_ties", base, sources, parameters, {"rescale": rescale}, seed=42)
        digests[rescale] = hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16]
    assert digests == {
        "l1": "5f6d2177cb5426b0",
        "expected": "b7c93a31cdc99bce",
        "none": "bd2180eae8370306",
    }
