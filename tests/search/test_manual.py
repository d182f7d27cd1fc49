"""Searches whose trials somebody else scores, by ask and tell."""

import os
import signal

import numpy as np
import pytest
import yaml
from forked import status_of_fork
from refusals import refused
from searches import count_trials, facts

from hf_evomerge import Search
from hf_evomerge.errors import FitnessError, SearchError
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
    return facts(out)


@pytest.mark.parametrize("kind", ["ps", "dfs", "hybrid"])
def test_a_search_that_was_left_goes_on_with_the_same_trials(kind, search_config, tmp_path):
    """Left in the middle of a generation and opened again, it ends as one that never stopped."""
    config = search_config(kind)
    whole = scored(config, tmp_path / "whole")
    assert scored(config, tmp_path / "left", most=5) == []
    assert scored(config, tmp_path / "left") == whole
    assert len(whole["trials"]) >= 8


def test_a_killed_search_goes_on_with_the_same_trials(search_config, tmp_path):
    """After kill -9 what was told is there, and the same candidates are asked for."""
    config = search_config()
    out = tmp_path / "killed"

    def told_three():
        search = Search.open(config, out)
        for candidate in search.ask()[:3]:
            search.tell(candidate, score(candidate.recipe))
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of_fork(told_three) == -signal.SIGKILL
    assert count_trials(out) == 3
    assert scored(config, out) == scored(config, tmp_path / "whole")


def test_candidates_are_told_once(search_config, tmp_path):
    """A candidate that was told, or that another generation asked for, is refused; a failed one is
    a trial."""
    with Search.open(search_config(), tmp_path / "out") as search:
        first, second, *others = search.ask()
        assert search.tell(first, [0.5, 1.5]).fitness == 1.0
        with refused(SearchError, "candidate 0: was not asked for, or has been told"):
            search.tell(first, 1.0)
        assert search.tell(second, None, "out of paper").scores.error == "out of paper"
        for wrong in (np.nan, "x", 10**400, [[1]]):
            with pytest.raises(FitnessError):
                search.tell(others[0], wrong)
        assert [each.number for each in search.ask()] == [each.number for each in others]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("optimize: [{by: gradient}]", "by: gradient needs gradients, and tell takes scores"),
        ("objectives: [hops]", "objectives: tell takes one score"),
    ],
)
def test_gradients_and_objectives_are_refused(changes, message, search_config, tmp_path):
    """What one score says nothing of is refused before anything is written."""
    with refused(SearchError, message):
        Search.open(search_config("dfs", **yaml.safe_load(changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
