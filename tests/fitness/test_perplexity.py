import copy
import itertools
import random

import numpy as np
import pytest
import torch

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Example, PerplexitySpec
from hf_evomerge.fitness.tasks.perplexity import windows
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import WORDS, check_gradient, prepared, refused


@pytest.fixture(scope="module")
def texts():
    """Texts of 1 to 40 words, without prompts."""
    rng = random.Random(3)
    return [Example("", " ".join(rng.choices(WORDS, k=k)), f"t{k}") for k in (40, 1, 7, 23, 12)]


def score(model, examples, tokenizer, **keys):
    """What a model scores on texts."""
    return prepared("perplexity", examples, tokenizer, **keys).evaluate(model)


def test_equals_the_loss_of_the_model(model, texts, tokenizer):
    """In one window the value is the negative of transformers' own loss, whatever the batches; per
    byte it is divided anew."""
    expected = []
    for example in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(example.answer)["input_ids"]]])
        with torch.no_grad():
            expected.append(-model(input_ids=ids, labels=ids).loss.item())
    for batch_size in (1, 3):
        scores = score(model, texts, tokenizer, batch_size=batch_size)
        assert scores.values == pytest.approx(expected, abs=1e-5)
    found = score(model, texts, tokenizer, normalize="byte").values
    lengths = [len(each.answer.split()) / len(each.answer.encode()) for each in texts]
    assert found == pytest.approx(np.multiply(expected, lengths), abs=1e-5)
    assert scores.correct is None


@pytest.mark.parametrize("window", range(2, 9))
def test_windows_score_every_token_once(window):
    """Whatever the window and the stride, every token is scored once, after the most context that
    fits."""
    befores = ([0], [-3, -2, -1, 0], list(range(-12, 1)))
    for stride, length, before in itertools.product(range(1, window + 1), range(1, 20), befores):
        text = list(range(1, length + 1))
        cuts = list(windows(before, text, window, stride))
        assert [token for _, scored in cuts for token in scored] == text
        for number, (context, scored) in enumerate(cuts):
            fed = [*context, *scored[:-1]]
            assert fed == list(range(fed[0], fed[0] + len(fed))), "one piece of the text"
            assert len(fed) <= window
            assert number == 0 or len(scored) <= stride
            assert len(fed) == window or fed[0] == before[0] or scored[-1] == length


def test_windows_of_a_long_text(model, tokenizer):
    """A text that is longer than the model's positions is scored in windows, as the definition says
    one token at a time."""
    words = random.Random(4).choices(WORDS, k=100)
    example = Example("", " ".join(words), "long")
    with refused(r"takes 100 tokens; the model has 64 positions"):
        score(model, [example], tokenizer)
    ids = [tokenizer.bos_token_id, *tokenizer(example.answer)["input_ids"]]
    total = 0.0
    for end in range(1, len(ids)):  # windows of 16 whose begin moves by 4
        begin = 0 if end <= 16 else ((end - 17) // 4 + 1) * 4
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[begin:end]])).logits[0, -1]
        total += logits.log_softmax(-1)[ids[end]].item()
    found = score(model, [example], tokenizer, window=16, stride=4).mean
    assert found == pytest.approx(total / 100, abs=1e-5)


def test_gradient(model, texts, tokenizer):
    """The gradient is that of the mean over texts, through all windows."""
    moved = copy.deepcopy(model).double()
    task = prepared("perplexity", texts, tokenizer, window=8, stride=3)
    check_gradient(task, moved, moved.model.layers[0].mlp.down_proj.weight, rel=0.01)


def test_refusals(tokenizer):
    """A stride beyond the window, and a tokenizer that knows neither begin nor end, are refused in
    one line."""
    with refused("stride: 9 is beyond the window of 8"):
        validate(PerplexitySpec, {"task": "perplexity", "window": 8, "stride": 9}, FitnessError)
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    with refused("t: the tokenizer has no token that begins or ends a text"):
        prepared("perplexity", [Example("", "one", "t")], bare)
