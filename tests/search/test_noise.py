"""The baseline `noise`: the same search over noise of the size of what the sources have changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from searches import GRADIENT, digests, facts, minimal
from tiny_adapters import save_adapter

from hf_evomerge.building.noise import NoiseCheckpoint, check_noise, is_noise, write_noise
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import SearchError, SourceError
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

NOISE = {"baselines": ["noise"], "finalists": 1}


def _size(tensor):
    return float(tensor.double().square().mean().sqrt())


def test_noise_has_the_size_of_a_change(tiny, tmp_path):
    """In each tensor the noise is as large as what the fine-tune changed, and points elsewhere;
    what is unchanged stays so."""
    base = open_source(str(tiny / "base"))
    source = open_source(str(tiny / "a"))
    ref = write_noise(source, base, tmp_path / "noise", seed=3, number=0)
    assert ref == SourceRef(model=str(tmp_path / "noise"))
    assert is_noise(ref)
    assert not is_noise(SourceRef(model=str(tiny / "a")))
    noise = open_source(ref)
    assert list(noise.tensors) == list(source.tensors)
    for name in source.tensors:
        change = source.read(name) - base.read(name)
        drawn = noise.read(name) - base.read(name)
        if not change.any():
            assert not drawn.any()
            continue
        spread = 4 / np.sqrt(2 * change.numel())  # four standard errors of a deviation
        assert _size(drawn) == pytest.approx(_size(change), rel=spread)
        cosine = torch.nn.functional.cosine_similarity(drawn.flatten(), change.flatten(), dim=0)
        assert abs(float(cosine)) < 4 / np.sqrt(change.numel())


def test_noise_depends_on_seed_and_number_alone(tiny, tmp_path):
    """The same seed and number give the same files, wherever and after whatever they are written;
    others give others."""
    base = open_source(str(tiny / "base"))
    source = open_source(str(tiny / "a"))

    def written(folder, seed, number):
        ref = write_noise(source, base, tmp_path / folder, seed=seed, number=number)
        return digests(Path(ref.model))["model.safetensors"]

    first = written("one", 3, 0)
    noise = NoiseCheckpoint(source, base, 3, 0)
    for name in reversed(noise.tensors):  # in any order
        assert torch.equal(noise.read(name), open_source(str(tmp_path / "one")).read(name))
    one, other = (
        noise.read(name) - base.read(name)
        for name in noise.tensors
        if name.endswith("gate_proj.weight")
    )
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    assert abs(float(cosine)) < 4 / np.sqrt(one.numel())
    others = [written("two", 3, 1), written("three", 4, 0)]
    assert written("four", 3, 0) == first
    assert len({first, *others}) == 3


def test_noise_for_an_adapter_is_one(tiny, tmp_path):
    """In place of an adapter of the base stands an adapter with noise in each factor; one with more
    than factors is refused."""
    folder = save_adapter(tiny / "base", tmp_path / "adapter", 1)
    base = open_source(str(tiny / "base"))
    source = open_source(SourceRef(model=str(tiny / "base"), adapter=str(folder)))
    ref = write_noise(source, base, tmp_path / "noise", seed=0, number=0)
    assert (ref.model, ref.adapter) == (str(tiny / "base"), str(tmp_path / "noise"))
    noise = open_source(ref)
    assert noise.changes.keys() == source.changes.keys()
    for name, change in source.changes.items():
        for own, drawn in zip(
            source.adapter.factors(change), noise.adapter.factors(noise.changes[name]), strict=True
        ):
            assert not torch.equal(own, drawn)
            assert _size(drawn) == pytest.approx(_size(own), rel=4 / np.sqrt(2 * own.numel()))


@pytest.mark.parametrize("kind", ["models", "adapters", "dfs"])
def test_a_search_over_noise(kind, search_config, tiny, tmp_path):
    """The search runs again over noise: it is planned at the price of the search, its recipes are
    of the noise, and its row is there; resumed, nothing changes."""
    space = "dfs" if kind == "dfs" else "ps"
    settings = {} if space == "dfs" else {"merge": {"groups": "half"}}
    if kind == "adapters":
        base = str(tiny / "base")
        folders = [save_adapter(tiny / "base", tmp_path / name, n) for n, name in enumerate("xy")]
        settings["sources"] = [{"model": base, "adapter": str(folder)} for folder in folders]
        settings["optimize"] = [{**GRADIENT, "batch": 2}]
    config = search_config(space, compare=NOISE, **settings)
    plan = {phase.name: phase for phase in plan_search(config).phases}
    assert plan[f"noise-{space}"].seconds == plan[space].seconds
    out = tmp_path / "out"
    result = run_search(config, out, build=False)
    row = result.row("noise")
    assert row.scores.error is None
    assert row.evaluations == result.row(space).evaluations
    assert f"{len(result.rows)} models on" in plan["test"].text
    with Study.open(out) as study:
        for trial in study.trials(f"noise-{space}"):
            recipe = study.recipe(trial.recipe_key)
            assert all(map(is_noise, recipe.sources))
            assert trial.state == "COMPLETE", trial.scores.error
        for trial in study.trials(space):
            assert not any(map(is_noise, study.recipe(trial.recipe_key).sources))
        own = {trial.recipe_key for trial in study.trials(space)}
        assert own.isdisjoint(trial.recipe_key for trial in study.trials(f"noise-{space}"))
    before = facts(out)
    again = run_search(config, out, build=False)
    assert facts(out) == before
    assert again.row("noise").scores.mean == row.scores.mean


def test_noise_takes_a_base(tiny, tmp_path):
    """Without a base there are no changes to replace; an adapter with more than factors is refused
    by its name."""
    with pytest.raises(SearchError, match="noise takes the place of what sources have changed"):
        minimal(compare=NOISE)
    folder = save_adapter(tiny / "base", tmp_path / "dora", 1, use_dora=True)
    source = open_source(SourceRef(model=str(tiny / "base"), adapter=str(folder)))
    with pytest.raises(SourceError) as caught:
        check_noise(source, open_source(str(tiny / "base")), "mine")
    assert str(caught.value) == (
        "compare.baselines: noise cannot stand for mine: the adapter has DoRA beside its factors; "
        "leave noise out"
    )
