"""A finished search that is given more evaluations goes on where it was."""

import pytest
from refusals import refused
from searches import count_trials, facts
from slowly import slow_beyond
from toy_search import OPTIMIZER, StoppedError, ToyRunner, toy_search

from hf_evomerge import SourceRef, resume_search, run_search
from hf_evomerge.errors import SearchError
from hf_evomerge.search.folder import check_out
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.study.paths import settings_in

TOY = {"cma": {}, "cma on batches": {"batch": 4}, "random": {"by": "random"}}


@pytest.mark.parametrize("name", slow_beyond(["cma"], TOY))
def test_evolution_goes_on(tmp_path, name):
    """The trials up to the old budget stay, the new ones follow, and a search killed among them
    ends with the same trials."""

    def search(folder, evaluations, runner=None):
        step = {**OPTIMIZER, **TOY[name], "evaluations": evaluations}
        study, _ = toy_search(tmp_path / folder, runner or ToyRunner(), optimize=[step])
        return study

    for folder in ("a", "b"):
        search(folder, 31).set_meta("budgets", [31], "ps")
    before = facts(tmp_path / "a")["trials"]
    runner = ToyRunner()
    trials = search("a", 70, runner).trials("ps")
    assert facts(tmp_path / "a")["trials"][: len(before)] == before
    assert 60 < sum(trial.cost for trial in trials) <= 70
    assert sum(trial.cost for trial in trials[: len(before)]) <= 31
    searched = [job for job in runner.jobs if job.split == "search"]
    assert len(searched) <= len(trials) - len(before)
    with pytest.raises(StoppedError):
        search("b", 70, ToyRunner(stop_after=5))
    search("b", 70)
    assert facts(tmp_path / "b") == facts(tmp_path / "a")


def _config(search_config, evaluations):
    steps = f"[{{by: gradient, evaluations: {evaluations}, batch: 2}}]"
    return search_config(merge="{groups: tensor}", optimize=steps, compare="{baselines: []}")


def test_a_gradient_is_given_no_more(tmp_path, search_config):
    """One line says what to do instead, however the search is gone on with, and nothing is written;
    that search begins."""
    first = tmp_path / "first"
    config, more = (_config(search_config, evaluations) for evaluations in (8, 16))
    run_search(config, first)
    before = facts(first)
    line = "ps goes by gradient, whose rate falls over its 8 evaluations, so it is given no more; "
    for go_on in (
        lambda: run_search(more, first, build=False),
        lambda: check_out(more, first),
        lambda: more.save(first / "search.yaml") or resume_search(first, build=False),
    ):
        with refused(SearchError, f"{line}begin another search at"):
            go_on()
    assert facts(first) == before
    winner = SourceRef(model=str(first / "model"))
    merge = config.merge.model_copy(update={"starts": ["sources"]})
    again = config.model_copy(update={"sources": [*config.sources, winner], "merge": merge})
    result = run_search(again, tmp_path / "second", build=False)
    assert result.row("ps").scores.values.size == 6


def test_the_file_of_a_finished_search_is_edited(tmp_path, search_config):
    """`resume` takes more evaluations from the search file beside the study; fewer, or another
    setting, are not taken."""
    short, long, fewer = (
        search_config(optimize=f"[{{by: random, population: 4, evaluations: {n}}}]")
        for n in (4, 8, 6)
    )
    run_search(short, tmp_path, build=False)
    file = tmp_path / "search.yaml"
    file.write_text("# mine\n" + file.read_text().replace("evaluations: 4", "evaluations: 8"))
    resume_search(tmp_path, build=False)
    assert (count_trials(tmp_path), file.read_text().startswith("# mine\n")) == (8, True)
    assert "was given more after 4 evaluations" in describe_study(tmp_path)
    run_search(long, tmp_path, build=False)
    assert count_trials(tmp_path) == 8
    with refused(SearchError, r"optimize\.0\.evaluations was 8 and is 6; choose anoth"):
        check_out(fewer, tmp_path)


def test_a_stage_that_another_was_begun_at_stays(hybrid_search):
    """Only the last stage of a finished hybrid search can be given more: its paths run through what
    the first one found."""
    config = settings_in(hybrid_search)

    def more(space):
        steps = [
            step.model_copy(update={"evaluations": 20} if step.space == space else {})
            for step in config.optimize
        ]
        return config.model_copy(update={"optimize": tuple(steps)})

    check_out(more("dfs"), hybrid_search)
    line = "dfs was begun at what ps had found, so only dfs can be given more evaluations; leave"
    with refused(SearchError, line):
        check_out(more("ps"), hybrid_search)
