"""Numbers in what models write: every format that docs/tasks/generation.md promises, and texts that
are made to be slow."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_evomerge.fitness.text.answers import paper_last_number
from hf_evomerge.fitness.text.numbers import last_number, parse_number

LAST_NUMBERS = """\
The answer is 18. | 18 | 18
18 eggs, then 9 eggs | 9 | 9
答えは1,000円です | 1000 | 0
1,234,567.5 in all | 1234567.5 | 567.5
答えは-5 | -5 | 5
x = -5.25 | -5.25 | 5.25
答えは\N{MINUS SIGN}5度 | -5 | 5
= \N{EN DASH}5 | -5 | 5
-$5 | -5 | 5
$-5 | -5 | 5
10-5 | 5 | 5
10\N{EN DASH}5 | 5 | 5
GPT-4 | 4 | 4
3.50円 | 3.5 | 3.5
.5 | 0.5 | 0.5
合計は１\N{FULLWIDTH COMMA}０００円 | 1000 | 0
面積は25m²です | 25 | 25
3, 4 | 4 | 4
1,2,3 | 3 | 3
12,3456 | 3456 | 3456
1'080 Fr. | 1080 | 80
1\N{RIGHT SINGLE QUOTATION MARK}080 | 1080 | 80
1\N{NARROW NO-BREAK SPACE}080 m | 1080 | 80
1 080 | 80 | 80
\\(70{,}000\\) | 70000 | 0
70\\,000 | 70000 | 0
\\boxed{18} | 18 | 18
1.08e3 | 1080 | 3
1.08 × 10^3 | 1080 | 3
1.08\\times10^{3} | 1080 | 3
3×10⁴ | 30000 | 10
2e | 2 | 2
1e400 | inf | 400
-1e400 | -inf | 400
1e-400 | 0 | 400
1_000 | 1000 | 0
1_234_567.5 | 1234567.5 | 567.5
x_1 | 1 | 1
5k | 5 | 5
3/0 | 0 | 0
3/4 | 0.75 | 4
1 1/2 cups | 1.5 | 2
1½ | 1.5 | 1
\\frac{3}{4} | 0.75 | 4
\\frac34 | 0.75 | 34
2\\frac{1}{2} | 2.5 | 2
$-2\\frac12$ | -2.5 | 12
-\\frac{1}{2} | -0.5 | 2
三分の二です | 0.6666666666666666 | None
3分の1 | 0.3333333333333333 | 1
マイナス五 | -5 | None
答えは-五です | -5 | None
10^3 | 1000 | 3
10^{-2} m | 0.01 | 2
1.500.000 | 1500000 | 0.0
1.234.567.8 | 567.8 | 0.8
マイナス5 | -5 | 5
2024/05/01 | 1 | 1
1/0 | 0 | 0
5万円 | 50000 | 5
2万5千円 | 25000 | 5
10万5,000円 | 105000 | 0
1億2000万 | 120000000 | 2000
3千万 | 30000000 | 3
答えは十八です | 18 | None
二千二十四 | 2024 | None
二〇二四 | 2024 | None
一緒に18個、一緒に | 18 | 18
わかりません | None | None
| None | None
"""
WITH_COMMAS = """\
70.000 | 70000
1.080,5 Euro | 1080.5
1 080 | 1080
3,5 | 3.5
1.5 | 1.5
3.1415 | 3.1415
12.345.678,9 | 12345678.9
-1 080 € | -1080
-.5 | -0.5
1,500,000 | 1500000
"""


def table(text):
    """Rows of a table: a text and the numbers that are read in it."""
    for row in text.splitlines():
        words, *numbers = map(str.strip, row.split("|"))
        yield words, *(None if number == "None" else float(number) for number in numbers)


@pytest.mark.parametrize(("text", "number", "paper"), [*table(LAST_NUMBERS)])
def test_last_number(text, number, paper):
    """The last number is read with its sign, groups, fraction, power and ideographs; the paper's
    scorer reads none of these."""
    assert last_number(text) == number
    assert paper_last_number(text) == paper


@pytest.mark.parametrize(("text", "number"), [*table(WITH_COMMAS)])
def test_decimal_comma(text, number):
    """Where a comma is the decimal mark, points and spaces group thousands, and a point that groups
    none is a decimal point."""
    assert last_number(text, "comma") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        (" 7.0 ", 7),
        ("1,000", 1000),
        ("3/4", 0.75),
        ("十八", 18),
        ("-十八", -18),
        ("7 eggs", None),
        ("", None),
        ("1 2", None),
    ],
)
def test_a_text_that_is_one_number(text, number):
    """A right answer is one number and nothing else."""
    assert parse_number(text) == number


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{}", "the answer is {}.", "**{}**", "答えは{}です", "= {} €"]),
)
def test_every_integer_is_read_in_every_spelling(value, around):
    """Plain, grouped by commas, by points, and by thin spaces: the same number comes out."""
    grouped = f"{value:,}"
    assert last_number(around.format(value)) == value
    assert last_number(around.format(grouped)) == value
    assert last_number(around.format(grouped.replace(",", ".")), "comma") == value
    assert last_number(around.format(grouped.replace(",", "\N{THIN SPACE}"))) == value


@settings(max_examples=40)
@given(st.text(max_size=200))
def test_no_text_breaks_it(text):
    """Whatever is written, there is a finite or infinite number, or none."""
    for decimal in ("point", "comma"):
        found = last_number(text, decimal)  # type: ignore[arg-type]
        assert found is None or found == found


@pytest.mark.parametrize(
    "piece",
    [
        "1,",
        "1",
        "1,000",
        ",000",
        "1 /",
        "- $",
        "1万",
        "1.1.",
        r"\frac{1",
        "1 ",
        "十",
        "分の1",
        "1 000 ",
        "1e",
        "1×10",
        "9" * 9,
    ],
)
def test_long_texts_take_no_longer_than_they_are(piece):
    """A hundred thousand characters of the worst kind are read within seconds: no expression tries
    again and again."""
    begin = time.process_time()
    last_number("1" + piece * (100_000 // len(piece)))
    last_number(piece + "{" + " " * 100_000)
    assert time.process_time() - begin < 5
