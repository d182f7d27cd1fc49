"""One answer that is right as often as the winner comes first in the verdict."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.compared import N, rows_of

from hf_evomerge import Example, Scores
from hf_evomerge.cli.searching import _next
from hf_evomerge.search.file.splits import Sizes
from hf_evomerge.search.phases.held_out import _constant
from hf_evomerge.search.results.constant import Constant
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.verdict import verdict


@pytest.mark.parametrize(
    ("often", "is_enough"), [(0.05, False), (0.6, False), (0.68, True), (0.76, True)]
)
def test_one_answer_for_all_examples(often, is_enough):
    """Where always the same answer is right as often as the winner, or the winner hardly where
    another answer is, that comes first: no source is said to be needed, nothing is advised, and the
    examples are the next thing to look at."""
    examples = [Example("", "red" if i < often * N else str(i)) for i in range(N)]
    rows = rows_of(average=0.3, alone_maths=0.2, alone_japanese=0.1, lora=0.9, ps=0.7)
    constant = Constant.of([*examples[:2], examples[-1]], examples, rows[-1].scores)
    assert constant.suffices == is_enough
    rows[-1] = replace(rows[-1], constant=constant if is_enough else None)
    said = verdict(rows, "test")
    result = Result(None, "test", rows)
    assert said[0].startswith("Always answering 'red', the most frequent") == is_enough
    assert (f"is right in {often:.3f}, and evolved PS in 0.700" in said[0]) == is_enough
    assert ("training is worth more" in " ".join(said)) != is_enough
    assert ("needs both sources" in " ".join(said)) != is_enough
    assert (result.instead is None) == is_enough
    assert result.doubt == said[0]  # the LoRA is better, or the constant answer suffices
    assert _next(result, Path("mine"), build=True)[0].startswith("next:   look at") == is_enough


@pytest.mark.parametrize(("count", "is_enough"), [(200, True), (20, False)])
def test_answers_by_a_coin(count, is_enough):
    """A model that is hardly right more often than one answer, and right by chance where the answer
    is the other one, is no better than it; of few examples only the figures decide."""
    share = np.arange(count) / count
    examples = [Example("", "ham" if each < 0.48 else "jam") for each in share]
    right = (share < 0.18) | ((share >= 0.48) & (share < 0.85))
    model = Scores(np.zeros(count), correct=right)
    constant = Constant.of(examples[:5], examples, model)
    assert constant.answer == "ham"
    assert 0 < constant.solved - constant.accuracy < 0.1
    assert constant.suffices == is_enough


def test_examples_without_answers_have_no_constant_answer():
    """Where a task judges without an answer in the data, nothing is said of one."""
    examples = [Example(f"prompt {i}", "") for i in range(5)]
    assert Constant.of(examples, examples) is None


SKILLS = {
    "moods": (["glad", "glad"], ["glad", "glad", "sad"], [True, True, False]),
    "facts": (["1", "2"], ["3", "4", "5"], [True, True, True]),
}


@pytest.mark.parametrize(("moods", "skill"), [([True, True, False], "moods"), ([True] * 3, "")])
def test_one_answer_for_a_skill(moods, skill):
    """A skill of which the winner is no better than one answer is named, though it solves the
    other; where it is better, one answer is asked of all examples."""
    skills = SKILLS | {"moods": (*SKILLS["moods"][:2], moods)}
    splits = {"search": [], "test": []}
    correct = []
    for name, (searched, judged, right) in skills.items():
        for split, answers in [("search", searched), ("test", judged)]:
            splits[split] += [Example("", answer, source=name) for answer in answers]
        correct += right
    tasks = SimpleNamespace(examples=splits.get)
    run = SimpleNamespace(evaluator=SimpleNamespace(tasks=tasks), sizes=Sizes(test=6))
    constant = _constant(run, Scores(np.zeros(6), correct=np.array(correct)))
    assert (constant.answer, constant.skill, constant.suffices) == ("glad", skill, bool(skill))
    assert (f"examples of '{skill}', is right in 0.667" in str(constant)) == bool(skill)


def test_one_answer_for_all_hides_no_wrong_form(caplog):
    """Where the winner has no right answer, that is said beside the constant answer, and its form
    is a thing to look at."""
    rows = rows_of(average=0, ps=0)
    constant = Constant("red", 0.3, solved=0.0)
    rows[-1] = replace(rows[-1], constant=constant)
    said = verdict(rows, "test")
    assert [each[:12] for each in said[:2]] == ["Always answe", "EVERY ANSWER"]
    _next(Result(None, "test", rows), Path("mine"), build=True)
    assert "look at what it answers" in caplog.text
