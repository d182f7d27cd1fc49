"""Whether an answer is right, as far as the settings of the search say what right means."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# A minus sign counts unless it joins what comes before it; commas count where they group thousands.
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z.)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("\N{MINUS SIGN}"): ord("-")}


def is_right(text: str, answer: str, fitness: Mapping[str, Any]) -> bool | None:
    """Whether a response is the right answer; None where the search decided that in a way that is not known here.

    Args:
        text: What the model wrote.
        answer: The right answer.
        fitness: The `fitness` part of the search's settings. Likelihood tasks want the whole response, or its beginning where
            the search did not ask for its end; generation tasks the last number or the whole response.
    """
    if fitness.get("task") == "likelihood":
        said, wanted = " ".join(text.split()), " ".join(answer.split())
        return said == wanted or (fitness.get("append_eos") is False and said.startswith(wanted))
    extract = fitness.get("extract", "last_number")
    if fitness.get("task") != "generation" or extract not in ("last_number", "all"):
        return None
    stops = fitness.get("stop")
    for stop in stops if isinstance(stops, list) else []:
        text = text.split(stop, 1)[0] if isinstance(stop, str) and stop else text
    if fitness.get("compare") == "text" or (extract == "all" and fitness.get("compare") is None):
        return text.strip() == answer.strip()
    found, known = last_number(text), last_number(answer)
    return found is not None and known is not None and abs(found - known) <= 1e-6


def why_wrong(text: str, answer: str) -> str:
    """Why a wrong answer is wrong, as far as its last number and its script tell: ``right number, wrong language``.

    Text in another script that has more numbers than the right answer and is much longer is no answer in another language.
    """
    if not text.strip():
        return "says nothing"
    found, known = last_number(text), last_number(answer)
    reasons = []
    if known is not None:
        reasons.append("no number" if found is None else "right number" if abs(found - known) <= 1e-6 else "wrong number")
    wrote, wanted = _script(text), _script(answer)
    if wrote and wanted and wrote != wanted:
        if len(text) > 3 * len(answer) and len(_numbers(text)) > len(_numbers(answer)):
            return "no clear answer"
        reasons.append("wrong language")
    elif reasons == ["right number"]:
        reasons.append("other words")
    return ", ".join(reasons)


def _script(text: str) -> str:
    """The script that most letters of a text are of; Han is Japanese or Chinese alike, and kana go with it."""
    names = [unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in text if letter.isalpha()]
    kinds = ["CJK" if name in ("HIRAGANA", "KATAKANA") else name for name in names]
    return max(sorted(set(kinds)), key=kinds.count, default="")


def last_number(text: str) -> float | None:
    """The last number of a text; None where there is none."""
    found = _numbers(text)
    return float(found[-1].replace(",", "")) if found else None


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(text.translate(_FULL_WIDTH))
