"""The demo's problems: right, reproducible and apart from each other."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from specialists.language import KANJI, problems

from hf_evomerge.demo.quickstart import PROBLEMS, SIZES
from hf_evomerge.fitness.text.numbers import last_number

SPLITS = ("search", "validation", "test")
ADDING = ("buys", "finds", "too", "put", "買い足します", "拾います", "も", "入れます")


@pytest.mark.parametrize("split", SPLITS)
def test_the_package_carries_them(split):
    """The files of the demo are what is made up today, letter by letter."""
    lines = (PROBLEMS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == problems(split, SIZES[split])


def test_seed_decides_the_problems():
    """The same seed gives the same problems, a longer list begins with the shorter, another seed
    gives others."""
    assert problems("test", 30) == problems("test", 60)[:30]
    assert problems("test", 30) != problems("test", 30, seed=1)


def test_splits_share_no_prompt():
    """No prompt is in two splits, even with different seeds, or twice in one."""
    seen = {}
    for split in SPLITS:
        for seed in (0, 7):
            prompts = [each["prompt"] for each in problems(split, 1500, seed=seed)]
            assert len(set(prompts)) == 1500
            assert {seen.setdefault(prompt, split) for prompt in prompts} == {split}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_answers_are_right(language):
    """The answer is the sum or the difference of the two numbers in the problem."""
    for problem in problems("test", 500, text=language, answer=language):
        words = problem["prompt"].split()
        a, b = (int(word) for word in words if word.isdigit())
        right = a + b if set(ADDING).intersection(words) else a - b
        said = {"en": f"the answer is {right}", "ja": f"答え は {KANJI[right]}"}[language]
        assert problem["answer"] == said
        assert last_number(said) == right


def test_answer_language_is_free():
    """The same problem can be asked for in the other language; the question does not change."""
    pairs = zip(problems("search", 10), problems("search", 10, answer="en"), strict=True)
    for japanese, english in pairs:
        assert japanese["prompt"] == english["prompt"]
        assert english["prompt"].endswith("答え :")
        assert english["answer"].startswith("the answer is ")
