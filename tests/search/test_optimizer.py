"""The optimizer: one suite of rules that every algorithm keeps, and what each is for."""

import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from hf_evomerge.errors import SearchError
from hf_evomerge.search.optimizers.ask_tell import Optimizer, Start

ALL = ["cma", "random"]
HERE = Path(__file__).parent


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


def _fingerprint(algorithm, seed=3):
    optimizer = Optimizer(_start(2), algorithm=algorithm, seed=seed)
    digest = sha256()
    for genomes, _ in _run(optimizer, _sphere, 400):
        digest.update(np.concatenate(genomes).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("algorithm", ALL)
def test_same_seed_same_genomes(algorithm):
    """The same seed and fitness give the same genomes bit for bit, others differ; numpy's global
    generator is neither drawn from nor seeded."""
    np.random.seed(1)
    untouched = np.random.random()
    np.random.seed(1)
    first = _fingerprint(algorithm)
    assert np.random.random() == untouched
    assert _fingerprint(algorithm) == first
    assert _fingerprint(algorithm, seed=4) != first


def test_same_genomes_in_every_process():
    """Another process with another hash seed asks for the same genomes."""
    program = "import test_optimizer as t; print(*map(t._fingerprint, t.ALL))"
    places = {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", program]
    said = subprocess.check_output(command, text=True, env={**os.environ, **places})
    assert said.split() == list(map(_fingerprint, ALL))


@pytest.mark.parametrize("algorithm", ALL)
def test_genomes_lie_within_bounds(algorithm):
    """Every genome lies within the bounds, also where the optimum is outside, where the start is on
    a bound, and one-sided."""

    def seen(start):
        optimizer = Optimizer(start, algorithm=algorithm)
        runs = _run(optimizer, lambda x: float(x.sum()), 120)
        return np.concatenate([genomes for genomes, _ in runs])

    for mean in (-1.0, 0.0, 1.0):
        assert (np.abs(seen(_start(3, mean=mean, sigma=0.5))) <= 1).all()
    lower, upper = np.array([[-np.inf, 0.0], [np.inf, 0.1]])
    free, bounded = seen(Start(np.zeros(2), 0.5, lower, upper)).T
    assert (np.clip(bounded, 0.0, 0.1) == bounded).all()
    assert free.max() > 0.5


@pytest.mark.parametrize("algorithm", ALL)
def test_failed_candidates(algorithm):
    """Candidates that fail (NaN) do not stop the search, and do not keep it from the optimum of the
    others."""

    def objective(x):
        return float("nan") if x[0] > 0.25 or abs(x[1] - 0.1) < 0.02 else _sphere(x)

    optimizer = Optimizer(_start(3), algorithm=algorithm, seed=1)
    genomes, fitness = zip(*_run(optimizer, objective, 300), strict=True)
    values = np.concatenate(fitness)
    assert np.isnan(values).any()
    assert np.isfinite(np.concatenate(genomes)).all()
    if algorithm != "random":
        assert np.nanmax(values) > -0.001
        assert np.isnan(values[-60:]).mean() < np.isnan(values[:60]).mean()


@pytest.mark.parametrize("algorithm", ALL)
def test_a_generation_in_which_all_fail(algorithm):
    """A generation of failures only, at the start or later, is survived."""
    optimizer = Optimizer(_start(3), algorithm=algorithm)
    for generation in range(12):
        genomes = optimizer.ask()
        assert np.isfinite(genomes).all()
        failed = np.nan if generation in (0, 5) else 0.0
        optimizer.tell([failed + _sphere(genome) for genome in genomes])


@pytest.mark.parametrize(
    "objective", [lambda _: 0.0, lambda x: round(20 * max(0.0, 1 + 5 * _sphere(x))) / 20]
)
def test_equal_fitness_is_not_convergence(objective):
    """Accuracies that do not differ, from the first generation on or near the end, do not end a
    search before its budget."""
    assert sum(len(each) for each, _ in _run(Optimizer(_start(4)), objective, 500)) >= 500


def test_random_search_fills_the_bounds():
    """Random search is uniform between bounds, and normal around the start where there are none."""
    start = Start(np.array([0.0, 5.0]), 0.1, np.array([-1.0, -np.inf]), np.array([3.0, np.inf]))
    seen = np.array(Optimizer(start, algorithm="random", population=4000).ask())
    assert (np.abs(seen.mean(0) - [1.0, 5.0]) < [0.1, 0.02]).all()
    assert (np.abs(seen.std(0) - [4 / np.sqrt(12), 0.1]) < [0.05, 0.02]).all()


def test_thousands_of_coordinates():
    """The paper's 4288 numbers take a fraction of a second per generation: their covariance is kept
    diagonal."""
    start = _start(4288, 0.0, 0.1, (-np.inf, np.inf))
    assert [len(each) for each, _ in _run(Optimizer(start), _sphere, 29 * 3)] == [29] * 3


@pytest.mark.parametrize("algorithm", ALL)
def test_asking_and_telling_out_of_turn(algorithm):
    """Asking twice, telling first, telling twice or another number of values is refused, and the
    search can go on."""
    optimizer = Optimizer(_start(3), algorithm=algorithm, population=5)

    def refuse(told, values):
        with refused(SearchError, rf"tell\(\) got {told} genomes"):
            optimizer.tell([0.0] * values)

    refuse("1 values for 0", 1)
    optimizer.ask()
    with refused(SearchError, r"ask\(\) was called twice without tell\(\)"):
        optimizer.ask()
    refuse("4 values for 5", 4)
    optimizer.tell([0.0] * 5)
    refuse("5 values for 0", 5)
    assert optimizer.ask()


def test_one_number_is_too_few():
    """CMA-ES needs two numbers and says what to do instead; random search does with one."""
    with refused(SearchError, "at least 2 numbers to evolve; give finer layer groups"):
        Optimizer(_start(1))
    assert Optimizer(_start(1), algorithm="random").ask()


def test_cma_begins_at_the_best_candidate():
    """Candidates are the first generation, and the next one lies around the best of them."""
    candidates = tuple(np.full(4, each) for each in (0.9, -0.5, 0.5))
    optimizer = Optimizer(replace(_start(sigma=0.01), candidates=candidates), seed=1)
    first = optimizer.ask()
    assert np.array_equal(first, candidates)
    optimizer.tell([_sphere(point) for point in first])
    assert np.mean(optimizer.ask(), axis=0) == pytest.approx(-0.5, abs=0.03)


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
