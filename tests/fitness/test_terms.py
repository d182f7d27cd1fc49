import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from hf_evomerge.fitness import DifferentiableTask, JudgingTask, make_task, parse_task

from .conftest import WORDS, gradient, prepared, refused, write_lines

LIKELIHOOD = {"task": "likelihood", "separator": " "}


def spec_of(*terms):
    """The spec of a sum."""
    return parse_task({"terms": list(terms)})


@pytest.fixture
def further(tmp_path):
    """Makes a term with so many examples that no other data has."""

    def make(count, weight, task="perplexity"):
        rng = random.Random(count)
        prompts = [" ".join(rng.choices(WORDS[:8], k=5)) for _ in range(count)]
        records = [{"prompt": prompt, "answer": "two"} for prompt in prompts]
        data = {"search": write_lines(tmp_path / "data", records)}
        return {"task": task, "weight": weight, "data": data}

    return make


def scored(spec, examples, model, tokenizer):
    """The dealt examples, and scores of a sum on them."""
    dealt = spec.deal(examples, "search")
    task = make_task(spec)
    task.prepare(dealt, tokenizer)
    return dealt, task.evaluate(model)


@pytest.mark.parametrize("count", [3, 7, 10, 31])
def test_the_mean_is_the_weighted_sum(count, further, model, examples, tokenizer):
    """However many examples a term has, the fitness is the weighted sum of the terms' means, with
    one score per example."""
    own = examples[:10]
    spec = spec_of({**LIKELIHOOD, "weight": 2.0}, further(count, 0.5))
    dealt, scores = scored(spec, own, model, tokenizer)
    theirs = {other.example for example in dealt for other in example.beside}
    assert len(theirs) == count
    alone = prepared(**LIKELIHOOD, examples=own, tokenizer=tokenizer).evaluate(model)
    beside = prepared("perplexity", list(theirs), tokenizer).evaluate(model)
    assert scores.values.size == 10
    assert scores.mean == pytest.approx(2 * alone.mean + 0.5 * beside.mean, rel=1e-5)
    assert scores.others["likelihood"].mean == pytest.approx(alone.mean, rel=1e-5)
    assert scores.others["perplexity"].mean == pytest.approx(beside.mean, rel=1e-5)
    assert np.array_equal(scores.correct, alone.correct)


@pytest.mark.parametrize("count", [4, 25])
def test_every_example_counts_once_in_a_score_of_all(count, further, examples):
    """A term with many examples gives every one of the search's some; one with few gives each
    several times, for batches."""
    dealt = spec_of(LIKELIHOOD, further(count, 1.0)).deal(examples[:10], "search")
    held = [len(example.beside) for example in dealt]
    assert min(held) >= 1
    assert max(held) - min(held) <= 1
    shares = Counter()
    for other in (other for example in dealt for other in example.beside):
        shares[other.example.id] += other.share
    assert list(shares.values()) == pytest.approx([10 / count] * count)


@pytest.mark.parametrize(("count", "rel"), [(4, 1e-3), (30, 0.5)])
def test_the_standard_error_is_the_sums(count, rel, further, model, examples, tokenizer):
    """A term of few examples is as uncertain as they make it, one of many no more than these."""
    spec = spec_of({**LIKELIHOOD, "weight": 1e-6}, further(count, 3.0))
    _, scores = scored(spec, examples[:10], model, tokenizer)
    own = scores.others["perplexity"].values
    assert scores.values.var() / 10 == pytest.approx(9 * own.var() / count, rel=rel)


def test_gradient_is_of_the_weighted_sum(further, model, examples, tokenizer):
    """The gradient on a batch is the sum of the terms' gradients, by weight and share."""
    per_token = {**LIKELIHOOD, "normalize": "token"}
    spec = spec_of({**LIKELIHOOD, "weight": 2.0}, per_token, further(3, 0.5))
    dealt = spec.deal(examples[:7], "search")
    batch = [dealt[0], dealt[3], dealt[4]]  # the first two have the same beside them
    assert batch[0].beside[0].example == batch[1].beside[0].example

    def slope(rows, **section):
        weight = model.model.layers[0].mlp.up_proj.weight
        return gradient(model, weight, examples=rows, tokenizer=tokenizer, **section)[1]

    expected = 2 * slope(batch, **LIKELIHOOD) + slope(batch, **per_token)
    for (_, share, other), *_ in (example.beside for example in batch):
        expected += 0.5 * share / 3 * slope([other], task="perplexity")
    assert torch.allclose(slope(batch, **spec.model_dump()), expected, rtol=1e-4, atol=1e-6)


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
    data = {"search": {"sources": {"a": {"jsonl": "a.jsonl"}}}}
    spec = spec_of(section, {"task": "agreement", "data": data})
    assert spec.model_dump()["terms"][0].items() >= section.items()
    assert parse_task(spec.model_dump()) == spec
    assert spec.terms[1].data["search"].sources["a"].answer_field is None


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("[{task: likelihood, weight: 0}]", "terms.0.weight: must be more than 0 (found 0)"),
        ("[{task: likelyhood}]", "terms.0: unknown task 'likelyhood'; did you mean likelihood?"),
        (
            "[{task: likelihood, seperator: ''}]",
            "terms.0: seperator: no such key; did you mean separator?",
        ),
        (
            "[{task: likelihood, data: {search: {jsonl: x}}}]",
            "terms: none scores the search's own examples",
        ),
        (
            "[{task: likelihood, data: {serch: {jsonl: x}}}]",
            "terms.0.data.serch: must be 'search', 'validation' or 'test'",
        ),
        ("[{task: terms, terms: [{task: likelihood}]}]", "terms: terms is no term; write one"),
        ("[]", "terms: is empty; write a task and its weight"),
    ],
)
def test_refuses_sections(terms, message):
    """A weight is a positive number, and a wrong key is named with its term."""
    with refused(f"^{re.escape(message)}"):
        parse_task({"terms": yaml.safe_load(terms)})


def test_refuses_a_split_without_examples(further, examples):
    """A term has examples for every split that is scored."""
    spec = spec_of(LIKELIHOOD, further(2, 1.0, "likelihood"))
    with refused(r"fitness\.terms: likelihood 2 has data, and none for test"):
        spec.deal(examples, "test")
