"""The baseline `alone`, the same search over each source by itself, and searches of one source."""

import re

import numpy as np
import pytest
import yaml
from recipes import refs_in
from refusals import refused, told
from searches import facts, minimal
from toy_search import ToyRunner, hardness, is_recipe, table_rows, toy_config, toy_search

from hf_evomerge import Recipe, plan_search, run_search
from hf_evomerge.cli.searching import _next
from hf_evomerge.errors import SearchError
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.folder import save_results
from hf_evomerge.search.spaces.space import make_space
from hf_evomerge.search.study.files import INSTEAD_FILE

ALONE = "{baselines: [average, alone], finalists: 3}"
PS = {"base": "{model: c}", "merge": "{groups: half}", "compare": ALONE}
BEST = (0.9, 0.2)  # weights of the two sources


def _weights(job):
    """Mean weight of each source; 0 where it takes no part."""
    weights = [0.0, 0.0]
    if is_recipe(job) and job.target.merge is not None:
        merge = job.target.merge
        for number, mapping in zip(merge.sources or (0, 1), merge.parameters, strict=True):
            value = mapping["weight"]
            weights[number] = np.mean([*value.values()] if isinstance(value, dict) else value)
    return weights


def _scores(job):
    """Scores of merges: the nearer the mean weight of each source is to its best, the better."""
    return hardness(job.split) - sum((np.array(_weights(job)) - BEST) ** 2)


def _alone(result):
    return [row for row in result.rows if row.stage == "alone"]


def test_each_source_is_searched_alone(tmp_path):
    """Each source has a search of the same cost whose merges are of it alone; the one that is best
    on the validation examples comes first."""
    study, result = toy_search(tmp_path, ToyRunner(scores=_scores), **PS)
    rows = _alone(result)
    assert [(row.model, row.evaluations) for row in rows] == [("a alone", 31), ("b alone", 31)]
    assert rows[0].scores.mean > rows[1].scores.mean + 0.5
    assert result.row("alone") is rows[0]
    both = study.trials("ps")[0].genome.size
    for number, row in enumerate(rows):
        trials = study.trials(f"alone-{number}-ps")
        assert len(trials) == 31
        for key in (row.label, *(trial.recipe_key for trial in trials)):
            assert study.recipe(key).merge_sources == [number]
        assert 2 * trials[0].genome.size == both  # as many numbers per source


def test_the_search_itself_is_the_same_beside_it(tmp_path):
    """The search's own trials and rows are those of a search without `alone`."""
    runner = ToyRunner(scores=_scores)
    compare = "{baselines: [average], finalists: 3}"
    _, result = toy_search(tmp_path / "plain", runner, **PS | {"compare": compare})
    _, more = toy_search(tmp_path / "beside", runner, **PS)
    trials = facts(tmp_path / "plain")["trials"]
    assert [each for each in facts(tmp_path / "beside")["trials"] if each[0] == "ps"] == trials
    assert [row for row in table_rows(more) if row[0] != "alone"] == table_rows(result)


def test_a_source_that_is_enough_is_kept(tmp_path):
    """Where one source alone does as well as the merge, its recipe is written beside the winner's,
    and the next step is to build it."""

    def scores(job):
        return 0.2 - np.abs(_weights(job)[0] - 0.9) + hardness(job.split)

    settings = {**PS, "compare": "{baselines: [alone], finalists: 3}"}
    study, result = toy_search(tmp_path / "my search", ToyRunner(scores=scores), **settings)
    save_results(toy_config("ps", **settings), study, result)
    assert result.instead.stage == "alone"
    assert Recipe.load(study.folder / INSTEAD_FILE).merge_sources == [0]
    keep, build = _next(result, study.folder, build=True)
    assert keep == "next:   take a alone, rescaled"
    assert build.startswith("        hf-evomerge merge '")
    assert INSTEAD_FILE in build
    _, result = toy_search(tmp_path / "both", ToyRunner(scores=_scores), **settings)
    assert result.instead is None


def test_paths_are_of_one_source(tmp_path):
    """Alone, a search for paths has layers of one source, and a hybrid one those of its merge
    too."""

    def recipes(study, stage):
        return [study.recipe(trial.recipe_key) for trial in study.trials(stage)]

    def used(recipe):
        return {source for source, _ in recipe.flow.to_path().unique_layers}

    study, _ = toy_search(tmp_path / "dfs", ToyRunner(), "dfs", compare=ALONE)
    for number in (0, 1):
        for recipe in recipes(study, f"alone-{number}-dfs"):
            assert (used(recipe), recipe.flow.embedding_source) == ({number}, number)
    more = {**PS, "merge": "{groups: model}"}
    study, _ = toy_search(tmp_path / "hybrid", ToyRunner(), "hybrid", **more)
    for recipe in recipes(study, "alone-1-dfs"):
        assert used(recipe) <= {1, 2}
    for recipe in (*recipes(study, "alone-1-dfs"), *recipes(study, "alone-1-ps")):
        assert recipe.merge_sources == [1]


def test_one_that_fails_is_a_warning(tmp_path, caplog):
    """Where every candidate of a source alone fails, the other has its row, and the search its
    result."""

    def fails(job):
        return is_recipe(job) and job.target.merge is not None and job.target.merge.sources == [0]

    _, result = toy_search(tmp_path, ToyRunner(scores=_scores, fails=fails), **PS)
    assert [row.model for row in _alone(result)] == ["b alone"]
    assert any(row.winner for row in result.rows)
    assert (
        "the results have no search over a alone, parameter space: alone-0-ps: every candidate of "
        "the first generation failed: toy: this one fails"
    ) in caplog.messages


def test_runs_of_rows_are_as_long_alone():
    """With `groups: rows` a source has the runs alone that it has among all, although more would
    do."""
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": 64 * 1000 for n in range(15)}
    config = minimal(base="{model: c}", merge="{groups: rows}", compare=ALONE)
    summary = SourceSummary([15, 15], tensors)
    both, *lone = [make_space(config, stage, summary).start().mean.size for stage in config.stages]
    assert lone == [both // 2, both // 2]


@pytest.mark.parametrize(
    ("text", "message"),
    told("""
{compare: {baselines: [alone]}, merge: {method: linear}}
  towards its base and away from it; name the base, or leave alone out
{compare: {baselines: [alone]}, base: {model: c}, merge: {method: linear}}
  linear cannot rescale one source; write method: task_arithmetic, or leave alone out
{compare: {baselines: [alone]}, sources: [{model: a}], base: {model: c}}
  alone searches each of several sources by itself (found 1); leave it out
sources: [{model: a}]
  towards its base and away from it; name the base, or write space: dfs
{sources: [{model: a}], base: {model: c}, merge: {method: model_stock}}
  model_stock cannot rescale one source; write method: task_arithmetic, or write space: dfs
"""),
)
def test_what_cannot_be_alone_is_refused(text, message):
    """One source without a base, or by a method that rescales none, is refused when the file is
    read, with what to write."""
    with refused(SearchError, rf"^(sources: |compare.baselines: ).*{re.escape(message)}$"):
        minimal(**yaml.safe_load(text))


def test_a_source_that_is_the_base_has_no_search(search_config, tiny, tmp_path, caplog):
    """Where nothing of a source could be rescaled, the plan says that it has no row, and the
    search goes on to its end."""
    config = search_config(
        sources=refs_in(tiny, "a", "base"),
        merge="{groups: half}",
        compare="{baselines: [alone], finalists: 1}",
    )
    said = "the results will have no search over base alone, parameter space: "
    assert said in "\n".join(plan_search(config).warnings)
    result = run_search(config, tmp_path / "out", build=False)
    assert [row.model for row in _alone(result)] == ["a alone"]


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (
            "ps",
            {
                "merge": "{groups: tensor}",
                "optimize": "[{by: gradient, evaluations: 12, batch: 2}]",
            },
        ),
        ("ps", {"merge": "{method: slerp, options: {t: {low: 0.1, high: 0.9}}}"}),
        pytest.param("dfs", {}, marks=pytest.mark.slow),
        pytest.param("hybrid", {"merge": "{groups: half}"}, marks=pytest.mark.slow),
    ],
    ids=["gradient", "slerp", "dfs", "hybrid"],
)
def test_real_models(space, settings, search_config, tmp_path):
    """Searches over tiny models are planned with the price of each source alone, and end with a row
    for each."""
    compare = "{baselines: [alone], finalists: 1}"
    config = search_config(space, **settings, compare=compare)
    plan = plan_search(config)
    phases = {phase.name: phase for phase in plan.phases}
    for number in (0, 1):
        for space in config.spaces:
            assert phases[f"alone-{number}-{space}"].seconds == phases[space].seconds
    result = run_search(config, tmp_path / "out", build=False)
    rows = {row.model: row.scores.error for row in _alone(result)}
    assert rows == {"a alone": None, "b alone": None}
    assert f"{len(result.rows)} models on" in phases["test"].text


def test_one_source_is_rescaled(search_config, tiny, tmp_path):
    """A search over one source and its base merges that source alone, and its winner is built."""
    config = search_config(sources=refs_in(tiny, "a"), merge="{groups: half}")
    result = run_search(config, tmp_path / "out")
    assert [row.stage for row in result.rows] == ["base", "source", "ps"]
    assert len(result.winner.merge.parameters) == 1
    assert (tmp_path / "out" / "model" / "config.json").exists()
