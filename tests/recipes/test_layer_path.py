"""Paths: text to hops and back, and every refusal."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from hf_evomerge.errors import PathError
from hf_evomerge.recipes.layer_path import MAX_HOPS, Hop, LayerPath, Term

NUMBERS = st.floats(-1e5, 1e5)
TERMS = st.builds(Term, st.integers(0, 3), st.integers(0, 63), st.just(1.0) | NUMBERS)
HOPS = st.builds(Hop, st.lists(TERMS, min_size=1, max_size=3).map(tuple), NUMBERS)


@settings(max_examples=50)
@given(st.builds(LayerPath, st.lists(HOPS, min_size=1, max_size=12).map(tuple)))
def test_text_and_scales_give_the_path_back(path):
    """Any path is read back from its text, as a list and as one string, to the last bit of every
    weight and scale."""
    assert LayerPath.parse(path.as_text(), path.scales) == path
    assert LayerPath.parse(str(path), path.scales) == path


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0:0-3", [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ("2:4-4", [(2, 4)]),
        ("1:5-4  x2 , 0:1", [(1, 5), (1, 4), (1, 5), (1, 4), (0, 1)]),
        ("0:9 x3", [(0, 9)] * 3),
        (" 0:0 ,\n 1:1 ", [(0, 0), (1, 1)]),
        (["0:0-1", "1:1 x2"], [(0, 0), (0, 1), (1, 1), (1, 1)]),
        (("0:0", "1:1"), [(0, 0), (1, 1)]),
    ],
)
def test_serial_text(text, layers):
    """Single layers, ranges forwards and backwards, and repeats stand for these layers in this
    order."""
    path = LayerPath.parse(text)
    assert path == LayerPath.of(layers)
    assert path.is_serial
    assert path.scales == [1.0] * len(layers)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("0:3*0.5 + 1:3*0.5", [(0, 3, 0.5), (1, 3, 0.5)]),
        ("0:3+1:4+2:5", [(0, 3, 1.0), (1, 4, 1.0), (2, 5, 1.0)]),
        ("0:3 * -.5", [(0, 3, -0.5)]),
        ("0:3*5.", [(0, 3, 5.0)]),
        ("0:3*1e+3+1:3", [(0, 3, 1000.0), (1, 3, 1.0)]),
    ],
)
def test_weighted_text(text, terms):
    """A hop of several terms keeps their order and weights, exponents with a plus sign included."""
    (hop,) = LayerPath.parse(text).hops
    assert [(term.source, term.layer, term.weight) for term in hop.terms] == terms
    assert not hop.is_serial


def test_a_single_weighted_term_is_not_serial():
    """A weight other than 1 keeps a path from being folded into a plain model."""
    assert not LayerPath.parse("0:0, 0:1*0.5").is_serial
    assert LayerPath.parse("0:0, 0:1*1.0").is_serial


def test_text_form_is_canonical():
    """The text of a path has no ranges, repeats, needless weights or needless spaces; a repeat is
    of the whole sum."""
    assert LayerPath.parse("0:1*0.5 + 1:1*0.5 x2").as_text() == ["0:1*0.5 + 1:1*0.5"] * 2
    path = LayerPath.parse(" 0:0-2,1:3 x2, 0:1*1.0+1:1*.50")
    assert str(path) == "0:0, 0:1, 0:2, 1:3, 1:3, 0:1 + 1:1*0.5"


NO_HOPS = [
    *("", "   ", "0", "0:", "a:b", "-1:0", "0:-1", "0:0-", "0:0-1-2", "0:0 x", "x2", " x2"),
    *("0:0 x0", "0:0 x-2", "0:0-3*0.5", "0:0*nan", "0:0*inf", "0:0*1e999", "0:0*", "0:0 +"),
    *("0:0 0:1", "0:0; 0:1", "0:1234567890", "99999999999999999999:0", "__import__('os')"),
    [["0:0"]],
]
HOSTILE = [
    " " * 200_000,
    "0:0" + " " * 200_000 + "y",
    "0:0*" + "1" * 200_000 + "y",
    "0:0 x" * 40_000,
    "+" * 200_000,
]
LONG = [
    "0:0-999999",
    "0:999999999-0",
    "0:0 x1000000",
    "0:0-99999999 x99999999",
    "0:0*0.5 + 1:0*0.5 x999999999",
    f"0:0-{MAX_HOPS - 1}, 0:0",
    ["0:0 x4000", "0:0 x97"],
]


TOO_MANY = f"between 1 and {MAX_HOPS} hops"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, r"^path\[0\]: ") for text in (*NO_HOPS, *HOSTILE)),
        *((text, r"^path\[1\]: ") for text in ("0:0,", "0:0,,0:1", ["0:0", 7], ["0:0", None])),
        ([], "^path: "),
        ("0:0-3 x1000000000", rf"^path\[0\]: 4000000000 hops; a path has {TOO_MANY} in all"),
        *((text, TOO_MANY) for text in LONG),
    ],
    ids=lambda value: str(value)[:20],
)
def test_text_that_is_no_path(text, message):
    """Whatever cannot be read is refused in a short line that begins with the place, and at once:
    before a hop is made, and in time that grows with the text's length only."""
    start = time.process_time()
    with refused(PathError, message) as caught:
        LayerPath.parse(text)
    assert time.process_time() - start < 1
    assert len(str(caught.value)) < 400


def test_the_longest_path_is_allowed():
    """Exactly the greatest number of hops can be read."""
    assert len(LayerPath.parse(f"0:0-{MAX_HOPS - 1}")) == MAX_HOPS


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([1.0], "scales: 1 numbers for a path of 2 hops; give one per hop"),
        ([1.0, float("nan")], "scales[1]: nan is not a number up to 1e+06"),
        ([1.0, "1"], "scales[1]: '1' is not a number up to 1e+06"),
        ([True, 1.0], "scales[0]: True is not a number up to 1e+06"),
        (["1" * 10_000, 1.0], "scales"),
        ([1.0, -1e308], "scales[1]: -1e+308 is not a number up to 1e+06"),
        ([10**9000, 1.0], "scales"),
    ],
    ids=range(7),
)
def test_scales_that_are_no_scales(scales, message):
    """Scales of the wrong number, kind or size are refused in one short line."""
    with refused(PathError, rf"^{re.escape(message)}.{{,190}}$"):
        LayerPath.parse("0:0-1", scales)


def test_with_scales_keeps_the_hops():
    """New scales make a new path over the same terms and leave the old one alone; whole numbers
    become floats."""
    path = LayerPath.parse("0:0, 0:1 + 1:1*0.5", [0.9, 1.1])
    other = path.with_scales([2, 3])
    assert all(
        type(scale) is float for scale in other.scales + LayerPath.parse("0:0-1", [1, 2]).scales
    )
    assert other.as_text() == path.as_text()
    assert (path.scales, other.scales) == ([0.9, 1.1], [2.0, 3.0])


def test_unique_layers_in_order_of_the_first_visit():
    """Each visited layer is listed once, where the path first comes to it."""
    path = LayerPath.parse("0:0-1, 1:1, 0:1, 0:0*0.5 + 1:0*0.5, 1:1")
    assert path.unique_layers == [(0, 0), (0, 1), (1, 1), (1, 0)]


def test_identity_runs_a_source_as_it_is():
    """The identity path visits every layer of one source once, in order, with scale 1."""
    assert LayerPath.of((1, layer) for layer in range(3)) == LayerPath.parse("1:0-2", [1, 1, 1])
