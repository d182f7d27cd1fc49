"""What a visitor may send, and how an answer is judged."""

import pytest
import showcase
import texts
from published import Published
from served import shown
from texts import SpaceError

from hf_evomerge.record import Problem, Record


def test_control_characters_are_left_out_and_said():
    """Control characters, lone surrogates and direction marks go; text, emoji and
    newlines stay."""
    prompt = texts.clean_prompt("a\x00b\x1b[31m\ud800\u202ec\r\nd\t👩‍🔬 ")
    assert prompt == "ab[31mc\nd\t👩‍🔬"
    assert texts.clean_prompt("答え は") == "答え は"


def test_an_example_is_asked_to_the_letter():
    """A prompt that is an example but for the space around it is asked as the search asked it; any
    other as it was sent."""
    show = shown(
        Published("m", "m", record=Record(examples=[Problem(prompt="1 + 1 = ", answer="2")]))
    )
    assert show.question("1 + 1 =") == "1 + 1 = "
    assert show.question(" 1 + 2 = ") == "1 + 2 ="


@pytest.mark.parametrize("tokens", [0, 257, 1.5, "8", None, True, float("nan"), float("inf"), [8]])
def test_the_bound_of_tokens_is_checked(tokens):
    """The number of tokens is a whole number within the bounds, whatever type is sent."""
    with pytest.raises(SpaceError, match="number of tokens"):
        showcase.token_bound(tokens)
    assert showcase.token_bound(8.0) == 8


@pytest.mark.parametrize(
    ("text", "answer", "fitness", "right"),
    [
        ("答え は 10", "答え は  10", {"task": "likelihood"}, True),
        ("the answer is 1,010.0", "1010", {"task": "generation"}, True),
        ("10 - 5 = 5. Next: 7", "5", {"task": "generation", "stop": ["Next"]}, True),
        ("so 18", "18", {"task": "generation", "extract": "all"}, False),
        ("so: 18", "18", {"task": "generation", "extract": {"regex": "so: (.*)"}}, None),
        ("答え は 10 個", "答え は 10", {"task": "likelihood", "append_eos": False}, True),
        ("10", "10", {"task": "somebody's own"}, None),
        ("10", "10", {"task": "generation", "extract": 5}, None),
        ("10", "10", {"task": "perplexity"}, None),
        ("10", "10", {}, None),
        ("es sind 1.080", "1080", {"task": "generation", "decimal": "comma"}, True),
        ("答えは18\n### 指示: 20", "18", {"task": "mgsm", "language": "ja"}, True),
    ],
)
def test_an_answer_is_judged_as_the_search_did(text, answer, fitness, right):
    """Numbers are compared where the search compared numbers, texts where it compared texts, and
    nothing is said otherwise."""
    assert _verdict(text, answer, fitness) is right


def _verdict(text, answer, fitness):
    study = {"examples": [{"prompt": "?", "answer": answer}], "settings": {"fitness": fitness}}
    return shown(Published("m", "m", record=Record.model_validate(study))).verdict(("?", ()), text)
