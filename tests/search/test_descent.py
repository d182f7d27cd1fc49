"""The gradient optimizer on functions that are known: no model, no study."""

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
    settings = {
        "price": lambda active: float(active.sum()),
        "budget": budget,
        "share": share,
        **more,
    }
    return GradientOptimizer(settings.pop("start", start()), **settings)  # type: ignore[arg-type]


def gates(begin):
    """One whose steps are tried before they are gone on from."""
    free = Start(begin, 0.1, np.zeros(8), np.full(8, np.inf), prunable=True)
    return GradientOptimizer(free, price=lambda active: 4.0, budget=60.0, share=0.25)


def run(it, fails=()):
    """Ascend -|x - GOAL|^2; returns what was asked for, and what each of it cost."""
    asked = []
    while (points := it.ask()) is not None:
        asked += [
            (point, it.request.active is not None, it.request.full, it.cost) for point in points
        ]
        values = [
            np.nan if len(asked) in fails else -float(((point - GOAL) ** 2).sum())
            for point in points
        ]
        it.tell(values, [-2 * (point - GOAL) for point in points])
    return asked


def test_it_ends_at_the_best_point_of_the_box():
    """The average of the last points, scored in full at the end, is the optimum inside the bounds;
    the budget is kept."""
    it = optimizer()
    asked = run(it)
    point, gradient, full, cost = asked[-1]
    assert np.allclose(point, [0.3, 1.0, 0.0], atol=0.01)
    assert (gradient, full, cost) == (False, True, 1.0)
    assert it.spent == pytest.approx(sum(cost for *_, cost in asked))
    assert 39 < it.spent <= 40
    assert sum(full for _, _, full, _ in asked) == 3
    assert all(cost == 0.75 for _, gradient, _, cost in asked if gradient)
    assert all((point >= 0).all() and (point <= 1).all() for point, *_ in asked)


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

    def fall(point):
        return -float(sharp @ (point - goal) ** 2) - (1000.0 if normal @ point > edge else 0.0)

    it = gates(begin)
    told = []
    while (points := it.ask()) is not None:
        told.append(
            (
                points,
                it.request,
                [fall(point) for point in points],
                [-2 * sharp * (each - goal) for each in points],
            )
        )
        it.tell(*told[-1][2:])
    steps = [values[0] for _, request, values, _ in told if request.active is not None]
    assert min(steps) > -1000 + fall(begin)
    assert told[-1][1].full
    assert told[-1][2][0] >= fall(begin)
    again = gates(begin)
    for points, _, values, slopes in told:
        assert [point.tobytes() for point in again.ask() or []] == [
            point.tobytes() for point in points
        ]
        again.tell(values, slopes)


def test_a_step_is_tried_on_the_batch_of_its_gradient():
    """A step that falls is halved, on the batch that its gradient was of; after one that holds
    steps grow again."""
    it = gates(np.full(8, 0.5))
    asked = []
    while (points := it.ask()) is not None:
        request = it.request
        asked.append((points[0], request.repeats, request.active is not None))
        within = np.abs(points[0] - 0.5).max() <= 0.03
        it.tell([0.0 if within else -9.0] * len(points), [np.ones(8)] * len(points))
    assert [repeats for _, repeats, _ in asked[:5]] == [0, 1, 2, 3, 0]
    assert [gradient for *_, gradient in asked[:5]] == [True, False, False, False, True]
    lengths = [float(np.abs(point - 0.5).max()) for point, *_ in asked[1:4]]
    assert lengths == pytest.approx([lengths[0], lengths[0] / 2, lengths[0] / 4])
    assert np.array_equal(asked[4][0], asked[3][0])


def test_what_stays_at_the_bound_is_given_up():
    """A coordinate that stays at its lower bound leaves for good, and what is left costs less."""
    it = optimizer(budget=80.0, start=start(prunable=True))
    costs = [cost for _, gradient, _, cost in run(it) if gradient]
    assert costs == sorted(costs, reverse=True)
    assert (costs[0], costs[-1]) == (0.75, 0.5)
    assert it.request.full
    assert it.average[2] < 1e-3
    kept = [cost for _, gradient, _, cost in run(optimizer()) if gradient]
    assert set(kept) == {0.75}


@pytest.mark.parametrize(("examples", "apart"), [(0, 0.0), (13, 0.02), (128, 0.2)])
def test_members_of_a_group_move_together(examples, apart):
    """Without examples a group is one number; its members part the further the more there are; with
    128 groups do not count."""
    together = start(groups=np.array([0, 0, 1]))
    points = [point for point, *_ in run(optimizer(budget=9.0, start=together, examples=examples))]
    between = max(abs(point[0] - point[1]) for point in points)
    assert between == pytest.approx(apart) if examples == 0 else between >= apart
    assert points[-1][2] < 0.4
    alone = [point.tobytes() for point, *_ in run(optimizer(budget=9.0))]
    assert ([point.tobytes() for point in points] == alone) is (examples == 128)


def test_full_scores_on_the_way_are_for_large_budgets():
    """Where two scores in full would take more than a twentieth of the budget, steps are made of
    them."""
    assert [
        sum(full for _, _, full, _ in run(optimizer(budget=budget))) for budget in (39.0, 40.0)
    ] == [1, 3]


def test_the_best_candidate_is_the_first_point():
    """Candidates are scored on a batch, as many as a third of the budget does, and the best is
    where the steps begin."""
    candidates = [np.full(3, 0.9), np.array([0.3, 0.9, 0.1]), GOAL]
    asked = run(optimizer(start=start(*candidates)))
    assert [point.tolist() for point, *_ in asked[:4]] == [
        *(each.tolist() for each in candidates),
        GOAL.tolist(),
    ]
    assert [gradient for _, gradient, _, _ in asked[:4]] == [False, False, False, True]
    asked = run(optimizer(budget=1.6, start=start(*candidates)))
    assert [point.tolist() for point, *_ in asked] == [[0.9] * 3, [0.3, 0.9, 0.1], [0.3, 0.9, 0.1]]


def test_starts_are_told_apart_on_all_examples_where_a_batch_is_small():
    """With batches of four examples the four best candidates on a batch are scored on all, and the
    best of these is where the steps begin; with a budget for one, the batch decides."""
    candidates = [np.full(3, 0.9), GOAL, *(np.full(3, each) for each in (0.8, 0.7, 0.0, 1.0))]
    it = optimizer(examples=16, start=start(*candidates))
    asked = []
    luck = iter([-1.0, -4.0, -2.0, -3.0, -9.0, -8.0])  # on the batch the goal is the fourth
    while len(asked) < 11:
        points = it.ask()
        assert points is not None
        full = it.request.full
        asked += [(point.tolist(), full) for point in points]
        truth = [-float(((point - GOAL) ** 2).sum()) for point in points]
        values = truth if full else [next(luck, value) for value in truth]
        it.tell(values, [-2 * (point - GOAL) for point in points])
    every = [each.tolist() for each in candidates]
    assert asked[:6] == [(each, False) for each in every]
    assert asked[6:10] == [(each, True) for each in every[:4]]
    assert asked[10] == (GOAL.tolist(), False)
    assert cost_of_starts(start(*candidates), 40.0, 0.25, 16) == 6 * 0.25 + 4
    assert cost_of_starts(start(*candidates[:3]), 40.0, 0.25, 16) == 3
    assert cost_of_starts(start(*candidates), 40.0, 0.25, 128) == 6 * 0.25
    assert cost_of_starts(start(*candidates, prunable=True), 40.0, 0.25, 16) == 6 * 0.25
    few = run(optimizer(budget=11.0, examples=16, start=start(*candidates)))
    assert not any(full for _, _, full, _ in few[:-1])


def test_a_failed_point_is_left_again():
    """After a point that fails the search goes on from the one before, in smaller steps, and still
    arrives."""
    asked = run(optimizer(), fails=(5, 6))
    assert asked[5][0].tolist() == asked[6][0].tolist() == asked[3][0].tolist()
    assert np.allclose(asked[-1][0], [0.3, 1.0, 0.0], atol=0.05)


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
    average = np.zeros(1)
    last = np.zeros(1)
    while (points := it.ask()) is not None:
        last = last if it.request.full else points[-1]
        average = 0.9 * average + 0.1 * last
        it.tell([float(point[0]) for point in points], [np.ones(1) for _ in points])
    assert abs(it.average[0] - last[0]) < 0.04 * last[0]
    assert (
        budget > 100 or abs(average[0] - last[0]) > 0.04 * last[0]
    )  # as an average of ten points does not
