"""Merge methods as functions of tensors: the executors' bits, peft's numbers, documentation that
runs, and plain errors."""

import doctest
import inspect
import pickle
import subprocess
import sys

import pytest
import torch
from method_cases import NAME, every_case, merge, tensors
from peft.utils import merge_utils as peft
from safetensors.torch import load_file

from hf_evomerge import merging
from hf_evomerge.building.build import build_model
from hf_evomerge.errors import RecipeError, SourceError
from hf_evomerge.merging.checks import complete
from hf_evomerge.merging.registry import METHODS, get_method
from hf_evomerge.recipes.layer_groups import resolve


def call(method, base, sources, parameters, options, **more):
    """Call the function of a method with the parameters of a recipe that apply to one tensor."""
    chosen = get_method(method)
    name = more.get("name", NAME)
    values, given = complete(
        chosen, parameters, options, sources=len(sources), has_base=True, layer_count=2
    )
    arguments = {
        p.argument or p.name: [resolve(v[p.name], name) for v in values]
        for p in chosen.source_parameters
    }
    arguments |= {p.argument or p.name: resolve(given[p.name], name) for p in chosen.options}
    function = getattr(merging, method)
    more = {
        key: value for key, value in more.items() if key in inspect.signature(function).parameters
    }
    if chosen.needs_base:
        return function(base, sources, **arguments, **more)
    return function(
        sources, **arguments, **more, **({"base": base} if chosen.base_optional else {})
    )


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
    base, *sources = (
        load_file(half_family / name / "model.safetensors")
        for name in ("base", *(f"source{i}" for i in range(len(parameters))))
    )
    for name, wanted in built.items():
        found = call(
            method,
            base[name],
            [source[name] for source in sources],
            parameters,
            options,
            name=name,
            seed=7,
        )
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


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (4, 3, 2)])
@every_case
def test_tensors_of_any_shape(method, parameters, options, shape):
    """Scalars, empty tensors and tensors of many dimensions keep their shape."""
    base, sources = tensors(len(parameters), size=int(torch.Size(shape).numel()))
    found = call(
        method, base.view(shape), [source.view(shape) for source in sources], parameters, options
    )
    assert found.shape == shape
    assert torch.isfinite(found).all()


def test_dtypes_layouts_and_gradients():
    """The result has the dtype of the first source and its own memory, takes any strides, and
    records no gradient."""
    base, (a, b) = tensors(2, size=12)
    matrices = [tensor.view(3, 4) for tensor in (base, a.half(), b.double())]
    expected = merge("ties", matrices[0], matrices[1:], [{"density": 0.5}, {"density": 0.5}])
    columns = [tensor.t().contiguous().t().requires_grad_() for tensor in matrices]
    before = [tensor.detach().clone() for tensor in columns]
    found = merging.ties(columns[0], columns[1:], density=0.5)
    assert torch.equal(found, expected.half())
    assert not found.requires_grad
    assert not found.is_inference()
    assert all(torch.equal(tensor, old) for tensor, old in zip(columns, before, strict=True))
    found = merging.passthrough([a])
    assert found.data_ptr() != a.data_ptr()


def test_weights_may_be_arrays():
    """Weights come as a list, a tuple, a tensor or an array."""
    base, sources = tensors(2)
    expected = merging.task_arithmetic(base, sources, weights=[0.5, 0.25])
    for weights in ((0.5, 0.25), torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.25]).numpy()):
        assert torch.equal(merging.task_arithmetic(base, sources, weights=weights), expected)


ONE = torch.ones(2)
TWO = torch.ones(3)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (
            "ties",
            (ONE, [ONE, ONE]),
            {"density": [1, -1]},
            RecipeError,
            r"ties: density\[1\]: -1 is out of range",
        ),
        (
            "ties",
            (ONE, [ONE]),
            {"weights": [1, 2]},
            RecipeError,
            "ties: weights: found 2 values for 1 sources; give one",
        ),
        (
            "ties",
            (ONE, [ONE]),
            {"normalize": 1},
            RecipeError,
            "ties: normalize: 1 is not true or false",
        ),
        (
            "linear",
            ([ONE, ONE],),
            {"weights": [1, -1]},
            RecipeError,
            "the weights of linear add up to 0",
        ),
        ("slerp", ([ONE],), {}, RecipeError, "slerp: sources: found 1 tensors; give 2"),
        (
            "linear",
            ([ONE, TWO],),
            {},
            SourceError,
            r"linear: sources\[1\] has the shape \[3\], sources\[0\] \[2\]",
        ),
        ("ties", (TWO, [ONE]), {}, SourceError, r"ties: base has the shape \[3\]"),
        (
            "linear",
            ([ONE.int()],),
            {},
            SourceError,
            r"linear: sources\[0\] is of torch.int32; give tensors of floats",
        ),
        (
            "ties",
            (ONE, [ONE]),
            {"densty": 1},
            TypeError,
            r"ties\(\): got an unexpected keyword argument 'densty'",
        ),
        (
            "ram",
            (ONE, [{"w": ONE}]),
            {},
            SourceError,
            r"ram: sources\[0\] is a dict, of a whole model: call it for each of its",
        ),
        (
            "ram",
            (ONE, torch.ones(2, 3)),
            {},
            SourceError,
            "ram: sources is a Tensor; give a list of tensors, one of each source",
        ),
    ],
)
def test_mistakes_are_named(function, arguments, options, error, message):
    """A mistake is answered with the function, the argument, what was found and what to do."""
    with pytest.raises(error, match=f"^{message}"):
        getattr(merging, function)(*arguments, **options)


def peft_inputs():
    """Task vectors of several signs and sizes, the sources that have them, and weights."""
    base = torch.zeros(600)
    sources = tensors(3, size=600, spread=1.0)[1]
    return base, sources, [0.7, 0.4, 0.3]


def test_pefts_task_arithmetic_and_magnitude_prune():
    """task_arithmetic is peft's, where the base is 0; magnitude_prune is breadcrumbs that drop
    nothing at the top."""
    base, sources, weights = peft_inputs()
    expected = peft.task_arithmetic(sources, torch.tensor(weights))
    torch.testing.assert_close(merging.task_arithmetic(base, sources, weights=weights), expected)
    expected = peft.magnitude_prune(sources, torch.tensor(weights), 0.3)
    torch.testing.assert_close(
        merging.breadcrumbs(base, sources, weights=weights, density=0.3, gamma=0.0), expected
    )


def test_pefts_ties():
    """With equal weights peft's ties is the weight times this one, which divides by weights."""
    base, sources, weights = peft_inputs()
    expected = peft.ties(sources, torch.tensor([0.5] * 3), 0.3)
    torch.testing.assert_close(
        merging.ties(base, sources, weights=0.5, density=0.3), expected / 0.5
    )
    # peft elects before it weights, here after: with unequal weights other signs win
    unequal = peft.ties(sources, torch.tensor(weights), 0.3)
    assert (
        merging.ties(base, sources, weights=weights, density=0.3).sign() != unequal.sign()
    ).any()


def test_pefts_dare(monkeypatch):
    """With the same masks peft's DARE is rescale expected; peft's dare_ties divides by the number
    of sources that agree."""
    base, sources, _ = peft_inputs()
    common = {"density": 0.5, "seed": 3}
    alone = [[1.0 if other == index else 0.0 for other in range(3)] for index in range(3)]
    kept = [
        merging.dare_linear(base, sources, weights=weights, rescale="none", **common)
        for weights in alone
    ]
    assert all(0.4 < (part != 0).float().mean() < 0.6 for part in kept)
    for method, options, factor in (
        ("dare_linear", {}, 1.0),
        ("dare_ties", {"normalize": True}, 0.5),
    ):
        masks = iter([(part != 0).float() for part in kept])
        monkeypatch.setattr(peft.torch, "bernoulli", lambda input, masks=masks: next(masks))
        expected = getattr(peft, method)(sources, torch.tensor([0.5] * 3), 0.5)
        found = getattr(merging, method)(
            base, sources, weights=0.5, rescale="expected", **common, **options
        )
        torch.testing.assert_close(found * factor, expected)
