"""What holds for every merge method, whatever it computes: the methods come from the registry, the
parameters from a table."""

import itertools

import numpy as np
import pytest
import torch
from method_cases import CASES, NAME, RANDOM, every_case, merge, tensors

from hf_evomerge.merging.arithmetic import TensorJob, memory_needed
from hf_evomerge.merging.checks import complete
from hf_evomerge.merging.registry import all_methods, get_method
from hf_evomerge.recipes.layer_groups import resolve

METHODS = sorted(all_methods())
SEVERAL = [name for name in METHODS if get_method(name).count[1] != 1]
WEIGHTED = [
    name for name in METHODS if any(p.name == "weight" for p in get_method(name).parameters)
]
ANY_NUMBER = [name for name in WEIGHTED if get_method(name).count[1] is None]
LOOK_AT_ROWS = ["model_stock", "nuslerp", "della", "della_linear"]


def several(method, **columns):
    """The mappings of sources with these values, of the parameters that the method has."""
    known = {p.name for p in get_method(method).source_parameters}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{name: value for name, value in row.items() if name in known} for row in rows]


def shaped(shape, count):
    """A base and sources of a shape."""
    base, sources = tensors(count, size=int(np.prod(shape)))
    return base.view(shape), [source.view(shape) for source in sources]


def test_every_method_has_a_case():
    """A registered method takes part in these tests."""
    assert {method for method, *_ in CASES} == set(METHODS)


@pytest.mark.parametrize(
    ("method", "with_base"),
    [
        (name, with_base)
        for name in SEVERAL
        for with_base in (True, False)
        if with_base or not get_method(name).needs_base
    ],
)
def test_merging_a_model_with_itself_gives_it_back(method, with_base):
    """Halves of the same model add up to it."""
    base, (source, *_) = tensors(1)
    start = base if with_base else None
    found = merge(method, start, [source, source.clone()], several(method, weight=[0.5, 0.5]))
    assert torch.allclose(found, source, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [999, 1])
@pytest.mark.parametrize(
    ("method", "parameters", "options"),
    [case for case in CASES if get_method(case[0]).task_vectors],
)
def test_sources_that_equal_the_base_change_nothing(method, parameters, options, size):
    """Where all models are one, methods on task vectors give its bits back, whatever the
    parameters."""
    base, _ = tensors(1, size=size)
    assert torch.equal(
        merge(method, base, [base.clone() for _ in parameters], parameters, options), base
    )


@pytest.mark.parametrize(
    "method", [name for name in SEVERAL if name not in RANDOM and name != "slerp"]
)
def test_the_order_of_the_sources_does_not_matter(method):
    """Permuting the sources together with their parameters changes nothing but roundings."""
    count = get_method(method).count[1] or 3
    base, sources = tensors(count)
    values = {"weight": [0.5, 0.9, 0.2], "density": [0.3, 0.8, 0.6], "gamma": [0.1, 0.01, 0.2]}
    parameters = several(method, **values)[:count]
    expected = merge(method, base, sources, parameters)
    for order in itertools.permutations(range(count)):
        found = merge(method, base, [sources[i] for i in order], [parameters[i] for i in order])
        assert torch.allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("method", ANY_NUMBER)
def test_a_source_of_weight_0_is_absent(method, switch):
    """A source of weight 0 leaves no trace, not even of its NaNs."""
    base, sources = tensors(2)
    poisoned = torch.full_like(base, float("nan"))
    parameters = several(method, weight=[0.4, 0.8, 0.0], density=[0.5] * 3)
    names = [p.name for p in get_method(method).options if p.name.startswith("normalize")]
    options = dict.fromkeys(names, switch)
    expected = merge(method, base, sources, parameters[:2], options)
    assert torch.isfinite(expected).all()
    assert torch.equal(merge(method, base, [*sources, poisoned], parameters, options), expected)


@pytest.mark.parametrize("method", [name for name in ANY_NUMBER if get_method(name).task_vectors])
def test_nothing_taken_leaves_the_base(method):
    """With all weights 0 the merge is the base."""
    base, sources = tensors(2)
    assert torch.equal(merge(method, base, sources, [{"weight": 0}, {"weight": 0}]), base)


@pytest.mark.parametrize(
    "shape", [(515,), (5, 103), (103, 5), (5, 1), (3, 7, 11), (), (0,), (0, 3), (3, 0)]
)
@every_case
def test_slices_and_what_is_kept_do_not_matter(method, parameters, options, shape):
    """A tensor merged in slices of any size, with its statistics kept or computed again, has the
    same bits."""
    base, sources = shaped(shape, len(parameters))
    expected = merge(method, base, sources, parameters, options)
    assert expected.shape == shape
    assert torch.isfinite(expected).all()
    for slice_size, keep in [(7, False), (64, True), (1000, True)]:
        found = merge(method, base, sources, parameters, options, slice_size=slice_size, keep=keep)
        assert torch.equal(found, expected)


@every_case
def test_threads_do_not_matter(method, parameters, options):
    """Several threads give the bits of one."""
    base, sources = shaped((400, 300), len(parameters))
    expected = merge(method, base, sources, parameters, options)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if before == 1 else 1)
        assert torch.equal(merge(method, base, sources, parameters, options), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in LOOK_AT_ROWS])
def test_the_shape_does_not_matter(method):
    """Methods that do not look at rows give a matrix the numbers of the same elements in one
    row."""
    _, parameters, options = next(case for case in CASES if case[0] == method)
    flat, matrix = (
        merge(method, *shaped(shape, len(parameters)), parameters, options)
        for shape in ((120,), (10, 12))
    )
    assert torch.equal(matrix.view(-1), flat)


def held(thing, seen):
    """Bytes of all arrays and tensors that an object holds on to."""
    if id(thing) in seen or isinstance(thing, (type, str)) or callable(thing):
        return 0
    seen.append(id(thing))
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(held(item, seen) for item in thing.values())
    if isinstance(thing, (list, tuple)):
        return sum(held(item, seen) for item in thing)
    if type(thing).__module__.startswith("hf_evomerge"):
        names = getattr(type(thing), "__slots__", None) or vars(thing)
        return sum(held(getattr(thing, name), seen) for name in names)
    return 0


@every_case
def test_the_memory_of_a_search_is_declared(method, parameters, options):
    """What is held between candidates is no more than was said, but for lists of positions and
    numbers per row."""
    chosen = get_method(method)
    base, sources = shaped((100, 1000), len(parameters))
    sources = [source.bfloat16() for source in sources]
    job = TensorJob(NAME, chosen, base.bfloat16(), sources, seed=0, keep=True)
    known = {"sources": len(sources), "has_base": True, "layer_count": 4}
    job.run(*complete(chosen, parameters, options, **known), torch.empty(100, 1000))
    found = held(job, [])
    said = memory_needed(chosen, base.numel(), len(sources), with_base=True)
    assert found <= said * 1.1
    used = [v.get("weight", 1) and resolve(v.get("density", 0.5), NAME) % 1 for v in parameters]
    if all(used):
        assert found >= said * 0.5
