"""The demo's language: its problems are right, reproducible, apart from each other, and inside the vocabulary."""

import os
import random
import re
import subprocess
import sys
from itertools import combinations

import pytest

from hf_evomerge.demo.language import (
    Example,
    Language,
    Split,
    Task,
    TextKind,
    build_tokenizer,
    mixture,
    problems,
    vocabulary,
    write,
)

SPLITS: tuple[Split, ...] = ("search", "validation", "test")
ADDING = ("buys", "finds", "too", "put", "買い足します", "拾います", "も", "入れます")
TASKS: tuple[Task, ...] = ("solve", "extract", "recall", "compare", "translate", "count", "story", "word")
KINDS = [
    kind
    for task in TASKS
    for kind in (TextKind(task, "en", "en", "en"), TextKind(task, "ja", "ja", "en"), TextKind(task, "mixed", "en", "ja"))
]


def test_vocabulary_is_the_same_under_every_hash_seed() -> None:
    """Words and problems do not depend on PYTHONHASHSEED."""
    code = "from hf_evomerge.demo.language import *; print(vocabulary(), problems('search', 20))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "123")
    }
    assert len(printed) == 1


def test_seed_decides_the_problems() -> None:
    """The same seed gives the same problems, a longer list begins with the shorter, another seed gives others."""
    assert problems("test", 30) == problems("test", 60)[:30]
    assert problems("test", 30) != problems("test", 30, seed=1)


def test_splits_share_no_prompt() -> None:
    """No prompt is in two splits, even with different seeds, or twice in one."""
    prompts = [{p["prompt"] for seed in (0, 7) for p in problems(split, 1500, seed=seed)} for split in SPLITS]
    assert all(first.isdisjoint(second) for first, second in combinations(prompts, 2))
    assert len({p["prompt"] for p in problems("search", 1500)}) == 1500


@pytest.mark.parametrize("language", ["en", "ja"])
def test_training_texts_hold_no_problem_of_a_split(language: Language) -> None:
    """A model never reads a problem that it may be tested on."""
    held_out = {p["prompt"] for split in SPLITS for p in problems(split, 3000, text=language)}
    rng = random.Random(3)
    kind = TextKind("solve", language, language, "en")
    assert held_out.isdisjoint(write(kind, rng).prompt for _ in range(3000))


@pytest.mark.parametrize("language", ["en", "ja"])
def test_answers_are_right(language: Language) -> None:
    """The answer is the sum or the difference of the two numbers in the problem."""
    for problem in problems("test", 500, text=language, answer=language):
        words = problem["prompt"].split()
        a, b = (int(word) for word in words if word.isdigit())
        right = a + b if any(word in words for word in ADDING) else a - b
        assert problem["answer"] == (f"the answer is {right}" if language == "en" else f"答え は {right}")


def test_answer_language_is_free() -> None:
    """The same problem can be asked for in the other language; the question does not change."""
    japanese, english = problems("search", 10), problems("search", 10, answer="en")
    assert [p["prompt"] for p in japanese] == [p["prompt"] for p in english]
    assert all(p["prompt"].endswith("答え :") and p["answer"].startswith("the answer is ") for p in english)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_text_is_inside_the_vocabulary(kind: TextKind) -> None:
    """Text of every kind survives the tokenizer word for word, with <bos> in front and no unknown word."""
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for prompt, answer in (write(kind, rng) for _ in range(50)):
        text = f"{prompt} {answer}".strip()
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == text
        assert len(ids) < 64


def test_words_are_numbered_once() -> None:
    """No word is in the vocabulary twice, and the special tokens come first."""
    words = vocabulary()
    assert len(set(words)) == len(words)
    assert words[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]


def test_known_sentences_limit_the_japanese() -> None:
    """Sentences outside `japanese` are written in English, and numbers stay within `largest`."""
    rng = random.Random(1)
    kind = TextKind("solve", "ja", "ja", "ja", largest=4, japanese=("owns", "buys"))
    text = " ".join(write(kind, rng).prompt for _ in range(300))
    assert "買い足します" in text
    assert "失くします" not in text
    assert "loses" in text
    assert max(int(number) for number in re.findall(r"\d+", text)) == 4


def test_mixture_follows_its_weights() -> None:
    """Kinds are drawn in proportion to their weights."""
    parts = [(3.0, TextKind("story", "ja", "ja", "ja")), (1.0, TextKind("count", "en", "en", "en"))]
    texts = mixture(parts, random.Random(0))
    stories = sum(next(texts).prompt == "" for _ in range(2000))
    assert 1400 < stories < 1600


def test_example_unpacks() -> None:
    """An example is a pair of prompt and answer."""
    prompt, answer = Example("a", "b")
    assert (prompt, answer) == ("a", "b")
