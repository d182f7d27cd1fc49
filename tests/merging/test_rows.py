"""Weights for runs of rows: a list of numbers under the name of a tensor."""

import pytest
import torch
from recipes import merge_of
from refusals import refused

from hf_evomerge import Recipe, build_model
from hf_evomerge.building.merged import Merged
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError
from hf_evomerge.merging.arithmetic import TensorJob
from hf_evomerge.merging.checks import complete
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.merging.registry import get_method

NAME = "model.layers.1.mlp.up_proj.weight"


def of_family(family, method, *weights):
    """A merge of two fine-tunes with the base."""
    return merge_of(
        family / "source0", family / "source1", method=method, base=family / "base", weights=weights
    )


def merged(method, tensors, weights, size, **options):
    """The tensors of `NAME`, base first, merged in slices of `size` elements."""
    chosen = get_method(method)
    base, *sources = tensors
    parameters = [{"weight": {NAME: weight}} for weight in weights]
    values = complete(
        chosen,
        parameters,
        options,
        sources=len(sources),
        has_base=True,
        layer_count=4,
        names=[NAME],
    )
    out = torch.empty_like(base)
    TensorJob(NAME, chosen, base, sources, seed=0).run(*values, out, slice_size=size)
    return out


@pytest.mark.parametrize("size", [5, 24, 1000])
@pytest.mark.parametrize("rows", [6, 10])
def test_each_run_of_rows_has_its_weight(rows, size):
    """Row r of R has number floor(r n / R), sources may be cut differently, and slices do not
    matter."""
    base, one, two = torch.randn(3, rows, 4, generator=torch.Generator().manual_seed(1))
    first = [0.1, 0.7, -0.5]
    second = [1.5, 0.0]
    per_row = [
        torch.tensor([numbers[r * len(numbers) // rows] for r in range(rows)])[:, None]
        for numbers in (first, second)
    ]
    wanted = base + (per_row[0] * (one - base) + per_row[1] * (two - base))
    assert torch.allclose(
        merged("task_arithmetic", [base, one, two], [first, second], size), wanted, atol=1e-6
    )
    same = merged("task_arithmetic", [base, one, two], [[0.3] * 3, 0.9], size)
    assert torch.equal(same, merged("task_arithmetic", [base, one, two], [0.3, 0.9], 1000))


def test_a_model_built_and_a_live_one_are_the_same(family, load, tmp_path):
    """A recipe with runs of rows survives YAML and builds the bits that the search scored."""
    weights = {
        NAME: [0.25, -0.5, 1.75, 0.1],
        "model.layers.0.self_attn.q_proj.weight": [0.9, 0.2],
        "default": 0.4,
    }
    recipe = of_family(family, "task_arithmetic", weights, 0.6)
    recipe.save(tmp_path / "recipe.yaml")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again == recipe
    build_model(again, tmp_path / "model")
    model = load(family / "base")
    sources = [open_source(str(family / f"source{i}")) for i in range(2)]
    base = open_source(str(family / "base"))
    LiveMerger(sources, base, "task_arithmetic", {}, 0, model).apply(again.merge.parameters)
    written = load(tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in model.state_dict().items())


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
