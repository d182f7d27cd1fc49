"""Whole searches on another device: the trials of the processor, from the same settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_device import NAME, random_state, task_there
from searches import BY_BOTH, BY_GRADIENT, facts
from tiny_adapters import save_adapter

from hf_evomerge.errors import SearchError
from hf_evomerge.search import baselines
from hf_evomerge.search.checks import check_search
from hf_evomerge.search.evaluation.devices import device_kind
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.finetune import Lora, LoraAscent
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

BOTH = {"by": "cma", "evaluations": 8, "population": 4}
KINDS: dict[str, dict[str, Any]] = {
    "ps": {"merge": {"method": "dare_ties", "groups": "block"}},
    "dfs": {"space": "dfs"},
    "hybrid": {"space": "hybrid", "fitness": {"task": "generation", "max_new_tokens": 4}},
    "gradient": {**BY_BOTH["ps"], "compare": {"baselines": ["lora", "merge+lora", "noise"]}},
    "terms": BY_GRADIENT["terms"],
    "checkpointing": {**BY_GRADIENT["dfs"], "space": "dfs"},
}


@pytest.fixture
def adapters(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    """Sources of a search over two adapters, each of a rank of its own, and their base."""
    base = {"model": str(tiny / "base")}
    folders = [save_adapter(tiny / "base", tmp_path / f"rank{rank}", rank, r=rank) for rank in (2, 3)]
    return {"sources": [{**base, "adapter": str(folder)} for folder in folders], "base": base}


def same_trials(one: Path, other: Path) -> bool:
    """Tell whether two studies have the same trials, up to the order of sums in gradients, and none has failed."""
    with Study.open(one) as first, Study.open(other) as second:
        pairs = list(zip(first.trials(), second.trials(), strict=True))
        assert all(each.scores.error is None for pair in pairs for each in pair)
        return all(np.allclose(a.scores.values, b.scores.values, atol=1e-3) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_there(kind, device, search_there, tmp_path, monkeypatch):
    """Every kind of search has the processor's trials and winner; without gradients to the last bit."""
    monkeypatch.setattr(baselines, "RATES", (1e-3,))
    results = []
    for place in ("cpu", device):
        settings = {"space": "ps", **KINDS[kind]}
        results.append(run_search(search_there(place, **settings), tmp_path / place, build=False))
    here, there = results
    assert [row.model for row in there.rows] == [row.model for row in here.rows]
    for row, wanted in zip(there.rows, here.rows, strict=True):
        assert row.scores.error is None, row.model
        assert np.allclose(row.scores.values, wanted.scores.values, atol=1e-3), row.model
    if kind in ("ps", "dfs", "hybrid"):
        assert facts(tmp_path / device) == facts(tmp_path / "cpu")


@pytest.mark.parametrize("groups", ["rows", "model"])
def test_adapters_there(groups, device, adapters, search_there, tmp_path):
    """Adapters run unmerged on a base of the device, by gradient and without."""
    how = {"merge": {"groups": groups}, "optimize": [{"by": "gradient", "evaluations": 12, "batch": 2}, BOTH]}
    here, there = (
        run_search(search_there(place, **how, **adapters), tmp_path / place, build=False) for place in ("cpu", device)
    )
    for row, wanted in zip(there.rows, here.rows, strict=True):
        assert (row.model, row.scores.error) == (wanted.model, None)
        assert np.allclose(row.scores.values, wanted.scores.values, atol=1e-3), row.model


def test_a_worker_on_each_device(search_config, tmp_path):
    """Two devices of one kind have a worker each, and the study takes both: its trials are the processor's."""
    devices = [f"{NAME}:{number}" for number in range(2)]
    for name, device, workers in (("one", "cpu", 0), ("two", devices, 2)):
        config = search_config(compute={"device": device, "attn_implementation": "eager"})
        run_search(config, tmp_path / name, workers=workers, task_factory=task_there, build=False)
    assert facts(tmp_path / "two") == facts(tmp_path / "one")
    with Study.open(tmp_path / "two") as study:
        assert study.meta("devices") == [device_kind(devices[0])] == [device_kind(devices[1])]


def test_a_device_that_is_not_there(search_config):
    """A number beyond the last device ends the search before it begins."""
    config = search_config(compute={"device": f"{NAME}:2"})
    with pytest.raises(SearchError, match=r"compute.device: 'standin:2' cannot be used here: .*; auto is what there is"):
        check_search(config, Evaluator(config))


def test_a_fine_tune_begins_with_the_same_adapters(device, search_there):
    """LoRA's first weights are the processor's on every device, and no state of random numbers is other than before."""
    begun = []
    for place in ("cpu", device):
        evaluator = Evaluator(search_there(place))
        model = evaluator.models.model(evaluator.config.sources[0])
        states = [torch.get_rng_state(), random_state(0), random_state(1)]
        tuned = LoraAscent(model, Lora(rate=1e-3, steps=2, seed=5)).tuned
        after = [torch.get_rng_state(), random_state(0), random_state(1)]
        assert all(map(torch.equal, states, after)), place
        begun.append([each for name, each in tuned.named_parameters() if "lora_A" in name])
    assert {each.device for each in begun[1]} == {torch.device(device)}
    assert all(torch.equal(there.cpu(), here) for here, there in zip(*begun, strict=True))
