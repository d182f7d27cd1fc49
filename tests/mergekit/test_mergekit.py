"""mergekit's YAML files: read as recipes, written back, built; and what cannot be said is refused
by its key."""

import re

import pytest
import torch
import yaml
from refusals import refused
from safetensors.torch import load_file
from typer.testing import CliRunner

from hf_evomerge.cli import app
from hf_evomerge.errors import RecipeError
from hf_evomerge.mergekit import from_mergekit, load, to_mergekit
from hf_evomerge.recipes.recipe import FlowPart, Recipe, SourceRef

A = SourceRef(model="org/a")
B = SourceRef(model="org/b", revision="main")
MODELS = "models: [{model: org/a}, {model: org/b@main}]\n"
WEIGHTED = "merge_method: linear\nparameters: {weight: 1}\n"
LINEAR = MODELS + WEIGHTED
GIVEN = MODELS + "merge_method: linear\nparameters: {weight: %s}"

SLERP = """
slices:
  - sources:
      - {model: org/a, layer_range: [0, 32]}
      - {model: org/b@main, layer_range: [0, 32]}
merge_method: slerp
base_model: org/b@main
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5]}
    - value: 0.5
dtype: bfloat16
"""
TIES = """
models:
  - {model: org/base}
  - model: org/a
    parameters: {density: [1, 0.7, 0.1], weight: {filter: mlp, value: 0.5}}
  - model: org/b@main+some/lora@v2
    parameters: {density: 0.33, weight: [{filter: embed, value: 0.1}, {filter: "*", value: "1e-1"}, {value: 9}]}
merge_method: ties
base_model: org/base
parameters: {normalize: 1, int8_mask: true, weight: 0.3, rescale: true}
dtype: float32
out_dtype: float16
tokenizer_source: org/a
"""  # noqa: E501
FRANKEN = """
merge_method: passthrough
slices:
  - sources: [{model: org/a, layer_range: [0, 24]}]
  - sources: [{model: org/b@main, layer_range: [8, 9], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
    parameters: {scale: 3}
  - sources: [{model: org/a, layer_range: [23, 32]}]
chat_template: "{% for message in messages %}{{ message }}{% endfor %}"
"""  # noqa: E501
STACKED = """
merge_method: task_arithmetic
base_model: org/base
slices:
  - sources:
      - {model: org/a, layer_range: [0, 8]}
      - {model: org/b@main, layer_range: [8, 16], parameters: {weight: [0, 1]}}
      - {model: org/base, layer_range: [4, 12]}
    parameters: {lambda: 0.9}
parameters: {weight: 0.5, normalize: false}
"""


def test_slices_with_filters_and_gradients():
    """The file that most slerp merges are made with: filters become patterns, and the base is where
    the way begins."""
    read = from_mergekit(SLERP)
    assert read.recipe == Recipe.from_yaml("""
sources: [{model: org/b, revision: main}, {model: org/a}]
merge:
  method: slerp
  options: {t: {"*self_attn*": [0.0, 0.5, 0.3, 0.7, 1.0], "*mlp*": [1.0, 0.5], default: 0.5}}
  slices: [{layers: [0:0-31, 1:0-31]}]
  unmatched: ignore
  router: merge
dtype: bfloat16
""")
    assert read.notes == []


def test_models_with_a_base():
    """Settings fall through from a model to the whole file; the base is no source; what has no
    effect is silent."""
    read = from_mergekit(TIES)
    assert read.recipe == Recipe.from_yaml("""
sources:
  - {model: org/a}
  - {model: org/b, revision: main, adapter: some/lora, adapter_revision: v2}
base: {model: org/base}
merge:
  method: ties
  options: {normalize: true, rescale: l1}
  parameters:
    - {weight: {"*mlp*": 0.5, default: 0.3}, density: [1.0, 0.7, 0.1]}
    - {weight: {"*embed*": 0.1, default: 0.1}, density: 0.33}
  unmatched: ignore
  router: merge
dtype: float16
vocabulary: tokenizer
""")
    assert read.notes == []


def test_a_stack_of_slices():
    """Passthrough slices become a stack, in their order, with the setting that counts most for
    each."""
    recipe = from_mergekit(FRANKEN).recipe
    assert recipe == Recipe.from_yaml("""
sources: [{model: org/a}, {model: org/b, revision: main}]
merge:
  method: passthrough
  slices:
    - {layers: ["0:0-23"]}
    - {layers: ["1:8"], parameters: [{scale: {"*o_proj*": 0.0, default: 1.0}}]}
    - {layers: ["0:23-31"]}
  unmatched: ignore
  router: merge
chat_template: "{% for message in messages %}{{ message }}{% endfor %}"
""")


def test_slices_of_several_sources():
    """The base of a slice has layers of its own, options of a slice stay there, and the file's are
    the merge's."""
    assert from_mergekit(STACKED).recipe == Recipe.from_yaml("""
sources: [{model: org/a}, {model: org/b, revision: main}]
base: {model: org/base}
merge:
  method: task_arithmetic
  options: {normalize: false}
  slices:
    - layers: [0:0-7, 1:8-15]
      base: 4-11
      options: {lambda: 0.9}
      parameters: [{weight: 0.5}, {weight: [0.0, 1.0]}]
  router: merge
tokenizer: base
""")


@pytest.mark.parametrize("text", [SLERP, TIES, FRANKEN, STACKED, LINEAR], ids=range(5))
def test_there_and_back(text):
    """A file read, written and read again is the same recipe, and written again the same text."""
    recipe = from_mergekit(text).recipe
    written, _ = to_mergekit(recipe)
    again = from_mergekit(written)
    assert again.recipe == recipe
    assert to_mergekit(again.recipe)[0] == written
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("base_model: org/a\n" + LINEAR, None),
        ("base_model: org/b@main\n" + LINEAR, 1),
        ("tokenizer_source: org/b@main\n" + LINEAR, 1),
        ("tokenizer_source: base\nbase_model: org/b@main\n" + LINEAR, 1),
        ("tokenizer_source: org/x\n" + LINEAR, 2),
        ("base_model: org/x\n" + FRANKEN, 2),
    ],
)
def test_whose_tokenizer(text, tokenizer):
    """The tokenizer is the base's, or that of the model that the file names: a further source, not
    merged; and back."""
    recipe = from_mergekit(text).recipe
    assert recipe.tokenizer == tokenizer
    if tokenizer == 2:
        assert recipe.sources == [A, B, SourceRef(model="org/x")]
        assert recipe.merge_sources == [0, 1]
        assert from_mergekit(to_mergekit(recipe)[0]).recipe == recipe


def test_the_base_of_linear_is_one_more_model():
    """Where no task vectors are merged the base is merged like the models, at the end, as mergekit
    does."""
    recipe = from_mergekit("base_model: org/c\n" + LINEAR).recipe
    assert recipe.sources == [A, B, SourceRef(model="org/c")]
    assert (recipe.base, recipe.tokenizer) == (None, 2)


def test_slerp_begins_at_a_base_that_is_not_listed():
    """The base is the first of the two models where only the other is listed: t is the way from the
    base."""
    text = "merge_method: slerp\nbase_model: org/a\nmodels: [{model: org/b@main}]\n"
    recipe = from_mergekit(text + "parameters: {t: 0.3}").recipe
    assert (recipe.sources, recipe.tokenizer) == ([A, B], None)


LEFT_OUT = "left out, as mergekit does"


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        # a constant here, at that value
        (MODELS + "merge_method: multislerp\nparameters: {weight: 1, eps: 1e-8}\n", []),
        (
            MODELS + "merge_method: linear\nparameters: {weight: 1, density: 0.5}\n",
            [f"parameters.density: linear has no such parameter; {LEFT_OUT}"],
        ),
        (LINEAR + "colour: red\nname: it", [f"colour: mergekit has no such key; {LEFT_OUT}"]),
        (
            LINEAR + "out_dtpe: float32",
            [f"out_dtpe: mergekit has no such key; {LEFT_OUT}; did you mean out_dtype?"],
        ),
        (
            "models: [{model: org/a, layer_range: [0, 2]}]\nmerge_method: passthrough",
            [f"models[0].layer_range: {LEFT_OUT}; layers are chosen in slices"],
        ),
    ],
)
def test_settings_without_effect_are_noted(text, notes):
    """What the method does not have is left out with a note, as mergekit leaves it out without
    one."""
    assert from_mergekit(text).notes == notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modules: {}\nmerge_method: linear", "modules: a recipe is of one language model"),
        (
            "modules: {a: {}, b: {}}\nmerge_method: linear",
            "modules: a recipe is of one language model (found ['a', 'b'])",
        ),
        (
            "modules: {a: {models: []}}\n" + LINEAR,
            "models: given beside modules.a; keep one of them",
        ),
        (MODELS, "merge_method: missing; this is no mergekit file"),
        (MODELS + "merge_method: ota", "merge.method: 'ota' is not known; there are"),
        (LINEAR + "slices: []", "models: give either models or slices"),
        (GIVEN % 10_000_000, "parameters.0.weight: must be at most 1e+06 (found 10000000.0)"),
        ("models: [{parameters: {}}]\n" + WEIGHTED, "models[0].model: missing"),
        (
            "models: [{model: a+b+c}]\n" + WEIGHTED,
            "models[0].model: 'a+b+c' names no model; write PATH",
        ),
        (
            "models: [{model: {model: {path: a}, override_architecture: X}}]\n" + WEIGHTED,
            "models[0].model.override_architecture: an architecture is not overridden here",
        ),
        (
            MODELS + "merge_method: linear",
            "models (org/a).parameters.weight: missing; mergekit has no default for it",
        ),
        (
            MODELS + "merge_method: slerp\nparameters: {t: 1}",
            "base_model: missing; slerp begins there",
        ),
        (
            MODELS + "merge_method: slerp\nbase_model: org/a",
            "parameters.t: missing; mergekit has no default for it",
        ),
        (
            MODELS + "merge_method: ties\nparameters: {weight: 1}",
            "base: ties works on differences to a common base",
        ),
        (
            GIVEN % "{filter: mlp, value: 1}",
            (
                "models (org/a).weight: no value for tensors that no filter names, and mergekit "
                "has no default; add one"
            ),
        ),
        (
            GIVEN % "[{filter: 'a*', value: 1}, {value: 2}]",
            "models (org/a).weight: the filter 'a*' holds a star",
        ),
        (GIVEN % "much", "models (org/a).weight: 'much' is not a number"),
        (
            MODELS + "merge_method: multislerp\nparameters: {weight: 1, eps: 0.1}",
            "parameters.eps: 1e-08 in multislerp, and no other (found 0.1)",
        ),
        (
            LINEAR + "dtype: float64",
            "dtype: 'float64' cannot be written; a recipe's result is float32",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: "
            "[0, 2]}]}]\nmerge_method: slerp\n"
            "base_model: c\nparameters: {t: 0.5}",
            "slices[0].sources: the base_model is not among them; slerp begins there",
        ),
        (
            LINEAR + "tokenizer: {tokens: {x: {source: org/c}}}",
            "tokenizer.tokens.x.source: org/c is none of the models that are merged",
        ),
        ("modules: {a: 3}\nmerge_method: linear", "modules.a: expected a mapping (found 3)"),
        (
            MODELS + "merge_method: ties\nbase_model: c\nparameters: {weight: 1, rescale: [1, 0]}",
            "rescale: takes one value, not a gradient (found [1, 0])",
        ),
        (
            LINEAR + "chat_template: vicuna",
            "chat_template: 'vicuna' is neither Jinja nor a known name; write one of",
        ),
        (
            (
                "slices: [{sources: [{model: a, layer_range: [0, 2]}], base_model: "
                "b}]\nmerge_method: model_stock"
            ),
            "slices[0].base_model: a recipe has one base",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [2, 2]}]}]\nmerge_method: passthrough",
            "slices[0].sources[0].layer_range: [2, 2] is not [first, one after the last]",
        ),
        (
            (
                "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nmerge_method: "
                "model_stock\nbase_model: b"
            ),
            "slices[0].sources: the base_model is not among them; name its layers",
        ),
        (
            (
                "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: "
                "[0, 3]}]}]\n"
            )
            + WEIGHTED,
            "merge.slices[0].layers: 2, 3, 2 layers",
        ),
        ("a: 1\n---\nb: 1", "several documents in one file; split it"),
        (GIVEN % ".inf", "models (org/a).weight: inf is not a finite number"),
        (GIVEN % "[[1], 2]", "models (org/a).weight: [1] is not a number; a gradient is one list"),
        (
            GIVEN % "[{filter: 3, value: 1}, {value: 2}]",
            "models (org/a).weight: the filter 3 is no text; put it in quotes",
        ),
        ("models: [{model: [a]}]\n" + WEIGHTED, "models[0].model: ['a'] names no model"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(text, message):
    """Each is refused in one line that begins with the file's own key."""
    with refused(RecipeError, f"^{re.escape(message)}"):
        from_mergekit(text)


def test_files_of_experts_are_named(tmp_path):
    """A file of mergekit-moe is told by its name, not by the keys that a recipe lacks."""
    (tmp_path / "moe.yml").write_text(
        "base_model: a\nexperts: [{source_model: b, positive_prompts: [c]}]"
    )
    with refused(RecipeError, r"moe\.yml: a file of mergekit-moe"):
        load(tmp_path / "moe.yml")


def recipe_of(**fields):
    """A linear merge of two sources, with other fields."""
    return Recipe.model_validate({"sources": [A, B], "merge": {"method": "linear"}, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "flow: {path: ['2:0-3'], embedding_source: 2}",
            "flow: mergekit has no path through a merged model",
        ),
        (
            "{merge: null, flow: {path: ['0:0 + 1:0*0.5']}}",
            "flow.path: mergekit has no hop of several layers",
        ),
        (
            "{merge: null, flow: {path: ['0:0'], scales: [0.5]}}",
            "flow.scales: mergekit scales tensors",
        ),
        (
            "{merge: null, flow: {path: ['0:0', '1:1']}}",
            "flow.embedding_source: mergekit takes embeddings and head from",
        ),
        ("merge: {method: linear, sources: [0, 0]}", "merge.sources: mergekit takes a model once"),
        (
            "merge: {method: linear, parameters: [{weight: {embed: 1, default: 0}}, {}]}",
            "merge.parameters[0].weight.embed: mergekit knows parts of names, such as "
            "'*mlp*', and no layer groups; "
            "`hf-evomerge merge` builds the recipe",
        ),
        (
            "{merge: {method: dare_ties, options: {rescale: expected}}, base: {model: org/a}}",
            "merge.options.rescale: mergekit knows",
        ),
        (
            "merge: {method: karcher, parameters: [{weight: 2}, {}]}",
            "merge.parameters[0].weight: mergekit has nothing",
        ),
        (
            "merge: {method: passthrough, slices: [{layers: ['0:3-0']}]}",
            "merge.slices[0].layers: mergekit's layers go up one by one (found [3, 2, 1, 0])",
        ),
        (
            "merge: {method: linear, slices: [{layers: ['0:0-1', '0:1-2']}]}",
            "merge.slices[0].layers: mergekit takes a model once in a slice (found org/a twice)",
        ),
        ("sources: [{model: a+b}, {model: b}]", "sources: a+b has a + or an @ in a name"),
    ],
)
def test_what_mergekit_cannot_say_is_refused(fields, message):
    """Each is refused in one line that begins with the recipe's key."""
    with refused(RecipeError, f"^{re.escape(message)}"):
        to_mergekit(recipe_of(**yaml.safe_load(fields)))


def test_a_path_is_written_as_a_passthrough_merge():
    """A serial path becomes slices of layers that follow each other, and a repeated layer a slice
    of its own."""
    recipe = Recipe(sources=[A, B], flow=FlowPart(path=["0:0-3", "1:2-3", "1:3", "0:5"]))
    read = from_mergekit(to_mergekit(recipe)[0]).recipe
    pieces = [piece.layers for piece in read.merge.slices]
    assert pieces == [["0:0-3"], ["1:2-3"], ["1:3"], ["0:5"]]


def test_what_mergekit_does_otherwise_is_noted():
    """Random masks are named; the tokenizer of a source is asked for where mergekit would take the
    base's."""
    based = {"base": {"model": "c"}}
    text, notes = to_mergekit(recipe_of(merge={"method": "dare_ties"}, **based))
    assert notes == ["dare_ties drops elements at random: mergekit draws other ones"]
    assert "tokenizer_source: org/a\n" in text
    text, _ = to_mergekit(recipe_of(merge={"method": "ties"}, tokenizer="base", **based))
    assert "tokenizer_source" not in text


def test_the_command_line_takes_both_kinds_of_file(tiny, tmp_path):
    """A mergekit file is built as it is, converted to a recipe that builds the same, and back."""
    one, two, file, recipe = (
        tmp_path / name for name in ("one", "two", "mergekit.yml", "recipe.yaml")
    )
    file.write_text(
        f"models: [{{model: {tiny}/a, parameters: {{weight: [0.2, 0.7]}}}}, {{model: {tiny}/b}}]\n"
        "merge_method: linear\nparameters: {weight: 0.5, t: 1}"
    )

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == code, done.output
        return done

    built = run("merge", file, "--out", one)
    assert "note: parameters.t: linear has no such parameter" in built.stderr
    run("convert", file, "--to", "recipe", "--out", recipe)
    run("merge", recipe, "--out", two)
    tensors = [load_file(folder / "model.safetensors") for folder in (one, two)]
    torch.testing.assert_close(*tensors, rtol=0, atol=0)
    back = from_mergekit(run("convert", recipe, "--to", "mergekit").stdout)
    assert back.recipe == Recipe.load(recipe) == load(file).recipe
    run("convert", recipe, "--to", "else", code=1)
