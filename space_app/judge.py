"""Whether an answer is right, as far as the settings of the search say what right means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# A minus sign counts unless it joins what comes before it; commas count where they group thousands.
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z.)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("\N{MINUS SIGN}"): ord("-")}


def is_right(text: str, answer: str, fitness: Mapping[str, Any]) -> bool:
    """Whether a response holds the right answer.

    Args:
        text: What the model wrote.
        answer: The right answer.
        fitness: The `fitness` part of the search's settings. Where it takes the last number of a response, numbers are
            compared; otherwise the texts, but for the space in them.
    """
    if fitness.get("task") == "generation" and fitness.get("extract", "last_number") == "last_number":
        stops = fitness.get("stop")
        for stop in stops if isinstance(stops, list) else []:
            text = text.split(stop, 1)[0] if isinstance(stop, str) and stop else text
        found, wanted = last_number(text), last_number(answer)
        return found is not None and wanted is not None and abs(found - wanted) <= 1e-6
    return " ".join(text.split()) == " ".join(answer.split())


def last_number(text: str) -> float | None:
    """The last number of a text; None where there is none."""
    found = _NUMBER.findall(text.translate(_FULL_WIDTH))
    return float(found[-1].replace(",", "")) if found else None
