"""The best parent with a temperature, which a merge's lead in likelihood is compared with."""

from typing import Any

import numpy as np
import pytest

from hf_evomerge.fitness import Example, LikelihoodTask, Scores, parse_task
from hf_evomerge.search.baselines import TEMPERATURES, best_temperature
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.results.table import Row
from hf_evomerge.search.results.verdict import verdict
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study


@pytest.mark.parametrize("true", [0.4, 0.71, 1.0, 1.3, 2.9, 7.0, 11.0])
def test_the_temperature_is_found_with_few_scores(true):
    """Six temperatures beside 1 find the one that labels were drawn at, to a tenth and .003 nats."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (4000, 5))
    drawn = np.argmax(logits / true + rng.gumbel(size=logits.shape), axis=1)
    tried = set[float]()

    def score(temperatures: Any) -> list[float]:
        tried.update(temperatures)
        scaled = [logits / temperature for temperature in temperatures]
        return [float((x[np.arange(4000), drawn] - np.logaddexp.reduce(x, axis=1)).mean()) for x in scaled]

    exact = max(np.geomspace(0.2, 40, 500), key=lambda temperature: score([temperature])[0])
    tried.clear()
    found = best_temperature(score)
    assert len(tried - {1.0}) <= TEMPERATURES
    assert found == pytest.approx(exact, rel=0.1)
    assert score([found])[0] > score([exact])[0] - 0.003
    assert best_temperature(lambda temperatures: [-np.inf] * len(temperatures)) == 0.5


@pytest.mark.parametrize(
    ("section", "scaled"),
    [
        ({"task": "likelihood", "temperature": 2}, 6.0),
        ({"task": "perplexity"}, 3.0),
        ({"task": "classification"}, 3.0),
        ({"task": "retrieval"}, 0.15),
        ({"task": "multiple_choice", "score": "log_probability"}, 3.0),
        ({"task": "multiple_choice"}, None),
        ({"task": "classification", "score": "accuracy"}, None),
        ({"task": "generation"}, None),
    ],
)
def test_which_tasks_have_a_temperature(section, scaled):
    """Tasks that score log-probabilities can have their logits divided, on top of a temperature of their own; others not."""
    task: Any = parse_task(section).at_temperature(3.0)
    assert (None if task is None else task.temperature) == (None if scaled is None else pytest.approx(scaled))


def test_the_best_parent_with_a_temperature(tmp_path, search_config):
    """Table and verdict have the best parent at the temperature of the search examples; going on scores nothing again."""
    result = run_search(search_config(compare={"baselines": []}), tmp_path, build=False)
    row = result.row("temperature")
    parent, temperature = row.label.split(":temperature:")
    with Study.open(tmp_path) as study:
        validated = {label: study.evaluation(label, "validation") for label in ("base", "source:0", "source:1")}
        searched = {label: study.evaluation(label, "search") for label, _ in study.evaluated() if label.startswith(parent)}
        before = study.evaluated()
    means = {label: scores.mean for label, scores in validated.items() if scores is not None}
    assert means[parent] == max(means.values(), key=lambda mean: mean or -np.inf)
    assert sum(scores is not None for scores in searched.values()) == 1 + TEMPERATURES
    name = {"source:0": "a", "source:1": "b"}.get(parent, parent)
    assert row.model == f"{name} at temperature {temperature} (6 scores)"
    assert row.evaluations == 6
    evaluator = Evaluator(search_config())
    ref, fitness = evaluator.config.parents[parent], evaluator.config.fitness.at_temperature(float(temperature))
    assert evaluator.evaluate(ref, "test", fitness=fitness) == row.scores
    tuned = evaluator.evaluate(ref, fitness=fitness).mean
    assert all(tuned > (scores.mean or 0) - 1e-3 for scores in searched.values() if scores is not None)
    assert row.scores.accuracy == next(each.scores.accuracy for each in result.rows if each.label == parent)
    assert any(f" {name} at temperature {temperature}, " in sentence for sentence in result.verdict)
    assert run_search(search_config(compare={"baselines": []}), tmp_path, build=False).rows == result.rows
    with Study.open(tmp_path) as study:
        assert study.evaluated() == before


def test_a_task_of_the_users_own_has_no_temperature(tmp_path, search_config):
    """Where a task from Python takes the place of the file's, its logits cannot be divided and there is no row."""
    config = search_config(compare={"baselines": []})
    result = run_search(config, tmp_path, build=False, task_factory=lambda: LikelihoodTask(config.fitness))
    assert "temperature" not in [row.stage for row in result.rows]


def test_a_lead_that_is_calibration_is_called_so():
    """A temperature changes no answer, so it is compared by fitness, also where accuracy tells the models apart."""
    right = np.arange(200) < 100
    rows = [
        Row("source", "a", Scores(np.full(200, -2.0), correct=[False] * 200)),
        Row("temperature", "a at temperature 2 (6 scores)", Scores(np.full(200, -1.0), correct=[False] * 200)),
        Row("ps", "evolved PS", Scores(np.full(200, -1.5), correct=right), winner=True),
    ]
    best, temperature, *_ = verdict(rows, "test", "nats per answer")
    assert best.startswith("Evolved PS is better than its best parent, a, by 0.500 of accuracy")
    assert temperature.startswith("Evolved PS is WORSE than a at temperature 2, by 0.500 nats per answer (")
    assert temperature.endswith("what the merge gains in fitness can be had without it")


def test_choices_are_divided_as_a_whole(tiny, search_config):
    """The temperature of multiple choice divides the choices' log-probabilities, which are its logits."""
    examples = [Example(str(i), "1", str(i), choices=("1", "2", "12")) for i in range(4)]
    evaluator = Evaluator(
        search_config(fitness={"task": "multiple_choice", "score": "log_probability"}), examples={"search": examples}
    )
    ref, single = evaluator.config.sources[0], parse_task({"task": "likelihood", "append_eos": False})
    values = []
    for choice in examples[0].choices:
        one = Evaluator(search_config(fitness=single), examples={"search": [Example(e.prompt, choice, e.id) for e in examples]})
        values.append(one.evaluate(ref).values)
    logits = np.array(values).T / 3
    expected = logits[:, 0] - np.logaddexp.reduce(logits, axis=1)
    at_three = evaluator.evaluate(ref, fitness=evaluator.config.fitness.at_temperature(3.0))
    np.testing.assert_allclose(at_three.values, expected, atol=1e-4)
