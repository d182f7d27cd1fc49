"""The gradient optimizer on functions that are known: no model, no study."""

from functools import reduce
from typing import NamedTuple

import numpy as np
import pytest

from hf_evomerge.search.optimizers.ask_tell import Start
from hf_evomerge.search.optimizers.descent import GradientOptimizer, cost_of_starts

GOAL = np.array([0.3, 1.5, -0.4])


def start(*candidates, **more):
    """The middle of a box from 0 to 1."""
    return Start(np.full(3, 0.5), 0.1, np.zeros(3), np.ones(3), candidates, **more)


def optimizer(budget=40.0, share=0.25, **more):
    """One whose gradients cost a score for each coordinate in play."""
    begin = more.pop("start", start())
    return GradientOptimizer(
        begin, price=lambda active: float(active.sum()), budget=budget, share=share, **more
    )


def gates(begin):
    """One whose steps are tried before they are gone on from."""
    free = Start(begin, 0.1, np.zeros(8), np.full(8, np.inf), prunable=True)
    return GradientOptimizer(free, price=lambda active: 4.0, budget=60.0, share=0.25)


class Asked(NamedTuple):
    """A point that was asked for, and whether its gradient, and all examples, were."""

    point: np.ndarray
    gradient: bool
    full: bool
    repeats: int
    cost: float
    value: float


def distance(point, full):
    """The score of most tests: -|x - GOAL|^2."""
    return -float(((point - GOAL) ** 2).sum())


def run(it, score=distance, slope=lambda point: -2 * (point - GOAL), fails=()):
    """Climb to the end; returns what was asked for."""
    asked = []
    while (points := it.ask()) is not None:
        request = it.request
        gradient = request.active is not None
        values = []
        for point in points:
            value = np.nan if len(asked) + 1 in fails else score(point, request.full)
            asked.append(Asked(point, gradient, request.full, request.repeats, it.cost, value))
            values.append(value)
        it.tell(values, [slope(point) for point in points])
    return asked


def test_it_ends_at_the_best_point_of_the_box():
    """The average of the last points, scored in full at the end, is the optimum inside the bounds;
    the budget is kept."""
    it = optimizer()
    asked = run(it)
    last = asked[-1]
    assert np.allclose(last.point, [0.3, 1.0, 0.0], atol=0.01)
    assert (last.gradient, last.full, last.cost) == (False, True, 1.0)
    assert it.spent == pytest.approx(sum(each.cost for each in asked))
    assert 39 < it.spent <= 40
    assert {each.cost for each in asked if each.gradient} == {0.75}
    assert all((each.point >= 0).all() and (each.point <= 1).all() for each in asked)


@pytest.mark.parametrize("seed", range(20))
def test_it_does_not_end_below_its_start(seed):
    """Gates on a quadratic with a cliff: no step goes on from below it, and what is scored in full
    last is no worse than the start; told the same values alone, the same points are asked for.
    """
    rng = np.random.default_rng(seed)
    goal = rng.uniform(0, 1, 8)
    normal = rng.normal(size=8)
    begin = rng.uniform(0.2, 0.8, 8)
    edge = float(normal @ begin) + rng.uniform(0.001, 0.2)
    sharp = 10.0 ** rng.uniform(-1, 3, 8)

    def fall(point, full):
        return -float(sharp @ (point - goal) ** 2) - (1000.0 if normal @ point > edge else 0.0)

    asked = run(gates(begin), fall, lambda point: -2 * sharp * (point - goal))
    least = fall(begin, full=True)
    assert min(each.value for each in asked if each.gradient) > -1000 + least
    assert asked[-1].full
    assert asked[-1].value >= least
    again = gates(begin)
    given = iter(asked)
    while points := again.ask():
        told = [next(given) for _ in points]
        assert np.array_equal(points, [each.point for each in told])
        values = [each.value for each in told]
        again.tell(values, [-2 * sharp * (point - goal) for point in points])
    assert next(given, None) is None


def test_a_step_is_tried_on_the_batch_of_its_gradient():
    """A step that falls is halved, on the batch that its gradient was of; after one that holds
    steps grow again."""
    begin = np.full(8, 0.5)

    def length(point):
        return float(np.abs(point - begin).max())

    asked = run(
        gates(begin), lambda point, full: 0.0 if length(point) <= 0.03 else -9.0, np.ones_like
    )
    assert [each.repeats for each in asked[:5]] == [0, 1, 2, 3, 0]
    assert [each.gradient for each in asked[:5]] == [True, False, False, False, True]
    lengths = [length(each.point) for each in asked[1:4]]
    assert lengths == pytest.approx([lengths[0], lengths[0] / 2, lengths[0] / 4])
    assert np.array_equal(asked[4].point, asked[3].point)


def test_what_stays_at_the_bound_is_given_up():
    """A coordinate that stays at its lower bound leaves for good, and what is left costs less."""
    it = optimizer(budget=80.0, start=start(prunable=True))
    costs = [each.cost for each in run(it) if each.gradient]
    assert costs == sorted(costs, reverse=True)
    assert (costs[0], costs[-1]) == (0.75, 0.5)
    assert it.request.full
    assert it.average[2] < 1e-3


@pytest.mark.parametrize(("examples", "apart"), [(0, 0.0), (13, 0.02), (128, 0.2)])
def test_members_of_a_group_move_together(examples, apart):
    """Without examples a group is one number; its members part the further the more there are; with
    128 groups do not count."""
    together = start(groups=np.array([0, 0, 1]))
    asked = run(optimizer(budget=9.0, start=together, examples=examples))
    points = np.array([each.point for each in asked])
    between = np.abs(points[:, 0] - points[:, 1]).max()
    assert between == pytest.approx(apart) if examples == 0 else between >= apart
    assert points[-1][2] < 0.4
    alone = [each.point for each in run(optimizer(budget=9.0))]
    assert np.array_equal(points, alone) is (examples == 128)


def test_full_scores_on_the_way_are_for_large_budgets():
    """Where two scores in full would take more than a twentieth of the budget, steps are made of
    them."""
    for budget, count in ((39.0, 1), (40.0, 3)):
        assert sum(each.full for each in run(optimizer(budget=budget))) == count


def test_the_best_candidate_is_the_first_point():
    """Candidates are scored on a batch, as many as a third of the budget does, and the best is
    where the steps begin."""
    candidates = [np.full(3, 0.9), np.array([0.3, 0.9, 0.1]), GOAL]
    asked = run(optimizer(start=start(*candidates)))
    assert np.array_equal([each.point for each in asked[:4]], [*candidates, GOAL])
    assert [each.gradient for each in asked[:4]] == [False, False, False, True]
    asked = run(optimizer(budget=1.6, start=start(*candidates)))
    assert np.array_equal([each.point for each in asked], [*candidates[:2], candidates[1]])


def test_starts_are_told_apart_on_all_examples_where_a_batch_is_small():
    """With batches of four examples the four best candidates on a batch are scored on all, and the
    best of these is where the steps begin; with a budget for one, the batch decides."""
    candidates = [np.full(3, 0.9), GOAL, *(np.full(3, each) for each in (0.8, 0.7, 0.0, 1.0))]
    luck = iter([-1.0, -4.0, -2.0, -3.0, -9.0, -8.0])  # on the batch the goal is the fourth
    asked = run(
        optimizer(examples=16, start=start(*candidates)),
        lambda point, full: distance(point, full) if full else next(luck, distance(point, full)),
    )
    points = [each.point for each in asked[:11]]
    assert np.array_equal(points, [*candidates, *candidates[:4], GOAL])
    assert [each.full for each in asked[:11]] == [False] * 6 + [True] * 4 + [False]
    for count, more, examples, cost in (
        (6, {}, 16, 6 * 0.25 + 4),
        (3, {}, 16, 3),
        (6, {}, 128, 6 * 0.25),
        (6, {"prunable": True}, 16, 6 * 0.25),
    ):
        assert cost_of_starts(start(*candidates[:count], **more), 40.0, 0.25, examples) == cost
    *few, _ = run(optimizer(budget=11.0, examples=16, start=start(*candidates)))
    assert not any(each.full for each in few)


def test_a_failed_point_is_left_again():
    """After a point that fails the search goes on from the one before, in smaller steps, and still
    arrives."""
    asked = run(optimizer(), fails=(5, 6))
    assert np.array_equal([asked[5].point, asked[6].point], [asked[3].point] * 2)
    assert np.allclose(asked[-1].point, [0.3, 1.0, 0.0], atol=0.05)


@pytest.mark.parametrize("budget", [9.0, 48.0, 150.0])
def test_the_average_of_a_short_ascent_keeps_up(budget):
    """On a slope without end, what is scored last lies near the last point, however few the
    steps."""
    it = GradientOptimizer(
        Start(np.zeros(1), 0.04, np.zeros(1), np.full(1, 1e9)),
        price=lambda _: 3.0,
        budget=budget,
        share=0.5,
    )
    asked = run(it, lambda point, full: float(point[0]), np.ones_like)
    steps = [each.point[0] for each in asked if not each.full]
    # an average of the last ten points does not
    ten = reduce(lambda average, place: 0.9 * average + 0.1 * place, steps, 0.0)
    assert abs(it.average[0] - steps[-1]) < 0.04 * steps[-1]
    assert budget > 100 or abs(ten - steps[-1]) > 0.04 * steps[-1]
