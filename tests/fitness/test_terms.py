import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DifferentiableTask, JudgingTask, make_task, parse_task

from .conftest import WORDS, prepared, refused

LIKELIHOOD = {"task": "likelihood", "separator": " "}


def spec_of(*terms):
    """The spec of a sum."""
    return parse_task({"terms": list(terms)})


def written(folder, count):
    """Data of so many examples that no other data has."""
    rng = random.Random(count)
    lines = [
        f'{{"prompt": "{" ".join(rng.choices(WORDS[:8], k=5))}", "answer": "two"}}'
        for _ in range(count)
    ]
    (folder / f"{count}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"jsonl": str(folder / f"{count}.jsonl")}


@pytest.mark.parametrize("count", [3, 7, 10, 31])
def test_the_mean_is_the_weighted_sum(count, tmp_path, model, examples, tokenizer):
    """However many examples a term has, the fitness is the weighted sum of the terms' means, with
    one score per example."""
    data = written(tmp_path, count)
    own = examples[:10]
    further = {"task": "perplexity", "weight": 0.5, "data": {"search": data}}
    spec = spec_of({**LIKELIHOOD, "weight": 2.0}, further)
    task = make_task(spec)
    task.prepare(dealt := spec.deal(own, "search"), tokenizer)
    scores = task.evaluate(model)
    theirs = [other.example for example in dealt for other in example.beside]
    assert len(set(theirs)) == count
    alone = prepared(**LIKELIHOOD, examples=own, tokenizer=tokenizer).evaluate(model)
    expected = [
        alone.mean,
        prepared("perplexity", list(set(theirs)), tokenizer).evaluate(model).mean,
    ]
    assert scores.values.size == 10
    assert scores.mean == pytest.approx(2 * expected[0] + 0.5 * expected[1], rel=1e-5)
    assert [scores.others[name].mean for name in ("likelihood", "perplexity")] == pytest.approx(
        expected, rel=1e-5
    )
    assert np.array_equal(scores.correct, alone.correct)


@pytest.mark.parametrize("count", [4, 25])
def test_every_example_counts_once_in_a_score_of_all(count, tmp_path, examples):
    """A term with many examples gives every one of the search's some; one with few gives each
    several times, for batches."""
    dealt = spec_of(LIKELIHOOD, {**LIKELIHOOD, "data": {"search": written(tmp_path, count)}}).deal(
        examples[:10], "search"
    )
    held = [len(example.beside) for example in dealt]
    assert min(held) >= 1
    assert max(held) - min(held) <= 1
    shares = Counter[str]()
    for other in (other for example in dealt for other in example.beside):
        shares[other.example.id] += other.share  # type: ignore[assignment]
    assert list(shares.values()) == pytest.approx([10 / count] * count)


@pytest.mark.parametrize("count", [4, 30])
def test_the_standard_error_is_the_sums(count, tmp_path, model, examples, tokenizer):
    """A term of few examples is as uncertain as they make it, one of many no more than these."""
    further = {"task": "perplexity", "weight": 3.0, "data": {"search": written(tmp_path, count)}}
    spec = spec_of({**LIKELIHOOD, "weight": 1e-6}, further)
    task = make_task(spec)
    task.prepare(spec.deal(examples[:10], "search"), tokenizer)
    scores = task.evaluate(model)
    own = scores.others["perplexity"].values
    assert scores.values.var() / 10 == pytest.approx(
        9 * own.var() / count, rel=0.5 if count == 30 else 1e-3
    )


def test_gradient_is_of_the_weighted_sum(tmp_path, model, examples, tokenizer):
    """The gradient on a batch is the sum of the terms' gradients, by weight and share."""
    further = {"task": "perplexity", "weight": 0.5, "data": {"search": written(tmp_path, 3)}}
    spec = spec_of({**LIKELIHOOD, "weight": 2.0}, {**LIKELIHOOD, "normalize": "token"}, further)
    batch = [
        spec.deal(examples[:7], "search")[i] for i in (0, 3, 4)
    ]  # the first two have the same beside them
    assert batch[0].beside[0].example == batch[1].beside[0].example
    weight = model.model.layers[0].mlp.up_proj.weight

    def gradient(section, rows):
        task = make_task(parse_task(section))
        task.prepare(rows, tokenizer)
        model.zero_grad(set_to_none=True)
        task.backward(model)
        return weight.grad.clone()

    try:
        expected = 2 * gradient(LIKELIHOOD, batch) + gradient(
            {**LIKELIHOOD, "normalize": "token"}, batch
        )
        for example in batch:
            expected += (
                0.5
                * example.beside[0].share
                / 3
                * gradient({"task": "perplexity"}, [example.beside[0].example])
            )
        found = gradient({"terms": spec.model_dump()["terms"]}, batch)
    finally:
        model.zero_grad(set_to_none=True)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_what_it_can_do_is_what_its_terms_can(examples):
    """It has a gradient where all terms have one, and judges as its first term that does."""
    both = make_task(spec_of(LIKELIHOOD, {"task": "perplexity"}))
    assert isinstance(both, DifferentiableTask)
    assert isinstance(both, JudgingTask)
    assert both.judge("two", replace(examples[0], answer="two"))
    assert not isinstance(
        make_task(spec_of(LIKELIHOOD, {"task": "multiple_choice"})), DifferentiableTask
    )
    assert not isinstance(make_task(spec_of({"task": "perplexity"})), JudgingTask)


def test_is_written_as_it_is_read():
    """What is dumped is the section that would be written by hand, and is read again."""
    section = {**LIKELIHOOD, "weight": 0.3}
    spec = spec_of(
        section, {"task": "agreement", "data": {"search": {"sources": {"a": {"jsonl": "a.jsonl"}}}}}
    )
    assert spec.model_dump()["terms"][0].items() >= section.items()
    assert parse_task(spec.model_dump()) == spec
    assert spec.terms[1].data["search"].sources["a"].answer_field is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([{**LIKELIHOOD, "weight": 0}], "terms.0.weight: must be more than 0 (found 0)"),
        ([{"task": "likelyhood"}], "terms.0: unknown task 'likelyhood'; did you mean likelihood?"),
        (
            [{**LIKELIHOOD, "seperator": ""}],
            "terms.0: seperator: no such key; did you mean separator?",
        ),
        (
            [{**LIKELIHOOD, "data": {"search": {"jsonl": "x"}}}],
            "terms: none scores the search's own examples",
        ),
        (
            [{**LIKELIHOOD, "data": {"serch": {"jsonl": "x"}}}],
            "terms.0.data.serch: must be 'search', 'validation' or 'test'",
        ),
        ([{"task": "terms", "terms": [LIKELIHOOD]}], "terms: terms is no term; write one"),
        ([LIKELIHOOD, {"task": "choice"}], "terms: choice is no term; write one"),
        ([], "terms: is empty; write a task and its weight"),
    ],
)
def test_refuses_sections(terms, message):
    """A weight is a positive number, and a wrong key is named with its term."""
    with pytest.raises(FitnessError) as caught:
        parse_task({"terms": terms})
    assert str(caught.value).startswith(message)


def test_refuses_a_split_without_examples(tmp_path, examples):
    """A term has examples for every split that is scored."""
    spec = spec_of(LIKELIHOOD, {**LIKELIHOOD, "data": {"search": written(tmp_path, 2)}})
    with refused(r"fitness\.terms: likelihood 2 has data, and none for test"):
        spec.deal(examples, "test")
