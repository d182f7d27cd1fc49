"""The baseline `alone`, the same search over each source by itself, and searches of one source."""

import numpy as np
import pytest
from searches import GRADIENT, facts, minimal
from toy_search import ToyRunner, hardness, table_rows, toy_config, toy_search

from hf_evomerge.cli.searching import _next
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.folder import save_results
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.run import run_search
from hf_evomerge.search.spaces.space import make_space
from hf_evomerge.search.study.files import INSTEAD_FILE

ALONE = {"baselines": ["average", "alone"], "finalists": 3}
PS = {"base": {"model": "c"}, "merge": {"groups": "half"}, "compare": ALONE}
BEST = (0.9, 0.2)  # weights of the two sources


def _weights(job):
    """Mean weight of each source; 0 where it takes no part."""
    weights = [0.0, 0.0]
    if isinstance(job.target, Recipe) and job.target.merge is not None:
        merge = job.target.merge
        numbers = merge.sources or range(2)
        for number, mapping in zip(numbers, merge.parameters, strict=True):
            value = mapping["weight"]
            groups = list(value.values()) if isinstance(value, dict) else [value]
            weights[number] = float(np.mean(groups))
    return weights


def _scores(job):
    """Scores of merges: the nearer the mean weight of each source is to its best, the better."""
    pairs = zip(_weights(job), BEST, strict=True)
    found = hardness(job.split) - sum((weight - best) ** 2 for weight, best in pairs)
    return found if job.batch is None else found[list(job.batch)]


def _runner(**more):
    return ToyRunner(scores=_scores, **more)  # type: ignore[arg-type]


def test_each_source_is_searched_alone(tmp_path):
    """Each source has a search of the same cost whose merges are of it alone; the one that is best
    on the validation examples comes first."""
    study, result = toy_search(tmp_path, _runner(), **PS)
    rows = [row for row in result.rows if row.stage == "alone"]
    assert [(row.model, row.evaluations) for row in rows] == [("a alone", 31), ("b alone", 31)]
    assert rows[0].scores.mean > rows[1].scores.mean + 0.5
    assert result.row("alone") is rows[0]
    for number, row in enumerate(rows):
        trials = study.trials(f"alone-{number}-ps")
        assert len(trials) == 31
        for trial in trials:
            assert study.recipe(trial.recipe_key).merge_sources == [number]
        assert study.recipe(row.label).merge_sources == [number]
        both = study.trials("ps")[0].genome.size
        assert 2 * trials[0].genome.size == both  # as many numbers per source


def test_the_search_itself_is_the_same_beside_it(tmp_path):
    """The search's own trials and rows are those of a search without `alone`."""
    plain = {**PS, "compare": {"baselines": ["average"], "finalists": 3}}
    study, result = toy_search(tmp_path / "plain", _runner(), **plain)
    beside, more = toy_search(tmp_path / "beside", _runner(), **PS)
    trials = facts(tmp_path / "plain")["trials"]
    assert [each for each in facts(tmp_path / "beside")["trials"] if each[0] == "ps"] == trials
    kept = [row for row in table_rows(more) if row[0] != "alone"]
    assert kept == table_rows(result)
    assert study.trials("ps")[0].genome.size == beside.trials("ps")[0].genome.size


def test_a_source_that_is_enough_is_kept(tmp_path):
    """Where one source alone does as well as the merge, its recipe is written beside the winner's,
    and the next step is to build it."""

    def scores(job):
        found = 0.2 - np.abs(_weights(job)[0] - 0.9) + hardness(job.split)
        return found if job.batch is None else found[list(job.batch)]

    settings = {**PS, "compare": {"baselines": ["alone"], "finalists": 3}}
    study, result = toy_search(tmp_path / "my search", ToyRunner(scores=scores), **settings)
    save_results(toy_config("ps", **settings), study, result)
    assert result.instead.stage == "alone"
    recipe = Recipe.load(study.folder / INSTEAD_FILE)
    assert recipe.merge_sources == [0]
    keep, build = _next(result, study.folder, build=True)
    assert keep == "next:   take a as its own search rescaled it"
    assert build.startswith("        hf-evomerge merge '")
    assert INSTEAD_FILE in build
    _, result = toy_search(tmp_path / "both", _runner(), **settings)
    assert result.instead is None


def test_paths_are_of_one_source(tmp_path):
    """Alone, a search for paths has layers of one source, and a hybrid one those of its merge
    too."""
    study, _ = toy_search(tmp_path / "dfs", ToyRunner(), "dfs", compare=ALONE)
    for number in (0, 1):
        for trial in study.trials(f"alone-{number}-dfs"):
            flow = study.recipe(trial.recipe_key).flow
            assert {source for source, _ in flow.to_path().unique_layers} == {number}
            assert flow.embedding_source == number
    more = {"base": {"model": "c"}, "merge": {"groups": "model"}, "compare": ALONE}
    study, _ = toy_search(tmp_path / "hybrid", ToyRunner(), "hybrid", **more)
    merged = study.best("alone-1-ps")[0]
    for trial in study.trials("alone-1-dfs"):
        recipe = study.recipe(trial.recipe_key)
        assert {source for source, _ in recipe.flow.to_path().unique_layers} <= {1, 2}
        assert recipe.merge_sources == [1]
    assert study.recipe(merged.recipe_key).merge_sources == [1]


def test_one_that_fails_is_a_warning(tmp_path, caplog):
    """Where every candidate of a source alone fails, the other has its row, and the search its
    result."""

    def fails(job):
        is_merge = isinstance(job.target, Recipe) and job.target.merge is not None
        return is_merge and job.target.merge.sources == [0]

    _, result = toy_search(tmp_path, _runner(fails=fails), **PS)
    assert [row.model for row in result.rows if row.stage == "alone"] == ["b alone"]
    assert any(row.winner for row in result.rows)
    (said,) = (record.message for record in caplog.records if "no search over" in record.message)
    assert said == (
        "the results have no search over a alone, parameter space: alone-0-ps: every candidate of "
        "the first generation failed: toy: this one fails"
    )


def test_runs_of_rows_are_as_long_alone():
    """With `groups: rows` a source has the runs alone that it has among all, although more would
    do."""
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": 64 * 1000 for n in range(15)}
    config = minimal(base={"model": "c"}, merge={"groups": "rows"}, compare=ALONE)
    summary = SourceSummary([15, 15], tensors)
    both, *lone = [make_space(config, stage, summary).start().mean.size for stage in config.stages]
    assert lone == [both // 2, both // 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"compare": ALONE, "merge": {"method": "linear"}},
            "compare.baselines: alone: one source is rescaled towards its base and away from it; "
            "name the base, or leave alone out",
        ),
        (
            {"compare": ALONE, "base": {"model": "c"}, "merge": {"method": "linear"}},
            "compare.baselines: alone: linear cannot rescale one source; write method: "
            "task_arithmetic, or leave alone out",
        ),
        (
            {"compare": ALONE, "base": {"model": "c"}, "merge": {"method": "model_stock"}},
            "compare.baselines: alone: model_stock cannot rescale one source; write method: "
            "task_arithmetic, or leave alone out",
        ),
        (
            {"compare": ALONE, "sources": [{"model": "a"}], "base": {"model": "c"}},
            "compare.baselines: alone searches each of several sources by itself (found 1); leave "
            "it out",
        ),
        (
            {"sources": [{"model": "a"}]},
            "sources: one source is rescaled towards its base and away from it; name the base, or "
            "write space: dfs",
        ),
        (
            {"sources": [{"model": "a"}], "base": {"model": "c"}, "merge": {"method": "linear"}},
            "sources: linear cannot rescale one source; write method: task_arithmetic, or write "
            "space: dfs",
        ),
    ],
)
def test_what_cannot_be_alone_is_refused(settings, message):
    """One source without a base, or by a method that rescales none, is refused when the file is
    read, with what to write."""
    with pytest.raises(SearchError) as caught:
        minimal(**settings)
    assert str(caught.value) == message


def test_a_source_that_is_the_base_has_no_search(search_config, tiny, tmp_path, caplog):
    """Where nothing of a source could be rescaled, the plan says that it has no row, and the
    search goes on to its end."""
    config = search_config(
        "ps",
        sources=[{"model": str(tiny / "a")}, {"model": str(tiny / "base")}],
        merge={"groups": "half"},
        compare={"baselines": ["alone"], "finalists": 1},
    )
    (said,) = (line for line in plan_search(config).warnings if "no search over base" in line)
    assert said.startswith("the results will have no search over base alone, parameter space: ")
    result = run_search(config, tmp_path / "out", build=False)
    assert [row.model for row in result.rows if row.stage == "alone"] == ["a alone"]


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ("ps", {"merge": {"groups": "tensor"}, "optimize": [{**GRADIENT, "batch": 2}]}),
        ("ps", {"merge": {"method": "slerp", "options": {"t": {"low": 0.1, "high": 0.9}}}}),
        pytest.param("dfs", {}, marks=pytest.mark.slow),
        pytest.param("hybrid", {"merge": {"groups": "half"}}, marks=pytest.mark.slow),
    ],
    ids=["gradient", "slerp", "dfs", "hybrid"],
)
def test_real_models(space, settings, search_config, tmp_path):
    """Searches over tiny models are planned with the price of each source alone, and end with a row
    for each."""
    compare = {"baselines": ["alone"], "finalists": 1}
    config = search_config(space, **settings, compare=compare)
    plan = plan_search(config)
    own = {phase.name: phase for phase in plan.phases}
    again = [phase for phase in plan.phases if phase.name.startswith("alone-")]
    assert len(again) == 2 * len(config.spaces)
    for phase in again:
        assert phase.seconds == own[phase.name.rpartition("-")[2]].seconds
    result = run_search(config, tmp_path / "out", build=False)
    rows = [row for row in result.rows if row.stage == "alone"]
    assert {row.model for row in rows} == {"a alone", "b alone"}
    assert all(row.scores.error is None for row in rows)
    assert f"{len(result.rows)} models on" in own["test"].text


def test_one_source_is_rescaled(search_config, tiny, tmp_path):
    """A search over one source and its base merges that source alone, and its winner is built."""
    source = tiny / "a"
    config = search_config("ps", sources=[{"model": str(source)}], merge={"groups": "half"})
    result = run_search(config, tmp_path / "out")
    assert [row.stage for row in result.rows] == ["base", "source", "ps"]
    assert len(result.winner.merge.parameters) == 1
    assert (tmp_path / "out" / "model" / "config.json").exists()
