"""The gradient of a live merge, against differences between merges."""

import pytest
import torch
import yaml
from method_cases import CASES, IDS, NAME, check_slopes, merge, tensors
from refusals import refused
from tiny_adapters import save_adapter
from tiny_models import tiny_model

from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError
from hf_evomerge.merging.arithmetic import TensorJob
from hf_evomerge.merging.checks import complete
from hf_evomerge.merging.gradient import MergeGradient, check_differentiable, products
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.merging.registry import all_methods, get_method
from hf_evomerge.recipes.layer_groups import resolve
from hf_evomerge.recipes.recipe import SourceRef

IDS_OF_TOKENS = torch.arange(3, 27).view(2, 12)
SMOOTH = {
    name: [p.name for p in method.parameters if p.smooth] for name, method in all_methods().items()
}
SMOOTH_CASES = [
    pytest.param(*case, id=name)
    for case, name in zip(CASES, IDS, strict=True)
    if SMOOTH[case[0]] and case[2].get("nuslerp_flatten", True)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("method", "parameters", "options"), SMOOTH_CASES)
def test_a_tensors_products_are_differences(method, parameters, options, dtype):
    """For every method that has a gradient, the products are the slopes of <g, merged tensor> in
    each of its numbers."""
    base, sources = tensors(len(parameters), size=96, spread=0.3, seed=4)
    base, *sources = (tensor.view(8, 12).to(dtype) for tensor in (base, *sources))
    given = tensors(0, size=96, seed=5)[0].view(8, 12)
    chosen = get_method(method)
    known = {"sources": len(sources), "has_base": True, "layer_count": 4}
    values, options = complete(chosen, parameters, options, **known)
    job = TensorJob(NAME, chosen, base, sources, seed=0)
    slopes = {}
    for (name, source), (slope,) in products(job, given.reshape(-1), values, options).items():
        slopes[name, source, None] = slope
    assert {name for name, *_ in slopes} == set(SMOOTH[method])
    values = [{key: resolve(value, NAME) for key, value in each.items()} for each in values]
    options = {key: resolve(value, NAME) for key, value in options.items()}
    # `merge` leaves a source of weight 0 out
    slopes = {
        place: slope
        for place, slope in slopes.items()
        if (options if place[1] is None else values[place[1]])[place[0]] != 0
    }
    tensors_of = [tensor.float() for tensor in (base, *sources)]

    def measure(values, options):
        merged = merge(method, tensors_of[0], tensors_of[1:], values, options)
        return (merged.double() * given).sum().item()

    check_slopes(slopes, values, options, measure, 1e-3, rel=2e-3, abs=2e-3)


def loss(model):
    """How far the model is from repeating some tokens."""
    return model(IDS_OF_TOKENS, labels=IDS_OF_TOKENS).loss


def opened(folder, count=2):
    """The first sources of a family, and its base."""
    return [open_source(str(folder / f"source{i}")) for i in range(count)], open_source(
        str(folder / "base")
    )


def check(merger, model, parameters, options=None, step=0.05, **limits):
    """Compare the gradient of a loss with its differences; returns the gradient."""
    gradient = MergeGradient(merger, model, **limits)
    found = gradient(parameters, options, lambda: loss(model).backward())
    for parameter in model.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad

    def measure(values, options):
        merger.apply(values, options)
        with torch.no_grad():
            return loss(model).item()

    check_slopes(found, parameters, options or {}, measure, step, rel=0.02, abs=2e-4)
    return found


GROUPS = {"embed": 0.3, "blocks.0": 0.0, "*layers.1.mlp*": 1.0, "default": 0.6}


@pytest.mark.parametrize("limits", [{}, {"memory_limit": 0}], ids=["whole", "one tensor at a time"])
def test_a_models_gradient_is_that_of_its_loss(family, load, limits):
    """Every number of a recipe has the slope of the loss, by group and pattern, also at 0 and 1,
    with tied embeddings."""
    model = load(family / "base")
    merger = LiveMerger(*opened(family), "task_arithmetic", {}, 0, model)
    found = check(merger, model, [{"weight": GROUPS}, {"weight": 0.5}], {"lambda": 1.0}, **limits)
    keys = {("weight", 0, key) for key in GROUPS} | {("weight", 1, None), ("lambda", None, None)}
    assert set(found) == keys
    assert all(found.values())


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_every_run_of_rows_has_its_slope(method, family, load):
    """The gradient has a number for each run of rows and one for the rest, through a normalised
    mean too."""
    model = load(family / "base")
    sources, base = opened(family)
    merger = LiveMerger(sources, base if method != "linear" else None, method, {}, 0, model)
    rows = {NAME: [0.2, 0.0, 1.0], "default": 0.6}
    found = check(merger, model, [{"weight": rows}, {"weight": 0.5}], step=0.02)
    keys = {key for name, source, key in found if (name, source) == ("weight", 0)}
    assert keys == {(NAME, 0), (NAME, 1), (NAME, 2), "default"}


@pytest.fixture
def parents(request, family, load, tmp_path):
    """Two sources and their base: with tied embeddings, a mixture of experts, and one source that
    is an adapter on the base."""
    if request.param == "tied":
        return opened(family)
    if request.param == "experts":
        for name, seed in (("base", 0), ("source0", 1), ("source1", 2)):
            tiny_model("mixtral", 2, seed, num_experts_per_tok=4).save_pretrained(tmp_path / name)
        return opened(tmp_path)
    save_adapter(family / "base", tmp_path, 0, target_modules=["q_proj", "up_proj"])
    sources, base = opened(family)
    return [
        open_source(SourceRef(model=str(family / "base"), adapter=str(tmp_path))),
        sources[0],
    ], base


# Of two sources, or one: elected signs change on the way between ends of a difference.
NUMBERS = yaml.safe_load("""
task_arithmetic: [[{weight: 0.4}, {weight: 0.7}], {lambda: 0.9}]
ties: [[{weight: 0.4}], {lambda: 0.9}]
slerp: [[{}, {}], {t: {blocks.0: 0.2, default: 0.7}}]
karcher: [[{weight: 0.4}, {weight: 0.7}], {}]
""")


@pytest.mark.parametrize("parents", ["tied", "experts", "adapter"], indirect=True)
@pytest.mark.parametrize("method", NUMBERS)
def test_each_kind_of_method_on_a_whole_model(method, parents, load):
    """The slopes of the loss of a whole model are right for a sum, a vote and an angle, whatever
    the sources are."""
    sources, base = parents
    parameters, options = NUMBERS[method]
    model = load(base.folder)
    sources = sources[: len(parameters)]
    origin = base if get_method(method).task_vectors else None
    merger = LiveMerger(sources, origin, method, {}, 0, model)
    found = check(merger, model, parameters, options, step=0.004)
    assert {name for name, _, _ in found} == set(SMOOTH[method])
    assert any(found.values())


def test_backward_passes_add_up_and_repeat(family, load):
    """Several backward passes give the sum of theirs, used at once or together, and the same point
    the same bits."""
    model = load(family / "base")
    merger = LiveMerger(*opened(family), "ties", {}, 0, model)
    parameters = [{"weight": 0.5, "density": 0.5}, {"weight": 0.8, "density": 0.7}]
    once = MergeGradient(merger, model)(parameters, {}, lambda: loss(model).backward())
    assert once == MergeGradient(merger, model)(parameters, {}, lambda: loss(model).backward())
    for limits in ({}, {"memory_limit": 0}):
        twice = MergeGradient(merger, model, **limits)(
            parameters, {}, lambda: [loss(model).backward() for _ in range(2)]
        )
        assert twice == {
            number: pytest.approx(2 * value, rel=1e-5) for number, value in once.items()
        }


def test_what_has_no_gradient_is_refused(family, load):
    """Methods without a smooth number, row-wise angles and gradients over layers are refused in one
    line."""
    with refused(RecipeError, "method: model_stock has no gradient; those that have one are bread"):
        check_differentiable(get_method("model_stock"))
    model = load(family / "base")
    for method, options, weight, message in (
        ("nuslerp", {"nuslerp_flatten": False}, 1.0, "nuslerp has no gradient with these options"),
        ("task_arithmetic", {}, [0.1, 0.2], "numbers that run over the layers have no gradient"),
    ):
        merger = LiveMerger(*opened(family), method, options, 0, model)
        with refused(RecipeError, message):
            MergeGradient(merger, model)(
                [{"weight": weight}, {}], {}, lambda: loss(model).backward()
            )
    assert all(parameter.requires_grad for parameter in model.parameters())
