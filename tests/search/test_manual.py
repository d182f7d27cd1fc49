"""Searches whose trials somebody else scores, by ask and tell."""

import os
import signal

import numpy as np
import pytest
from forked import status_of_fork

from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.search.ask_tell.search import Search
from hf_evomerge.search.study.study import Study


def score(recipe):
    """A score that no file can name: weights near 0.7, and paths of five hops, are best."""
    value = 0.0
    if recipe.merge is not None:
        weights = [float(each["weight"]) for each in recipe.merge.parameters]
        value -= sum((weight - 0.7) ** 2 for weight in weights)
    if recipe.flow is not None:
        value -= abs(len(recipe.flow.to_path()) - 5) / 10
    return value


def settings(search_config, kind="ps"):
    """A small search without gradients."""
    steps = {
        "ps": [{"by": "cma", "evaluations": 12, "population": 4}],
        "dfs": [{"by": "random", "evaluations": 8, "population": 4}],
        "hybrid": [
            {"by": "cma", "evaluations": 8, "population": 4, "space": "ps"},
            {"by": "cma", "evaluations": 6, "population": 3, "space": "dfs"},
        ],
    }[kind]
    return search_config(kind, optimize=steps, merge={"groups": "model"}, compare={"baselines": []})


def scored(config, out, most=1000):
    """Score a search by hand, and give its trials."""
    with Search.open(config, out) as search:
        while candidates := search.ask():
            for candidate in candidates:
                most -= 1
                if most < 0:
                    return []
                search.tell(candidate, score(candidate.recipe))
        assert search.ask() == []
        best = search.winner
    with Study.open(out) as study:
        trials = study.trials()
    last = config.spaces[-1]
    assert score(best) == max(trial.fitness for trial in trials if trial.stage == last)
    return [
        (trial.stage, trial.number, trial.genome.tobytes(), trial.recipe_key, trial.fitness)
        for trial in trials
    ]


@pytest.mark.parametrize("kind", ["ps", "dfs", "hybrid"])
def test_a_search_that_was_left_goes_on_with_the_same_trials(kind, search_config, tmp_path):
    """Left in the middle of a generation and opened again, it ends as one that never stopped."""
    config = settings(search_config, kind)
    whole = scored(config, tmp_path / "whole")
    assert scored(config, tmp_path / "left", most=5) == []
    assert scored(config, tmp_path / "left") == whole
    assert len(whole) >= 8


def test_a_killed_search_goes_on_with_the_same_trials(search_config, tmp_path):
    """After kill -9 what was told is there, and the same candidates are asked for."""
    config = settings(search_config)
    whole = scored(config, tmp_path / "whole")

    def told_three():
        search = Search.open(config, tmp_path / "killed")
        for candidate in search.ask()[:3]:
            search.tell(candidate, score(candidate.recipe))
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of_fork(told_three) == -signal.SIGKILL
    with Study.open(tmp_path / "killed") as study:
        assert len(study.trials()) == 3
    assert scored(config, tmp_path / "killed") == whole


def test_candidates_are_told_once(search_config, tmp_path):
    """A candidate that was told, or that another generation asked for, is refused; a failed one is
    a trial."""
    with Search.open(settings(search_config), tmp_path / "out") as search:
        first, second, *others = search.ask()
        assert search.tell(first, [0.5, 1.5]).fitness == 1.0
        with pytest.raises(SearchError, match="candidate 0: was not asked for, or has been told"):
            search.tell(first, 1.0)
        assert search.tell(second, None, "out of paper").scores.error == "out of paper"
        for wrong in (np.nan, "x", 10**400, [[1]]):
            with pytest.raises(FitnessError):
                search.tell(others[0], wrong)
        assert [each.number for each in search.ask()] == [each.number for each in others]


def test_gradients_and_objectives_are_refused(search_config, tmp_path):
    """What one score says nothing of is refused before anything is written."""
    config = search_config("ps", optimize=[{"by": "gradient", "evaluations": 8}])
    with pytest.raises(SearchError, match="by: gradient needs gradients, and tell takes scores"):
        Search.open(config, tmp_path / "out")
    with pytest.raises(SearchError, match="objectives: tell takes one score"):
        Search.open(search_config("dfs", objectives=["hops"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
