"""The fitness of sentence encoders."""

import math

import pytest
import torch
from classes import random_class

from hf_evomerge.fitness import Example
from hf_evomerge.fitness.example import Picture

from .conftest import check_gradient, prepared, refused

EXAMPLES = [
    Example("one two three", "six", "a"),
    Example("four", "seven one", "b"),
    Example("five six seven two one", "two", "c"),
    Example("one one", "six", "d"),
]


def encoder(seed):
    """A tiny random encoder without a head."""
    return random_class("bert", seed).bert


def vector(model, tokenizer, text, first):
    """The unit vector of a text by itself."""
    with torch.inference_mode():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    pooled = states[0] if first else states.mean(0)
    return pooled / pooled.norm()


@pytest.mark.parametrize("score", ["log_probability", "accuracy", "ndcg"])
@pytest.mark.parametrize("pooling", [None, "cls"])
def test_queries_are_compared_with_all_passages(pooling, score, tokenizer):
    """In padded batches as one by one; a passage that two queries have is there once; ranks give
    accuracy and nDCG."""
    model = encoder(0)
    names = ["six", "seven one", "two"]
    passages = torch.stack([vector(model, tokenizer, each, pooling) for each in names])
    settings = {"score": score, "pooling": pooling, "batch_size": 2, "temperature": 0.5}
    scores = prepared("retrieval", EXAMPLES, tokenizer, **settings).evaluate(model)
    for number, example in enumerate(EXAMPLES):
        near = passages @ vector(model, tokenizer, example.prompt, pooling)
        own = names.index(example.answer)
        rank = int((near >= near[own]).sum())
        wanted = {
            "log_probability": float((near / 0.5).log_softmax(0)[own]),
            "accuracy": float(rank == 1),
            "ndcg": 1 / math.log2(1 + rank),
        }
        assert scores.values[number] == pytest.approx(wanted[score], abs=1e-5)
        assert scores.correct[number] == (rank == 1)
        assert scores.outputs[number] == names[near.argmax()]


def test_an_encoder_that_tells_nothing_apart_is_never_right(tokenizer):
    """A passage as near as the right one counts as nearer."""
    model = encoder(0)
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight.zero_()
    scores = prepared("retrieval", EXAMPLES, tokenizer, score="ndcg").evaluate(model)
    assert list(scores.values) == [pytest.approx(0.5)] * 4
    assert not any(scores.correct)


def test_the_gradient_is_that_of_the_mean_score(tokenizer):
    """Along one direction it is the slope of the mean; a score that is a rank has none."""
    model = encoder(0)
    task = prepared("retrieval", EXAMPLES, tokenizer, batch_size=2)
    check_gradient(task, model, model.encoder.layer[-1].output.dense.weight)
    ranks = prepared("retrieval", EXAMPLES, tokenizer, score="ndcg")
    with refused("ndcg has no gradient"):
        ranks.backward(model)


def test_what_cannot_be_retrieved_is_refused(tokenizer):
    """One passage for all, pictures, and texts beyond the model's positions."""
    pictures = (Picture(b"", "here"),)
    for examples, message in (
        ([Example("one", "six", "a"), Example("two", "six")], "a: all examples have one passage"),
        ([Example("one", "six", "a", pictures=pictures)], "a: has pictures, which are not retr"),
    ):
        with refused(message):
            prepared("retrieval", examples, tokenizer)
    examples = [Example("one " * 20, "six"), Example("one", "two")]
    with refused("the longest text takes 20 tokens; the model has 16 positions"):
        prepared("retrieval", examples, tokenizer).evaluate(encoder(0))
