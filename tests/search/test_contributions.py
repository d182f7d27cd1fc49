"""Contributions of the sources to the winner: leave-one-out, Shapley values, and the winner without those that give nothing."""

import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from toy_search import EXAMPLES, StoppedError, ToyRunner, hardness, toy_scores, toy_search
from typer.testing import CliRunner

from hf_evomerge import cli
from hf_evomerge.fitness.comparison import Comparison
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.record import Contribution
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.optimizers.ask_tell import Vector
from hf_evomerge.search.results.contributions import Subset, sentence, shapley_values
from hf_evomerge.search.run import run_search
from hf_evomerge.search.runners.job import Job

FOUR = [{"model": name} for name in "abcd"]
ASKED = {"compare": {"finalists": 3, "contributions": 14}}


def game(subset: Subset, count: int = 4) -> Vector:
    """Scores of a subset, one per example: the first two are worth more together, the last nothing."""
    worth = np.random.default_rng(7).uniform(0.2, 1.0, (count, EXAMPLES))
    worth[-1] = 0.0
    total = worth[list(subset)].sum(0) if subset else np.zeros(EXAMPLES)
    return total + (0.5 if {0, 1} <= set(subset) else 0.0)


def by_definition(count: int, empty: Vector) -> Vector:
    """Mean over all orders of what each adds to those before it."""
    shares = np.zeros((count, EXAMPLES))
    orders = list(permutations(range(count)))
    for order in orders:
        for at, each in enumerate(order):
            before = game(tuple(sorted(order[:at])), count) if at else empty
            shares[each] += game(tuple(sorted(order[: at + 1])), count) - before
    return shares / len(orders)


def scores(job: Job) -> Vector:
    """The toy task on the search split; on the others the game of the sources that take part."""
    if not isinstance(job.target, Recipe) or job.split == "search" or job.target.merge is None:
        return toy_scores(job)
    numbers = job.target.merge_sources
    return game(tuple(numbers)) + hardness(job.split)


@pytest.mark.parametrize("based", [True, False])
def test_all_subsets_give_the_shapley_value(based):
    """Example by example it is the mean over all orders; without a base the empty subset is the mean of the single sources."""
    singles = np.mean([game((each,)) for each in range(4)], axis=0)
    empty = np.full(EXAMPLES, -0.3) if based else singles
    shares, values = shapley_values(4, 14, lambda asked: {each: game(each) for each in asked}, empty=empty if based else None)
    assert len(values) == 16
    np.testing.assert_allclose(shares, by_definition(4, empty), atol=1e-12)
    np.testing.assert_allclose(shares.sum(0), game((0, 1, 2, 3)) - empty, atol=1e-12)


def test_orders_are_drawn_where_there_are_too_many_subsets():
    """Within the budget, the same for the same seed, and they add up; many orders come near the mean over all."""
    asked: list[Subset] = []

    def score(subsets):
        asked.extend(subsets)
        return {each: game(each, 6) for each in subsets}

    empty = np.zeros(EXAMPLES)
    shares, values = shapley_values(6, 30, score, empty=empty, seed=1)
    assert len(asked) - 1 <= 30
    assert len(values) == len(set(asked)) + 1
    np.testing.assert_allclose(shares.sum(0), game(tuple(range(6)), 6), atol=1e-12)
    again, _ = shapley_values(6, 30, score, empty=empty, seed=1)
    np.testing.assert_array_equal(shares, again)
    assert not np.array_equal(shares, shapley_values(6, 30, score, empty=empty, seed=2)[0])
    means = np.mean([shapley_values(6, 30, score, empty=empty, seed=seed)[0] for seed in range(60)], axis=0).mean(1)
    np.testing.assert_allclose(means, by_definition(6, empty).mean(1), atol=0.08)


def test_a_search_says_what_each_source_gives(tmp_path):
    """Shares of the winner on the validation split, those that give nothing by name, and the winner without them in a row."""
    runner = ToyRunner(scores=scores)
    _, result = toy_search(tmp_path, runner, sources=FOUR, **ASKED)
    singles = np.mean([game((each,)) for each in range(4)], axis=0)
    wanted = by_definition(4, singles).mean(1)
    assert [each.source for each in result.contributions] == list("abcd")
    assert [each.shapley.difference for each in result.contributions] == pytest.approx(list(wanted))
    whole = game((0, 1, 2, 3)).mean()
    for at, each in enumerate(result.contributions):
        without = tuple(other for other in range(4) if other != at)
        assert each.left_out.difference == pytest.approx(whole - game(without).mean())
    said = "The winner gains from a, b, c, on 12 validation examples; nothing shows that it needs d"
    assert said in result.verdict
    assert result.row("pruned").model == "without d"
    assert result.row("pruned").scores.mean == pytest.approx(whole + hardness("test").mean())
    assert result.to_json()["contributions"][0]["left_out"]["difference"] == pytest.approx(whole - game((1, 2, 3)).mean())
    below = str(result).partition("fitness lost without it")[2]
    assert [line.split()[0] for line in below.splitlines()[1:5]] == list("abcd")


def test_a_loss_by_chance_is_no_gain():
    """A source whose absence costs no more than chance is not said to give anything, nor to be of no use."""
    sure, chance = Comparison("fitness", 0.1, 0.05, 0.2, 0.01, 16), Comparison("fitness", 0.059, -0.037, 0.158, 0.23, 16)
    one, other = (Contribution(source=name, left_out=lost, shapley=sure) for name, lost in (("a", sure), ("b", chance)))
    assert sentence([one, one], "16 test") == "The winner gains from a, a, on 16 test examples"
    assert sentence([one, other], "16 test") == "The winner gains from a, on 16 test examples; nothing shows that it needs b"
    assert sentence([other], "16 test") == "On 16 test examples nothing shows that the winner needs b"


@pytest.mark.parametrize("more", [1, 5, 12])
def test_a_search_that_was_stopped_scores_no_subset_twice(more, tmp_path):
    """Stopped among the subsets and resumed, it ends as one that was not."""
    (tmp_path / "whole").mkdir()
    whole = ToyRunner(scores=scores)
    _, result = toy_search(tmp_path / "whole", whole, sources=FOUR, **ASKED)
    first = next(at for at, job in enumerate(whole.jobs) if isinstance(job.target, Recipe) and job.target.merge.sources)
    stopped, rest = ToyRunner(scores=scores, stop_after=first + more), ToyRunner(scores=scores)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(StoppedError):
        toy_search(tmp_path / "stopped", stopped, sources=FOUR, **ASKED)
    _, again = toy_search(tmp_path / "stopped", rest, sources=FOUR, **ASKED)
    assert len(stopped.jobs) + len(rest.jobs) == len(whole.jobs)
    assert again.to_json() == result.to_json()


def test_a_subset_that_fails_leaves_the_results(tmp_path, caplog):
    """Without contributions, with a warning that says why."""
    runner = ToyRunner(scores=scores, fails=lambda job: isinstance(job.target, Recipe) and job.target.merge.sources == [1, 2])
    _, result = toy_search(tmp_path, runner, sources=FOUR, **ASKED)
    assert result.contributions == []
    assert "the results have no contributions: toy: this one fails" in caplog.text


def test_the_winner_is_built_without_sources_of_no_use(tiny: Path, search_config, tmp_path: Path):
    """A source that is the base gives nothing: it is named, and the option leaves it out; it may be asked for later."""
    shutil.copytree(tiny / "base", tmp_path / "same")
    sources = [{"model": str(tiny / "a")}, {"model": str(tmp_path / "same")}]
    plain = search_config(sources=sources, merge={"groups": "block"})
    run_search(plain, tmp_path / "study", build=False)
    program, folder = CliRunner(), str(tmp_path / "study")
    done = program.invoke(cli.app, ["merge", folder, "--prune-sources"])
    assert done.exit_code == 1
    assert "name no source that gives nothing" in done.output
    config = plain.model_copy(update={"compare": plain.compare.model_copy(update={"contributions": 2})})
    result = run_search(config, tmp_path / "study", build=False)
    assert result.contributions[1].left_out.difference == 0
    recipe = result.winner
    alone = recipe.model_copy(
        update={"merge": recipe.merge.model_copy(update={"sources": [0], "parameters": recipe.merge.parameters[:1]})}
    )
    values = [Evaluator(config).evaluate(each, "validation").values.mean() for each in (recipe, alone, config.base)]
    assert result.contributions[0].left_out.difference == pytest.approx(values[0] - values[2], abs=1e-5)
    assert values[1] == pytest.approx(values[0])
    rows = json.loads((tmp_path / "study" / "results.json").read_text())["rows"]
    assert [row["model"] for row in rows if row["stage"] == "pruned"] in (["without same"], ["without a"])
    done = program.invoke(cli.app, ["merge", folder, "--prune-sources"])
    assert done.exit_code == 0, done.output
    built = Recipe.load(tmp_path / "study" / "model-pruned" / "recipe.yaml")
    assert built.merge_sources in ([0], [1])
