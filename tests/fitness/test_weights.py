"""Examples whose scores have a factor of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_evomerge.fitness import DataSpec, FunctionTask, load_examples, make_task, parse_task

LIKELIHOOD = {"task": "likelihood", "separator": " "}


def test_scores_and_gradient_have_the_factor(model, examples, tokenizer):
    """A score is multiplied by its weight, and the gradient is that of the mean of these scores."""
    weights = [0.5, 3.0, 1.0]
    plain = examples[:3]
    weighted = [replace(each, weight=w) for each, w in zip(plain, weights, strict=True)]
    parameter = model.model.layers[0].mlp.up_proj.weight

    def gradient(rows):
        task = make_task(parse_task(LIKELIHOOD))
        task.prepare(rows, tokenizer)
        model.zero_grad(set_to_none=True)
        scores = task.backward(model)
        return scores, parameter.grad.clone()

    try:
        scores, found = gradient(weighted)
        apart = [gradient([each]) for each in plain]
    finally:
        model.zero_grad(set_to_none=True)
    single = np.array([each.values[0] for each, _ in apart])
    assert scores.values == pytest.approx(single * weights, rel=1e-5)
    expected = sum(w * each for w, (_, each) in zip(weights, apart, strict=True)) / 3
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_every_task_is_weighted(examples, tokenizer):
    """A user's function is weighted as the tasks of the package are; terms are not twice."""
    rows = [replace(examples[0], weight=2.0), examples[1]]
    task = FunctionTask(lambda model, tokenizer, rows: [1.0] * len(rows))
    task.prepare(rows, tokenizer)
    assert task.evaluate(torch.nn.Linear(1, 1)).values.tolist() == [2.0, 1.0]


def test_a_choice_is_weighted_by_its_example(model, examples, tokenizer):
    """Of several choices an example has one score, and this has its weight."""
    rows = [replace(each, choices=(each.answer, "seven")) for each in examples[:2]]
    scores = []
    for weight in (1.0, 3.0):
        task = make_task(parse_task({"task": "multiple_choice", "separator": " "}))
        task.prepare([replace(each, weight=weight) for each in rows], tokenizer)
        scores.append(task.evaluate(model).values)
    assert scores[1] == pytest.approx(3 * scores[0])


def test_terms_are_weighted_once(model, examples, tokenizer):
    """The scores of a sum have the factor that the scores of its term have."""
    rows = [replace(examples[0], weight=2.0), examples[1]]
    found = []
    for section in (LIKELIHOOD, {"terms": [LIKELIHOOD]}):
        task = make_task(parse_task(section))
        task.prepare(rows, tokenizer)
        found.append(task.evaluate(model).values)
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_data_of_several_skills(tmp_path):
    """Each skill's examples know its name and its weight."""
    for name in ("a", "b"):
        line = f'{{"prompt": "{name}", "answer": "two"}}'
        (tmp_path / f"{name}.jsonl").write_text(line, encoding="utf-8")
    skills = {
        "a": DataSpec(jsonl=str(tmp_path / "a.jsonl"), weight=0.25),
        "b": DataSpec(jsonl=str(tmp_path / "b.jsonl")),
    }
    found = load_examples(DataSpec(sources=skills))
    assert [(each.source, each.weight) for each in found] == [("a", 0.25), ("b", 1.0)]
