"""Searches over whole fine-tunes whose trials run in low rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import GRADIENT, Config, digests, facts
from watch import killed

from hf_evomerge.building.build import build_model
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.memory import memory_of_models
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

ROWS = {"merge": {"groups": "rows"}, "optimize": [{**GRADIENT, "batch": 2}]}
ALL = 1000  # more than any side of a tiny weight


def trials_of(folder: Path) -> list[Any]:
    """The trials of a study's first stage, and their recipes."""
    with Study.open(folder) as study:
        return [(trial, study.recipe(trial.recipe_key or "")) for trial in study.trials("ps")]


@pytest.mark.parametrize("kind", [ROWS, pytest.param({}, marks=pytest.mark.slow)], ids=["gradient", "cma"])
def test_every_rank_scores_as_the_whole(kind: dict[str, Any], search_config: Config, tmp_path: Path) -> None:
    """With every rank each trial has the score and the gradient of the whole weights: norms and embeddings take part."""
    config = search_config(**kind, compute={"search_rank": ALL})
    run_search(config, tmp_path / "low", build=False)
    whole = config.model_copy(update={"compute": config.compute.model_copy(update={"search_rank": None})})
    run_search(whole, tmp_path / "whole", build=False)
    pairs = list(zip(trials_of(tmp_path / "low"), trials_of(tmp_path / "whole"), strict=True))
    assert len(pairs) >= 8
    for (low, _), (full, _) in pairs:
        assert np.allclose(low.genome, full.genome, atol=1e-3)
        assert np.allclose(low.scores.values, full.scores.values, atol=1e-4)
        if full.scores.gradient is not None:
            assert np.allclose(low.scores.gradient, full.scores.gradient, rtol=1e-3, atol=1e-3)


def test_after_a_trial_a_model_is_whole_again(search_config: Config, tmp_path: Path) -> None:
    """What is asked of a model after a trial, such as an answer or a fine-tune, is of the whole weights."""
    config = search_config(**ROWS, compute={"search_rank": 1})
    run_search(config, tmp_path / "low", build=False)
    recipe = trials_of(tmp_path / "low")[0][1]
    whole, low = Evaluator(config), Evaluator(config, adapters=tmp_path / "low" / "adapters")
    assert low.evaluate(recipe, low_rank=True).mean != whole.evaluate(recipe).mean
    wanted = whole.models.model(recipe).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in low.models.model(recipe).state_dict().items())


def test_low_rank_searches_and_the_whole_wins(search_config: Config, tmp_path: Path) -> None:
    """Trials have other scores than the whole weights; the table, its sentence and the built model are of those."""
    config = search_config(**ROWS, compute={"search_rank": 1})
    result = run_search(config, tmp_path / "low")
    whole = Evaluator(config)
    told = 0
    for trial, recipe in trials_of(tmp_path / "low"):
        assert recipe.sources == config.sources
        mean = whole.evaluate(recipe).mean
        assert trial.fitness is not None
        if trial.scores.values.size == len(whole.tasks.examples("search")):
            assert abs(mean - trial.fitness) > 1e-3
            told += 1
    assert told
    for row in result.rows:
        if row.stage != "temperature":
            with Study.open(tmp_path / "low") as study:
                target = config.parents.get(row.label) or study.recipe(row.label)
            assert np.allclose(whole.evaluate(target, "test").values, row.scores.values, atol=1e-5), row.model
    (sentence,) = [line for line in result.verdict if line.startswith("rank 1 keeps")]
    assert sentence in json.loads((tmp_path / "low" / "results.json").read_text())["verdict"]
    assert "search over a, b, in rank 1" in describe_study(tmp_path / "low")
    again = build_model(Recipe.load(tmp_path / "low" / "recipe.yaml"), tmp_path / "again", progress=False)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "low" / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_goes_on_as_if_it_had_not_stopped(workers: int, search_config: Config, tmp_path: Path) -> None:
    """Adapters are found again, or extracted to the same bits; workers and a resumed search give the same trials."""
    config = search_config(**ROWS, compute={"search_rank": 2})
    run_search(config, tmp_path / "once", build=False)
    adapters, first = tmp_path / "once" / "adapters", digests(tmp_path / "once" / "adapters")
    times = {file: file.stat().st_mtime_ns for file in adapters.rglob("*") if file.is_file()}

    killed(lambda seen: seen.phase == "ps" and seen.fresh > 3, run_search, config, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "adapters" / "1")
    run_search(config, tmp_path / "stopped", build=False, workers=workers)
    assert facts(tmp_path / "stopped") == facts(tmp_path / "once")
    assert digests(tmp_path / "stopped" / "adapters") == first
    run_search(config, tmp_path / "once", build=False)
    assert {file: file.stat().st_mtime_ns for file in adapters.rglob("*") if file.is_file()} == times


def test_the_dry_run_says_the_rank(search_config: Config) -> None:
    """It extracts, says what is kept and how long it took, and counts less memory than a search of whole weights."""
    config = search_config(**ROWS, compute={"search_rank": 1})
    plan = plan_search(config)
    assert plan.phases[0].name == "extraction"
    assert plan.phases[0].text.startswith("rank 1 keeps ")
    assert "trials run in rank 1, as adapters on their base" in str(plan)
    whole = config.model_copy(update={"compute": config.compute.model_copy(update={"search_rank": None})})
    assert plan.memory["ps"] < 0.8 * memory_of_models(whole, Evaluator(whole))["ps"]
