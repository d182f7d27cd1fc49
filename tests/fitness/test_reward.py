"""Rewards: trl's signature, consent to code, and reward models."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_evomerge.fitness import DataSpec, load_examples
from hf_evomerge.fitness.tasks.reward import _function

from .conftest import SIZES, prepared, refused

CODE = """
seen = {}

def words(prompts, completions, **kwargs):
    seen.update(kwargs, prompts=prompts, completions=completions)
    return [len(text.split()) for text in completions]

def narrow(text):
    return [1.0]

def first(completions, level, **kwargs):
    return [None if hard else 1 for hard in level]

def messages(prompts, completions, **kwargs):
    seen.update(prompts=prompts, completions=completions)
    return [1.0] * len(prompts)

def short(completions, **kwargs):
    return [1.0]

def text(completions, **kwargs):
    return "1" * len(completions)
"""


@pytest.fixture
def code(tmp_path):
    """A file of reward functions."""
    file = tmp_path / "rewards.py"
    file.write_text(CODE, encoding="utf-8")
    return str(file)


def scored(model, examples, tokenizer, /, *, trusted=True, **keys):
    """What a task of rewards scores."""
    keys = {"max_new_tokens": 4, **keys}
    given = {"trust_remote_code": trusted}
    return prepared("reward", examples, tokenizer, given, **keys).evaluate(model)


def test_functions_are_called_as_trl_calls_them(model, examples, tokenizer, code):
    """Prompts, completions, their tokens, answers and other fields arrive by keyword; the rewards
    are added, weighted, and None adds nothing."""
    levels = [number % 2 for number in range(len(examples))]
    examples = [
        replace(each, columns={"level": level})
        for each, level in zip(examples, levels, strict=True)
    ]
    functions = [f"{code}:words", f"{code}:first"]
    scores = scored(model, examples, tokenizer, functions=functions, weights=[0.5, 3])
    lengths = [len(text.split()) for text in scores.outputs]
    assert len(set(lengths)) > 1
    assert scores.values.tolist() == [
        length / 2 + 3 * (1 - level) for length, level in zip(lengths, levels, strict=True)
    ]
    seen = _function(code, "words").__globals__["seen"]
    wanted = {
        "prompts": [example.prompt for example in examples],
        "completions": scores.outputs,
        "answer": [example.answer for example in examples],
        "level": levels,
        "trainer_state": None,
    }
    assert {name: seen[name] for name in wanted} == wanted
    first = tokenizer.decode(seen["completion_ids"][0], skip_special_tokens=True)
    assert first == scores.outputs[0]
    assert seen["log_metric"]("length", 1.0) is None


def test_a_chat_is_given_as_messages(model, examples, tokenizer, code):
    """With a chat, prompts and completions are lists of messages, as trl's conversational data."""
    chatty = deepcopy(tokenizer)
    chatty.chat_template = "{% for each in messages %}{{ each['content'] }} {% endfor %}"
    examples = [replace(each, chat=True, system="zero") for each in examples[:2]]
    scores = scored(model, examples, chatty, functions=[f"{code}:messages"])
    seen = _function(code, "messages").__globals__["seen"]
    assert seen["prompts"][0] == [
        {"role": "system", "content": "zero"},
        {"role": "user", "content": examples[0].prompt},
    ]
    assert seen["completions"][1] == [{"role": "assistant", "content": scores.outputs[1]}]


def test_code_runs_with_consent_alone(model, examples, tokenizer, tmp_path):
    """Without consent a file is not even read."""
    ran = tmp_path / "ran"
    file = tmp_path / "rewards.py"
    file.write_text(f"open({str(ran)!r}, 'w')\ndef one(completions, **kw): return [1.0]\n")
    with refused(r"is code; read it, and pass --trust-remote-code"):
        scored(model, examples, tokenizer, trusted=False, functions=[f"{file}:one"])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("functions: ['CODE:short']", "reward function short: 1 numbers for 23 examples"),
        ("functions: ['CODE:text']", "reward function text: expected one number per example"),
        ("functions: ['CODE:narrow']", r"write it as `def narrow\(prompts, completions, "),
        ("functions: ['CODE:word']", "has no 'word'; did you mean words"),
        ("functions: ['absent.py:words']", "absent.py: there is no such file in /"),
        ("functions: [rewards.words]", "write a function as FILE.py:NAME"),
        ("{}", "name reward functions"),
        ("{model: x, weights: [1, 2]}", "weights: 2 for 1 rewards"),
        ("{model: x, language: ja}", "language: a reward function judges it"),
        ("{functions: ['CODE:words'], revision: x}", "revision: belongs to the reward model"),
    ],
)
def test_refusals(keys, complaint, model, examples, tokenizer, code):
    """A wrong function, file, return or setting is one line that says what to write."""
    with refused(complaint):
        scored(model, examples, tokenizer, **yaml.safe_load(keys.replace("CODE", code)))


def saved(folder, tokenizer, kind=AutoModelForSequenceClassification, labels=1):
    """A random model of a class with so many labels, with its tokenizer."""
    torch.manual_seed(1)
    make = getattr(kind, "from_config", kind)
    make(LlamaConfig(**SIZES, num_labels=labels)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reward_model_reads_prompt_and_answer(model, examples, tokenizer, tmp_path):
    """Its one logit for the whole text is the reward, whatever is read together."""
    judge = saved(tmp_path, tokenizer)
    examples = [replace(each, prompt=f"{each.prompt} ") for each in examples]
    scores = scored(model, examples, tokenizer, model=judge, batch_size=5)
    alone = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    for value, example, text in zip(scores.values, examples, scores.outputs, strict=True):
        ids = tokenizer(example.prompt + text, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            assert alone(ids.input_ids).logits.item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "labels", "complaint"),
    [(LlamaForCausalLM, 1, "no reward model"), (AutoModelForSequenceClassification, 3, "3 labels")],
)
def test_another_model_is_no_reward_model(
    kind, labels, complaint, model, examples, tokenizer, tmp_path
):
    """A language model, whose head would be random, and a classifier of several labels are
    refused."""
    with refused(complaint):
        scored(model, examples, tokenizer, model=saved(tmp_path, tokenizer, kind, labels))


def test_other_fields_come_with_the_data():
    """Fields that are asked for come with the examples; a missing one is named."""
    records = [{"prompt": "1", "answer": "2", "level": [1, 2]}]
    spec = DataSpec(function=lambda: records, other_fields=["level"])
    assert load_examples(spec)[0].columns == {"level": [1, 2]}
    with refused("no field 'way'"):
        load_examples(spec.model_copy(update={"other_fields": ["way"]}))
