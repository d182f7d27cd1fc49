"""A word-level tokenizer and tiny random models, made in memory."""

import json
import random
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from refusals import refused as refused_as
from transformers import LlamaConfig, LlamaForCausalLM
from words import word_tokenizer

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Example, make_task, parse_task, render_prompt

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "1",
    "2",
    "18",
    "答え",
    "は",
]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large, so that the most probable token differs from place to place
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

refused = partial(refused_as, FitnessError)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    """One token per word."""
    return word_tokenizer(SPECIAL + WORDS)


@pytest.fixture(scope="session")
def model():
    """A random model that writes something else after every prompt."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


@pytest.fixture(scope="session")
def examples():
    """Prompts of 1 to 12 words with answers of 1 to 4."""
    rng = random.Random(0)
    texts = [
        [" ".join(rng.choices(WORDS, k=rng.randint(1, most))) for most in (12, 4)]
        for _ in range(23)
    ]
    return [Example(*text, f"e{number}") for number, text in enumerate(texts)]


@pytest.fixture
def broken_model():
    """A model whose logits are not numbers."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    return model


def write_lines(file, records):
    """Write a file of JSON lines; returns what names it under ``data``."""
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return {"jsonl": str(file)}


def prepared(task, examples, tokenizer, given=None, **settings):
    """A task on examples, with attributes that are given to it."""
    made = make_task(parse_task({"task": task, **settings}))
    for name, value in (given or {}).items():
        setattr(made, name, value)
    made.prepare(examples, tokenizer)
    return made


def check_gradient(task, model, parameter, *, step=1e-3, rel=0.02):
    """Scores with a gradient, whose slope along a direction of one parameter is that of the mean
    score."""
    direction = torch.randn(
        parameter.shape, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype
    )
    parameter.grad = None
    scores = task.backward(model)
    assert parameter.grad is not None
    slope = float((parameter.grad * direction).sum())
    ends = []
    for change in (step, -step):
        with torch.no_grad():
            parameter.add_(change * direction)
            ends.append(task.evaluate(model).mean)
            parameter.sub_(change * direction)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=rel)
    return scores


@contextmanager
def counted(model):
    """Counts the tokens that a model is given, in a list of one number."""
    count = [0]

    def add(module, arguments, given):
        count[0] += given["input_ids"].numel()

    hook = model.register_forward_pre_hook(add, with_kwargs=True)
    yield count
    hook.remove()


def as_text(examples, tokenizer):
    """The same examples with their shots in the prompt."""
    return [replace(each, prompt=render_prompt(each, tokenizer), shots=()) for each in examples]


def gradient(model, parameter, task, examples, tokenizer, **settings):
    """Scores of a task, and the gradient of one parameter."""
    model.zero_grad(set_to_none=True)
    scores = prepared(task, examples, tokenizer, **settings).backward(model)
    found = parameter.grad.clone()
    model.zero_grad(set_to_none=True)
    return scores, found
