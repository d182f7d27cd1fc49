import numpy as np
import pytest
import yaml

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


def bytes_of(text):
    """How long a text is in UTF-8."""
    return len(text.encode())


@pytest.mark.parametrize("normalize", ["sum", "token", "byte"])
def test_equals_likelihood(normalize, model, tokenizer):
    """The choice is the one that `likelihood` scores best; `log_probability` is its share of the
    choices' probability."""
    accuracy = score(model, tokenizer, normalize=normalize, batch_size=2)
    smooth = score(model, tokenizer, normalize=normalize, score="log_probability")
    lengths = {"sum": lambda _: 1, "token": lambda text: len(text.split()), "byte": bytes_of}
    for number, question in enumerate(QUESTIONS):
        asked = [Example(question.prompt, choice) for choice in question.choices]
        task = prepared("likelihood", asked, tokenizer, separator=" ", append_eos=False)
        alone = task.evaluate(model).values / [*map(lengths[normalize], question.choices)]
        right = question.choices.index(question.answer)
        assert accuracy.outputs[number] == question.choices[alone.argmax()]
        assert accuracy.correct[number] == accuracy.values[number] == (alone.argmax() == right)
        share = alone[right] - np.logaddexp.reduce(alone)
        assert smooth.values[number] == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((), "q7: multiple choice needs two choices or more"),
        (("c", "d"), "the answer 'b' among them"),
        (("b", "b"), "two choices or more"),
    ],
)
def test_refuses_what_is_no_choice(choices, message, tokenizer):
    """An example without choices, or whose answer is none of them, is named."""
    with refused(message):
        prepared("multiple_choice", [Example("a", "b", "q7", choices=choices)], tokenizer)


def read(record, choices):
    """The example of one record."""
    data = DataSpec(
        function=lambda: [{"q": "which?", **yaml.safe_load(record)}],
        prompt_field="q",
        answer_field="a",
        choices=yaml.safe_load(choices),
    )
    return load_examples(data)[0]


LISTED = "options: [red, green, blue]\n"
ARC = "options: {text: [red, green, blue], label: ['1', '2', '3']}\n"


@pytest.mark.parametrize(
    ("record", "choices", "answer"),
    [
        (LISTED + "a: green", "options", "green"),
        (LISTED + "a: 1", "options", "green"),
        (LISTED + "a: '2'", "options", "blue"),
        (LISTED + "a: B", "options", "green"),
        (ARC + "a: '2'", "options", "green"),
        ("{one: red, two: green, a: 1}", "['the {one}', 'the {two}']", "the green"),
        ("a: 'no'", "['yes', 'no']", "no"),
        ("{options: [3, 4, 5], a: 5}", "options", "5"),
    ],
)
def test_choices_of_a_record(record, choices, answer):
    """Choices are a list, two lists as in ARC, fields, or fixed; the answer is a text, a label, a
    letter or a number from 0."""
    example = read(record, choices)
    assert example.answer == answer
    assert answer in example.choices


@pytest.mark.parametrize(
    ("record", "choices", "message"),
    [
        (LISTED + "a: yellow", "options", "the answer 'yellow' .* means none of the choices"),
        ("{options: ['2', '1', '0'], a: 0}", "options", "means several of the choices"),
        ("{options: red or green, a: 0}", "options", "is no list of texts"),
        ("{options: [[red]], a: 0}", "options", "is no list of texts"),
        ("a: 0", "options", "is no list of texts"),
        ("a: 0", "['{one}', b]", "no field 'one'"),
    ],
)
def test_refuses_an_answer_that_names_no_choice(record, choices, message):
    """An answer that means no choice, or two, and choices that are none, are named with their
    record."""
    with refused(rf"function\[0\]: .*{message}"):
        read(record, choices)
