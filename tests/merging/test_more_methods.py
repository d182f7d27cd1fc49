"""The arithmetic of the methods beside the paper's own, against float64 reference code written from
their formulas."""

import hashlib
import itertools
import math

import merge_reference as reference
import numpy as np
import pytest
import torch
from method_cases import NAME, added_or_voted, assert_close, deltas, exact, merge, tensors

WEIGHTS = [[0.6, 0.7], [0.9, -0.4], [0.0, 0.8], [0.7, 0.4, 0.3]]
DELLAS = [(1.0, 0.15), (0.5, 0.15), (0.2, 0.1), (0.9, 0.3), (0.1, 0.3), (0.5, 0.0), (0.0, 0.1)]


def matrices(count=3, shape=(37, 27), spread=0.1):
    """A base and sources that are matrices; rows and columns of different length and direction."""
    base, sources = tensors(count, size=math.prod(shape), spread=spread)
    scale = torch.linspace(0.2, 3.0, shape[0])[:, None] * torch.linspace(2.0, 0.5, shape[1])
    return base.view(shape), [
        base.view(shape) + (source - base).view(shape) * scale for source in sources
    ]


def many(weights, **values):
    """Parameters of sources that differ in their weight."""
    return [{"weight": weight, **values} for weight in weights]


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0, 0.0])
def test_passthrough(scale):
    """passthrough is the source, times its scale."""
    _, (source, *_) = tensors(1)
    found = merge("passthrough", None, [source], [{"scale": scale}])
    assert torch.equal(found, source * scale)
    assert torch.equal(merge("passthrough", None, [source]), source)


@pytest.mark.parametrize(
    ("density", "gamma"),
    [
        (1.0, 0.3),
        (0.5, 0.1),
        (0.9, 0.5),
        (0.3, 0.0),
        (0.0005, 0.01),
        (0.002, 0.01),
        (0.0, 0.1),
        (0.2, 1.0),
    ],
)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(method, weights, density, gamma):
    """breadcrumbs keeps the share rho below the share gamma of the largest, then adds up or
    votes."""
    base, sources = tensors(len(weights))
    for normalize, rescale in itertools.product([True, False], ["none", "l1"]):
        options = {"normalize": normalize, "rescale": rescale, "lambda": 0.7}
        found = merge(method, base, sources, many(weights, density=density, gamma=gamma), options)
        kept = [reference.breadcrumbs(d, density, gamma, rescale) for d in deltas(base, sources)]
        assert_close(found, added_or_voted(method, base, kept, weights, normalize, 0.7), 2e-5)


@pytest.mark.parametrize(("density", "epsilon"), DELLAS)
@pytest.mark.parametrize("weights", WEIGHTS[1:])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della(method, weights, density, epsilon):
    """DELLA keeps an element with a probability that grows with its rank in the row, then votes or
    adds up."""
    base, sources = matrices(len(weights), (6, 31))
    sources[0][2] = sources[0][2].round()  # equal magnitudes
    for normalize, rescale in itertools.product([True, False], ["none", "l1", "expected"]):
        options = {"normalize": normalize, "rescale": rescale, "lambda": 0.7}
        found = merge(
            method, base, sources, many(weights, density=density, epsilon=epsilon), options, seed=4
        )
        kept = [
            reference.della(
                d, density, epsilon, reference.random_field(4, index, NAME, base.numel()), rescale
            )
            for index, d in enumerate(deltas(base, sources))
        ]
        assert_close(
            found,
            added_or_voted(method, base, kept, weights, normalize, 0.7),
            1e-4 if rescale == "expected" else 2e-5,
        )


def test_della_of_a_vector():
    """A tensor of one dimension is one row."""
    base, (source,) = tensors(1, size=31)
    found = merge("della_linear", base, [source], [{"density": 0.5}])
    kept = reference.della(
        deltas(base, [source])[0], 0.5, 0.15, reference.random_field(0, 0, NAME, 31)
    )
    assert_close(found, exact(base) + kept)


def test_della_bits_are_pinned():
    """The bits of a DELLA merge never change from one version of the package to the next."""
    base = (torch.arange(1000, dtype=torch.float32) / 64).view(10, 100)
    sources = [base + ((torch.arange(1000) % n - n // 2) / 32).view(10, 100) for n in (7, 11)]
    found = merge(
        "della", base, sources, many([0.75, 0.5], density=0.5), {"rescale": "expected"}, seed=42
    )
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == "48972baf108256a2"


@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock(count, spread, filter_wise):
    """model_stock goes from the base to the mean as far as the mean angle between the task vectors
    says."""
    base, sources = matrices(count, spread=spread)
    sources = [source + 0.5 * (sources[0] - base) for source in sources]
    found = merge("model_stock", base, sources, (), {"filter_wise": filter_wise})
    base64 = exact(base)
    expected = reference.model_stock(
        base64, [base64 + d for d in deltas(base, sources)], filter_wise
    )
    assert_close(found, expected, 2e-6)
    assert float((found - base).abs().max()) > 0.1 * spread


def test_model_stock_golden():
    """Two task vectors at 60 degrees: t = 2 cos / (1 + cos) = 2/3. At 90 degrees, and at 180, the
    base stays."""
    base = torch.zeros(2)
    first = torch.tensor([1.0, 0.0])
    second = torch.tensor([0.5, math.sqrt(0.75)])
    for other, wanted in (
        (second, [0.5, math.sqrt(0.75) / 3]),
        (torch.tensor([0.0, 1.0]), [0.0, 0.0]),
        (-first, [0.0, 0.0]),
    ):
        found = merge("model_stock", base, [first, other])
        assert found.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("select_topk", [1.0, 0.7, 0.1, 0.001, 0.0])
@pytest.mark.parametrize("spread", [0.1, 3e-4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sce(count, spread, select_topk):
    """sce merges the elements of largest variance, weighted by squares, where they agree with the
    sign of the sum."""
    base, sources = matrices(count, spread=spread)
    sources[-1] = base + 3 * (sources[-1] - base)
    found = merge("sce", base, sources, (), {"select_topk": select_topk})
    base64 = exact(base)
    expected = reference.sce(base64, [base64 + d for d in deltas(base, sources)], select_topk)
    assert_close(found, expected, 2e-6)


def test_sce_of_small_task_vectors():
    """Very small task vectors are weighed alike, as in mergekit."""
    base = torch.zeros(2)
    first = torch.tensor([3e-4, 3e-4])
    second = torch.tensor([1e-4, 1e-4])
    assert merge("sce", base, [first, second]).tolist() == pytest.approx([2e-4, 2e-4])


@pytest.mark.parametrize(("flatten", "row_wise"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize(
    "weights", [[0.6, 0.7], [1.0, 0.0], [0.0, 2.0], [0.9, -0.4], [0.5, -0.5], [0.0, 0.0]]
)
@pytest.mark.parametrize(
    ("with_base", "spread"), [(True, 0.1), (False, 2.0), (False, 0.1), (False, 1e-4)]
)
def test_nuslerp(weights, flatten, row_wise, with_base, spread):
    """nuslerp goes along the arc between two tensors, or task vectors, per tensor, row or
    column."""
    base, (first, second) = matrices(2, spread=spread)
    options = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
    found = merge("nuslerp", base if with_base else None, [first, second], many(weights), options)
    base64 = exact(base)
    sources = (
        [base64 + d for d in deltas(base, [first, second])]
        if with_base
        else [exact(first), exact(second)]
    )
    assert_close(
        found,
        reference.nuslerp(base64 if with_base else None, *sources, weights, flatten, row_wise),
        5e-6,
    )


def test_nuslerp_of_a_convolution():
    """In a tensor of three dimensions rows lie along the last, columns along the first."""
    base, sources = tensors(2, size=3 * 4 * 5, spread=1.0)
    shaped = [source.view(3, 4, 5) for source in sources]
    for row_wise, folded in ((False, (12, 5)), (True, (3, 20))):
        options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
        found = merge("nuslerp", base.view(3, 4, 5), shaped, many([0.3, 0.6]), options)
        first, second = (exact(base) + d for d in deltas(base, sources))
        expected = reference.nuslerp(
            *(x.reshape(folded) for x in (exact(base), first, second)), [0.3, 0.6], False, row_wise
        )
        assert_close(found, expected.reshape(3, 4, 5))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [*WEIGHTS, [0.3], [0.7, 0.4, -0.3]])
@pytest.mark.parametrize(("with_base", "spread"), [(True, 0.1), (False, 2.0), (False, 0.1)])
def test_multislerp(weights, normalize, with_base, spread):
    """multislerp is the mean in the tangent space at the mean, put back on the sphere."""
    base, sources = matrices(len(weights), spread=spread)
    found = merge(
        "multislerp",
        base if with_base else None,
        sources,
        many(weights),
        {"normalize_weights": normalize},
    )
    base64 = exact(base)
    taken = (
        [base64 + d for d in deltas(base, sources)] if with_base else [exact(x) for x in sources]
    )
    assert_close(
        found, reference.multislerp(base64 if with_base else None, taken, weights, normalize), 1e-5
    )


def test_multislerp_of_opposites():
    """Where directions cancel multislerp is the plain weighted mean, and so it is where all task
    vectors are 0."""
    base, (source,) = tensors(1)
    assert torch.equal(
        merge("multislerp", None, [source, -source], many([0.5, 0.5])), torch.zeros_like(source)
    )
    found = merge("multislerp", torch.zeros_like(base), [source, -3 * source], many([0.5, 0.5]))
    assert_close(found, -exact(source))
    assert torch.equal(merge("multislerp", base, [base.clone()] * 3, many([0.5, 0.5, 0.5])), base)


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0], [0.6, 0.7], [0.0, 0.8], [1.0, 1.0, 1.0], [0.7, 0.4, 0.0], [2.0]]
)
@pytest.mark.parametrize("spread", [5.0, 1.0, 0.1, 1e-4])
@pytest.mark.parametrize("max_iter", [0, 1, 10])
def test_karcher(weights, spread, max_iter):
    """karcher is what gradient descent on the sphere arrives at, times the mean length."""
    _, sources = matrices(len(weights), spread=spread)
    found = merge("karcher", None, sources, many(weights), {"max_iter": max_iter})
    expected = reference.karcher([exact(x) for x in sources], weights, max_iter)
    assert_close(found, expected, 1e-6 * max(1.0, float(np.abs(expected).max())))


def test_karcher_of_nearly_parallel_vectors():
    """Where angles are too small for float32, as between weights of norms, the mean is still that
    of all sources."""
    generator = torch.Generator().manual_seed(0)
    sources = [1 + 5e-4 * torch.randn(64, generator=generator) for _ in range(3)]
    found = merge("karcher", None, sources)
    assert_close(found, reference.karcher([exact(x) for x in sources], [1, 1, 1]), 2e-7)
    assert_close(found, exact(sum(sources) / 3), 2e-6)


def test_karcher_is_the_centre():
    """For vectors of one plane the mean angle is the answer; one of length 0 has no direction, but
    shortens the mean."""
    angles = [0.0, 0.4, 1.1]
    sources = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in angles]
    assert merge("karcher", None, sources).tolist() == pytest.approx(
        [math.cos(0.5), math.sin(0.5)], abs=1e-5
    )
    assert merge("karcher", None, [sources[0], torch.zeros(2)]).tolist() == pytest.approx(
        [0.5, 0.0]
    )
    assert merge("karcher", None, [torch.zeros(2), torch.zeros(2)]).tolist() == [0.0, 0.0]
    assert merge("karcher", None, [sources[0], -sources[0]]).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("t", [0.0, 0.001, 0.1, 10.0])
def test_nearswap(t):
    """nearswap takes the source where it is near, and else goes t towards it."""
    base, (source,) = tensors(1)
    assert_close(
        merge("nearswap", base, [source], (), {"t": t}),
        reference.nearswap(exact(base), exact(source), t),
        5e-7,
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 10.0])
def test_ram(epsilon):
    """ram moves an element by the mean of the steps that are larger than epsilon."""
    base, sources = tensors(3)
    expected = reference.ram(
        exact(base), [exact(base) + delta for delta in deltas(base, sources)], epsilon
    )
    assert_close(merge("ram", base, sources, (), {"epsilon": epsilon}), expected, 5e-7)


@pytest.mark.parametrize("shape", [(37, 27), (3, 400), (31, 31), (999,)])
def test_iso_c(shape):
    """iso_c gives all directions of the sum the mean of their lengths; what is no matrix is
    averaged."""
    base, sources = tensors(3, size=math.prod(shape))
    base = base.view(shape)
    sources = [source.view(shape) for source in sources]
    found = merge("iso_c", base, sources, (), {"lambda": 0.7})
    base64 = exact(base)
    wanted = reference.iso_c(base64, [base64 + delta for delta in deltas(base, sources)], 0.7)
    assert_close(found, wanted, 2e-6)
    assert not np.allclose(wanted, base64 + 0.7 * sum(deltas(base, sources)), atol=0.01)


def test_iso_c_of_few_directions():
    """Directions of length 0 are no part of the mean, and stay 0, however the sum was rounded."""
    thin = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    vector = thin @ torch.randn(3, 30, generator=torch.Generator().manual_seed(2))
    zero = torch.zeros_like(vector)
    u, values, v = np.linalg.svd(exact(vector), full_matrices=False)
    wanted = values[:3].mean() * u[:, :3] @ v[:3]
    assert_close(merge("iso_c", zero, [vector / 3, 2 * vector / 3]), wanted, 1e-5)
    assert torch.equal(merge("iso_c", zero, [zero, zero]), zero)


def test_iso_c_of_experts():
    """Each expert of a stack is a matrix of its own; another tensor of three dimensions is
    averaged."""
    base, sources = tensors(2, size=4 * 12 * 9)
    base = base.view(4, 12, 9)
    sources = [source.view(4, 12, 9) for source in sources]
    stacked = merge("iso_c", base, sources, name="model.layers.0.mlp.experts.gate_up_proj")
    for number in range(4):
        alone = merge("iso_c", base[number], [source[number] for source in sources])
        assert torch.allclose(stacked[number], alone, atol=1e-6)
    mean = sum(sources) / 2
    assert torch.allclose(merge("iso_c", base, sources, name="conv.weight"), mean, atol=1e-6)


@pytest.mark.parametrize("spread", [0.1, 5e-4])
@pytest.mark.parametrize("shape", [(37, 27), (3, 400), (999,)])
def test_arcee_fusion(shape, spread):
    """arcee_fusion takes the elements whose change, times the divergence of their row, is far above
    the median."""
    base, (source,) = (
        matrices(1, shape, spread) if len(shape) > 1 else tensors(1, size=shape[0], spread=spread)
    )
    found = merge("arcee_fusion", base, [source])
    base64 = exact(base)
    expected, importance, threshold = reference.arcee_fusion(
        base64, base64 + deltas(base, [source])[0]
    )
    sure = np.abs(importance - threshold) > 1e-6 * threshold
    assert (~sure).sum() <= 1
    assert np.abs(exact(found) - expected)[sure].max() < 1e-6
    assert 0.01 < float((found != base).float().mean()) < 0.3


def test_arcee_fusion_of_equal_changes():
    """What reaches the threshold is taken: where all changed alike, all of the source is."""
    source = torch.tensor([0.5, -0.5] * 8)
    assert torch.equal(merge("arcee_fusion", torch.zeros(16), [source]), source)
