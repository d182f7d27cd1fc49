"""Merge methods as functions of tensors: the executors' bits, peft's numbers, documentation that
runs, and plain errors."""

import doctest
import inspect
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from method_cases import NAME, every_case, merge, tensors
from peft.utils import merge_utils as peft
from refusals import refused
from safetensors.torch import load_file

from hf_evomerge import merging
from hf_evomerge.building.build import build_model
from hf_evomerge.errors import RecipeError, SourceError
from hf_evomerge.merging.checks import complete
from hf_evomerge.merging.registry import METHODS, get_method
from hf_evomerge.recipes.layer_groups import resolve


def call(method, base, sources, parameters, options, name=NAME):
    """Call the function of a method with the parameters of a recipe that apply to one tensor."""
    chosen = get_method(method)
    known = {"sources": len(sources), "has_base": True, "layer_count": 2}
    values, given = complete(chosen, parameters, options, **known)
    arguments = {"sources": sources}
    for p in chosen.source_parameters:
        arguments[p.argument or p.name] = [resolve(v[p.name], name) for v in values]
    for p in chosen.options:
        arguments[p.argument or p.name] = resolve(given[p.name], name)
    if chosen.task_vectors:
        arguments["base"] = base
    if chosen.random:
        arguments |= {"name": name, "seed": 7}
    return getattr(merging, method)(**arguments)


@every_case
def test_functions_give_the_bits_of_a_build(
    half_family, make_recipe, tmp_path, method, parameters, options
):
    """Each tensor that a build writes is the function's, called with its name, the recipe's seed
    and the same parameters."""
    recipe = make_recipe(
        half_family, method, parameters, options, len(parameters), base=method != "slerp", seed=7
    )
    built = load_file(build_model(recipe, tmp_path / "out") / "model.safetensors")
    names = ("base", *(f"source{i}" for i in range(len(parameters))))
    parents = [load_file(half_family / name / "model.safetensors") for name in names]
    for name, wanted in built.items():
        base, *sources = (parent[name] for parent in parents)
        found = call(method, base, sources, parameters, options, name)
        assert found.dtype == wanted.dtype == torch.bfloat16
        assert torch.equal(found, wanted), name


@pytest.mark.parametrize("method", METHODS)
def test_the_documentation_runs(method):
    """Each function says what it takes, gives and raises, in lines that fit, and its example gives
    what it says."""
    function = getattr(merging, method)
    text = function.__doc__
    for section in ("Args:\n", "Returns:\n", "Raises:\n", "Example:\n"):
        assert f"\n\n{section}" in text
    for name in inspect.signature(function).parameters:
        assert f"\n    {name}: " in text
    assert max(map(len, text.splitlines())) <= 128
    example = doctest.DocTestParser().get_doctest(text, {}, method, None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_names_are_light_listed_and_pickled():
    """Functions and the registry load no torch; names are listed; a function is one object, found
    again by pickle."""
    code = "import sys; from hf_evomerge.merging import all_methods, ties; all_methods(); "
    code += "sys.exit(bool({'torch', 'transformers', 'safetensors'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert doctest.testmod(merging).failed == 0
    assert set(METHODS) <= set(dir(merging)) & set(merging.__all__)
    assert pickle.loads(pickle.dumps(merging.ties)) is merging.ties
    with pytest.raises(AttributeError, match="no attribute 'tise'"):
        _ = merging.tise


def test_dtypes_layouts_and_gradients():
    """The result has the dtype of the first source and its own memory, takes any strides, and
    records no gradient."""
    base, (a, b) = tensors(2, size=12)
    matrices = [tensor.view(3, 4) for tensor in (base, a.half(), b.double())]
    expected = merge("ties", matrices[0], matrices[1:], [{"density": 0.5}, {"density": 0.5}])
    columns = [tensor.t().contiguous().t().requires_grad_() for tensor in matrices]
    found = merging.ties(columns[0], columns[1:], density=0.5)
    assert torch.equal(found, expected.half())
    assert (found.requires_grad, found.is_inference()) == (False, False)
    for tensor, old in zip(columns, matrices, strict=True):
        assert torch.equal(tensor, old)
    assert merging.passthrough([a]).data_ptr() != a.data_ptr()


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array])
def test_weights_may_be_arrays(kind):
    """Weights come as a list, a tuple, a tensor or an array."""
    base, (a, b) = tensors(2)
    found = merging.task_arithmetic(base, [a, b], weights=kind([0.5, 0.25]))
    assert torch.equal(found, merge("task_arithmetic", base, [a, b], HALVED))


HALVED = [{"weight": 0.5}, {"weight": 0.25}]
ONE = torch.ones(2)
TWO = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            partial(merging.ties, ONE, [ONE, ONE], density=[1, -1]),
            RecipeError,
            r"ties: density\[1\]: -1 is out of range",
        ),
        (
            partial(merging.ties, ONE, [ONE], weights=[1, 2]),
            RecipeError,
            "ties: weights: found 2 values for 1 sources; give one",
        ),
        (
            partial(merging.ties, ONE, [ONE], normalize=1),
            RecipeError,
            "ties: normalize: 1 is not true or false",
        ),
        (
            partial(merging.linear, [ONE, ONE], weights=[1, -1]),
            RecipeError,
            "the weights of linear add up to 0",
        ),
        (partial(merging.slerp, [ONE]), RecipeError, "slerp: sources: found 1 tensors; give 2"),
        (
            partial(merging.linear, [ONE, TWO]),
            SourceError,
            r"linear: sources\[1\] has the shape \[3\], sources\[0\] \[2\]",
        ),
        (partial(merging.ties, TWO, [ONE]), SourceError, r"ties: base has the shape \[3\]"),
        (
            partial(merging.linear, [ONE.int()]),
            SourceError,
            r"linear: sources\[0\] is of torch.int32; give tensors of floats",
        ),
        (
            partial(merging.ties, ONE, [ONE], densty=1),
            TypeError,
            r"ties\(\): got an unexpected keyword argument 'densty'",
        ),
        (
            partial(merging.ram, ONE, [{"w": ONE}]),
            SourceError,
            r"ram: sources\[0\] is a dict, of a whole model: call it for each of its",
        ),
        (
            partial(merging.ram, ONE, torch.ones(2, 3)),
            SourceError,
            "ram: sources is a Tensor; give a list of tensors, one of each source",
        ),
    ],
)
def test_mistakes_are_named(call, error, message):
    """A mistake is answered with the function, the argument, what was found and what to do."""
    with refused(error, f"^{message}"):
        call()


SPREAD = tensors(3, size=600, spread=1.0)[1]
ZERO = torch.zeros(600)
UNEQUAL = [0.7, 0.4, 0.3]
HALVES = [0.5] * 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            merging.task_arithmetic(ZERO, SPREAD, weights=UNEQUAL),
            peft.task_arithmetic(SPREAD, torch.tensor(UNEQUAL)),
        ),
        (
            merging.breadcrumbs(ZERO, SPREAD, weights=UNEQUAL, density=0.3, gamma=0.0),
            peft.magnitude_prune(SPREAD, torch.tensor(UNEQUAL), 0.3),
        ),
        # which divides by weights
        (
            merging.ties(ZERO, SPREAD, weights=0.5, density=0.3) * 0.5,
            peft.ties(SPREAD, torch.tensor(HALVES), 0.3),
        ),
    ],
    ids=["task_arithmetic", "magnitude_prune", "ties"],
)
def test_pefts_merges(ours, theirs):
    """peft's task_arithmetic, magnitude_prune and ties are found again, where the base is 0."""
    torch.testing.assert_close(ours, theirs)


def test_pefts_ties_of_unequal_weights():
    """peft elects before it weights, and here is elected after: other signs win."""
    unequal = peft.ties(SPREAD, torch.tensor(UNEQUAL), 0.3)
    found = merging.ties(ZERO, SPREAD, weights=UNEQUAL, density=0.3)
    assert (found.sign() != unequal.sign()).any()


@pytest.mark.parametrize(
    ("method", "options", "factor"),
    [("dare_linear", {}, 1.0), ("dare_ties", {"normalize": True}, 0.5)],
)
def test_pefts_dare(method, options, factor, monkeypatch):
    """With the same masks peft's DARE is rescale expected; peft's dare_ties divides by the number
    of sources that agree."""
    common = {"density": 0.5, "seed": 3}
    masks = []
    for alone in torch.eye(3):
        kept = merging.dare_linear(ZERO, SPREAD, weights=alone, rescale="none", **common)
        masks.append((kept != 0).float())
    left = iter(masks)
    monkeypatch.setattr(peft.torch, "bernoulli", lambda input: next(left))
    expected = getattr(peft, method)(SPREAD, torch.tensor(HALVES), 0.5)
    merged = getattr(merging, method)
    found = merged(ZERO, SPREAD, weights=0.5, rescale="expected", **common, **options)
    torch.testing.assert_close(found * factor, expected)
