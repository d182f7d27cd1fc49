"""Trials are sorted into stages and generations, and the best of them is one that was scored like the others."""

from __future__ import annotations

from collections.abc import Sequence

from hf_evomerge.pictures.trials import Trial, best_so_far, generations, of_stage, stages, without_first

FITNESS = (-5.0, -4.0, None, -6.0, -3.0, -3.5, -2.0, -90.0, -2.5)
SEARCH = [
    *(Trial("ps", k, k // 4, value) for k, value in enumerate(FITNESS)),
    *(Trial("random", k, 0, -7.0 - k) for k in range(3)),
]


def test_generations_say_spread_and_best() -> None:
    """Fitness, best trial, best so far and evaluations of each generation; a failed trial has no fitness."""
    grown = generations(of_stage(SEARCH, "ps"))
    assert [one.fitness for one in grown] == [(-6.0, -5.0, -4.0), (-90.0, -3.5, -3.0, -2.0), (-2.5,)]
    assert [one.best.number for one in grown if one.best] == [1, 6, 8]
    assert [one.so_far for one in grown] == [-4.0, -2.0, -2.0]
    assert [one.evaluations for one in grown] == [4, 8, 9]
    assert grown[0].quantile(0.25) == -5.5
    assert stages(SEARCH) == ["ps", "random"]


def test_the_best_of_batches_is_not_the_best() -> None:
    """The best so far is of trials on all examples, of batches only where there are no others, in lines and generations."""
    scored = [(-3.0, 16), (-1.0, 16), (-2.5, 128), (None, 0), (-0.5, 16), (-2.0, 128)]
    trials = [Trial("ps", k, k // 2, fitness, examples=examples) for k, (fitness, examples) in enumerate(scored)]

    def line(trials: Sequence[Trial]) -> list[tuple[float, float | None]]:
        return [(at, trial.fitness) for at, trial in best_so_far(trials)]

    assert line(trials) == [(3, -2.5), (6, -2.0), (6, -2.0)]
    assert line(trials[:2]) == [(1, -3.0), (2, -1.0), (2, -1.0)]
    assert [one.so_far for one in generations(trials)] == [None, -2.5, -2.0]


def test_what_runs_first_is_listed_first_and_left_out() -> None:
    """A stage that runs before another comes before it in the list, and its fitness, another one, stays out of the picture."""
    trials = [Trial("dfs", 0, 0, 0.5), Trial("ps-first", 0, 0, -3.0), Trial("ps", 0, 0, 0.25)]
    assert stages(trials) == ["ps-first", "ps", "dfs"]
    assert [trial.stage for trial in without_first(trials)] == ["dfs", "ps"]
