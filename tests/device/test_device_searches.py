"""Whole searches on another device: the trials of the processor, from the same settings."""

import numpy as np
import pytest
import yaml
from other_device import NAME
from searches import facts
from slowly import slow_beyond
from tiny_adapters import save_adapter

from hf_evomerge.search.evaluation.devices import device_kind
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.phases.baselines import trainings
from hf_evomerge.search.phases.baselines.merge_lora import Begin, learn_together
from hf_evomerge.search.run import run_search

KINDS = yaml.safe_load("""
ps:
  space: ps
  merge: {method: dare_ties, groups: block}
  optimize: [&few {by: cma, evaluations: 4, population: 4}]
dfs: &paths
  space: dfs
  path: {kind: gates, terms: all}
  optimize: [&wide {<<: *few, sigma: 1.0}]
hybrid:
  space: hybrid
  fitness: {task: generation, extract: all, max_new_tokens: 4}
  optimize: [{<<: *few, space: ps}, {<<: *wide, space: dfs}]
gradient:
  space: ps
  optimize: &steps [{by: gradient, evaluations: 8, batch: 2}, *few]
  compare: {baselines: [lora, merge+lora]}
gates: {<<: *paths, optimize: [{by: gradient, evaluations: 12, batch: 2}]}
""")
STEPS = KINDS["gradient"]["optimize"][:1]


@pytest.fixture
def adapters(tiny, tmp_path):
    """Sources of a search over two adapters, each of a rank of its own, and their base."""
    base = {"model": str(tiny / "base")}
    folders = [
        save_adapter(tiny / "base", tmp_path / f"rank{rank}", rank, r=rank) for rank in (2, 3)
    ]
    return {"sources": [{**base, "adapter": str(folder)} for folder in folders], "base": base}


def check_table(config_of, device, folder):
    """Check that a search has the processor's table, up to the order of sums in gradients."""
    here, there = (
        run_search(config_of(place), folder / place, build=False) for place in ("cpu", device)
    )
    assert [row.model for row in there.rows] == [row.model for row in here.rows]
    for row, wanted in zip(there.rows, here.rows, strict=True):
        assert row.scores.error is None, row.model
        assert np.allclose(row.scores.values, wanted.scores.values, atol=1e-3), row.model


@pytest.mark.parametrize("kind", slow_beyond(["gates"], KINDS))
def test_a_search_there(kind, device, search_there, tmp_path, monkeypatch):
    """Every kind of search has the processor's trials and winner; without gradients to the last
    bit."""
    monkeypatch.setattr(trainings, "RATES", (2e-4, 5e-4, 1e-3))
    check_table(lambda place: search_there(place, **KINDS[kind]), device, tmp_path)
    if kind not in ("gradient", "gates"):
        assert facts(tmp_path / device) == facts(tmp_path / "cpu")


def test_adapters_there(device, adapters, search_there, tmp_path):
    """Adapters run unmerged on a base of the device, with a weight for each run of rows."""
    how = {"merge": {"groups": "rows"}, "optimize": STEPS}
    check_table(lambda place: search_there(place, **how, **adapters), device, tmp_path)


def test_devices_of_one_kind():
    """The number of a device is no part of its kind, so one study takes scores of both."""
    assert device_kind(f"{NAME}:0") == device_kind(f"{NAME}:1") == device_kind(NAME)


@pytest.mark.parametrize("of_adapters", [False, True])
def test_lora_learns_beside_a_merge_there(of_adapters, device, adapters, search_there):
    """Merge weights and scores are the processor's up to the order of sums, merged or unmerged."""
    found = []
    for place in ("cpu", device):
        evaluator = Evaluator(
            search_there(place, optimize=STEPS, **(adapters if of_adapters else {}))
        )
        stage = evaluator.config.stages[0]
        recipe, tuned = learn_together(evaluator, stage, 1e-2, Begin())
        task = evaluator.tasks.prepared(evaluator.config.sources[0])
        found.append((weights_of(recipe), task.evaluate(tuned).values))
    assert np.allclose(found[0][0], found[1][0], atol=1e-4)
    assert np.allclose(found[0][1], found[1][1], atol=1e-2)


def weights_of(recipe):
    """The numbers of a recipe's weights, in order."""
    found = []
    for parameters in recipe.merge.parameters:
        weight = parameters["weight"]
        found += weight.values() if isinstance(weight, dict) else [weight]
    return found
