"""Examples whose scores have a factor of their own."""

from dataclasses import replace

import pytest
import torch

from hf_evomerge.fitness import DataSpec, FunctionTask, load_examples

from .conftest import gradient, prepared, write_lines

LIKELIHOOD = {"task": "likelihood", "separator": " "}


def test_scores_and_gradient_have_the_factor(model, examples, tokenizer):
    """A score is multiplied by its weight, and the gradient is that of the mean of these scores."""
    weights = [0.5, 3.0, 1.0]
    weighted = [replace(each, weight=w) for each, w in zip(examples, weights, strict=False)]
    parameter = model.model.layers[0].mlp.up_proj.weight
    settings = {"tokenizer": tokenizer, **LIKELIHOOD}
    scores, found = gradient(model, parameter, examples=weighted, **settings)
    apart = [gradient(model, parameter, examples=[each], **settings) for each in examples[:3]]
    assert scores.values == pytest.approx(
        [w * each.mean for w, (each, _) in zip(weights, apart, strict=True)], rel=1e-5
    )
    expected = sum(w * each for w, (_, each) in zip(weights, apart, strict=True)) / 3
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_every_task_is_weighted(examples, tokenizer):
    """A user's function is weighted as the tasks of the package are."""
    task = FunctionTask(lambda model, tokenizer, rows: [1.0] * len(rows))
    task.prepare([replace(examples[0], weight=2.0), examples[1]], tokenizer)
    assert task.evaluate(torch.nn.Linear(1, 1)).values.tolist() == [2.0, 1.0]


def test_a_score_of_several_choices_is_weighted_once(model, examples, tokenizer):
    """An example's score has its weight, whatever it is made of."""
    values = []
    for weight in (1.0, 3.0):
        rows = [replace(each, choices=(each.answer, "?"), weight=weight) for each in examples[:2]]
        task = prepared("multiple_choice", rows, tokenizer, separator=" ")
        values.append(task.evaluate(model).values)
    assert values[1] == pytest.approx(3 * values[0], rel=1e-6)


def test_data_of_several_skills(tmp_path):
    """Each skill's examples know its name and its weight."""
    files = [write_lines(tmp_path / name, [{"prompt": name, "answer": "two"}]) for name in "ab"]
    skills = {"a": DataSpec(**files[0], weight=0.25), "b": DataSpec(**files[1])}
    found = load_examples(DataSpec(sources=skills))
    assert [(each.source, each.weight) for each in found] == [("a", 0.25), ("b", 1.0)]
