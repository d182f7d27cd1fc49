"""A search of models on the Hub stays with the commits that it began with."""

import json

from classes import read_json
from hub_fixtures import upload_models
from watch import killed

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.study.study import Study


def test_a_branch_that_moves_does_not_move_the_search(lfs_api, tiny, tmp_path, search_settings):
    """A source named without a commit is pinned when the search begins: what is pushed to its
    branch later changes nothing."""
    upload_models(lfs_api, tiny / "a", tiny / "b")
    commit = lfs_api.model_info("local/a").sha
    settings = search_settings(
        sources=[{"model": "local/a"}, {"model": "local/b", "revision": "main"}], base=None
    )
    settings["merge"] = {**settings["merge"], "method": "linear"}
    config = validate(SearchConfig, settings, SearchError)
    killed(lambda seen: seen.phase == "ps" and seen.done == 5, run_search, config, tmp_path / "out")
    whole = run_search(config, tmp_path / "whole", build=False)
    data = read_json(tiny / "a" / "config.json")
    lfs_api.upload_file(
        path_or_fileobj=json.dumps({**data, "rms_norm_eps": 0.5}).encode(),
        path_in_repo="config.json",
        repo_id="local/a",
    )
    lfs_api.upload_file(
        path_or_fileobj=tiny / "b" / "model.safetensors",
        path_in_repo="model.safetensors",
        repo_id="local/a",
    )
    for result in (
        resume_search(tmp_path / "out", build=False),
        run_search(config, tmp_path / "out", build=False),
    ):
        assert result.winner == whole.winner
        assert [row.scores for row in result.rows] == [row.scores for row in whole.rows]
    recipe = Recipe.load(tmp_path / "out" / "recipe.yaml")
    assert recipe.sources[0].revision == commit
    assert len(recipe.sources[1].revision or "") == 40
    assert SearchConfig.load(tmp_path / "out" / "search.yaml") == config
    with Study.open(tmp_path / "out") as study:
        assert study.meta("pins")["local/a"]["revision"] == commit
