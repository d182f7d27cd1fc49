"""Mixtures of experts: routers from one source, experts as a group of their own, on disk and in
memory."""

from pathlib import Path

import pytest
import torch
import yaml
from classes import tensors_of
from recipes import merge_of
from refused import refused
from slowly import slow_beyond
from tiny_models import MIXTURES, tiny_model
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import check_recipe, open_merge
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.recipes.layer_groups import classify


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Makes, once for each architecture, a base and two models of two blocks."""
    made = {}

    def of(architecture):
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp(architecture)
            for seed, name in enumerate(("base", "a", "b")):
                model = tiny_model(architecture, layers=2, seed=seed, **MIXTURES[architecture])
                model.save_pretrained(made[architecture] / name)
        return made[architecture]

    return of


def recipe_of(folder, weights=0.5, **merge):
    """Task arithmetic of the two, with one value of the weight for both."""
    fields = {"method": "task_arithmetic", "base": folder / "base", "weights": [weights] * 2}
    return merge_of(folder / "a", folder / "b", **fields, merge=merge)


def halves(tensors):
    """The names of the tensors by the half of a block that they are in."""
    found = {}
    for name in tensors:
        found.setdefault(classify(name)[2], []).append(name)
    return found


@pytest.mark.parametrize("architecture", slow_beyond(["mixtral", "gpt_oss"], MIXTURES))
def test_routers_are_one_sources_and_experts_a_group(architecture, families, built, tmp_path):
    """Routers are copied from the first source, or the one that is named; experts have the value of
    their group."""
    folder = families(architecture)
    base, a, b = (tensors_of(folder / name) for name in ("base", "a", "b"))
    names = halves(base)
    assert len(names["router"]) in (2, 4)  # gpt-oss has a bias
    assert len(names["experts"]) >= 4
    weights = {"blocks.0-1.experts": 0.25, "default": 0.5}
    merged = tensors_of(built(recipe_of(folder, weights)))
    other = tensors_of(built(recipe_of(folder, weights, router=1), "other"))
    for name, tensor in merged.items():
        if name in names["router"]:
            assert torch.equal(tensor, a[name]), name
            assert torch.equal(other[name], b[name]), name
            continue
        assert torch.equal(tensor, other[name])
        weight = 0.25 if name in names["experts"] else 0.5
        torch.testing.assert_close(
            tensor, base[name] + weight * (a[name] + b[name] - 2 * base[name])
        )
    ledger = check_recipe(recipe_of(folder, weights)).ledger
    assert ledger.kinds["copied from a"] == len(names["router"])
    assert f"router, that of one source is kept ({2 * len(names['router'])})" in str(ledger)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.tensor([[3, 4, 5]]))


ROUTERS = list(zip(MIXTURES, [0, 1, "merge", "merge", 1], strict=True))


@pytest.mark.parametrize(("architecture", "router"), slow_beyond(["mixtral", "gpt_oss"], ROUTERS))
def test_a_live_model_has_the_bits_of_a_build(architecture, router, families, built):
    """Also where transformers keeps the experts of a block in one parameter and the files have one
    of each."""
    folder = families(architecture)
    recipe = recipe_of(folder, router=router)
    written = AutoModelForCausalLM.from_pretrained(built(recipe))
    live = AutoModelForCausalLM.from_pretrained(folder / "base")
    plan = open_merge(recipe, open_source).plan
    merger = LiveMerger(plan.sources, plan.base, "task_arithmetic", {}, 0, live, kept=plan.kept)
    merger.apply([{"weight": 0.5}] * 2)
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, live.state_dict()[name]), name


def test_merged_routers_are_a_group_too(families, built):
    """With router: merge they have the value of the MLP, or their own."""
    folder = families("mixtral")
    base, a, b = (tensors_of(folder / name) for name in ("base", "a", "b"))
    weights = {"blocks.0-1.router": 0.0, "blocks.1.mlp": 0.25, "default": 0.5}
    merged = tensors_of(built(recipe_of(folder, weights, router="merge")))
    for name, tensor in merged.items():
        half = classify(name)[2]
        block = classify(name)[1]
        weight = (
            0.0 if half == "router" else 0.25 if block == 1 and half in ("mlp", "experts") else 0.5
        )
        torch.testing.assert_close(
            tensor, base[name] + weight * (a[name] + b[name] - 2 * base[name])
        )


def test_slices_take_the_router_of_their_first_source(families, built):
    """Each layer of a stack has the routers of the source that its slice names first."""
    folder = families("mixtral")
    a, b = (tensors_of(folder / name) for name in "ab")
    slices = "[layers: ['0:0', '1:0'], layers: ['1:1', '0:1']]"
    recipe = recipe_of(folder, slices=yaml.safe_load(slices), parameters=[])
    merged = tensors_of(built(recipe))
    for name in halves(a)["router"]:
        assert torch.equal(merged[name], (a if classify(name)[1] == 0 else b)[name])


@pytest.mark.parametrize(
    ("architecture", "key", "message"),
    [
        (
            "mixtral",
            "blocks.0.router",
            "layer group blocks.0.router: no tensor that is merged .* router: merge",
        ),
        ("llama", "blocks.0.experts", "layer group blocks.0.experts: no tensor that is merged"),
    ],
)
def test_a_group_that_is_not_merged_is_refused(architecture, key, message, tmp_path):
    """A number that would change nothing: of routers that are copied, of experts that are not
    there."""
    for name in ("a", "b", "base"):
        tiny_model(architecture, layers=1, **MIXTURES.get(architecture, {})).save_pretrained(
            tmp_path / name
        )
    with refused(message, RecipeError):
        check_recipe(recipe_of(tmp_path, {key: 0.5, "default": 1.0}))


def test_a_router_is_one_of_those_that_are_merged():
    """Another source, or one for a stack, is refused when the recipe is read."""
    for merge in ("router: 2", "{router: 1, slices: [layers: ['0:0', '1:0']], parameters: []}"):
        with pytest.raises(ValueError, match=r"merge.router: . is no source of all that is merged"):
            recipe_of(Path("x"), **yaml.safe_load(merge))
