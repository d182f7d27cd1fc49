"""The optimizer: one suite of rules that every algorithm keeps, and what each is for."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from hf_evomerge.errors import SearchError
from hf_evomerge.search.optimizers.ask_tell import Optimizer, Start

Objective = Callable[[np.ndarray], float]
ALL = ["cma", "random"]


def _start(dimension=4, mean=0.3, sigma=0.2, bounds=(-1.0, 1.0)):
    lower, upper = (np.full(dimension, bound) for bound in bounds)
    return Start(np.full(dimension, mean), sigma, lower, upper)


def _sphere(x):
    return -float(((x + 0.2) ** 2).sum())


def _run(optimizer, objective, budget):
    """Generations and their fitness until the budget is spent or the optimizer has converged."""
    spent = 0
    while spent < budget and (genomes := optimizer.ask()) is not None:
        fitness = [objective(genome) for genome in genomes]
        yield genomes, fitness
        optimizer.tell([(value, 7.0) for value in fitness])  # ranked by the first
        spent += len(genomes)


def _fingerprint(algorithm, seed=3, budget=150):
    optimizer = Optimizer(_start(2), algorithm=algorithm, seed=seed)
    digest = sha256()
    for genomes, _ in _run(optimizer, _sphere, budget):
        digest.update(np.concatenate(genomes).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("algorithm", ALL)
def test_same_seed_same_genomes(algorithm):
    """The same seed and fitness give the same genomes bit for bit, whatever numpy's global
    generator holds; others differ."""
    np.random.seed(1)
    first = _fingerprint(algorithm)
    np.random.seed(2)
    assert _fingerprint(algorithm) == first
    assert _fingerprint(algorithm, seed=4) != first


def test_same_genomes_in_every_process():
    """Another process with another hash seed asks for the same genomes."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_optimizer as t\nprint(*map(t._fingerprint, t.ALL))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == list(map(_fingerprint, ALL))


@pytest.mark.parametrize("algorithm", ALL)
def test_global_random_numbers_are_left_alone(algorithm):
    """A whole run neither draws from numpy's global generator nor seeds it."""
    np.random.seed(11)
    before = np.random.get_state()
    _fingerprint(algorithm, budget=400)
    after = np.random.get_state()
    assert before[0] == after[0]
    assert (before[1] == after[1]).all()  # type: ignore[index]
    assert before[2:] == after[2:]


@pytest.mark.parametrize("algorithm", ALL)
def test_genomes_lie_within_bounds(algorithm):
    """Every genome lies within the bounds, also where the optimum is outside, where the start is on
    a bound, and one-sided."""
    for mean in (-1.0, 0.0, 1.0):
        start = _start(3, mean=mean, sigma=0.5)
        for genomes, _ in _run(
            Optimizer(start, algorithm=algorithm), lambda x: float(x.sum()), 120
        ):
            assert all((genome >= -1).all() and (genome <= 1).all() for genome in genomes)
    half = Start(
        np.zeros(3), 0.5, np.array([-np.inf, 0.0, -np.inf]), np.array([np.inf, 0.1, np.inf])
    )
    seen = np.array(
        [x for xs, _ in _run(Optimizer(half, algorithm=algorithm), lambda x: x[0], 120) for x in xs]
    )
    assert (seen[:, 1] >= 0).all()
    assert (seen[:, 1] <= 0.1).all()
    assert seen[:, 0].max() > 0.5


@pytest.mark.parametrize("algorithm", ALL)
def test_failed_candidates(algorithm):
    """Candidates that fail (NaN) do not stop the search, and do not keep it from the optimum of the
    others."""

    def objective(x):
        return float("nan") if x[0] > 0.25 or abs(x[1] - 0.1) < 0.02 else _sphere(x)

    optimizer = Optimizer(_start(3), algorithm=algorithm, seed=1)
    batches = list(_run(optimizer, objective, 300))
    values = np.array([value for _, fitness in batches for value in fitness])
    assert np.isnan(values).any()
    assert all(np.isfinite(genome).all() for genomes, _ in batches for genome in genomes)
    if algorithm != "random":
        assert np.nanmax(values) > -0.001
        assert np.isnan(values[-60:]).mean() < np.isnan(values[:60]).mean()


@pytest.mark.parametrize("algorithm", ALL)
def test_a_generation_in_which_all_fail(algorithm):
    """A generation of failures only, at the start or later, is survived."""
    optimizer = Optimizer(_start(3), algorithm=algorithm)
    for generation in range(12):
        genomes = optimizer.ask()
        assert genomes is not None
        assert all(np.isfinite(genome).all() for genome in genomes)
        optimizer.tell(
            [float("nan") if generation in (0, 5) else _sphere(genome) for genome in genomes]
        )


def test_equal_fitness_is_not_convergence():
    """Accuracies that do not differ, from the first generation on or near the end, do not end a
    search before its budget."""

    def rounded(x):
        return round(20 * max(0.0, 1 + 5 * _sphere(x))) / 20

    for objective in (lambda _: 0.0, rounded):
        spent = sum(len(genomes) for genomes, _ in _run(Optimizer(_start(4)), objective, 500))
        assert spent >= 500


def test_random_search_fills_the_bounds():
    """Random search is uniform between bounds, and normal around the start where there are none."""
    start = Start(np.array([0.0, 5.0]), 0.1, np.array([-1.0, -np.inf]), np.array([3.0, np.inf]))
    optimizer = Optimizer(start, algorithm="random", population=4000)
    seen = np.array(optimizer.ask())
    assert seen[:, 0].mean() == pytest.approx(1.0, abs=0.1)
    assert seen[:, 0].std() == pytest.approx(4 / np.sqrt(12), abs=0.05)
    assert seen[:, 1].mean() == pytest.approx(5.0, abs=0.02)
    assert seen[:, 1].std() == pytest.approx(0.1, abs=0.02)


def test_thousands_of_coordinates():
    """The paper's 4288 numbers take a fraction of a second per generation: their covariance is kept
    diagonal."""
    start = Start(np.zeros(4288), 0.1, np.full(4288, -np.inf), np.full(4288, np.inf))
    generations = list(_run(Optimizer(start), _sphere, 29 * 3))
    assert [len(genomes) for genomes, _ in generations] == [29] * 3


@pytest.mark.parametrize("algorithm", ["cma", "random"])
def test_asking_and_telling_out_of_turn(algorithm):
    """Asking twice, telling first, telling twice or another number of values is refused, and the
    search can go on."""
    optimizer = Optimizer(_start(3), algorithm=algorithm)
    with pytest.raises(SearchError, match=r"tell\(\) got 1 values for 0 genomes"):
        optimizer.tell([1.0])
    genomes = optimizer.ask() or []
    with pytest.raises(SearchError, match=r"ask\(\) was called twice without tell\(\)"):
        optimizer.ask()
    with pytest.raises(
        SearchError, match=rf"tell\(\) got {len(genomes) - 1} values for {len(genomes)} genomes"
    ):
        optimizer.tell([0.0] * (len(genomes) - 1))
    optimizer.tell([_sphere(genome) for genome in genomes])
    with pytest.raises(SearchError, match="for 0 genomes"):
        optimizer.tell([0.0] * len(genomes))
    assert optimizer.ask()


def test_one_number_is_too_few():
    """CMA-ES needs two numbers and says what to do instead; random search does with one."""
    with pytest.raises(
        SearchError,
        match="at least 2 numbers to evolve; give finer layer groups, or write by: random",
    ):
        Optimizer(_start(1))
    assert Optimizer(_start(1), algorithm="random").ask()


def test_cma_begins_at_the_best_candidate():
    """Candidates are the first generation, and the next one lies around the best of them."""
    candidates = (np.full(4, 0.9), np.full(4, -0.5), np.full(4, 0.5))
    optimizer = Optimizer(replace(_start(sigma=0.01), candidates=candidates), seed=1)
    first = optimizer.ask()
    assert first is not None
    assert [point.tolist() for point in first] == [point.tolist() for point in candidates]
    optimizer.tell([_sphere(point) for point in first])
    second = optimizer.ask()
    assert second is not None
    assert np.abs(np.mean(second, axis=0) + 0.5).max() < 0.03


def test_the_mean_is_scored_on_all_examples():
    """On batches the mean of the distribution is asked for now and then and when the budget ends,
    to be scored in full."""
    optimizer = Optimizer(_start(), population=8, seed=1, budgets=(20.0,), shares=(0.125,))
    full = []
    while (points := optimizer.ask()) is not None:
        if optimizer.request.full:
            full.append((optimizer.spent, _sphere(points[0])))
        assert len(points) == (1 if optimizer.request.full else 8)
        optimizer.tell([_sphere(point) for point in points])
    assert [spent for spent, _ in full] == [4.0, 8.0, 12.0, 16.0, 19.0]
    assert optimizer.spent == 20.0
    assert full[-1][1] > full[0][1]
