"""The model card: it claims what was measured, for every kind of winner and with any part of the
information missing."""

import ast
import copy
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_evomerge.errors import HubError
from hf_evomerge.hub.card import CardFacts, render_card
from hf_evomerge.hub.licenses import ParentLicense, decide_license
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.record import Record

PARENTS = [
    ParentLicense("u/a", "apache-2.0"),
    ParentLicense("u/b", "mit", link="https://example.org/mit"),
]
LICENSE = decide_license(PARENTS)
TABLES = yaml.safe_load("""
recipe:
  sources: [{model: u/a, revision: &sha 0123456789abcdef0123456789abcdef01234567}, {model: u/b, revision: *sha}]
  base: {model: u/base, revision: *sha}
  built: {versions: {hf-evomerge: "9.9"}, sha256: {model.safetensors: "00"}}
parts:
  ps: &ps
    merge:
      method: ties
      parameters: [{weight: 0.5, density: 0.5}, {weight: 0.25, density: 0.5}]
  dfs:
    flow: &flow {path: ["0:0", "1:1", "0:1", "0:1"], scales: [1.0, 0.5, 1.5, 1.0]}
  hybrid:
    <<: *ps
    flow: {<<: *flow, path: ["2:0", "1:1", "2:1", "2:1"]}
study:
  space: hybrid
  settings:
    fitness: {task: likelihood}
    data: {test: {dataset: u/data, revision: *sha}}
  splits: {search: 5, test: 6}
  stages:
  - {stage: ps, trials: 8, failed: 1, generations: 2, seconds: 30.0}
  - {stage: ps-first, trials: 8, generations: 1, seconds: 7300.0}
  results:
    split: test
    examples: 6
    rows:
    - {stage: source, model: a, fitness: -2.0, fitness_se: 0.1, accuracy: 0.25, accuracy_se: 0.02}
    - {stage: source, model: b, fitness: null, accuracy: null}
    - {stage: ps, model: evolved PS, winner: true, fitness: -0.5, fitness_se: 0.03, accuracy: 0.7512, accuracy_se: 0.01, evaluations: 8}
  examples:
  - {prompt: wrong one, answer: "1", right: {evolved: false}}
  - {prompt: say "x", answer: "2", right: {evolved: true, a: true}}
""")  # noqa: E501
SOURCES = TABLES["recipe"]["sources"]
PARTS = TABLES["parts"]
STUDY = TABLES["study"]


@pytest.fixture
def study():
    """A record that a test may change."""
    return copy.deepcopy(STUDY)


def _facts(kind="ps", *, study=STUDY, images=(), **recipe):
    config = {"architectures": ["LlamaForCausalLM"]}
    if kind != "ps":
        layers = [{"layers": 2}] * (3 if kind == "hybrid" else 2)
        config = {"text_config": config, "sources": layers}
    fields = {**TABLES["recipe"], **PARTS[kind], **recipe}
    record = None if study is None else Record.model_validate(study)
    return CardFacts(config, Recipe.model_validate(fields), record, images)


def _card(facts=None, **arguments):
    text = render_card(facts or _facts(), "u/merge", LICENSE, **arguments)
    assert not [mistake for mistake in ("\n\n\n", "{{", "None") if mistake in text]
    return ModelCard(text)


def _text(study=STUDY, kind="ps"):
    """The card of a model that was searched for."""
    return _card(_facts(kind, study=study)).text


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 0.0), (0.5, 2.0)])
def test_a_lora_of_one_parent_is_called_so(study, weights):
    """Sources of weight 0 are not in the model: no sentence and no metadata names them as what was
    merged. Where the only weights are a whole parent's, it was not searched."""
    study["results"]["rows"][-1] |= {"stage": "together", "model": "LoRA beside a (rate 0.001)"}
    for number, row in enumerate(study["results"]["rows"][:2]):
        row |= {"label": f"source:{number}", "accuracy": 0.25}
    base = TABLES["recipe"]["base"]
    parameters = [{"weight": {"default": each, "layers": [each]}} for each in weights]
    merge = {"method": "task_arithmetic", "parameters": [*parameters, {"weight": 1.0}]}
    sources = [*SOURCES, {**base, "adapter": "together-still-0"}]
    card = _card(_facts(study=study, sources=sources, merge=merge))
    named = {(1.0, 0.0): ["u/a"], (0.0, 0.0): ["u/base"], (0.5, 2.0): ["u/a", "u/b"]}[weights]
    links = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in named)
    merged = f"is a merge of the weights of {links} and a LoRA that the search trained. "
    stands_still = weights != (0.5, 2.0)
    how = "The LoRA was trained on 5 examples; no other weight was changed.\n"
    assert (merged + how in card.text) == stands_still
    assert (merged + "The parents' weights were not trained: " in card.text) != stands_still
    assert card.data.base_model == [*dict.fromkeys([*named, "u/base"])]
    assert card.text.count(" (weight 0) |") == weights.count(0.0)
    parents = card.text.partition("its parents: ")[2].partition(".\n")[0]
    assert ("b 25.0%" in parents) == bool(weights[1])
    assert "still" not in card.text.partition("## Recipe")[0]


def test_a_prompt_commands_no_terminal(study):
    """Control characters of data, with which a card could redraw the terminal of a reader, do not
    get into it."""
    study["examples"][1]["prompt"] = "say\x1b]0;title\x07 \x9b31mx"
    assert "say?\\]0;title? ?31mx" in _text(study)
    assert not set(_text(study)) & {"\x1b", "\x07", "\x9b"}


def test_it_opens_with_what_the_model_is_for(study):
    """First what it is for, an example and what it says, and the result with its interval; then how
    to load it."""
    results = study["results"]
    study["settings"]["about"] = "Counts things."
    study["examples"][1]["gloss"] = "Say x."
    results["rows"][-1]["accuracy"], results["examples"] = 0.75, 200
    better = "Evolved PS is better than its best parent by 0.5 of accuracy (0.4 to 0.6); in fitness"
    results["verdict"] = [better, "More"]
    parents = {"c": 0.5, "d": 0.1, "e": 0, "f": 0}
    for name, share in parents.items():
        results["rows"].append({"stage": "source", "model": name, "accuracy": share})
    results["rows"].append({"stage": "base", "model": "base (x)", "accuracy": 0.125})
    facts = replace(_facts("dfs", study=study), space="u/shown")
    opening = _card(facts).text.split("## Use it")[0]
    parts = (
        "Counts things.",
        "**2**",
        "*Say x.*",
        "**75.0%** of 200 held-out test problems right (68.6% to 80.5%); its parents: c 50.0%, a "
        "25.0%, d 10.0%, 2 more no better; the base (x): 12.5%. It is better",
        "by 50.0 percentage points (40.0 to 60.0).",
        "huggingface.co/spaces/u/shown",
        "Evolved with [hf_evomerge](https://",
    )
    places = [opening.index(words) for words in parts]
    assert places == sorted(places)
    assert "More" not in opening
    assert "in fitness" not in opening
    assert "/spaces/" not in _card(replace(facts, space=None)).text


def test_it_says_what_the_model_reads(study):
    """Depth, dtype and context are those of the config, and the prompts those of the search's
    data."""
    facts = _facts(dtype="bfloat16")
    sizes = {"num_hidden_layers": 4, "max_position_embeddings": 4096}
    shaped = _card(replace(facts, config={**facts.config, **sizes})).text
    assert "(4 layers, bfloat16, reads up to 4,096 tokens)" in shaped
    assert "on prompts like this one; others were not tried" in shaped
    study["settings"]["data"]["test"]["chat"] = True
    assert "on prompts in its tokenizer's chat template" in _text(study)
    assert "others were not tried" not in _text(None)


@pytest.mark.parametrize("kind", PARTS)
def test_the_metadata_name_the_parents_and_the_license(kind):
    """The Hub reads all parents as base models of a merge, the task, the tags and the license."""
    data = _card(_facts(kind), languages=["ja"]).data.to_dict()
    expected = {
        "base_model": ["u/a", "u/b", "u/base"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["ja"],
        "datasets": ["u/data"],
        "license": "apache-2.0",
        "tags": ["merge", "model-merging", "evomerge"],
    }
    assert {key: data[key] for key in expected} == expected


def test_figures_are_those_that_were_measured():
    """The table has each row's figures with errors and the winner in bold; the metadata have the
    winner's accuracy."""
    card = _card()
    for line in (
        "| a | 0.250 ± 0.020 | -2.000 ± 0.100 |  |",
        "| b |  | failed |  |",
        "| **evolved PS (this model)** | **0.751 ± 0.010** | **-0.500 ± 0.030** | **8** |",
        "Measured on 6 held-out test problems",
        "8 trials in 2 generations, 1 of which failed, 30 seconds of evaluation.",
        "2 hours of evaluation",
    ):
        assert line in card.text
    (result,) = card.data.eval_results
    figure = (result.metric_type, result.metric_value, result.dataset_type)
    assert figure == ("accuracy", 0.7512, "u/data")


def test_a_chat_is_shown_as_a_chat(study):
    """Where the search prompted the models through the chat template, so does the code in the
    card."""
    study["settings"]["data"]["test"] |= {"chat": True, "system": "Be brief."}
    asked = re.search(r"inputs = tokenizer.apply_chat_template\((\[.*\]), add_gen", _text(study))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'say "x"'}]
    assert ast.literal_eval(asked[1]) == messages


def test_a_model_that_solves_nothing_is_shown_so(study):
    """The problem says that it is not solved, and no brackets are explained where none stand."""
    del study["examples"][1]
    study["results"]["verdict"] = ["EVERY ANSWER of evolved PS IS WRONG (6 of 6)"]
    text = _text(study)
    assert "it does not solve; in bold what it should answer:\n\n> wrong one **1**" in text
    assert "EVERY ANSWER of this model IS WRONG (6 of 6)." in text
    assert "In brackets" not in text


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"lm_eval": ["gsm8k", "arc"]}, "gsm8k, arc"),
        ({"jsonl": "x.jsonl"}, "examples of the search"),
    ],
)
def test_a_figure_says_what_it_was_measured_on(data, name, study):
    """Tasks of lm_eval are named; data of the searcher's own have no name for strangers."""
    study["settings"]["data"]["test"] = data
    (result,) = _card(_facts(study=study)).data.eval_results
    assert result.dataset_name == name


@pytest.mark.parametrize("split", ["validation", "search"])
def test_figures_of_other_splits_are_not_given_as_results(split, study):
    """Where there was no test split, the metadata hold no figure, and the text says that the table
    is optimistic."""
    study["results"]["split"] = split
    card = _card(_facts(study=study))
    assert card.data.eval_results is None
    assert "optimistic" in card.text
    assert "held-out" not in card.text


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("images", [(), ("fitness.png", "path.png", "weights.png")])
@pytest.mark.parametrize(
    "study", [None, {**STUDY, "results": None}, {**STUDY, "examples": [], "splits": {}}]
)
def test_it_reads_well_with_half_of_it_missing(kind, study, images):
    """Whatever is missing is left out or said; nothing is claimed without results, and every
    picture named is there."""
    card = _card(_facts(kind, study=study, images=images, base=None))
    if study is None or study["results"] is None:
        assert "nothing is claimed about" in card.text
        assert card.data.eval_results is None
    shown = [name for name in images if study is not None or name != "fitness.png"]
    assert sorted(set(re.findall(r"\(images/(\w+\.png)", card.text))) == shown
    assert "u/base" not in card.text
    headings = re.findall(r"^## (.*)", card.text, re.MULTILINE)
    assert headings[0] == "Use it"
    assert headings[-4:] == ["Recipe", "Limits", "Licenses", "Citation"]


def test_loading_and_folding_are_explained_for_each_kind():
    """A plain merge needs no custom code; a path does, and can be folded unless a hop or a scale
    forbids it."""
    plain = _text()
    path = _text(kind="dfs")
    assert "trust_remote_code" not in plain
    assert "plain `LlamaForCausalLM`" in plain
    assert 'where = {"revision": "main", "trust_remote_code": True}' in path
    assert 'from_pretrained("u/merge", **where)' in path
    assert "hf-evomerge fold u/merge" in path
    assert "a path of 4 hops visits 3 distinct layers" in path
    assert 'tokenizer("say \\"x\\""' in path
    wide = _card(_facts("dfs", flow={"path": ["0:0", "0:1*0.5 + 1:1*0.5"]})).text
    assert "cannot be folded into a plain `LlamaForCausalLM`: a hop runs several layers" in wide
    assert "as much time and cache as a model of 3 layers" in wide
    zero = _card(_facts("dfs", flow={"path": ["0:0", "0:1"], "scales": [1, 0]})).text
    assert "a scale is zero" in zero


def test_the_recipe_is_there_and_says_whether_it_can_be_run():
    """The recipe in the card is the recipe; sources that were not published are said to be
    missing."""
    facts = _facts("hybrid")
    text = _card(facts).text
    assert Recipe.from_yaml(text.split("```yaml\n")[1].split("```")[0]) == facts.recipe
    assert "hf-evomerge reproduce u/merge" in text
    assert "The weights here are those that hf_evomerge built from this recipe" in text
    local = _card(_facts(sources=[{"model": "my-folder"}, SOURCES[1]]))
    assert "cannot be run as it stands: not published: my-folder" in local.text
    assert local.data.base_model == ["u/b", "u/base"]
    unknown = _card(_facts(built=None)).text
    assert "whether it gives these weights was not checked when they were published" in unknown
    assert "hf-evomerge reproduce" not in unknown


def test_licenses_of_all_parents_are_listed():
    """Every parent is in the table of licenses, with the address or what is known of it; notices
    are named."""
    text = _text()
    assert "| u/a | apache-2.0 |  |" in text
    assert "| u/b | mit | https://example.org/mit |" in text
    assert "notices are kept; they are in the parents' repositories: u/b: mit" in text
    other = decide_license(
        [ParentLicense("u/a", "gemma"), ParentLicense("u/b", note="its card states no license")]
    )
    card = ModelCard(render_card(_facts(), "u/merge", other))
    assert (card.data.license, card.data.license_name) == ("other", "licenses-of-the-parents")
    assert card.data.license_link == "https://huggingface.co/u/merge#licenses"
    assert "| u/b | unknown | its card states no license |" in card.text


def test_text_from_outside_stays_text(study):
    """Names, labels and notes from other people's files cannot add markup, table cells, lines or
    template code."""
    hostile = "x | y <img src=q onerror=z> [l](javascript:0)\n# big {{ 7 * 7 }} `c`"
    study["results"]["rows"][0]["model"] = hostile
    license = decide_license(
        [ParentLicense(hostile, "apache-2.0"), ParentLicense("u/b", "mit", note=hostile)]
    )
    facts = _facts(study=study, sources=[{"model": hostile}, SOURCES[1]])
    text = render_card(facts, "u/merge", license)
    body = text.split("<details><summary><code>")[0].split("---\n", 2)[2]
    body += text.rpartition("</details>")[2]
    unknown = decide_license([ParentLicense(hostile), ParentLicense("u/b", "mit")])
    assert "<img" not in body + render_card(_facts(), "u/merge", unknown)
    assert re.search(r"(?<!\\)\]\(javascript", body) is None
    assert "\n# big" not in body
    assert "49" not in body
    (row,) = [line for line in body.splitlines() if "-2.000" in line]
    assert row.replace("\\|", "").count("|") == 5


def test_a_hostile_recipe_cannot_leave_its_block():
    """A source's name that holds a code fence cannot end the block that shows the recipe."""
    hostile = "x\n```\n# out"
    text = render_card(_facts(sources=[{"model": hostile}, SOURCES[1]]), "u/merge", LICENSE)
    block = text.split("````yaml\n")[1].split("\n````\n")[0]
    assert yaml.safe_load(block)["sources"][0]["model"] == hostile


def test_only_models_of_a_recipe_have_such_a_card(tmp_path):
    """A folder with a damaged file is refused by name."""
    _facts().recipe.save(tmp_path / "recipe.yaml")
    with pytest.raises(HubError, match=r"config.json: no such file"):
        CardFacts.of_folder(tmp_path)


def test_a_search_by_gradient_is_called_one(study):
    """A card says who chose the numbers: an evolutionary search, gradient descent on so many
    examples, or a sweep."""
    assert "an evolutionary search in parameter space" in _text()
    study["stages"][0]["algorithm"] = "gradient"
    text = _text(study)
    assert "were not trained: a search by gradient descent on 5 examples in parameter" in text
    assert "evolutionary search" not in text.split("## Use it")[0]
    assert "8 trials, most of them steps along the gradient, 1 of which failed" in text
    both = (
        "A search by gradient descent on 5 examples in parameter space (PS) merged their "
        "weights; an evolutionary"
    )
    assert both in _text(study, "hybrid")
    study["stages"].append({"stage": "dfs", "algorithm": "sweep"})
    swept = "that a search that tries every candidate in turn in data flow space (DFS) found"
    assert swept in _text(study, "dfs")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, '# a prompt as the search\'s data has them\ninputs = tokenizer("Your text"'),
        ({"template": "{q}\nA:"}, 'them, of the form "{q}\\nA:"\ninputs = tokenizer("Your text"'),
        ({"chat": True}, 'template([{"role": "user", "content": "Your text"}], add_gen'),
    ],
)
def test_a_prompt_has_the_searchs_form(data, said, study):
    """Where no example is published, the code that loads the model says how prompts look, or asks
    as a chat."""
    study["examples"] = []
    study["settings"]["data"]["test"] = data
    assert said in _text(study)


def test_a_front_is_on_the_card_where_there_is_one():
    """The picture of several objectives is shown before that of fitness."""
    assert "images/front.png" not in _text()
    text = _card(_facts(images=("fitness.png", "front.png"))).text
    assert text.index("(images/front.png)") < text.index("(images/fitness.png)")


def test_what_was_compared_is_on_the_card(study):
    """The verdict stands above the table, which has the unit of fitness, retained data and the
    share of cut answers."""
    results = study["results"]
    results["verdict"] = ["Evolved PS is better than its best parent, a|b, by 0.501 of accuracy"]
    study["unit"] = "nats per answer"
    for row in results["rows"]:
        row["truncated"] = 0.25
    retained = {"accuracy": 0.125, "accuracy_se": 0.01, "truncated": 0.5}
    results["rows"][0]["retained"] = {"sums": retained}
    text = _text(study)
    assert r"- Evolved PS is better than its best parent, a\|b, by 0.501 of accuracy." in text
    assert "One nat more is 2.7 times the probability." in text
    heading, row = re.findall(r"^\| (?:\| accuracy|a \|).*", text, re.MULTILINE)[:2]
    assert heading == (
        "| | accuracy | fitness, nats per answer | evaluations | on sums | on sums, cut | answers "
        "cut |"
    )
    assert row.endswith("| 0.125 ± 0.010 | 50.0% | 25.0% |")
    assert row.count(" | ") == heading.count(" | ")


def test_parents_in_folders_of_one_name_are_told_apart(study):
    """Sources that are published under one name have, beside it, the names that the results call
    them by."""
    study["names"] = {"source:0": "m/final", "source:1": "j/final"}
    card = _card(_facts(study=study, sources=[{"model": "final"}, {"model": "final"}])).text
    assert "| 0 | final (m/final) |" in card
    assert "| 1 | final (j/final) |" in card
    assert "final (m/final) and final (j/final)" in card
