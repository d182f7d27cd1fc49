"""Recipes: YAML and back, and every refusal as one line that names the key."""

import itertools
import re

import pytest
import yaml
from refusals import refused

from hf_evomerge.errors import RecipeError
from hf_evomerge.recipes.recipe import FlowPart, MergePart, Recipe, SourceRef, labels_of

MERGE = "merge: {method: linear}\n"
HEAD = "sources: [{model: a}, {model: b}]\n"

FULL = Recipe.model_validate(
    yaml.safe_load("""
sources: [{model: org/日本語, revision: abc}, {model: ./folder with spaces}]
base: {model: org/base}
merge:
  method: dare_ties
  options: {normalize: false, lambda: 1.5, rescale: l1, t: {embed: 0.1, default: 0.2}}
  sources: [1, 0]
  parameters:
    - {weight: 0.3333333333333333, density: 1.0e-7}
    - weight: {blocks.0-3: 0.1, "*o_proj*": [0.1, 0.7], default: -2.0}
      density: [0.0, 0.3333333333333333]
flow:
  path: ["2:0-3", "1:3", "0:1*0.5 + 1:1*0.5 x2"]
  scales: [0.30000000000000004, 1.0e-9, 1.0e-9, 1.0e-9, 1.0e-9, 1.0e-9, 1.0e-9]
  scale_target: mlp_delta
dtype: bfloat16
seed: 7
""")
)


@pytest.mark.parametrize(
    "recipe",
    [
        FULL,
        FULL.model_copy(update={"flow": None}),
        Recipe(sources=FULL.sources, flow=FlowPart(path=["0:0-1"])),
    ],
)
def test_yaml_gives_the_recipe_back(recipe, tmp_path):
    """A recipe is read back from its YAML, from text and from a file, to the last bit of every
    number."""
    assert repr(Recipe.from_yaml(recipe.to_yaml())) == repr(recipe)  # types, too
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_text_is_golden():
    """The YAML of a recipe is this text: in the order of the fields, without what is absent."""
    recipe = Recipe(
        sources=[SourceRef(model="a", revision="main"), SourceRef(model="b")],
        flow=FlowPart(path="0:0-1, 1:1", scales=[1, 0.5, 1]),
        seed=3,
    )
    assert recipe.to_yaml() == (
        "sources:\n- model: a\n  revision: main\n- model: b\n"
        "flow:\n  path:\n  - 0:0-1\n  - '1:1'\n  scales: [1.0, 0.5, 1.0]\n"
        "  scale_target: stream\n  embedding_source: 0\nseed: 3\n"
    )


BROKEN = [
    *("a: [", "a: b: c", "\tx: 1", "a: \0", "? [a]\n: b", "[" * 5000, "a: *nowhere"),
    *(f"{HEAD}{MERGE}seed: {value}" for value in ("9" * 5000, "!!int abc", "!!float abc")),
]
NUMBERLIKE = "1e5 12e4567 08 007 0x10 1:30 1_000 true no null ~ 2024-01-01 .inf = +1 0o7"


@pytest.mark.parametrize("word", NUMBERLIKE.split())
def test_names_that_look_like_numbers_stay_names(word):
    """A folder or a revision that looks like a number, a date or a flag is text again when it is
    read back."""
    ref = SourceRef(model=word, revision=word)
    recipe = Recipe(sources=[ref], merge=MergePart(method="linear"))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("flow:\n  path:\n  - 0:0\n  - 1:3\n  - 1:30\n", ["0:0", "1:3", "1:30"]),
        ("flow: {path: [0:0, 1:3, 1:30]}\n", ["0:0", "1:3", "1:30"]),
        ("flow: {path: '0:0, 1:3, 1:30'}\n", ["0:0", "1:3", "1:30"]),
        ("flow: {path: 1:3}", ["1:3"]),
    ],
    ids=["block", "flow", "text", "one hop"],
)
def test_unquoted_hops_are_hops(written, path):
    """``1:30`` without quotes is layer 30 of source 1, not the base-60 number 90."""
    assert Recipe.from_yaml(HEAD + written).flow == FlowPart(path=path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("-.5", -0.5), ("1e-3", 0.001), ("1E3", 1000.0), ("2.", 2.0), ("+1.5e+2", 150.0)],
)
def test_numbers_are_numbers(text, value):
    """Integers, decimals and exponents with or without a point are read as numbers."""
    recipe = Recipe.from_yaml(HEAD + f"merge: {{method: linear, options: {{x: {text}}}}}")
    assert recipe.merge.options == {"x": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("- a", "expected a mapping of keys to values, found list"),
        (HEAD, "neither 'merge' nor 'flow' is given; a recipe has at least one of them"),
        (MERGE, "sources: is missing"),
        ("sources: []\n" + MERGE, "sources: must have 1 or more entries"),
        ("sources: [a]\n" + MERGE, "sources.0: must be a mapping of keys to values (found 'a')"),
        ("sources: [{model: ''}]\n" + MERGE, "sources.0.model: must not be empty (found '')"),
        ("sources: [{model: 5}]\n" + MERGE, "sources.0.model: must be a text (found 5)"),
        (HEAD + MERGE + "sed: 1", "sed: no such key; did you mean seed?"),
        (HEAD + MERGE + "seed: x", "seed: must be a whole number"),
        (
            HEAD + MERGE + "dtype: int8",
            "dtype: must be 'float32', 'float16' or 'bfloat16' (found 'int8')",
        ),
        (HEAD + "merge: {}", "merge.method: is missing"),
        (
            "sources: [{model: a, revison: b}]\n" + MERGE,
            "sources.0.revison: no such key; did you mean revision?",
        ),
        (
            HEAD + "merge: {method: linear, slices: [{layers: ['0:0'], option: {}}]}",
            "merge.slices.0.option: no such key; did you mean options?",
        ),
        (
            HEAD + "merge: {method: linear, weight: 1}",
            "merge.weight: no such key; there are core_space, method, ",
        ),
        (
            HEAD + "merge: {method: linear, sources: [0, 2]}",
            "merge.sources: 2 is not a source; there are 2, numbered from 0",
        ),
        (
            HEAD + "merge: {method: linear, parameters: [{weight: 1}]}",
            "merge.parameters: 1 mappings for 2 sources; give one per source",
        ),
        (
            HEAD + "merge: {method: linear, parameters: [{weight: .nan}, {}]}",
            "merge.parameters.0.weight",
        ),
        (
            HEAD + "merge: {method: linear, parameters: [{weight: [[1]]}, {}]}",
            "merge.parameters.0.weight",
        ),
        (
            HEAD + "merge: {method: linear, parameters: [{weight: {embed: {head: 1}}}, {}]}",
            "merge.parameters.0.weight",
        ),
        (HEAD + "flow: {path: [1]}", "flow.path.0: must be a text (found 1)"),
        (HEAD + "flow: {path: []}", "flow.path: no hops; a path has at least one, such as 0:0-15"),
        (
            HEAD + "flow: {path: [0:0, zero]}",
            "flow.path[1]: cannot read 'zero'; write SOURCE:LAYER",
        ),
        (
            HEAD + "flow: {path: 0:0-9999}",
            "flow.path[0]: 10000 hops; a path has between 1 and 4096 hops in all",
        ),
        (
            HEAD + "flow: {path: 0:0, scales: [1, 2]}",
            "flow.scales: 2 numbers for a path of 1 hops; give one per hop",
        ),
        (
            HEAD + "flow: {path: 0:0, scale_target: mlp}",
            "flow.scale_target: must be 'stream' or 'mlp_delta' (found 'mlp')",
        ),
        (HEAD + "flow: {path: 2:0}", "flow: source 2 is not there; there are 2, numbered from 0"),
        (
            HEAD + "flow: {path: 0:0, embedding_source: 2}",
            "flow: source 2 is not there; there are 2, numbered from 0",
        ),
        # the merged model is one more source
        (
            HEAD + MERGE + "flow: {path: 3:0}",
            "flow: source 3 is not there; there are 3, numbered from 0",
        ),
        # what YAML cannot read, whatever YAML itself raises
        *((text, "not valid YAML: ") for text in BROKEN),
    ],
    ids=itertools.count(),
)
def test_refusals(text, message):
    """Each wrong recipe is refused in one line that begins with the key and says what was there."""
    with refused(RecipeError, f"^{re.escape(message)}"):
        Recipe.from_yaml(text)


def test_the_merged_model_is_one_more_source():
    """With a merge part the path may use the merged model, whose number is the number of
    sources."""
    recipe = Recipe.from_yaml(HEAD + MERGE + "flow: {path: '2:0, 0:1', embedding_source: 2}")
    assert recipe.merge_sources == [0, 1]


def test_several_complaints_are_one_line():
    """All wrong keys are named at once."""
    with refused(RecipeError, "seed: .*sed: "):
        Recipe.from_yaml(HEAD + MERGE + "seed: x\nsed: 1")


def test_a_file_is_named_in_every_complaint(tmp_path):
    """What is wrong with a file begins with the file's name: absent, no text, or wrong content."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "wrong").write_text(HEAD + MERGE + "sed: 1")
    for name, message in (
        ("absent", "no such file"),
        ("binary", "cannot be read"),
        ("wrong", "sed: no such key"),
    ):
        with refused(RecipeError, f"^{tmp_path}/{name}: {message}"):
            Recipe.load(tmp_path / name)


def test_a_recipe_does_not_change():
    """The fields of a recipe cannot be set once it is made."""
    with pytest.raises(ValueError, match="frozen"):
        FULL.seed = 1


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("runs/m/final runs/j/final/ u/tiny", ["m/final", "j/final", "tiny"]),
        ("final j/final k/j/final", ["final", "j/final", "k/j/final"]),
        ("a/final a/final b/final", ["a/final", "a/final (2)", "b/final"]),
        ("base+j/checkpoint-500 base+m/checkpoint-500", None),
        ("u/a@v1 u/a@v2", ["a@v1", "a@v2"]),
    ],
)
def test_labels_of_several_models_are_distinct(names, labels):
    """Names that are alike get the shortest ends of their paths that tell them apart, a revision,
    or a number; others none."""
    refs = []
    for name in names.split():
        whole, _, adapter = name.partition("+")
        model, _, revision = whole.partition("@")
        refs.append(SourceRef(model=model, revision=revision or None, adapter=adapter or None))
    assert labels_of(refs) == (labels or names.split())
