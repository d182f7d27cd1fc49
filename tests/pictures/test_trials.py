"""Trials are sorted into stages and moments, and the best of them is one that was scored like the
others."""

from hf_evomerge.pictures.trials import DrawnTrial, best_so_far, climb, stages, without_first

FITNESS = (-5.0, -4.0, None, -6.0, -3.0, -2.0, -90.0)


SEARCH = [DrawnTrial("ps", k, k // 4, value) for k, value in enumerate(FITNESS)]


def test_a_search_climbs_where_its_best_rises():
    """Each moment has the best trial so far, its value and what was spent; trials of the first
    generation stand alone."""
    steps = climb(SEARCH)
    assert [(step.trial.number, step.evaluations) for step in steps] == [(0, 1), (1, 2), (5, 6)]
    assert [step.value for step in steps] == [-5.0, -4.0, -2.0]


def test_a_lucky_batch_is_no_progress():
    """On batches a value is the mean of the last quarter; the published model is the last moment,
    and nothing follows it."""
    shares = [0.0, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.75]
    trials = [
        DrawnTrial("ps", k, k, -1.0, accuracy=share, examples=64 if k == 16 else 8)
        for k, share in enumerate([*shares, 1.0])
    ]
    first = [(step.trial.number, step.value) for step in climb(trials)]
    assert first == [(0, 0.0), (1, 0.5), (2, 1.0)]
    steadier = climb(trials[3:])
    assert steadier[0].value == 0.5
    assert max(step.value for step in steadier if step.trial.number < 13) < 1
    found = climb(trials, winner=trials[16])
    assert (found[-1].trial, found[-1].evaluations) == (trials[16], 17)
    values = [round(step.value, 2) for step in found]
    assert values == [0.0, 0.5, 0.67, 0.75], "no bar is higher than what all examples say"
    assert 17 not in {step.trial.number for step in found}
    own = climb(trials[3:], winner=trials[15])
    assert own[-1].value == own[-2].value < 1, "one more batch says no more"


def test_of_many_moments_some_are_shown():
    """At most so many, of which the first and the last stay."""
    trials = [DrawnTrial("ps", k, k, -1.0 / (k + 1)) for k in range(100)]
    numbers = [step.trial.number for step in climb(trials, 10)]
    assert len(numbers) <= 11
    assert (numbers[0], numbers[-1]) == (0, 99)


def test_the_best_of_batches_is_not_the_best():
    """The best so far is of trials on all examples, of batches only where there are no others."""
    scored = [(-3.0, 16), (-1.0, 16), (-2.5, 128), (None, 0), (-0.5, 16), (-2.0, 128)]
    trials = [
        DrawnTrial("ps", k, k // 2, fitness, examples=examples)
        for k, (fitness, examples) in enumerate(scored)
    ]

    def line(trials):
        return [(at, trial.fitness) for at, trial in best_so_far(trials)]

    assert line(trials) == [(3, -2.5), (6, -2.0), (6, -2.0)]
    assert line(trials[:2]) == [(1, -3.0), (2, -1.0), (2, -1.0)]


def test_what_runs_first_is_listed_first_and_left_out():
    """A stage that runs before another comes before it in the list, and its fitness, another one,
    stays out of the picture."""
    trials = [
        DrawnTrial("dfs", 0, 0, 0.5),
        DrawnTrial("ps-first", 0, 0, -3.0),
        DrawnTrial("ps", 0, 0, 0.25),
    ]
    assert stages(trials) == ["ps-first", "ps", "dfs"]
    assert [trial.stage for trial in without_first(trials)] == ["dfs", "ps"]
