"""Contributions of the sources to the winner: what their absence costs."""

import shutil

import numpy as np
import pytest
from toy_search import EXAMPLES, ToyRunner, hardness, toy_scores, toy_search

from hf_evomerge.fitness.comparison import Comparison
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.record import Contribution
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.results.contributions import sentence
from hf_evomerge.search.run import run_search

FOUR = [{"model": name} for name in "abcd"]
ASKED = {"compare": {"finalists": 3, "contributions": True}}


def game(subset, count=4):
    """Scores of a subset, one per example: the first two are worth more together, the last
    nothing."""
    worth = np.random.default_rng(7).uniform(0.2, 1.0, (count, EXAMPLES))
    worth[-1] = 0.0
    total = worth[list(subset)].sum(0) if subset else np.zeros(EXAMPLES)
    return total + (0.5 if {0, 1} <= set(subset) else 0.0)


def scores(job):
    """The toy task on the search split; on the others the game of the sources that take part."""
    if not isinstance(job.target, Recipe) or job.split == "search" or job.target.merge is None:
        return toy_scores(job)
    numbers = job.target.merge_sources
    return game(tuple(numbers)) + hardness(job.split)


def test_a_search_says_what_each_source_gives(tmp_path):
    """What the winner loses on the validation split without each source, and by name those whose
    loss excludes 0."""
    _, result = toy_search(tmp_path, ToyRunner(scores=scores), sources=FOUR, **ASKED)
    assert [each.source for each in result.contributions] == list("abcd")
    whole = game((0, 1, 2, 3)).mean()
    for at, each in enumerate(result.contributions):
        kept = tuple(other for other in range(4) if other != at)
        assert each.left_out.difference == pytest.approx(whole - game(kept).mean())
    said = "The winner gains from a, b, c, on 12 validation examples; nothing shows that it needs d"
    assert said in result.verdict
    assert result.to_json()["contributions"][0]["left_out"]["difference"] == pytest.approx(
        whole - game((1, 2, 3)).mean()
    )
    below = str(result).partition("fitness lost without it")[2]
    assert [line.split()[0] for line in below.splitlines()[1:5]] == list("abcd")


def test_a_loss_by_chance_is_no_gain():
    """A source whose absence costs no more than chance is not said to give anything, nor to be of
    no use."""
    sure = Comparison("fitness", 0.1, 0.05, 0.2, 0.01, 16)
    chance = Comparison("fitness", 0.059, -0.037, 0.158, 0.23, 16)
    one = Contribution(source="a", left_out=sure)
    other = Contribution(source="b", left_out=chance)
    assert sentence([one, one], "16 test") == "The winner gains from a, a, on 16 test examples"
    assert (
        sentence([one, other], "16 test")
        == "The winner gains from a, on 16 test examples; nothing shows that it needs b"
    )
    assert (
        sentence([other], "16 test") == "On 16 test examples nothing shows that the winner needs b"
    )


def test_a_source_without_which_nothing_can_be_scored_leaves_the_results(tmp_path, caplog):
    """Without contributions, with a warning that says why."""
    runner = ToyRunner(
        scores=scores,
        fails=lambda job: isinstance(job.target, Recipe) and job.target.merge.sources == [1, 2, 3],
    )
    _, result = toy_search(tmp_path, runner, sources=FOUR, **ASKED)
    assert result.contributions == []
    assert "the results have no contributions: toy: this one fails" in caplog.text


def test_a_source_that_is_the_base_gives_nothing(tiny, search_config, tmp_path):
    """Nothing is lost without it, and without the other what the winner is ahead of the base; it
    may be asked for later."""
    shutil.copytree(tiny / "base", tmp_path / "same")
    sources = [{"model": str(tiny / "a")}, {"model": str(tmp_path / "same")}]
    plain = search_config(sources=sources, merge={"groups": "block"})
    run_search(plain, tmp_path / "study", build=False)
    config = plain.model_copy(
        update={"compare": plain.compare.model_copy(update={"contributions": True})}
    )
    first, second = run_search(config, tmp_path / "study", build=False).contributions
    assert second.left_out.difference == 0
    values = [
        Evaluator(config).evaluate(each, "validation").values.mean()
        for each in (_winner(tmp_path), config.base)
    ]
    assert first.left_out.difference == pytest.approx(values[0] - values[1], abs=1e-5)


def _winner(folder):
    return Recipe.load(folder / "study" / "recipe.yaml")
