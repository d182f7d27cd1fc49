"""Vocabularies that are matched by token: whose row a token gets, which tokenizer goes with it, and
what stays untouched."""

import pytest
import torch
import yaml
from classes import read_json, tensors_of
from families import tiny_config
from recipes import merge_of
from refused import refused
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from words import save_pair_tokenizer

from hf_evomerge.building.build import check_recipe
from hf_evomerge.errors import EvoMergeError, RecipeError
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import validate

COMMON = ["<unk>", *"abc", "ab"]
TOKENS = {
    "base": [*COMMON, "<x>"],
    "first": ["<unk>", *"ba", "ab", "c", "<y>", "<x>"],
    "second": [*COMMON, "<y>", "<z>", "bc"],
}


def save(folder, tokens, seed, rows=None):
    """A model with a byte-pair tokenizer of these tokens, those in angles added to it, and perhaps
    more rows than tokens."""
    torch.manual_seed(seed)
    LlamaForCausalLM(
        tiny_config(tie_word_embeddings=False, vocab_size=rows or len(tokens))
    ).save_pretrained(folder)
    save_pair_tokenizer(folder, tokens, chat_template=folder.name)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base and two sources, one of which has the common tokens in another order; each has tokens
    that others lack."""
    folder = tmp_path_factory.mktemp("family")
    for seed, (name, tokens) in enumerate(TOKENS.items()):
        save(folder / name, tokens, seed)
    return folder


def recipe_of(folder, method="linear", *, base=False, **fields):
    """A merge of both sources with weights .25 and .75."""
    of = {"method": method, "base": folder / "base" if base else None, "weights": [0.25, 0.75]}
    return merge_of(folder / "first", folder / "second", **of, **fields)


def rows_of(folder):
    """The row of each token in the embeddings."""
    tensor = tensors_of(folder)["model.embed_tokens.weight"]
    data = read_json(folder / "tokenizer.json")
    known = {number: token for token, number in data["model"]["vocab"].items()}
    known |= {item["id"]: item["content"] for item in data["added_tokens"]}
    return {known[number]: row for number, row in enumerate(tensor) if number in known}


def test_a_union_without_a_base(family, built):
    """Equal tokens are merged wherever they stand; what one source lacks is the other's row; the
    tokenizer knows all."""
    out = built(recipe_of(family, vocabulary="union"))
    rows, first, second = map(rows_of, (out, family / "first", family / "second"))
    assert list(rows) == [*TOKENS["first"], "<z>", "bc"]
    for token in rows:
        a = first.get(token, second.get(token))
        b = second.get(token, first.get(token))
        assert torch.allclose(rows[token], 0.25 * a + 0.75 * b, atol=1e-6), token
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer) == len(rows)
    assert " ".join(tokenizer.tokenize("ab<z>bc<y>")) == "ab <z> b c <y>"


def test_the_base_gives_what_a_source_lacks(family, built):
    """A token that the base has does not move where a source lacks it; one that it lacks is the
    mean of those that have it."""
    recipe = recipe_of(family, "task_arithmetic", base=True, vocabulary="union", tokenizer="base")
    rows = rows_of(built(recipe))
    base, first, second = (rows_of(family / name) for name in TOKENS)
    assert list(rows) == [*TOKENS["base"], "<y>", "<z>", "bc"]
    assert torch.allclose(rows["<x>"], base["<x>"] + 0.25 * (first["<x>"] - base["<x>"]), atol=1e-6)
    mean = (first["<y>"] + second["<y>"]) / 2
    assert torch.allclose(
        rows["<y>"], mean + 0.25 * (first["<y>"] - mean) + 0.75 * (second["<y>"] - mean), atol=1e-6
    )
    assert torch.allclose(rows["bc"], second["bc"], atol=1e-6)


def test_the_tokens_of_one_tokenizer(family, built):
    """With ``vocabulary: tokenizer`` the result has those tokens and that file, byte for byte."""
    out = built(recipe_of(family, vocabulary="tokenizer", tokenizer=1))
    assert list(rows_of(out)) == TOKENS["second"]
    assert (out / "tokenizer.json").read_bytes() == (
        family / "second" / "tokenizer.json"
    ).read_bytes()


def test_rows_may_be_chosen(family, built):
    """A token may have another's row, zeros or a row of its number, be forced on all; rows that
    fill up are the mean."""
    tokens = yaml.safe_load("""
        rows:
          <z>: {source: 1, force: true}
          bc: {source: zero, force: true}
          <x>: {source: 1, token: a}
          <y>: {source: 0, id: 2, force: true}
        multiple_of: 4
    """)
    out = built(recipe_of(family, vocabulary="union", tokens=tokens))
    rows, first, second = map(rows_of, (out, family / "first", family / "second"))
    assert torch.allclose(rows["<z>"], second["<z>"], atol=1e-6)
    assert not rows["bc"].any()
    assert torch.allclose(rows["<x>"], 0.25 * first["<x>"] + 0.75 * second["a"], atol=1e-6)
    assert torch.allclose(rows["<y>"], first["a"], atol=1e-6)
    table = tensors_of(out)["model.embed_tokens.weight"]
    assert len(table) == 12
    assert torch.allclose(table[9:], table[:9].mean(0).expand(3, -1), atol=1e-6)


def test_alike_tokenizers_change_nothing(built, tmp_path):
    """Where all have the same tokens and as many rows, rows without a token included, the result is
    that of a plain merge."""
    for seed, name in enumerate(("first", "second")):
        save(tmp_path / name, COMMON, seed, rows=8)
    plain, union = (
        tensors_of(built(recipe_of(tmp_path, vocabulary=way), str(way))) for way in (None, "union")
    )
    assert all(torch.equal(plain[name], union[name]) for name in plain)
    assert len(union["model.embed_tokens.weight"]) == 8


def test_the_most_common_template(family, built):
    """``chat_template: auto`` is the template that most sources have, and the first one's where all
    differ."""
    out = built(recipe_of(family, vocabulary="union", tokenizer=1, chat_template="auto"))
    assert (out / "chat_template.jinja").read_text() == "first"


def test_rows_that_are_no_tokens(built, tmp_path):
    """A norm as long as there are rows is no table of tokens, and rows without a token are left out
    where others lack them."""
    for seed, (name, tokens) in enumerate((("first", COMMON), ("second", [*COMMON, "<z>"]))):
        save(tmp_path / name, tokens, seed, rows=32)  # as many as the model is wide
    out = built(recipe_of(tmp_path, vocabulary="tokenizer"))
    merged = tensors_of(out)
    assert [merged[f"model.{name}.weight"].shape for name in ("norm", "embed_tokens")] == [
        (32,),
        (5, 32),
    ]


def test_slices_and_paths_have_matched_rows(family, built):
    """A stack has the embeddings of its first slice and the head of its last; a path through a
    merge has its rows."""
    stack = {"slices": [{"layers": ["0:0"]}, {"layers": ["1:1"]}], "parameters": []}
    out = built(recipe_of(family, "passthrough", vocabulary="union", merge=stack), "stack")
    first, second = (tensors_of(family / name) for name in ("first", "second"))
    merged = tensors_of(out)
    words = [*TOKENS["first"], "<z>", "bc"]
    for name, parent, tokens in (
        ("model.embed_tokens", first, TOKENS["first"]),
        ("lm_head", second, TOKENS["second"]),
    ):
        places = [words.index(token) for token in tokens]
        assert torch.equal(merged[f"{name}.weight"][places], parent[f"{name}.weight"])
    assert not merged["lm_head.weight"][
        words.index("<x>")
    ].any()  # which no source of the last slice has
    flow = {"path": ["2:0-1", "2:1"], "embedding_source": 2}
    out = built(recipe_of(family, vocabulary="union", flow=flow), "path")
    assert AutoModelForCausalLM.from_pretrained(out).config.text_config.vocab_size == len(
        AutoTokenizer.from_pretrained(out)
    )


def test_other_sizes_are_refused(family):
    """Vocabularies of two sizes are refused with both, and with what could be written; so is a
    tokenizer of another size."""
    with refused(r"vocabulary size differs: 7 in .*first, 8 in .*second.*vocabulary: union"):
        check_recipe(recipe_of(family))
    alone = {"sources": [0], "parameters": []}
    with refused(
        r"tokenizer: .*second has a vocabulary of 8, the merged model one of 7; name another"
    ):
        check_recipe(recipe_of(family, merge=alone, tokenizer=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    {
        "{merge: null, flow: {path: ['0:0']}, vocabulary: union}": "vocabulary: there is no merge",
        "tokens: {}": "tokens: matched only with vocabulary: union",
        "{vocabulary: union, tokens: {default: 2}}": (
            "tokens.default: 2 is no source that takes part"
        ),
        "{vocabulary: union, tokens: {rows: {q: {source: 0}}}}": (
            "tokens.rows: 'q' is no token of the result"
        ),
        "{vocabulary: union, tokens: {rows: {<z>: {source: 0}}}}": "tokens.rows.<z>: ",
        "{vocabulary: union, tokens: {rows: {a: {source: 0, id: 7}}}}": "tokens.rows.a.id: ",
    }.items(),
)
def test_what_cannot_be_matched_is_refused(family, fields, message):
    """A row that is not there is named before anything is built."""
    given = recipe_of(family).model_dump(mode="json", exclude_none=True)
    with pytest.raises(EvoMergeError, match=message):
        check_recipe(validate(Recipe, given | yaml.safe_load(fields), RecipeError))


def test_a_source_without_a_tokenizer_is_named(family, tmp_path):
    """Tokens cannot be matched where nothing says which they are."""
    save(tmp_path / "first", COMMON, 0)
    save(tmp_path / "second", COMMON, 1)
    for file in (tmp_path / "second").glob("tokenizer*"):
        file.unlink()
    with refused("second", EvoMergeError):
        check_recipe(recipe_of(tmp_path, vocabulary="union"))
