"""Whole searches by gradient, alone and before evolution."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from searches import BY_BOTH, BY_GRADIENT, GRADIENT, facts
from slowly import slow_beyond
from watch import killed

from hf_evomerge import Recipe, plan_search, resume_search, run_search
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.stages import STAGES
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.study.study import Study


def _whole(trials):
    return [trial for trial in trials if trial.scores.values.size == 5]


@pytest.mark.parametrize("name", slow_beyond(["ps", "dfs", "terms"], BY_GRADIENT))
def test_a_search_by_gradient(name, search_config, tmp_path):
    """A search by gradient keeps its budget, climbs, holds each step's gradient, and a trial's
    score is its recipe's."""
    config = search_config(**{"space": name, **BY_GRADIENT[name]})
    result = run_search(config, tmp_path, build=False)
    study = Study.open(tmp_path)
    evaluator = Evaluator(config)
    for stage in config.stages:
        trials = study.trials(stage.name)
        assert sum(trial.cost for trial in trials) <= stage.evaluations + 1e-9
        steps = [trial for trial in trials if trial.scores.gradient is not None]
        assert len(steps) > 2
        assert {trial.scores.gradient.size for trial in steps} == {trials[0].genome.size}
        whole = _whole(trials)
        assert trials[-1] is whole[-1]
        for trial in (whole[-1], *_whole(steps)):
            again = evaluator.evaluate(study.recipe(trial.recipe_key))
            assert np.allclose(again.values, trial.scores.values, rtol=1e-3, atol=1e-4)
    for row in (row for row in result.rows if row.stage in STAGES):
        first = None if name == "hybrid" and row.stage == "dfs" else row.stage
        assert row.evaluations == round(sum(trial.cost for trial in study.trials(first)), 2)
    assert name != "terms" or any("+" in hop for hop in result.winner.flow.path)
    if name not in ("dfs", "terms"):
        stage = config.stages[0].name
        start = evaluator.evaluate(study.recipe(study.trials(stage)[0].recipe_key))
        assert study.best(stage)[0].fitness > start.mean


def test_finalists_of_a_gradient_were_scored_whole(search_config, tmp_path):
    """The validation split is asked about the best three points that all examples scored, which the
    dry run counts, and not about points that a batch flattered."""
    config = search_config(
        optimize="[{by: gradient, evaluations: 44, batch: 2}]",
        compare="{baselines: [], finalists: 8}",
    )
    run_search(config, tmp_path, build=False)
    study = Study.open(tmp_path)
    whole = sorted(_whole(study.trials("ps")), key=lambda trial: -trial.fitness)
    asked = {label for label, split in study.evaluated() if split == "validation"}
    assert asked == {trial.recipe_key for trial in whole[:3]}
    plan = {phase.name: phase.text for phase in plan_search(config).phases}
    assert plan["finalists"].startswith("up to 3 of the best models")


@pytest.mark.parametrize("groups", ["tensor", ["embed", "*mlp*", "blocks.1.attn", "default"]])
def test_groups_by_name(groups, search_config, tmp_path):
    """A search over tensors or name patterns ends with its pictures, is shown, and builds what its
    recipe says."""
    config = search_config("ps", merge={"groups": groups}, optimize=[GRADIENT])
    result = run_search(config, tmp_path)
    names = result.winner.merge.parameters[0]["weight"]
    assert list(names) == groups or "model.layers.1.mlp.up_proj.weight" in names
    assert _pictures(tmp_path) == {"fitness.png", "weights.png"}
    assert "task_arithmetic" in describe_study(tmp_path)
    assert Recipe.load(tmp_path / "model" / "recipe.yaml") == result.winner


def _pictures(folder):
    return {picture.name for picture in (folder / "plots").iterdir()}


@pytest.mark.parametrize(
    ("space", "dies_in"), slow_beyond(["dfs"], [("ps", "ps-first"), ("dfs", "dfs")])
)
def test_gradient_first_then_evolution(space, dies_in, search_config, tmp_path):
    """One study holds the gradient on the likelihood and the evolution on answers; killed in
    either, it ends the same."""
    config = search_config(
        space, **BY_BOTH[space], fitness="{task: generation, extract: all, max_new_tokens: 2}"
    )
    whole = tmp_path / "whole"
    result = run_search(config, whole, build=False)
    study = Study.open(whole)
    first = study.trials(f"{space}-first")
    then = study.trials(space)
    assert sum(trial.scores.gradient is not None for trial in first) > 2
    assert all(trial.fitness < 0 for trial in first)
    assert {value for trial in then for value in trial.scores.values.tolist()} <= {0.0, 1.0}
    assert then[0].recipe_key == study.best(f"{space}-first")[0].recipe_key
    assert [row.stage for row in result.rows[-2:]] == [f"{space}-first", space]
    of_winner = "weights.png" if space == "ps" else "path.png"
    assert _pictures(whole) == {"fitness.png", "fitness-first.png", of_winner}
    killed(
        lambda seen: seen.phase == dies_in and seen.fresh >= 3,
        run_search,
        config,
        tmp_path / "killed",
    )
    resume_search(tmp_path / "killed", build=False)
    assert facts(tmp_path / "killed") == facts(whole)


def test_only_some_layers_move_by_gradient(search_config, tmp_path):
    """A search of some layers by gradient builds a model whose other tensors are the base's."""
    merge = "{groups: [blocks.1], parameters: {weight: {low: 0, high: 1.5, elsewhere: 0}}}"
    run_search(search_config(merge=merge, optimize=[GRADIENT]), tmp_path)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert {*recipe.merge.parameters[0]["weight"]} == {"blocks.1", "default"}
    base = load_file(Path(recipe.base.model) / "model.safetensors")
    merged = load_file(tmp_path / "model" / "model.safetensors")
    moved = [name for name, tensor in merged.items() if not torch.equal(tensor, base[name])]
    assert moved == [name for name in merged if ".layers.1." in name]
