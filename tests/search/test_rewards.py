"""Searches by reward: by evolution alone, on the same functions, without a path in the record."""

import json

import numpy as np
import pytest
from searches import GRADIENT

from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.hub.record import write_record
from hf_evomerge.recipes.strict_yaml import to_yaml
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model

CODE = """
def brief(completions, **kwargs):
    return [-len(text) for text in completions]

def spaced(completions, **kwargs):
    return [text.count(" ") for text in completions]
"""


def test_a_search_by_reward(search_settings, tmp_path):
    """The file stands beside the search file; a search needs consent each time, and does not go on
    when the function has changed. The record names the file alone."""
    code = tmp_path / "rewards.py"
    code.write_text(CODE)
    fitness = {"task": "reward", "functions": ["rewards.py:brief"], "max_new_tokens": 3}
    file = tmp_path / "search.yaml"
    file.write_text(to_yaml(search_settings(fitness=fitness)), encoding="utf-8")
    config = SearchConfig.load(file)
    with pytest.raises(FitnessError, match="--trust-remote-code"):
        run_search(config, tmp_path / "study", build=False)
    result = run_search(config, tmp_path / "study", build=False, trust_remote_code=True)
    row = next(row for row in result.rows if row.winner)
    assert row.scores.values.tolist() == [-len(text) for text in row.scores.outputs]
    text = json.dumps(write_record(tmp_path / "study", tmp_path / "record").to_json())
    assert '"code": "rewards.py"' in text
    assert str(tmp_path) not in text
    code.write_text(CODE.replace("-len", "len"))
    with pytest.raises(SearchError, match=r"rewards.py \(changed\) are not what this study"):
        run_search(config, tmp_path / "study", build=False, trust_remote_code=True)


def test_the_results_show_each_of_several_rewards(search_settings, tmp_path):
    """The table, the record and a search that is run again have the mean of each function, without
    its weight; one function alone has no column."""
    (tmp_path / "rewards.py").write_text(CODE)
    functions = [f"{tmp_path}/rewards.py:{name}" for name in ("brief", "spaced")]
    fitness = {"task": "reward", "functions": functions, "weights": [0.5, 2], "max_new_tokens": 3}
    config = SearchConfig.model_validate(search_settings(fitness=fitness))
    result = run_search(config, tmp_path / "study", build=False, trust_remote_code=True)
    row = next(row for row in result.rows if row.winner)
    brief, spaced = (row.scores.others[name] for name in ("brief", "spaced"))
    assert brief.values.tolist() == [-len(text) for text in row.scores.outputs]
    assert np.allclose(row.scores.values, 0.5 * brief.values + 2 * spaced.values)
    assert str(result).split("\n")[0].split()[:3] == ["fitness", "brief", "spaced"]
    record = write_record(tmp_path / "study", tmp_path / "record")
    published = next(row for row in record.results.rows if row.winner)
    assert published.objectives == {"brief": brief.mean, "spaced": spaced.mean}
    again = run_search(config, tmp_path / "study", build=False, trust_remote_code=True)
    assert again.rows == result.rows
    keys = {"functions": config.fitness.functions[:1], "weights": None}
    spec = config.fitness.model_copy(update=keys)
    one = evaluate_model(
        config.sources[0].model,
        config.model_copy(update={"fitness": spec}),
        split="search",
        trust_remote_code=True,
    )
    assert not one.scores.others


def test_a_reward_has_no_gradient(search_config, tmp_path):
    """A search by gradient is refused with what to write."""
    (tmp_path / "rewards.py").write_text(CODE)
    fitness = {"task": "reward", "functions": [f"{tmp_path}/rewards.py:brief"]}
    config = search_config(fitness=fitness, optimize=[GRADIENT])
    with pytest.raises(FitnessError, match=r"fitness.task: reward has no gradient; use likelihood"):
        run_search(config, tmp_path / "study", trust_remote_code=True)
