import itertools

import pytest
import torch

from hf_evomerge.fitness import FunctionTask

from .conftest import refused


def run(function, model, examples, tokenizer):
    """The values that a function gives."""
    task = FunctionTask(function)
    task.prepare(examples, tokenizer)
    return task.evaluate(model).values.tolist()


def test_own_function(model, examples, tokenizer):
    """The function gets the model, the tokenizer and the examples, without gradients, and its
    numbers are the values."""

    def words(given_model, given_tokenizer, given):
        assert given_model is model
        assert given_tokenizer is tokenizer
        assert torch.is_inference_mode_enabled()
        return [len(example.prompt.split()) for example in given]

    assert run(words, model, examples, tokenizer) == [
        float(len(example.prompt.split())) for example in examples
    ]


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ([1.0], "<lambda>: 1 numbers for 23 examples"),
        (1.0, "<lambda>: expected one number per example"),
        (["1"] * 23, "<lambda>: expected one number per example: found the text '1'"),
        ("1" * 23, "<lambda>: expected one number per example: found a str"),
        (set(range(23)), "<lambda>: expected one number per example: found a set"),
        (dict.fromkeys(range(23)), "expected one number per example: found a dict"),
        ([float("nan")] * 23, "the score of example 0 is nan"),
    ],
    ids=itertools.count(),
)
def test_wrong_returns(returned, complaint, model, examples, tokenizer):
    """Anything but one finite number per example is refused by name."""
    with refused(complaint):
        run(lambda *given: returned, model, examples, tokenizer)
