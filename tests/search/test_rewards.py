"""Searches by reward: by evolution alone, on the same functions, without a path in the record."""

import json

import pytest
from searches import GRADIENT

from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.hub.record import write_record
from hf_evomerge.recipes.strict_yaml import to_yaml
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search

CODE = "def brief(completions, **kwargs):\n    return [-len(text) for text in completions]\n"


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


def test_a_reward_has_no_gradient(search_config, tmp_path):
    """A search by gradient is refused with what to write."""
    (tmp_path / "rewards.py").write_text(CODE)
    fitness = {"task": "reward", "functions": [f"{tmp_path}/rewards.py:brief"]}
    config = search_config(fitness=fitness, optimize=[GRADIENT])
    with pytest.raises(FitnessError, match=r"fitness.task: reward has no gradient; use likelihood"):
        run_search(config, tmp_path / "study", trust_remote_code=True)
