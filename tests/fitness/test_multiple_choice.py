import json
from collections.abc import Callable

import numpy as np
import pytest

from hf_evomerge.fitness import DataSpec, Example, load_examples

from .conftest import prepared, refused

QUESTIONS = [
    Example("one two", "three", "q0", choices=("three", "four five", "six")),
    Example("zero 1 2", "2 18 1", "q1", choices=("one", "2 18 1")),
    Example("seven は", "six six", "q2", choices=("four", "six six", "18", "two one zero")),
]


def score(model, tokenizer, examples=QUESTIONS, **keys):
    """What a model scores on questions."""
    return prepared("multiple_choice", examples, tokenizer, separator=" ", **keys).evaluate(model)


@pytest.mark.parametrize("normalize", ["sum", "token", "byte"])
def test_equals_likelihood(normalize, model, tokenizer):
    """The choice is the one that `likelihood` scores best; `log_probability` is its share of the
    choices' probability."""
    accuracy = score(model, tokenizer, normalize=normalize, batch_size=2)
    smooth = score(model, tokenizer, normalize=normalize, score="log_probability")
    for number, question in enumerate(QUESTIONS):
        asked = [Example(question.prompt, choice) for choice in question.choices]
        task = prepared("likelihood", asked, tokenizer, separator=" ", append_eos=False)
        units = {
            "sum": [1] * len(question.choices),
            "token": [len(choice.split()) for choice in question.choices],
            "byte": [len(choice.encode()) for choice in question.choices],
        }[normalize]
        alone = task.evaluate(model).values / units
        right = question.choices.index(question.answer)
        assert accuracy.outputs[number] == question.choices[alone.argmax()]
        assert accuracy.values[number] == (alone.argmax() == right)
        assert smooth.values[number] == pytest.approx(
            alone[right] - np.log(np.exp(alone).sum()), abs=1e-5
        )
    assert accuracy.correct.tolist() == accuracy.values.astype(bool).tolist()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("a", "b", "q7"), "q7: multiple choice needs two choices or more"),
        (Example("a", "b", "q7", choices=("c", "d")), "the answer 'b' among them"),
        (Example("a", "b", "q7", choices=("b", "b")), "two choices or more"),
    ],
)
def test_refuses_what_is_no_choice(example, message, tokenizer):
    """An example without choices, or whose answer is none of them, is named."""
    with refused(message):
        prepared("multiple_choice", [example], tokenizer)


Write = Callable[..., DataSpec]


@pytest.fixture
def data(tmp_path):
    """Writes one record and says how to read it."""

    def write(record, **keys):
        file = tmp_path / "quiz.jsonl"
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return DataSpec(jsonl=str(file), prompt_field="q", answer_field="a", **keys)

    return write


LISTED = {"q": "which?", "options": ["red", "green", "blue"]}
ARC = {"q": "which?", "options": {"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}}


@pytest.mark.parametrize(
    ("record", "choices", "answer"),
    [
        ({**LISTED, "a": "green"}, "options", "green"),
        ({**LISTED, "a": 1}, "options", "green"),
        ({**LISTED, "a": "2"}, "options", "blue"),
        ({**LISTED, "a": "B"}, "options", "green"),
        ({**ARC, "a": "2"}, "options", "green"),
        (
            {"q": "which?", "one": "red", "two": "green", "a": 1},
            ["the {one}", "the {two}"],
            "the green",
        ),
        ({"q": "which?", "a": "no"}, ["yes", "no"], "no"),
        ({"q": "which?", "options": [3, 4, 5], "a": 5}, "options", "5"),
    ],
)
def test_choices_of_a_record(record, choices, answer, data):
    """Choices are a list, two lists as in ARC, fields, or fixed; the answer is a text, a label, a
    letter or a number from 0."""
    (example,) = load_examples(data(record, choices=choices))
    assert example.answer == answer
    assert answer in example.choices


@pytest.mark.parametrize(
    ("record", "choices", "message"),
    [
        ({**LISTED, "a": "yellow"}, "options", "the answer 'yellow' .* means none of the choices"),
        (
            {"q": "which?", "options": ["2", "1", "0"], "a": 0},
            "options",
            "means several of the choices",
        ),
        ({"q": "which?", "options": "red or green", "a": 0}, "options", "is no list of texts"),
        ({"q": "which?", "options": [["red"]], "a": 0}, "options", "is no list of texts"),
        ({"q": "which?", "a": 0}, "options", "is no list of texts"),
        ({"q": "which?", "a": 0}, ["{one}", "b"], "no field 'one'"),
    ],
)
def test_refuses_an_answer_that_names_no_choice(record, choices, message, data):
    """An answer that means no choice, or two, and choices that are none, are named with their
    line."""
    with refused(f"quiz.jsonl:1: .*{message}"):
        load_examples(data(record, choices=choices))
