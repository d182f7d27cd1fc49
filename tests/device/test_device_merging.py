"""Merges on another device: the processor's bits, written where the model is."""

import itertools

import pytest
import torch
from merge_fixtures import family, load, make_recipe, open_all  # noqa: F401
from method_cases import CASES, IDS
from slowly import slow_beyond

from hf_evomerge import merging
from hf_evomerge.merging.gradient import MergeGradient
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.merging.registry import all_methods

TOKENS = torch.arange(3, 27).view(2, 12)
LIMITS = (0, 1 << 30)  # task vectors are read again for each merge, or kept on the device
DIAGONAL = list(zip(IDS, itertools.cycle(LIMITS), strict=False))


@pytest.fixture
def merge_of(family, make_recipe, open_all):  # noqa: F811
    """Gives method, parameters and options of a case, and its opened sources."""

    def of(case):
        method, parameters, options = CASES[IDS.index(case)]
        based = method != "slerp"
        recipe = make_recipe(family, method, parameters, options, len(parameters), base=based)
        return method, parameters, options, open_all(recipe)

    return of


@pytest.mark.parametrize(
    ("case", "memory_limit"), slow_beyond(DIAGONAL, itertools.product(IDS, LIMITS))
)
def test_a_live_merge_there(device, family, merge_of, load, case, memory_limit):  # noqa: F811
    """Every method writes the processor's merge into a model of the device, bit for bit."""
    method, parameters, options, opened = merge_of(case)
    here, there = (load(family / "source0").to(place) for place in ("cpu", device))
    for model in (here, there):
        LiveMerger(*opened, method, options, 3, model, memory_limit=memory_limit).apply(parameters)
    for (name, wanted), merged in zip(here.named_parameters(), there.parameters(), strict=True):
        assert merged.device == torch.device(device)
        assert torch.equal(merged.cpu(), wanted), name


@pytest.mark.parametrize("memory_limit", LIMITS)
@pytest.mark.parametrize("case", ["ties-4", "slerp-1", "task_arithmetic-3", "multislerp-17"])
def test_gradients_of_a_merge_there(device, family, merge_of, load, case, memory_limit):  # noqa: F811
    """The slope of every number is the processor's, taken during the backward pass or after it."""
    method, parameters, options, opened = merge_of(case)
    slopes = []
    for place in ("cpu", device):
        model = load(family / "source0", attn_implementation="eager").to(place)
        merger = LiveMerger(*opened, method, options, 3, model)
        gradient = MergeGradient(merger, model, memory_limit=memory_limit)
        given = TOKENS.to(place)
        slopes.append(
            gradient(parameters, options, lambda: model(given, labels=given).loss.backward())  # noqa: B023
        )
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-4, abs=1e-7)
    assert any(slopes[0].values())


@pytest.mark.parametrize("method", all_methods())
def test_tensors_in_and_out_stay_there(device, method):
    """A merge function takes tensors of the device and gives one, of the processor's bits."""
    least, most = all_methods()[method].count
    count = 2 if least <= 2 <= (most or 2) else least
    tensors = torch.randn(count + 1, 8, 12, generator=torch.Generator().manual_seed(1))
    function = getattr(merging, method)

    def merged(place):
        base, *sources = (each.to(place) for each in tensors)
        try:
            return function(base=base, sources=sources)
        except TypeError:  # it takes no base
            return function(sources=sources)

    there = merged(device)
    assert there.device == torch.device(device)
    assert torch.equal(there.cpu(), merged("cpu"))
