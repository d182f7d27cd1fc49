"""Gates: the paths that they stand for, the model that has them, and its gradient."""

import numpy as np
import pytest
import torch
from refusals import refused
from slowly import slow_beyond
from tiny_models import ARCHITECTURES, FAMILIES, tiny_model, token_ids

from hf_evomerge.errors import PathError, SourceError
from hf_evomerge.routing.gates import check_gates, gate_gradient, gate_path
from hf_evomerge.routing.layout import FlowGenome, Layout
from hf_evomerge.routing.pool import LayerPool

REFUSED = {"olmo2", "exaone4"}
SLOTS = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 0), (0, 1)]
GATES = [1.0, 0.0, 0.4, 1.3, 0.1, 0.0]


@pytest.fixture
def make_pool():
    """Makes a pool of two models of two layers."""

    def make(architecture, **fields):
        return LayerPool([tiny_model(architecture, 2, seed, **fields) for seed in (0, 1)])

    return make


MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
each_kind_of_hop = pytest.mark.parametrize(
    "hops", [None, [0, 0, 1, 1, 2, 3]], ids=["one term", "two terms"]
)


def logits(model):
    """What a model says of some tokens."""
    return model(token_ids(), use_cache=False).logits.double()


def score(said):
    """A number that follows from all of that."""
    return said.log_softmax(-1)[..., 5].mean()


def backward(model):
    """A backward pass."""
    score(logits(model)).backward()


@each_kind_of_hop
@pytest.mark.parametrize(
    "architecture", slow_beyond(FAMILIES, sorted(set(ARCHITECTURES) - REFUSED))
)
def test_gates_are_scales(architecture, hops, make_pool):
    """The model with gates computes what the path with the decoded scales and sums does; its
    gradient is that of its loss."""
    # all experts: which ones are chosen is no smooth choice
    pool = make_pool(
        architecture, **({"num_experts_per_tok": 4} if architecture in MIXTURES else {})
    )
    check_gates(pool.models[0].config)
    seen = []

    def keeping(model):
        seen.append(logits(model))
        score(seen[0]).backward()

    @torch.no_grad()
    def along(gates):
        return logits(pool.model(gate_path(SLOTS, gates, hops)))

    gradient = gate_gradient(pool, SLOTS, GATES, keeping, hops=hops)
    assert torch.allclose(seen[0], along(GATES), atol=2e-3, rtol=2e-3)
    for slot in (0, 2, 3) if hops is None else (2,):
        ends = []
        for step in (0.004, -0.004):
            gates = [gate + step * (k == slot) for k, gate in enumerate(GATES)]
            ends.append(float(score(along(gates))))
        assert gradient[slot] == pytest.approx((ends[0] - ends[1]) / 0.008, rel=0.05, abs=3e-3)
    assert all(gradient[[1, 5]])


def test_where_a_gate_of_0_leads(make_pool):
    """At 0 the gradient is the slope of adding a little of what the block adds, and the stream
    passes untouched."""
    pool = make_pool("llama")
    seen = []

    def keeping(model):
        seen.append(score(logits(model)))
        seen[-1].backward()

    gradient = gate_gradient(pool, SLOTS, GATES, keeping)
    for slot in (1, 5):
        gates = list(GATES)
        gates[slot] = 0.002  # below the least gate: the model of the search has it, no recipe has
        gate_gradient(pool, SLOTS, gates, keeping)
        slope = (seen[-1] - seen[0]).item() / 0.002
        assert gradient[slot] == pytest.approx(slope, rel=0.05, abs=1e-4)
    shorter = gate_gradient(pool, [(0, 0), (0, 1), (1, 1), (1, 0)], [1.0, 0.4, 1.3, 0.1], keeping)
    assert np.allclose(shorter, gradient[[0, 2, 3, 4]], rtol=1e-3, atol=1e-5)
    for parameter in (each for model in pool.models for each in model.parameters()):
        assert parameter.requires_grad
        assert parameter.grad is None


@each_kind_of_hop
def test_gradients_of_several_passes_add_up(hops, make_pool):
    """Examples that do not fit into one batch are run one batch after the other: twice the same
    gives twice the gradient."""
    pool = make_pool("llama")
    once = gate_gradient(pool, SLOTS, GATES, backward, hops=hops)
    twice = gate_gradient(
        pool, SLOTS, GATES, lambda model: [backward(model), backward(model)], hops=hops
    )
    assert np.allclose(twice, 2 * once, rtol=1e-5)


@each_kind_of_hop
def test_gates_in_half_precision(hops):
    """In bfloat16 the gradient is that of float32, as far as bfloat16 goes, with tied
    embeddings."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        pool = LayerPool([tiny_model("qwen2", 2, seed).bfloat16().to(dtype) for seed in (0, 1)])
        found.append(gate_gradient(pool, SLOTS, GATES, backward, hops=hops))
    assert np.linalg.norm(found[0] - found[1]) < 0.05 * np.linalg.norm(found[0])


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("olmo2", {}),
        ("exaone4", {}),
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"_remove_final_layer_norm": True}),  # the head sees the scale of the stream
        ("openai-gpt", {}),
    ],
)
def test_blocks_that_see_the_scale_are_refused(architecture, fields):
    """Where blocks read the stream without a norm, or how they do is not known, gates are refused
    with what to write."""
    with refused(
        SourceError, r"path.kind: gates needs blocks with a norm in front.*; write kind: paper"
    ):
        check_gates(tiny_model(architecture, 2, **fields).config)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        *((name, {}) for name in ("arcee", "seed_oss", "apertus", "ctrl", "olmo")),
        ("ministral", {"head_dim": 8}),
    ],
)
def test_blocks_with_a_norm_in_front_are_known_by_what_they_compute(architecture, fields):
    """Gates are allowed wherever a norm stands in front of both branches, whatever the modules are
    called."""
    check_gates(tiny_model(architecture, 2, **fields).config)


def test_the_path_of_several_terms():
    """Gates of one hop are the weights of its sum, and a hop of which one gate is on is a plain hop
    with its scale."""
    slots = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    hops = [0, 0, 1, 1, 2, 2]
    path = gate_path(slots, [0.5, 0.3, 0.09, 2.0, 0.5, 0.5], hops)
    assert str(path) == "0:0*0.5 + 1:0*0.3, 1:1, 0:2*0.5 + 1:2*0.5"
    assert path.scales == [1.25, 0.5, 2.0]
    space = FlowGenome(Layout((1, 0), (3, 3), 1, side_by_side=True), "gate")
    assert (space.layout.slots[:3], space.layout.hops) == ([(1, 0), (0, 0), (1, 1)], hops)
    assert str(space.decode(space.start(0.2))) == "1:0, 1:1, 1:2"
    halves = ", ".join(f"1:{layer}*0.5 + 0:{layer}*0.5" for layer in range(3))
    assert str(space.decode(np.full(6, 0.5))) == halves
    assert spliced(space)[2:4] == ["1:0, 0:1, 0:2", "1:0, 1:1, 0:2"]
    with refused(PathError, r"path\.terms: the sources have 3 and 4 layers"):
        Layout((1, 0), (3, 4), 1, side_by_side=True)


def spliced(space):
    """The plainest paths of a space."""
    return [str(space.decode(space.along(slots, 0.05))) for slots in space.splices()]


def genome(**fields):
    """Two sources of three and four layers, twice."""
    return FlowGenome(Layout((1, 0), (3, 4), 2), "gate", **fields)


@pytest.mark.parametrize(
    ("gates", "path", "scales"),
    [
        # from 0.1 a slot is on, and its gate is the scale's denominator
        ([1, 0.0999, 1, 0, 0, 0.5, *[0] * 7, 0.1], "1:0, 1:2, 0:2, 0:3", [1.0, 1.0, 2.0, 5.0]),
        (np.linspace(-1.0, -0.5, 14), "0:3", [10.0]),
    ],
)
def test_a_genome_of_gates(gates, path, scales):
    """A slot is on from 0.1, its gate is the scale's denominator, and the first mean is A as it
    is."""
    space = genome()
    start = space.start(0.2)
    assert (space.dimension, start.tolist()) == (14, [1.0] * 3 + [-0.1] * 11)
    assert str(space.decode(start)) == "1:0, 1:1, 1:2"
    found = space.decode(gates)
    assert (str(found), found.scales) == (path, scales)


def test_the_strongest_gates_stay():
    """Of more gates than hops are allowed the largest stay, in their order; one is on."""
    gates = [0.2, 0.9, 0.3, 0.8, 0.1, 1.0, *[0.0] * 8]
    assert str(genome(max_hops=3).decode(gates)) == "1:1, 0:0, 0:2"
    with refused(PathError, "gates: none of 2 is on; a path has at least one hop"):
        gate_path([(0, 0), (0, 1)], [0.0, 0.09])


def test_splices():
    """The plainest paths are the sources and each front with each back, in slots that hold them in
    order."""
    assert spliced(genome()) == [
        "1:0, 1:1, 1:2",
        "0:0, 0:1, 0:2, 0:3",
        "1:0, 0:1, 0:2, 0:3",
        "1:0, 1:1, 0:3",
        "0:0, 1:1, 1:2",
        "0:0, 0:1, 0:2, 1:2",
    ]
    assert len(FlowGenome(Layout((0, 1), (32, 32), 2), "gate").splices()) == 16
    assert len(FlowGenome(Layout((0, 1), (8, 8), 1), "gate").splices()) == 2 + 7
