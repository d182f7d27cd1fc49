"""A finished search that is given more evaluations goes on where it was."""

import pytest
from searches import GRADIENT, count_trials, facts
from slowly import slow_beyond
from toy_search import OPTIMIZER, StoppedError, ToyRunner, toy_search

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.search.folder import check_out
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import resume_search, run_search

TOY = {
    "cma": {"kind": "ps"},
    "cma on batches": {"kind": "batches"},
    "random": {"kind": "ps", "optimizer": {"by": "random"}},
}


@pytest.mark.parametrize("name", slow_beyond(["cma"], TOY))
def test_evolution_goes_on(tmp_path, name):
    """The trials up to the old budget stay, the new ones follow, and a search killed among them
    ends with the same trials."""
    kind = TOY[name]["kind"]
    more = TOY[name].get("optimizer", {})
    parts = {"method": "linear", "groups": "model"}
    short, long = (
        {"merge": {**parts}, "optimize": [{**OPTIMIZER, **more, "evaluations": n}]}
        for n in (31, 70)
    )
    for folder in ("a", "b"):
        study, _ = toy_search(tmp_path / folder, ToyRunner(), kind, **short)
        study.set_meta("budgets", [31], "ps")
    before = facts(tmp_path / "a")["trials"]
    runner = ToyRunner()
    study, _ = toy_search(tmp_path / "a", runner, kind, **long)
    assert facts(tmp_path / "a")["trials"][: len(before)] == before
    spent = sum(trial.cost for trial in study.trials("ps"))
    assert 60 < spent <= 70
    assert sum(trial.cost for trial in study.trials("ps")[: len(before)]) <= 31
    assert len([job for job in runner.jobs if job.split == "search"]) <= len(study.trials()) - len(
        before
    )
    with pytest.raises(StoppedError):
        toy_search(tmp_path / "b", ToyRunner(stop_after=5), kind, **long)
    toy_search(tmp_path / "b", ToyRunner(), kind, **long)
    assert facts(tmp_path / "b") == facts(tmp_path / "a")


def _config(search_config, evaluations, **more):
    step = {**GRADIENT, "evaluations": evaluations, "batch": 2}
    return search_config(
        merge={"groups": "tensor"}, **more, optimize=[step], compare={"baselines": []}
    )


def test_a_gradient_is_given_no_more(tmp_path, search_config):
    """One line says what to do instead, however the search is gone on with, and nothing is written;
    that search begins."""
    config = _config(search_config, 8)
    run_search(config, tmp_path / "first")
    before = facts(tmp_path / "first")
    line = (
        r"ps goes by gradient, whose rate falls over its 8 evaluations, so it is given no more; "
        r"begin another search at"
    )
    with pytest.raises(SearchError, match=line):
        run_search(_config(search_config, 16), tmp_path / "first", build=False)
    with pytest.raises(SearchError, match=line):
        check_out(_config(search_config, 16), tmp_path / "first")
    file = tmp_path / "first" / "search.yaml"
    file.write_text(file.read_text().replace("evaluations: 8", "evaluations: 16"))
    with pytest.raises(SearchError, match=line):
        resume_search(tmp_path / "first", build=False)
    assert facts(tmp_path / "first") == before
    winner = SourceRef(model=str(tmp_path / "first" / "model"))
    merge = config.merge.model_copy(update={"starts": ["sources"]})
    again = config.model_copy(update={"sources": [*config.sources, winner], "merge": merge})
    result = run_search(again, tmp_path / "second", build=False)
    assert result.row("ps").scores.values.size == 6


def test_the_file_of_a_finished_search_is_edited(tmp_path, search_config):
    """`resume` takes more evaluations from the search file beside the study; fewer, or another
    setting, are not taken."""
    optimizer = {"by": "random", "population": 4}
    made = [
        search_config(merge={"groups": "model"}, optimize=[{**optimizer, "evaluations": n}])
        for n in (4, 8, 6)
    ]
    run_search(made[0], tmp_path, build=False)
    file = tmp_path / "search.yaml"
    file.write_text("# mine\n" + file.read_text().replace("evaluations: 4", "evaluations: 8"))
    resume_search(tmp_path, build=False)
    assert (count_trials(tmp_path), file.read_text().startswith("# mine\n")) == (8, True)
    assert "was given more after 4 evaluations" in describe_study(tmp_path)
    run_search(made[1], tmp_path, build=False)
    assert count_trials(tmp_path) == 8
    with pytest.raises(
        SearchError, match=r"optimize\.0\.evaluations was 8 and is 6; choose another folder"
    ):
        check_out(made[2], tmp_path)


def test_a_stage_that_another_was_begun_at_stays(hybrid_search):
    """Only the last stage of a finished hybrid search can be given more: its paths run through what
    the first one found."""
    from hf_evomerge.search.study.paths import settings_in

    config = settings_in(hybrid_search)

    def more(space):
        steps = [
            step.model_copy(update={"evaluations": 20} if step.space == space else {})
            for step in config.optimize
        ]
        return config.model_copy(update={"optimize": tuple(steps)})

    check_out(more("dfs"), hybrid_search)
    with pytest.raises(
        SearchError,
        match="dfs was begun at what ps had found, so only dfs can be given more evaluations; leave",  # noqa: E501
    ):
        check_out(more("ps"), hybrid_search)
