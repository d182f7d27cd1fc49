"""The arithmetic of the merge methods, against float64 reference code that is written from their
formulas, and against what was worked out by hand."""

import hashlib
import inspect
import itertools
import math

import merge_reference as reference
import numpy as np
import pytest
import torch
import yaml
from method_cases import NAME, RANDOM, assert_close, deltas, exact, merge, tensors

from hf_evomerge.merging.registry import all_methods, get_method

WEIGHTS = [[2.0], [0.6, 0.7], [0.9, -0.4], [-0.5, -0.25], [0.0, 0.8], [0.7, 0.4, 0.3]]
BOTH = [True, False]
# Options of a method, in the order of its reference, with values.
DENSE = yaml.safe_load("""
linear: {normalize: [true, false]}
slerp: {t: [0.0, 0.25, 0.9, 1.0]}
task_arithmetic: {normalize: [true, false], lambda: [1.0, 0.3, -2.0]}
model_stock: {filter_wise: [true, false]}
sce: {select_topk: [1.0, 0.7, 0.001, 0.0]}
nuslerp: {nuslerp_flatten: [true, false], nuslerp_row_wise: [true, false]}
multislerp: {normalize_weights: [true, false]}
karcher: {max_iter: [0, 1, 10]}
nearswap: {t: [0.0, 0.001, 0.1, 10.0]}
ram: {epsilon: [0.0, 0.05, 10.0]}
""")
# What is kept of a task vector, and parameters of a source.
KEPT = {
    "ties": reference.trim,
    "dare": reference.drop,
    "breadcrumbs": reference.breadcrumbs,
    "della": reference.della,
}
SPARSE = yaml.safe_load("""
ties:
  - {density: 1.0}
  - {density: 0.5}
  - {density: 0.2}
  - {density: 0.0015}
  - {density: 0.0001}
  - {density: 0.0}
dare:
  - {density: 1.0}
  - {density: 0.5}
  - {density: 0.25}
  - {density: 0.0}
breadcrumbs:
  - {density: 1, gamma: 0.3}
  - {density: 0.5, gamma: 0.1}
  - {density: 0.3, gamma: 0}
  - {density: 0.002, gamma: 0.01}
  - {density: 0, gamma: 0.1}
  - {density: 0.2, gamma: 1}
della:
  - {density: 1, epsilon: 0.15}
  - {density: 0.5, epsilon: 0.15}
  - {density: 0.9, epsilon: 0.3}
  - {density: 0.1, epsilon: 0.3}
  - {density: 0, epsilon: 0.1}
""")
VOTES = ["ties", *RANDOM, "breadcrumbs", "breadcrumbs_ties"]


def called(function, given, *options):
    """What a reference computes of those of the given that it names, and options."""
    names = inspect.signature(function).parameters
    return function(*(given[name] for name in names if name in given), *options)


def matrices(count=3, shape=(37, 27), spread=0.1):
    """A base and sources; rows and columns of matrices have different lengths and directions."""
    base, sources = tensors(count, size=math.prod(shape), spread=spread)
    scale = torch.linspace(2.0, 0.5, shape[-1])
    if len(shape) > 1:
        scale = scale * torch.linspace(0.2, 3.0, shape[-2])[:, None]
    base = base.view(shape)
    return base, [base + (source.view(shape) - base) * scale for source in sources]


def many(weights, **values):
    """Parameters of sources that differ in their weight."""
    return [{"weight": weight, **values} for weight in weights]


@pytest.mark.parametrize("shape", [(37, 27), (3, 100), (999,)])
@pytest.mark.parametrize("spread", [5.0, 0.1, 3e-4])
@pytest.mark.parametrize("method", DENSE)
def test_a_method_is_its_reference(method, spread, shape):
    """With any number of sources, weights and options, and with and without an optional base."""
    chosen = get_method(method)
    grid = DENSE[method]
    weighted = any(parameter.name == "weight" for parameter in chosen.parameters)
    low, high = chosen.count
    for weights in WEIGHTS:
        if not low <= len(weights) <= (high or 9) or (method == "karcher" and min(weights) < 0):
            continue
        base, sources = matrices(len(weights), shape, spread)
        for options in itertools.product(*grid.values()):
            for start in (base, None) if chosen.base_optional else (base,):
                found = merge(
                    method,
                    start,
                    sources,
                    many(weights) if weighted else (),
                    dict(zip(grid, options, strict=True)),
                )
                taken = [exact(source) for source in sources]
                if chosen.task_vectors and start is not None:
                    taken = [exact(base) + delta for delta in deltas(base, sources)]
                given = {
                    "base": None if start is None else exact(base),
                    "sources": taken,
                    "weights": weights,
                    "first": taken[0],
                    "second": taken[-1],
                    "source": taken[0],
                }
                expected = called(getattr(reference, method), given, *options)
                assert_close(found, expected, 3e-6 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("shape", [(6, 31), (40,)])
@pytest.mark.parametrize("weights", WEIGHTS[1:])
@pytest.mark.parametrize("method", VOTES)
def test_a_sparse_method_is_its_reference(method, weights, shape):
    """Each task vector keeps what the method keeps, is rescaled, and is added up or votes."""
    base, sources = matrices(len(weights), shape)
    sources[0][2] = sources[0][2].round()  # equal magnitudes
    kind = method.split("_")[0]
    rescales = get_method(method).options[-1].choices
    fields = [reference.random_field(4, at, NAME, base.numel()) for at in range(len(weights))]
    for values, normalize, rescale, keep in itertools.product(SPARSE[kind], BOTH, rescales, BOTH):
        own = [dict(values) for _ in weights]
        own[0]["density"] = min(1.0, own[0]["density"] * 1.5)
        found = merge(
            method,
            base,
            sources,
            [{"weight": weight, **each} for weight, each in zip(weights, own, strict=True)],
            {"normalize": normalize, "rescale": rescale, "lambda": 0.7},
            seed=4,
            keep=keep,
        )
        kept = []
        for delta, field, each in zip(deltas(base, sources), fields, own, strict=True):
            shaped = delta if kind == "della" else delta.ravel()
            given = {"delta": shaped, "field": field, **each}
            kept.append(called(KEPT[kind], given, rescale).ravel())
        flat = exact(base).ravel()
        if method in ("breadcrumbs", "della_linear", "dare_linear"):
            share = sum(weights) if normalize else 1
            mixed = sum(w * d for w, d in zip(weights, kept, strict=True))
            expected = flat + 0.7 * mixed / share
        else:
            expected = reference.vote(flat, kept, weights, normalize, 0.7)
        # Where weighted task vectors nearly cancel, the divisor may be tiny
        scale = max(1.0, float(np.abs(expected).max()))
        tolerance = 1e-4 if rescale == "expected" else 2e-5
        assert_close(found.flatten(), expected, tolerance * scale)


HALF = math.sqrt(0.75)
A = [4.0, -3.0, 2.0, 1.0, 0.5, 5.0]
B = [-4.0, -6.0, 1.0, -2.0, 0.5, -1.0]
MINUS_A = [-4.0, 3.0, -2.0, -1.0, -0.5, -5.0]
BY_HAND = {
    # density 0.7 keeps 4 of 6: A without 1 and 0.5, B without 0.5 and the later of its ones;
    # zero sums elect plus, and only what agrees is counted
    "ties": (
        [A, B],
        [{"density": 0.7}, {"weight": 0.5, "density": 0.7}],
        [4.0, -4.0, (2.0 + 0.5) / 1.5, -2.0, 0.0, 5.0],
    ),
    "ties elects plus": ([A, MINUS_A], (), [4.0, 3.0, 2.0, 1.0, 0.5, 5.0]),
    # t = 2 cos / (1 + cos) = 2/3 at 60 degrees; at 90 and at 180 the base stays
    "model_stock": ([[1.0, 0.0], [0.5, HALF]], (), [0.5, HALF / 3]),
    "model_stock at 90": ([[1.0, 0.0], [0.0, 1.0]], (), [0.0, 0.0]),
    "model_stock at 180": ([[1.0, 0.0], [-1.0, 0.0]], (), [0.0, 0.0]),
    # very small task vectors are weighed alike, as in mergekit
    "sce": ([[3e-4, 3e-4], [1e-4, 1e-4]], (), [2e-4, 2e-4]),
    # of one plane: the mean angle; one of length 0 has no direction, but shortens the mean
    "karcher": (
        [[1.0, 0.0], [math.cos(0.4), math.sin(0.4)], [math.cos(1.1), math.sin(1.1)]],
        (),
        [math.cos(0.5), math.sin(0.5)],
    ),
    "karcher and 0": ([[1.0, 0.0], [0.0, 0.0]], (), [0.5, 0.0]),
    "karcher of 0": ([[0.0, 0.0], [0.0, 0.0]], (), [0.0, 0.0]),
    "karcher at 180": ([[1.0, 0.0], [-1.0, 0.0]], (), [1.0, 0.0]),
    # where directions cancel it is the plain weighted mean
    "multislerp": ([[1.0, 2.0], [-3.0, -6.0]], [{"weight": 0.5}] * 2, [-1.0, -2.0]),
    # an all-zero tensor has no direction: the way is straight
    "slerp": ([[1.0, 2.0]], (), [0.5, 1.0]),
    # straight where the angle is too small to divide by its sine, and then shorter
    "slerp at .995": ([[1.0, 0.0], [0.995, math.sqrt(1 - 0.995**2)]], (), None),
    "slerp at .9997": (
        [[1.0, 0.0], [0.9997, math.sqrt(1 - 0.9997**2)]],
        (),
        [0.99985, math.sqrt(1 - 0.9997**2) / 2],
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_what_was_worked_out_by_hand(case):
    """From a base of zeros, the merge is this tensor; None: of length 1."""
    sources, parameters, wanted = BY_HAND[case]
    tensors_of = [torch.tensor(source) for source in sources]
    found = merge(case.split()[0], torch.zeros(len(sources[0])), tensors_of, parameters)
    if wanted is None:
        assert float(found.double().norm()) == pytest.approx(1.0, abs=1e-6)
    else:
        assert found.tolist() == pytest.approx(wanted, abs=1e-6, rel=1e-5)


def test_slerp_begins_at_the_base():
    """With one source slerp begins at the base; t = 0 and t = 1 give the two back exactly."""
    base, (source,) = tensors(1, spread=2.0)
    found = merge("slerp", base, [source], (), {"t": 0.3})
    assert_close(found, reference.slerp(exact(base), exact(source), 0.3))
    assert torch.equal(merge("slerp", base, [source], (), {"t": 0.0}), base)
    assert torch.equal(merge("slerp", base, [source], (), {"t": 1.0}), source)


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0, 0.0])
def test_passthrough(scale):
    """passthrough is the source, times its scale, which is 1 by default."""
    _, (source,) = tensors(1)
    values = [{}] if scale == 1 else [{"scale": scale}]
    assert torch.equal(merge("passthrough", None, [source], values), source * scale)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_weights_that_cancel_are_not_divided_by(method):
    """With weights that add up to 0, normalize leaves the task vectors as they are."""
    base, sources = tensors(2)
    weights = many([0.5, -0.5])
    found = merge(method, base, sources, weights, {"normalize": True})
    assert torch.isfinite(found).all()
    if method in ("task_arithmetic", "dare_linear"):
        assert torch.equal(found, merge(method, base, sources, weights, {"normalize": False}))
    assert torch.equal(merge("nuslerp", base, sources, weights), merge("nuslerp", base, sources))


@pytest.mark.parametrize("keep", BOTH)
def test_task_vectors_of_half_precision_are_float32(keep):
    """The difference of two bfloat16 models is exact, and so is the model it gives back."""
    base, (source,) = tensors(1, spread=1.0)
    base = base.bfloat16()
    source = source.bfloat16()
    found = merge("task_arithmetic", base, [source], keep=keep)
    assert torch.equal(found, base.float() + (source.float() - base.float()))
    assert not torch.equal(found, base.float() + (source - base).float())


def test_defaults_are_those_of_the_field():
    """Only linear, ties and della normalise by default; DARE and DELLA restore the sum of the
    absolute values."""
    normalizing = set()
    rescale = {}
    for name, method in all_methods().items():
        options = {option.name: option.default for option in method.options}
        if options.get("normalize"):
            normalizing.add(name)
        if "rescale" in options:
            rescale[name] = options["rescale"]
        assert options.get("lambda", 1.0) == 1.0
    assert normalizing == {"linear", "ties", "della"}
    kept = dict.fromkeys(("ties", "breadcrumbs", "breadcrumbs_ties"), "none")
    assert rescale == kept | dict.fromkeys(RANDOM, "l1")


@pytest.mark.parametrize(("keep", "slice_size"), [*itertools.product(BOTH, (7, 1000))])
def test_ties_keeps_exactly_k_where_magnitudes_are_equal(keep, slice_size):
    """Where magnitudes tie at the threshold the earlier elements stay, whatever the slices."""
    source = torch.tensor([1.0, -1.0] * 50)
    values = [{"density": 0.33}]
    found = merge("ties", torch.zeros(100), [source], values, keep=keep, slice_size=slice_size)
    assert torch.equal(found, torch.where(torch.arange(100) < 33, source, 0.0))


@pytest.mark.parametrize(
    ("method", "divisors", "rescale", "digest"),
    [
        ("dare_ties", (32, 64), "l1", "5f6d2177cb5426b0"),
        ("dare_ties", (32, 64), "expected", "b7c93a31cdc99bce"),
        ("dare_ties", (32, 64), "none", "bd2180eae8370306"),
        ("della", (32, 32), "expected", "48972baf108256a2"),
    ],
)
def test_random_bits_are_pinned(method, divisors, rescale, digest):
    """The bits of these merges never change from one version of the package to the next."""
    count = torch.arange(1000)
    shape = (10, 100) if method == "della" else (1000,)
    base = (count.float() / 64).view(shape)
    steps = ((count % n - n // 2) / divisor for n, divisor in zip((7, 11), divisors, strict=True))
    parameters = many([0.75, 0.5], density=0.5)
    if method == "dare_ties":
        parameters[1]["density"] = 0.25
    sources = [base + step.view(shape) for step in steps]
    found = merge(method, base, sources, parameters, {"rescale": rescale}, seed=42)
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == digest


def test_nuslerp_of_a_convolution():
    """In a tensor of three dimensions rows lie along the last, columns along the first."""
    base, sources = matrices(2, (3, 4, 5), spread=1.0)
    for row_wise, folded in ((False, (12, 5)), (True, (3, 20))):
        options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
        found = merge("nuslerp", base, sources, many([0.3, 0.6]), options)
        origin = exact(base).reshape(folded)
        first, second = (origin + delta.reshape(folded) for delta in deltas(base, sources))
        expected = reference.nuslerp(origin, first, second, [0.3, 0.6], False, row_wise)
        assert_close(found, expected.reshape(base.shape))


def test_karcher_of_nearly_parallel_vectors():
    """Where angles are too small for float32, as between weights of norms, the mean is still that
    of all sources."""
    generator = torch.Generator().manual_seed(0)
    sources = [1 + 5e-4 * torch.randn(64, generator=generator) for _ in range(3)]
    found = merge("karcher", None, sources)
    assert_close(found, reference.karcher([exact(x) for x in sources], [1, 1, 1]), 2e-7)
    assert_close(found, exact(sum(sources) / 3), 2e-6)
