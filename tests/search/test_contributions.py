"""Contributions of the sources to the winner: what their absence costs."""

import shutil

import numpy as np
import pytest
from toy_search import EXAMPLES, ToyRunner, hardness, is_recipe, toy_scores, toy_search

from hf_evomerge import run_search
from hf_evomerge.fitness.comparison import Comparison
from hf_evomerge.record import Contribution
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.results.contributions import sentence

ASKED = {
    "sources": "[{model: a}, {model: b}, {model: c}, {model: d}]",
    "compare": "{finalists: 3, contributions: true}",
}


def game(subset):
    """Scores of a subset, one per example: the first two are worth more together, the last
    nothing."""
    worth = np.random.default_rng(7).uniform(0.2, 1.0, (4, EXAMPLES))
    worth[-1] = 0.0
    return worth[list(subset)].sum(0) + (0.5 if {0, 1} <= set(subset) else 0.0)


def scores(job):
    """The toy task on the search split; on the others the game of the sources that take part."""
    if not is_recipe(job) or job.split == "search":
        return toy_scores(job)
    return game(job.target.merge_sources) + hardness(job.split)


def test_a_search_says_what_each_source_gives(tmp_path):
    """What the winner loses on the validation split without each source, and by name those whose
    loss excludes 0."""
    _, result = toy_search(tmp_path, ToyRunner(scores=scores), **ASKED)
    assert [each.source for each in result.contributions] == list("abcd")
    whole = game(range(4)).mean()
    losses = [whole - game(set(range(4)) - {at}).mean() for at in range(4)]
    assert [each.left_out.difference for each in result.contributions] == pytest.approx(losses)
    said = "The winner gains from a, b, c, on 12 validation examples; nothing shows that it needs d"
    assert said in result.verdict
    written = result.to_json()["contributions"][0]["left_out"]["difference"]
    assert written == pytest.approx(losses[0])
    below = str(result).partition("fitness lost without it")[2]
    assert [line.split()[0] for line in below.splitlines()[1:5]] == list("abcd")


def test_a_loss_by_chance_is_no_gain():
    """A source whose absence costs no more than chance is not said to give anything, nor to be of
    no use."""
    sure = Comparison("fitness", 0.1, 0.05, 0.2, 0.01, 16)
    chance = Comparison("fitness", 0.059, -0.037, 0.158, 0.23, 16)
    one = Contribution(source="a", left_out=sure)
    other = Contribution(source="b", left_out=chance)
    for given, said in (
        ([one, one], "The winner gains from a, a, on 16 test examples"),
        (
            [one, other],
            "The winner gains from a, on 16 test examples; nothing shows that it needs b",
        ),
        ([other], "On 16 test examples nothing shows that the winner needs b"),
    ):
        assert sentence(given, "16 test") == said


def test_a_source_without_which_nothing_can_be_scored_leaves_the_results(tmp_path, caplog):
    """Without contributions, with a warning that says why."""
    runner = ToyRunner(
        scores=scores, fails=lambda job: is_recipe(job) and job.target.merge.sources == [1, 2, 3]
    )
    _, result = toy_search(tmp_path, runner, **ASKED)
    assert result.contributions == []
    assert "the results have no contributions: toy: this one fails" in caplog.text


def test_a_source_that_is_the_base_gives_nothing(tiny, search_config, tmp_path):
    """Nothing is lost without it, and without the other what the winner is ahead of the base; it
    may be asked for later."""
    same = shutil.copytree(tiny / "base", tmp_path / "same")
    sources = [{"model": str(folder)} for folder in (tiny / "a", same)]
    settings = {"sources": sources, "merge": "{groups: block}"}
    out = tmp_path / "study"
    run_search(search_config(**settings), out, build=False)
    config = search_config(**settings, compare="{finalists: 2, contributions: true}")
    result = run_search(config, out, build=False)
    first, second = result.contributions
    assert second.left_out.difference == 0
    evaluator = Evaluator(config)
    winner, base = (
        evaluator.evaluate(each, "validation").mean for each in (result.winner, config.base)
    )
    assert first.left_out.difference == pytest.approx(winner - base, abs=1e-5)
