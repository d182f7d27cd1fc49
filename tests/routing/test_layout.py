"""The layout of slots: which genome is which path, with which scales."""

import numpy as np
import pytest
from refusals import refused

from hf_evomerge.errors import PathError
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.layout import NETWORK_WIDTH, FlowGenome, Layout

SMALL = Layout((0, 1), (2, 2), 2)  # A0 A1 B0 B1 | A0 A1 B0 B1
PAPER = Layout((0, 1), (32, 32), 3)
ENCODINGS = ["none", "slot", "matrix", "network"]


def _genome(on, scales=(), layout=SMALL):
    indicators = np.full(len(layout), -1.0)
    indicators[on] = 1.0
    return np.concatenate([indicators, np.asarray(scales, dtype=float)])


def _layers(genome, layout=SMALL, max_hops=128):
    return str(FlowGenome(layout, "none", max_hops=max_hops).decode(genome))


def test_slots_are_the_sources_in_order_repeated():
    """The layout holds all layers of each source in the given order, and the whole again for each
    repetition."""
    layout = Layout((2, 0), (1, 2), 2)
    assert layout.columns == [(2, 0), (0, 0), (0, 1)]
    assert layout.slots == layout.columns * 2
    assert len(layout) == 6


def test_worked_example():
    """The eight-slot example: A0 A1 B1 A1, with the first scale 1 and the others from W[before,
    now]."""
    w = np.arange(16).reshape(4, 4) / 100
    path = FlowGenome(SMALL, "matrix").decode(_genome([0, 1, 3, 5], w.ravel()))
    assert str(path) == "0:0, 0:1, 1:1, 0:1"
    assert path.scales == pytest.approx([1, 1 + w[0, 1], 1 + w[1, 3], 1 + w[3, 1]], abs=1e-15)
    assert path.unique_layers == [(0, 0), (0, 1), (1, 1)]


ONE_LAYER = Layout((0, 1), (1, 2), 1)


@pytest.mark.parametrize(
    ("layout", "on", "path"),
    [
        (SMALL, [], "0:0, 0:1"),
        (SMALL, [0], "0:0, 0:1"),
        (SMALL, [1], "0:0, 0:1"),
        (SMALL, [5], "0:0, 0:1"),
        (SMALL, [2], "0:0, 1:0, 0:1"),
        (SMALL, [0, 1, 2, 3], "0:0, 0:1, 1:0, 1:1, 0:1"),
        (SMALL, [4], "0:0, 0:0, 0:1"),
        (SMALL, [0, 5, 6], "0:0, 0:1, 1:0, 0:1"),
        (SMALL, list(range(8)), "0:0, 0:1, 1:0, 1:1, 0:0, 0:1, 1:0, 1:1, 0:1"),
        (ONE_LAYER, [], "0:0"),
        (ONE_LAYER, [1], "0:0, 1:0, 0:0"),
        (Layout((0,), (1,), 1), [], "0:0"),
        (Layout((3, 1), (2, 2), 1), [2], "3:0, 1:0, 3:1"),
    ],
)
def test_the_ends_are_those_of_a(layout, on, path):
    """The path begins with the first layer of the first source in the order and ends with its last,
    which is appended only where it is not there."""
    assert _layers(_genome(on, layout=layout), layout) == path


def test_an_indicator_of_zero_is_off():
    """A slot is on the path where its indicator is positive; zero is off."""
    genome = _genome([0, 5])
    genome[2], genome[3] = 0.0, 1e-300
    assert _layers(genome) == "0:0, 1:1, 0:1"


def test_hop_limit_keeps_the_strongest():
    """Of a path that is too long the inner hops with the greatest indicators stay, in their order,
    and so do the ends."""
    genome = np.array([0.1, 5.0, 1.0, 3.0, 2.0, 4.0, -1.0, 0.2])
    for most, path in (
        (128, "0:0, 0:1, 1:0, 1:1, 0:0, 0:1, 1:1, 0:1"),
        (5, "0:0, 0:1, 1:1, 0:1, 0:1"),
        (3, "0:0, 0:1, 0:1"),
        (2, "0:0, 0:1"),
    ):
        assert _layers(genome, max_hops=most) == path
    ends_at_a = np.array([0.1, 1.0, 5.0, 4.0, 2.0, 0.01, -1.0, -1.0])
    assert _layers(ends_at_a, max_hops=4) == "0:0, 1:0, 1:1, 0:1"


def test_splices_of_a_model_that_is_too_long():
    """Where the path has room for fewer layers than a source has, the plainest paths leave one run
    of them out."""
    genome = FlowGenome(Layout((0,), (6,), 1), "gate", max_hops=4)
    assert genome.splices() == [[0, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 5]]


def test_scales_of_slots():
    """With one scale per slot each hop has 1 + the number of its slot; the appended end that of its
    slot in the last pass."""
    numbers = np.arange(8) / 100
    path = FlowGenome(SMALL, "slot").decode(_genome([0, 1, 2, 4], numbers))
    assert str(path) == "0:0, 0:1, 1:0, 0:0, 0:1"
    assert path.scales == pytest.approx([1.00, 1.01, 1.02, 1.04, 1.05])


@pytest.mark.parametrize(
    ("encoding", "extra"),
    [("none", 0), ("slot", 192), ("matrix", 4096), ("network", NETWORK_WIDTH * 5 + 1)],
)
def test_dimensions(encoding, extra):
    """Two sources of 32 layers laid out three times have 192 indicators, and with the paper's
    matrix 4288 numbers."""
    genome = FlowGenome(PAPER, encoding)
    assert genome.dimension == 192 + extra
    assert genome.start(0.1).shape == (genome.dimension,)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("initialisation", ["paper", "near_identity"])
def test_the_start_itself_is_source_a(encoding, initialisation):
    """The mean that a search begins from decodes to A as it is, with every scale 1, and lies within
    the bounds."""
    genome = FlowGenome(PAPER, encoding, initialisation=initialisation)
    start = genome.start(0.1)
    lower, upper = genome.bounds()
    path = genome.decode(start)
    assert path.as_text() == LayerPath.parse("0:0-31").as_text()
    assert path.scales == pytest.approx([1.0] * 32, abs=1e-12)
    assert (lower <= start).all()
    assert (start <= upper).all()


def test_start_vectors():
    """The first pass over A starts at +2 sigma; other slots at 0 as in the paper, or at -2 sigma
    near the identity."""
    for initialisation, rest in (("paper", 0.0), ("near_identity", -0.6)):
        start = FlowGenome(SMALL, "slot", initialisation=initialisation).start(0.3)
        assert start == pytest.approx([0.6, 0.6, *[rest] * 6, *[0.0] * 8])


def test_network_scales_stay_within_bounds():
    """The net's scales lie between the bounds for any weights, however large, and differ from pair
    to pair."""
    genome = FlowGenome(SMALL, "network", scale_bounds=(0.4, 1.5))
    rng = np.random.default_rng(0)
    for size in (0.1, 1.0, 100.0, 1e6):
        theta = size * rng.standard_normal(genome.scale_count)
        scales = np.array(genome.decode(_genome(list(range(8)), theta)).scales)
        assert scales[0] == 1.0
        assert (scales >= 0.4).all()
        assert (scales <= 1.5).all()
        if size <= 1:
            assert len(np.unique(scales[1:])) == len(scales) - 1


@pytest.mark.parametrize("sign", [1, -1])
def test_network_moves_with_its_output_bias(sign):
    """A positive output of the net is a scale above 1, a negative one below."""
    genome = FlowGenome(SMALL, "network")
    theta = genome.start(0.1)[8:]
    theta[-1] = sign / 2
    scales = np.array(genome.decode(_genome([0, 1, 3, 5], theta)).scales)
    assert (np.sign(scales[1:] - 1) == sign).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bounds(encoding):
    """Indicators and net weights have no bounds; scales that are evolved directly have the scale
    bounds."""
    genome = FlowGenome(SMALL, encoding, scale_bounds=(0.5, 1.25))
    ends = (-0.5, 0.25) if encoding in ("slot", "matrix") else (-np.inf, np.inf)
    for bounds, free, end in zip(genome.bounds(), (-np.inf, np.inf), ends, strict=True):
        assert bounds.tolist() == [free] * 8 + [end] * genome.scale_count


@pytest.mark.parametrize(
    "genome", [np.zeros(7), np.zeros(9), np.zeros((8, 1)), [], np.array([*[0.0] * 7, np.nan])]
)
def test_a_genome_of_another_shape_is_refused(genome):
    """A genome of the wrong length, shape, or with NaN is a `PathError`."""
    with refused(PathError, "expected 8 numbers"):
        FlowGenome(SMALL, "none").decode(genome)
