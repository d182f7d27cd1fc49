import sys
from typing import Any

import pytest

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Example, GenerationSpec, GenerationTask, RougeLSpec, RougeLTask
from hf_evomerge.recipes.strict_yaml import validate

JAPANESE = {"code": "ja"}


def longest_common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, from its definition."""
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


def f_measure(one: list[str], other: list[str]) -> float:
    """The harmonic mean of precision and recall."""
    common = longest_common(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


class Scripted(RougeLTask):
    """The task on a model that writes what it is told."""

    def write(self, model: Any) -> tuple[list[str], list[bool]]:
        return list(model), [False] * len(model)


def values(answers: list[str], responses: list[str], tokenizer: Any, **keys: Any) -> list[float]:
    """The values of responses."""
    task = Scripted(RougeLSpec(**keys))
    task.prepare([Example("one", answer, f"e{i}") for i, answer in enumerate(answers)], tokenizer)
    return task.evaluate(responses).values.tolist()


def test_english(tokenizer):
    """English words are compared without case and punctuation."""
    answer, response = "The cat sat on the mat.", "the cats SAT, on a mat"
    expected = f_measure([*"tcsotm"], [*"tCsoam"])  # a letter for each word
    assert values([answer], [response], tokenizer) == pytest.approx([expected])


def test_japanese(tokenizer):
    """Japanese has words, which are no letters; a response that is not Japanese counts as blank, whatever it has in common."""
    answer = "吾輩は猫である"
    found = values([answer] * 3, ["猫である", "The answer in Japanese is 猫である, I think", ""], tokenizer, language=JAPANESE)
    words = f_measure(["吾輩", "は", "猫", "で", "ある"], ["猫", "で", "ある"])
    assert found == pytest.approx([words, 0.0, 0.0])
    assert values([answer], [answer], tokenizer, language=JAPANESE) == [1.0]


def test_writes_as_generation_does(model, examples, tokenizer):
    """What is compared is what `generation` writes, with the same marks of what was cut."""
    task, other = RougeLTask(RougeLSpec(max_new_tokens=6)), GenerationTask(GenerationSpec(max_new_tokens=6, extract="all"))
    english = [Example(example.prompt, "one two 18", example.id) for example in examples]
    for each in (task, other):
        each.prepare(english, tokenizer)
    found, written = task.evaluate(model), other.evaluate(model)
    assert found.outputs == written.outputs
    assert found.truncated.tolist() == written.truncated.tolist()
    words = [[word for word in output.split() if word.isascii()] for output in found.outputs]
    assert found.values == pytest.approx([f_measure(["one", "two", "18"], each) for each in words])
    assert 0 < found.mean < 1


def test_refuses_words_that_are_not_known(tokenizer):
    """A language that is neither English nor Japanese, and an answer without words of its language, are named."""
    with pytest.raises(FitnessError, match="words of 'th' cannot be told apart here; there are en and ja"):
        validate(RougeLSpec, {"task": "rouge_l", "language": {"code": "th"}}, FitnessError)
    with pytest.raises(FitnessError, match="e0: the answer '猫である' has no words to compare with"):
        values(["猫である"], [""], tokenizer)


@pytest.mark.parametrize(("module", "keys"), [("rouge_score", {}), ("fugashi", {"language": JAPANESE})])
def test_says_what_to_install(module, keys, tokenizer, monkeypatch):
    """Where a package is missing, one line says how to install it, before any model is asked."""
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FitnessError, match=r"pip install 'hf-evomerge\[eval\]'"):
        values(["one"], ["one"], tokenizer, **keys)
