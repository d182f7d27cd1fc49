"""Searches by reward: by evolution alone, on the same functions, without a path in the record."""

import json

import numpy as np
import pytest
from refusals import refused
from searches import GRADIENT

from hf_evomerge import SearchConfig, evaluate_model, run_search
from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.hub.record import write_record
from hf_evomerge.recipes.strict_yaml import to_yaml

CODE = """
def brief(completions, **kwargs):
    return [-len(text) for text in completions]

def spaced(completions, **kwargs):
    return [text.count(" ") for text in completions]
"""


@pytest.fixture
def config(search_settings, tmp_path):
    """Makes a search by functions of a file that stands beside the search file."""

    def make(*functions, optimize=None, **fitness):
        (tmp_path / "rewards.py").write_text(CODE)
        named = [f"rewards.py:{name}" for name in functions]
        given = {"task": "reward", "functions": named, "max_new_tokens": 3, **fitness}
        settings = search_settings(fitness=given)
        file = tmp_path / "search.yaml"
        file.write_text(to_yaml(settings | ({"optimize": optimize} if optimize else {})))
        return SearchConfig.load(file)

    return make


def _winner(rows):
    return next(row for row in rows if row.winner)


def test_a_search_by_reward(config, tmp_path):
    """The file stands beside the search file; a search needs consent each time, and does not go on
    when the function has changed. The record names the file alone."""
    study = tmp_path / "study"
    given = config("brief")
    with refused(FitnessError, "--trust-remote-code"):
        run_search(given, study, build=False)
    result = run_search(given, study, build=False, trust_remote_code=True)
    scores = _winner(result.rows).scores
    assert scores.values.tolist() == [-len(text) for text in scores.outputs]
    text = json.dumps(write_record(study, tmp_path / "record").to_json())
    assert '"code": "rewards.py"' in text
    assert str(tmp_path) not in text
    (tmp_path / "rewards.py").write_text(CODE.replace("-len", "len"))
    with refused(SearchError, r"rewards.py \(changed\) are not what this study"):
        run_search(given, study, build=False, trust_remote_code=True)


def test_the_results_show_each_of_several_rewards(config, tmp_path):
    """The table, the record and a search that is run again have the mean of each function, without
    its weight; one function alone has no column."""
    study = tmp_path / "study"
    both = config("brief", "spaced", weights=[0.5, 2])
    result = run_search(both, study, build=False, trust_remote_code=True)
    scores = _winner(result.rows).scores
    brief, spaced = scores.others.values()
    assert brief.values.tolist() == [-len(text) for text in scores.outputs]
    assert np.allclose(scores.values, 0.5 * brief.values + 2 * spaced.values)
    assert str(result).split()[:3] == ["fitness", "brief", "spaced"]
    record = write_record(study, tmp_path / "record")
    means = {"brief": brief.mean, "spaced": spaced.mean}
    assert _winner(record.results.rows).objectives == means
    again = run_search(both, study, build=False, trust_remote_code=True)
    assert again.rows == result.rows
    model = both.sources[0].model
    one = evaluate_model(model, config("brief"), split="search", trust_remote_code=True)
    assert not one.scores.others


def test_a_reward_has_no_gradient(config, tmp_path):
    """A search by gradient is refused with what to write."""
    given = config("brief", optimize=[GRADIENT])
    with refused(FitnessError, r"fitness.task: reward has no gradient; use likelihood"):
        run_search(given, tmp_path / "study", trust_remote_code=True)
