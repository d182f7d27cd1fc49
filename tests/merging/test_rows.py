"""Weights for runs of rows: a list of numbers under the name of a tensor."""

import pytest
import torch
from method_cases import merge
from recipes import merge_of
from refusals import refused

from hf_evomerge import Recipe, build_model
from hf_evomerge.building.merged import Merged
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError
from hf_evomerge.merging.live import LiveMerger

NAME = "model.layers.1.mlp.up_proj.weight"


def of_family(family, method, *weights):
    """A merge of two fine-tunes with the base."""
    return merge_of(
        family / "source0", family / "source1", method=method, base=family / "base", weights=weights
    )


@pytest.mark.parametrize("size", [5, 24, 1000])
@pytest.mark.parametrize("rows", [6, 10])
def test_each_run_of_rows_has_its_weight(rows, size):
    """Row r of R has number floor(r n / R), sources may be cut differently, and slices do not
    matter."""
    base, *sources = torch.randn(3, rows, 4, generator=torch.Generator().manual_seed(1))
    numbers = ([0.1, 0.7, -0.5], [1.5, 0.0])

    def merged(size, *weights):
        values = [{"weight": {NAME: weight}} for weight in weights]
        return merge("task_arithmetic", base, sources, values, slice_size=size, name=NAME)

    wanted = base.clone()
    for own, source in zip(numbers, sources, strict=True):
        per_row = torch.tensor([own[row * len(own) // rows] for row in range(rows)])
        wanted += per_row[:, None] * (source - base)
    assert torch.allclose(merged(size, *numbers), wanted, atol=1e-6)
    assert torch.equal(merged(size, [0.3] * 3, 0.9), merged(1000, 0.3, 0.9))


def test_a_model_built_and_a_live_one_are_the_same(family, open_all, load, tmp_path):
    """A recipe with runs of rows survives YAML and builds the bits that the search scored."""
    attention = "model.layers.0.self_attn.q_proj.weight"
    weights = {NAME: [0.25, -0.5, 1.75, 0.1], attention: [0.9, 0.2], "default": 0.4}
    recipe = of_family(family, "task_arithmetic", weights, 0.6)
    recipe.save(tmp_path / "recipe.yaml")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again == recipe
    written = load(build_model(again, tmp_path / "model")).state_dict()
    model = load(family / "base")
    merger = LiveMerger(*open_all(again), "task_arithmetic", {}, 0, model)
    merger.apply(again.merge.parameters)
    torch.testing.assert_close(dict(model.state_dict()), dict(written), rtol=0, atol=0)


def test_rows_that_do_not_fit_are_refused(family):
    """More numbers than rows, a method that looks at whole tensors and weights that cancel are one
    line before any work."""
    sources = {number: open_source(str(family / f"source{number}")) for number in range(2)}

    def plan(method, *weights):
        recipe = of_family(
            family, method, *({NAME: numbers, "default": 0.5} for numbers in weights)
        )
        return Merged(recipe, sources, open_source(str(family / "base")))

    with refused(RecipeError, r"5000 numbers for the .* rows of a tensor; give fewer"):
        plan("task_arithmetic", [0.1] * 5000, [0.5])
    with refused(RecipeError, "ties looks at whole tensors"):
        plan("ties", [0.1, 0.2], [0.5])
    with refused(RecipeError, "add up to 0; with normalize"):
        plan("linear", [1.0, 0.5], [0.2, 0.3, -0.5])
