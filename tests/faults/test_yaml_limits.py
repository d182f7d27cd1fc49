"""YAML that somebody else wrote: whatever it says, reading it ends soon, in an object or in one
line."""

import os
import time

import pytest
import yaml
from refused import refused

from hf_evomerge.errors import EvoMergeError, RecipeError, SearchError
from hf_evomerge.mergekit import from_mergekit, load
from hf_evomerge.recipes.limited_yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import parse_yaml, read_yaml
from hf_evomerge.search.file.config import SearchConfig

LAUGHS = "a0: &a0 [1, 1]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
)
HEAD = "sources: [{model: a}, {model: b}]\n"
MERGE = "merge: {method: linear}\n"
STACK = HEAD + "merge:\n  method: linear\n  slices:\n"
READERS = {
    "recipe": Recipe.from_yaml,
    "search": lambda text: parse_yaml(SearchConfig, text, SearchError),
    "mergekit": from_mergekit,
}


def refusal(read, text):
    """The line that a text is refused with; checks that it is one, and that it took seconds of the
    processor at most."""
    begin = time.process_time()
    with pytest.raises(EvoMergeError) as caught:
        read(text)
    assert time.process_time() - begin < 20  # half a minute to hours before there were limits
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "tagged",
    [
        "!!bool maybe",
        "!!timestamp x",
        '!!int ""',
        '!!float ""',
        "!!map [1]",
        "!!set [1]",
        "!!omap {a: 1}",
        "!!binary é",
        "!own x",
    ],
)
def test_tags_are_refused(read, tagged):
    """An explicit tag is refused by its name and line, also where YAML itself would fail at its
    value."""
    assert "the tag" in refusal(read, f"a: 1\nb: {tagged}")
    assert "line 2" in refusal(read, f"a: 1\nb: {tagged}")


def test_a_pipe_is_not_waited_for(tmp_path):
    """A pipe in place of a recipe is refused; one that a shell makes is read."""
    os.mkfifo(tmp_path / "recipe.yaml")
    with refused(r"recipe\.yaml: cannot be read: a pipe, and no file", RecipeError):
        Recipe.load(tmp_path / "recipe.yaml")
    reading, writing = os.pipe()
    os.write(writing, b"sources: 5")
    os.close(writing)
    with refused("sources", RecipeError):
        Recipe.load(f"/dev/fd/{reading}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base_model: "\\uD800"', "half a character"),
        ("[" * 3000, f"more than {MAX_DEPTH} levels"),
        ("{a: " * 3000, f"more than {MAX_DEPTH} levels"),
        ("- " * 3000, f"more than {MAX_DEPTH} levels"),
        ("? " * 3000, f"more than {MAX_DEPTH} levels"),
        ("a: [" + "1, " * MAX_NODES + "]", f"or {MAX_NODES} values"),
        ("\n".join(f"k{number}: 1" for number in range(MAX_NODES)), f"or {MAX_NODES} values"),
        ("# " + "x" * MAX_BYTES, "longer than 1 MiB"),
        ("a: &a [*a]", f"or {MAX_NODES} values"),
        ("a: 1\nb: *b", "not valid YAML: line 2: found undefined alias 'b'"),
        (LAUGHS, f"or {MAX_NODES} values"),
        (
            "a: [1\nb: 2",
            (
                "not valid YAML: line 2: while parsing a flow sequence: expected ',' or ']', but "
                "got ':'"
            ),
        ),
        (
            "\n".join([f"k{number}: 1" for number in range(10_000)] + ["k3: 1"]),
            "the key 'k3' is given twice",
        ),
    ],
    ids=range(13),
)
def test_limits(text, message):
    """Depth, number of values, length and aliases without end are refused soon, and the line says
    which it was."""
    assert message in refusal(Recipe.from_yaml, text)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_has_the_limits(read):
    """Recipes, search files and mergekit's files are read by one reader."""
    assert f"more than {MAX_DEPTH} levels" in refusal(read, "[" * 3000)


def test_what_is_within_the_limits_is_read():
    """A file just within the limits is read."""
    deep = "a: " + "[" * (MAX_DEPTH - 2) + "1" + "]" * (MAX_DEPTH - 2)
    assert read_yaml(deep, RecipeError)["a"]
    assert len(read_yaml("a: [" + "1, " * (MAX_NODES - 3) + "]", RecipeError)["a"]) == MAX_NODES - 3


def test_an_alias_is_what_it_stands_for():
    """A file that PyYAML wrote of one object in two places is read."""
    shared = {"model": "a"}
    text = yaml.safe_dump({"sources": [shared, shared], "merge": {"method": "linear"}})
    assert "*id001" in text
    assert [ref.model for ref in Recipe.from_yaml(text).sources] == ["a", "a"]


def test_what_only_looks_like_something_else_is_a_text():
    """Hops, dates, old octals, hexadecimals, underscores and merge keys are text; numbers with an
    exponent are numbers."""
    text = "{a: 1:3, b: 2024-13-45, c: 010, d: 0x1F, e: 1_000, <<: x, f: 1e-3, g: -7}"
    plain = {"a": "1:3", "b": "2024-13-45", "c": "010", "d": "0x1F", "e": "1_000", "<<": "x"}
    assert read_yaml(text, RecipeError) == {**plain, "f": 0.001, "g": -7}


@pytest.mark.parametrize(
    "slices",
    [
        "".join(f"  - layers: ['0:0-31', '1:{n}-{n + 31}']\n" for n in range(3000)),
        "  - layers: [" + "'0:0-4095', " * 2000 + "]\n",
        "".join("  - layers: ['0:0-4095', '1:0-4095']\n" for n in range(2000)),
        "  - layers: ['0:0-4095 x2000000']\n",
        "  - layers: ['0:0-1']\n" * 2500,
    ],
)
def test_a_stack_has_a_limit(slices):
    """Thousands of slices, of sources of one slice, or of layers are refused before they are
    written out."""
    assert "merge.slices" in refusal(Recipe.from_yaml, STACK + slices)


def test_a_long_stack_is_read():
    """A stack of many single layers is a recipe."""
    slices = "".join(f"  - layers: ['0:{n}', '1:{n}']\n" for n in range(500))
    assert len(Recipe.from_yaml(STACK + slices).merge.slices) == 500


def test_a_long_file_is_not_read_whole(tmp_path):
    """Of a file that is far too long only the beginning is read; its name is in the line."""
    file = tmp_path / "long.yaml"
    with file.open("wb") as stream:
        stream.truncate(1 << 36)
    for read in (Recipe.load, load, SearchConfig.load):
        assert refusal(read, file).startswith(f"{file}: longer than 1 MiB")


def test_half_a_surrogate_pair_in_a_message_can_be_written():
    """What YAML's escapes make of a value can be printed in a message whatever it is."""
    assert refusal(Recipe.from_yaml, HEAD + MERGE + 'dtype: "\\ud800"').encode()
