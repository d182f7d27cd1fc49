"""Numbers in what a model writes: signs, currencies, groups of thousands, LaTeX, fractions, powers
of ten, ideographs.

docs/tasks/generation.md has the table of what is read and what is not. Number words ("eighteen")
and clock times are not.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import deque
from functools import lru_cache
from typing import Literal

Decimal = Literal["point", "comma"]

COMMA_LANGUAGES = (
    "be bg bs ca cs da de el es et eu fi fr gl hr hu hy id is it ka kk lt lv mk nb nl no "
    "pl pt ro ru sk sl sq sr sv tr uk uz vi"
)
"""Languages (ISO 639-1) that write 1.000,5 where English writes 1,000.5."""

_UNITS = {
    "十": 10,
    "百": 100,
    "千": 1000,
    "万": 10**4,
    "萬": 10**4,
    "億": 10**8,
    "亿": 10**8,
    "兆": 10**12,
}
_DIGITS = {
    ideograph: number
    for number, ideographs in enumerate(
        ("〇零", "一壱", "二弐两兩", "三参", "四", "五", "六", "七", "八", "九")
    )
    for ideograph in ideographs
}
_IDEOGRAPHS = "".join([*_UNITS, *_DIGITS])
_MYRIADS = "万萬億亿兆"
# Not Unicode's compatibility normalisation: it would make the digit 2 of a squared metre's sign.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    ord("\N{MINUS SIGN}"): ord("-"),
    ord("’"): ord("'"),
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# Rewriting before a number is looked for, in this order. LaTeX fractions become a/b with a space
# before them, so that "2\frac12" is 2 1/2 and not 21/2. A power of ten without a factor becomes
# 1e..; one behind a factor is left to `_POWER`. Thin spaces between groups become one character
# that `_pattern` knows as a separator.
_LATEX = [
    (
        re.compile(r"\\[dt]?frac\s*\{\s*+([^{}]*)\}\s*\{\s*+([^{}]*)\}"),
        r" \1/\2",
    ),  # apart from a whole number before it
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" \1/\2"),
    (re.compile(rf"(?:マイナス|負の)(?=\s?[0-9{_IDEOGRAPHS}])"), "-"),
    (re.compile(r"(?<=\d)\{([.,])\}(?=\d)"), r"\1"),  # 70{,}000
    (re.compile(r"(?<=\d)\\[,;:! ](?=\d{3})"), "\N{NARROW NO-BREAK SPACE}"),  # 70\,000
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"(?<![\d.,^×x*])(?<![×x*]\s)10\^\{?\s?(-?\d{1,3})\s?\}?"), r"1e\1"),
    (re.compile(r"\\([$%])"), r"\1"),
]
_PARTS = re.compile(
    rf"([0-9{_IDEOGRAPHS}]{{1,15}})分の([0-9{_IDEOGRAPHS}]{{1,15}})"
)  # 三分の二: two thirds
_FRACTIONS = re.compile("[¼-¾⅐-⅞]")
# A sign counts unless it joins what comes before it, as in "10-5" or "GPT-4"; a currency may stand
# on either side of it.
_SIGN = r"(?:(?<![0-9A-Za-z.)\]])[-–]\s?(?:[$€£¥₹₩]\s?)?)?"
_POWER = (
    r"(?:\s?[×x*]\s?10\s?(?:\^\s?\{?\s?(?P<caret>-?\d{1,3})\s?\}?|(?P<raised>⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
    r"|[eE](?P<e>[+-]?\d{1,3})(?![A-Za-z0-9]))?"
)
_ALONE = re.compile(
    rf"(?P<sign>{_SIGN})(?P<ideographs>[{_IDEOGRAPHS}]+)"
)  # where there is no figure: 一 is in too many words
_THIN = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}"


def last_number(text: str, decimal: Decimal = "point") -> float | None:
    """The last number in a text; None where there is none.

    Args:
        text: What a model wrote.
        decimal: ``point``: 1,000.5; ``comma``: 1.000,5, and a space may group thousands.

    Example:
        >>> last_number("So the answer is -$1,080."), last_number("答えは5万円")
        (-1080.0, 50000.0)
        >>> last_number("1.080,5 Euro", "comma")
        1080.5
    """
    plain = _plain(text)
    if found := deque(_pattern(decimal).finditer(plain), maxlen=1):
        return _value(found[0], decimal)
    if found := deque(_ALONE.finditer(plain), maxlen=1):
        return _signed(found[0]) * _ideographs(found[0]["ideographs"])
    return None


def parse_number(text: str, decimal: Decimal = "point") -> float | None:
    """A text that is one number, and nothing else but space; None where it is anything else."""
    plain = _plain(text).strip()
    if found := _pattern(decimal).fullmatch(plain):
        return _value(found, decimal)
    found = _ALONE.fullmatch(plain)
    return None if found is None else _signed(found) * _ideographs(found["ideographs"])


def _plain(text: str) -> str:
    """Full-width figures and signs as their ASCII counterparts, LaTeX as plain text, and vulgar
    fractions written out."""
    text = text.translate(_PLAIN)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = _PARTS.sub(
        lambda found: f" {_ideographs(found[2]):.0f}/{_ideographs(found[1]):.0f}", text
    )
    return _FRACTIONS.sub(
        lambda found: (
            " " + unicodedata.normalize("NFKC", found[0]).replace("\N{FRACTION SLASH}", "/")
        ),
        text,
    )


# One expression, whose alternatives are tried from the most special to the plainest: a fraction,
# then figures with ideographic units, then figures. The separator of groups is captured and must be
# the same throughout (1,000'000 is two numbers), and a group has three digits and no fourth. With a
# decimal comma, 1.000 is a thousand and 1.5 is one and a half. Counts of digits are bounded where
# an expression could otherwise backtrack over a long text.
@lru_cache(maxsize=2)
def _pattern(decimal: Decimal) -> re.Pattern[str]:
    """A number, by named groups: its sign, and a fraction, ideographs with units, or figures and
    their power of ten."""
    point, group = (r"\.", f"[,'_{_THIN}]") if decimal == "point" else (",", f"[.'_ {_THIN}]")
    grouped = rf"\d{{1,3}}(?P<separator>{group})\d{{3}}(?:(?P=separator)\d{{3}})*(?!\d)"
    twice = rf"\d{{1,3}}(?:{point}\d{{3}}){{2,5}}(?!{point}?\d)"  # two decimal marks are none
    figures = rf"{twice}|(?:{grouped}|\d+)(?:{point}\d+)?|(?<!\d){point}\d+"
    if decimal == "comma":
        figures = (
            rf"(?:\d+|(?<!\d))\.(?:\d\d?|\d{{4,}})(?![\d.,])|{figures}"  # 1.5 groups no thousands
        )
    count = r"\d{1,15}(?:,\d{3}){0,4}"
    ideographs = rf"(?:{count}(?:{point}\d{{1,15}})?[{''.join(_UNITS)}]+)+(?:{count})?"
    fraction = r"(?<!/)(?:(?P<whole>\d+)\s)?(?P<top>\d+)\s?/\s?(?P<bottom>0*[1-9]\d*)(?!\s?[/\d])"
    number = rf"{fraction}|(?P<ideographs>{ideographs})|(?P<figures>{figures}){_POWER}"
    return re.compile(rf"(?P<sign>{_SIGN})(?:{number})")


def _signed(found: re.Match[str]) -> float:
    return -1.0 if found["sign"].startswith(("-", "–")) else 1.0


def _value(found: re.Match[str], decimal: Decimal) -> float:
    sign = _signed(found)
    if found["top"]:
        return sign * (float(found["whole"] or 0) + float(found["top"]) / float(found["bottom"]))
    if found["ideographs"]:
        return sign * _ideographs(found["ideographs"].replace(",", ""), decimal)
    power = (found["caret"] or found["raised"] or found["e"] or "0").translate(_SUPERSCRIPTS)
    value = _float(found["figures"], decimal)
    if abs(int(power)) > 300:  # beyond what a float holds
        return sign * (math.inf if int(power) > 0 and value else 0.0)
    return sign * value * 10.0 ** int(power)


def _float(text: str, decimal: Decimal) -> float:
    mark = "." if decimal == "point" else ","
    if text.count(mark) > 1:
        text = text.replace(mark, "")
    if decimal == "point":
        return float(re.sub(f"[,'_{_THIN}]", "", text))
    if re.fullmatch(r"\d*\.(?:\d\d?|\d{4,})", text):
        return float(text)
    return float(re.sub(f"[.'_ {_THIN}]", "", text).replace(",", "."))


# Two levels of units. 十, 百 and 千 multiply the figure before them and are added up in a
# section. The myriads 万, 億 and 兆 multiply the whole section: 3億2000万 = 3 10^8 + 2000 10^4.
# Without a unit ideographs are digits: 二〇二四 = 2024. A unit without a figure before it counts
# once: 十八 = 18.
def _ideographs(text: str, decimal: Decimal = "point") -> float:
    """The value of figures and ideographs with units: 2万5千, 十八, 3億2000万, 二〇二四."""
    total = section = 0.0  # what stands before the last myriad; what has been read since
    current: float | None = None
    for part in re.findall(rf"\d+(?:[.,]\d+)?|[{_IDEOGRAPHS}]", text):
        if part in _DIGITS:
            current = (current or 0.0) * 10 + _DIGITS[part]
        elif part not in _UNITS:
            current = _float(part, decimal)
        elif part in _MYRIADS:
            section += current or 0.0
            total += (section or 1.0) * _UNITS[part]
            section = 0.0
            current = None
        else:
            section += (1.0 if current is None else current) * _UNITS[part]
            current = None
    return total + section + (current or 0.0)
