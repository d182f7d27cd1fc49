"""Solved examples in front of a question: which ones, and how they are written."""

import copy

import pytest

from hf_evomerge.fitness import Example, render_prompt
from hf_evomerge.fitness.data.shots import shot_counts, with_shots

SUMS = [Example(f"{n} + {n} =", str(2 * n), id=str(n)) for n in (1, 2, 3)]
ASKED = Example("9 + 9 =", "18")


def test_shots_are_written_as_answers_are_scored(tokenizer):
    """Text has the separator before an answer, the end of text and an empty line after it; without
    a separator there is one space."""
    (shown,) = with_shots([ASKED], SUMS, 2, separator=" is ", end="<eos>")
    assert render_prompt(shown, tokenizer) == ("1 + 1 = is 2<eos>\n\n2 + 2 = is 4<eos>\n\n9 + 9 =")
    (shown,) = with_shots([ASKED], [Example("a: ", "b"), Example("c:", " d"), SUMS[0]], 3)
    assert render_prompt(shown, tokenizer) == "a: b\n\nc: d\n\n1 + 1 = 2\n\n9 + 9 ="


def test_shots_of_a_chat_are_turns(tokenizer):
    """A chat has the system message first, then question and answer of every shot as turns, which
    the template ends."""
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = Example("9 + 9 =", "18", chat=True, system="add")
    solved = [Example(each.prompt, each.answer, chat=True) for each in SUMS]
    (shown,) = with_shots([asked], solved, 2, end="<eos>")
    turns = "<user>1 + 1 =<assistant>2<user>2 + 2 =<assistant>4<user>9 + 9 =<assistant>"
    assert render_prompt(shown, chatty) == f"<system>add{turns}"


def test_no_example_is_shown_to_itself():
    """A question that is among the shots gets the next one in its place, also where the same
    problem is written otherwise; the others keep theirs."""
    again = Example("1 +  1 =", "2", id="again")
    shown = with_shots([SUMS[0], again, SUMS[2], ASKED], SUMS, 2)
    prompts = [[shot.prompt for shot in each.shots] for each in shown]
    first, second, third = (each.prompt for each in SUMS)
    assert prompts == [[second, third], [second, third], [first, second], [first, second]]


@pytest.mark.parametrize(
    ("count", "among", "expected"),
    [
        (40, False, [1, 4, 8, 16]),
        (16, False, [1, 4, 8, 16]),
        (16, True, [1, 4, 8, 15]),
        (6, False, [1, 4, 6]),
        (1, False, [1]),
        (1, True, []),
    ],
)
def test_numbers_of_shots(count, among, expected):
    """All examples stand for numbers that there are not so many for; one less where questions are
    among them, and the same problem counts once."""
    examples = [Example(f"question {n}", "yes") for n in range(count)]
    assert shot_counts([*examples, examples[0]], among=among) == expected
