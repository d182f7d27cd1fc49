"""The baseline `noise`: the same search over noise of the size of what the sources have changed."""

import numpy as np
import pytest
import torch
from refusals import refused
from searches import digests, facts, minimal
from tiny_adapters import save_adapter

from hf_evomerge import SourceRef, open_source, plan_search, run_search
from hf_evomerge.building.noise import NoiseCheckpoint, check_noise, is_noise, write_noise
from hf_evomerge.errors import SearchError, SourceError
from hf_evomerge.search.study.study import Study

NOISE = "{baselines: [noise], finalists: 1}"


def _size(tensor):
    return float(tensor.double().square().mean().sqrt())


def _is_apart(one, other):
    """Whether two tensors point as far apart as random ones: within four standard errors."""
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    return abs(float(cosine)) < 4 / np.sqrt(one.numel())


def _spread(tensor):
    """Four standard errors of a deviation."""
    return 4 / np.sqrt(2 * tensor.numel())


@pytest.fixture
def pair(tiny):
    """The base and one of its fine-tunes."""
    return [open_source(str(tiny / name)) for name in ("base", "a")]


@pytest.fixture
def adapter(tiny, tmp_path):
    """Makes an adapter of the base, as a reference."""

    def make(name, seed=1, **how):
        base = tiny / "base"
        folder = save_adapter(base, tmp_path / name, seed, **how)
        return {"model": str(base), "adapter": str(folder)}

    return make


def test_noise_has_the_size_of_a_change(pair, tmp_path):
    """In each tensor the noise is as large as what the fine-tune changed, and points elsewhere;
    what is unchanged stays so."""
    base, source = pair
    ref = write_noise(source, base, tmp_path / "noise", seed=3, number=0)
    assert ref == SourceRef(model=str(tmp_path / "noise"))
    assert is_noise(ref)
    assert not is_noise(source.pinned)
    noise = open_source(ref)
    assert list(noise.tensors) == list(source.tensors)
    for name in source.tensors:
        change = source.read(name) - base.read(name)
        drawn = noise.read(name) - base.read(name)
        if not change.any():
            assert not drawn.any()
            continue
        assert _size(drawn) == pytest.approx(_size(change), rel=_spread(change))
        assert _is_apart(drawn, change)


def test_noise_depends_on_seed_and_number_alone(pair, tmp_path):
    """The same seed and number give the same files, wherever and after whatever they are written;
    others give others."""
    base, source = pair
    written = []
    for name, seed, number in (("one", 3, 0), ("two", 3, 1), ("three", 4, 0), ("four", 3, 0)):
        write_noise(source, base, tmp_path / name, seed=seed, number=number)
        written.append(digests(tmp_path / name)["model.safetensors"])
    assert written[0] == written[3]
    assert len(set(written)) == 3
    stored = open_source(str(tmp_path / "one"))
    noise = NoiseCheckpoint(source, base, 3, 0)
    for name in reversed(noise.tensors):  # in any order
        assert torch.equal(noise.read(name), stored.read(name))
    gates = [name for name in noise.tensors if name.endswith("gate_proj.weight")]
    assert _is_apart(*(noise.read(name) - base.read(name) for name in gates))


def test_noise_for_an_adapter_is_one(pair, adapter, tmp_path):
    """In place of an adapter of the base stands an adapter with noise in each factor."""
    base, _ = pair
    ref = adapter("adapter")
    source = open_source(SourceRef(**ref))
    drawn = write_noise(source, base, tmp_path / "noise", seed=0, number=0)
    assert (drawn.model, drawn.adapter) == (ref["model"], str(tmp_path / "noise"))
    noise = open_source(drawn)
    assert noise.changes.keys() == source.changes.keys()
    for name, change in source.changes.items():
        factors = source.adapter.factors(change), noise.adapter.factors(noise.changes[name])
        for own, other in zip(*factors, strict=True):
            assert not torch.equal(own, other)
            assert _size(other) == pytest.approx(_size(own), rel=_spread(own))


@pytest.mark.parametrize("kind", ["models", "adapters", "dfs"])
def test_a_search_over_noise(kind, search_config, adapter, tmp_path):
    """The search runs again over noise: it is planned at the price of the search, its recipes are
    of the noise, and its row is there; resumed, nothing changes."""
    space = "dfs" if kind == "dfs" else "ps"
    settings = {} if space == "dfs" else {"merge": "{groups: half}"}
    if kind == "adapters":
        settings["sources"] = [adapter(name, seed) for seed, name in enumerate("xy")]
        settings["optimize"] = "[{by: gradient, evaluations: 12, batch: 2}]"
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
        for stage, of_noise in ((space, False), (f"noise-{space}", True)):
            for trial in study.trials(stage):
                assert trial.state == "COMPLETE", trial.scores.error
                sources = study.recipe(trial.recipe_key).sources
                assert set(map(is_noise, sources)) == {of_noise}
    before = facts(out)
    again = run_search(config, out, build=False)
    assert facts(out) == before
    assert again.row("noise").scores == row.scores


def test_noise_takes_a_base(pair, adapter):
    """Without a base there are no changes to replace; an adapter with more than factors is refused
    by its name."""
    with refused(SearchError, "noise takes the place of what sources have changed"):
        minimal(compare=NOISE)
    source = open_source(SourceRef(**adapter("dora", use_dora=True)))
    told = "noise cannot stand for mine: the adapter has DoRA beside its factors; leave noise out"
    with refused(SourceError, f"^compare.baselines: {told}$"):
        check_noise(source, pair[0], "mine")
