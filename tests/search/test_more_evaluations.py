"""A finished search that is given more evaluations goes on where it was."""

from typing import Any

import numpy as np
import pytest
from searches import GRADIENT, Config, count_trials, facts
from slowly import slow_beyond
from toy_search import OPTIMIZER, StoppedError, ToyRunner, toy_search

from hf_evomerge.errors import SearchError
from hf_evomerge.search.folder import check_out
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.study.study import Study, Trial

TOY: dict[str, dict[str, Any]] = {
    "cma": {"kind": "ps"},
    "cma on batches": {"kind": "batches"},
    "random": {"kind": "ps", "optimizer": {"by": "random"}},
}


@pytest.mark.parametrize("name", slow_beyond(["cma"], TOY))
def test_evolution_goes_on(tmp_path, name):
    """The trials up to the old budget stay, the new ones follow, and a search killed among them ends with the same trials."""
    kind, more = TOY[name]["kind"], TOY[name].get("optimizer", {})
    parts: dict[str, Any] = {"method": "linear", "groups": "model"}
    short, long = ({"merge": {**parts}, "optimize": [{**OPTIMIZER, **more, "evaluations": n}]} for n in (31, 70))
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
    assert len([job for job in runner.jobs if job.split == "search"]) <= len(study.trials()) - len(before)
    with pytest.raises(StoppedError):
        toy_search(tmp_path / "b", ToyRunner(stop_after=5), kind, **long)
    toy_search(tmp_path / "b", ToyRunner(), kind, **long)
    assert facts(tmp_path / "b") == facts(tmp_path / "a")


def _config(search_config: Config, evaluations: int, **more: Any) -> Any:
    step = {**GRADIENT, "evaluations": evaluations, "batch": 2}
    return search_config(merge={"groups": "tensor"}, **more, optimize=[step], compare={"baselines": []})


def test_a_gradient_begins_another_schedule(tmp_path, search_config):
    """Steps begin again, as long as the first, at the best trial so far; study and verdict say so."""
    run_search(_config(search_config, 8), tmp_path, build=False)
    with Study.open(tmp_path) as study:
        first = study.trials()
    result = run_search(_config(search_config, 16), tmp_path, build=False)
    with Study.open(tmp_path) as study:
        both, begun = study.trials(), study.meta("begun at", "ps")
    assert [_bits(trial) for trial in both[: len(first)]] == [_bits(trial) for trial in first]
    assert 12 < sum(trial.cost for trial in both) <= 16
    whole = [trial for trial in first if trial.scores.values.size == 5]
    best = max(whole, key=lambda trial: trial.fitness or -np.inf)
    assert begun == [best.number]
    assert (both[len(first)].genome == best.genome).all()
    steps = [np.abs(trials[1].genome - trials[0].genome).max() for trials in (_steps(first), _steps(both[len(first) :]))]
    assert steps[1] > 0.9 * steps[0]  # the last of a schedule are a fiftieth of that
    assert f"was given more after 8 evaluations: a new schedule, begun at trial {best.number}" in describe_study(tmp_path)
    assert any("the test split was scored 2 times" in sentence.lower() for sentence in result.verdict)
    again = run_search(_config(search_config, 16), tmp_path, build=False)
    assert (again.rows, again.verdict, count_trials(tmp_path)) == (result.rows, result.verdict, len(both))


def _bits(trial: Trial) -> tuple[Any, ...]:
    return trial.stage, trial.number, trial.genome.tobytes(), trial.scores.values.tobytes(), trial.cost


def _steps(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.scores.gradient is not None]


def test_the_file_of_a_finished_search_is_edited(tmp_path, search_config):
    """`resume` takes more evaluations from the search file beside the study; fewer, or another setting, are not taken."""
    optimizer = {"by": "random", "population": 4}
    made = [search_config(merge={"groups": "model"}, optimize=[{**optimizer, "evaluations": n}]) for n in (4, 8, 6)]
    run_search(made[0], tmp_path, build=False)
    file = tmp_path / "search.yaml"
    file.write_text("# mine\n" + file.read_text().replace("evaluations: 4", "evaluations: 8"))
    resume_search(tmp_path, build=False)
    assert (count_trials(tmp_path), file.read_text().startswith("# mine\n")) == (8, True)
    run_search(made[1], tmp_path, build=False)
    assert count_trials(tmp_path) == 8
    with pytest.raises(SearchError, match=r"optimize\.0\.evaluations was 8 and is 6; choose another folder"):
        check_out(made[2], tmp_path)


def test_a_stage_that_another_was_begun_at_stays(hybrid_search):
    """Only the last stage of a finished hybrid search can be given more: its paths run through what the first one found."""
    from hf_evomerge.search.study.paths import settings_in

    config = settings_in(hybrid_search)

    def more(space: str) -> Any:
        steps = [step.model_copy(update={"evaluations": 20} if step.space == space else {}) for step in config.optimize]
        return config.model_copy(update={"optimize": tuple(steps)})

    check_out(more("dfs"), hybrid_search)
    with pytest.raises(
        SearchError, match="dfs was begun at what ps had found, so only dfs can be given more evaluations; leave"
    ):
        check_out(more("ps"), hybrid_search)
