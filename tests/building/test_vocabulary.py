"""Vocabularies that differ by rows at their end: refused, cut to what is shared, or completed from one source."""

import json
import shutil

import pytest
import torch
from families import save_family, tiny_config
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaForCausalLM

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.errors import RecipeError, SourceError
from hf_evomerge.recipes.recipe import Recipe

ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def tokenizer(folder, size, change=None):
    """Write a tokenizer of so many tokens; `change` is the id of one that is called otherwise."""
    vocabulary = {f"w{number}" if number != change else "other": number for number in range(size)}
    Tokenizer(WordLevel(vocabulary, "w0")).save(str(folder / "tokenizer.json"))


def grow(folder, rows):
    """Give a saved model more rows at the end."""
    model = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(rows)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A base and source0 of 64 tokens; source1 has 3 more, source2 has 5 more; each with a tokenizer."""
    folder = save_family(tmp_path_factory.mktemp("grown"), tiny_config(tie_word_embeddings=False), torch.float32)
    for name, size in (("source1", 67), ("source2", 69)):
        grow(folder / name, size)
    for name, size in (("base", 64), ("source0", 64), ("source1", 67), ("source2", 69)):
        tokenizer(folder / name, size)
    return folder


def recipe_of(folder, vocabulary=None, method="linear", sources=("source0", "source1", "source2"), **fields):
    """A merge of the family with weights 1, 2 and 3."""
    data = {
        "sources": [{"model": str(folder / name)} for name in sources],
        "merge": {"method": method, "parameters": [{"weight": float(n + 1)} for n in range(len(sources))]},
        "vocabulary": vocabulary,
        **fields,
    }
    return Recipe.model_validate({key: value for key, value in data.items() if value is not None})


def parents(folder):
    """The tensors of each source."""
    return [load_file(folder / f"source{number}" / "model.safetensors") for number in range(3)]


def test_truncation_keeps_what_all_have(grown, load, tmp_path):
    """The result has the rows of the smallest vocabulary, each the merge of the sources' rows, and its tokenizer."""
    out = build_model(recipe_of(grown, "truncate"), tmp_path / "out", progress=False)
    merged = load_file(out / "model.safetensors")
    for name, tensor in merged.items():
        expected = sum((n + 1) * parent[name][: len(tensor)] for n, parent in enumerate(parents(grown))) / 6
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert [merged[name].shape[0] for name in ROWS] == [64, 64]
    assert load(out).config.vocab_size == 64
    assert (out / "tokenizer.json").read_bytes() == (grown / "source0" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("donor", "size"), [(0, 64), (1, 67), (2, 69)])
def test_the_rest_comes_from_one_source(grown, load, tmp_path, donor, size):
    """Rows that all have are merged; those that follow are the donor's, bit for bit; the tokenizer is the donor's."""
    out = build_model(recipe_of(grown, {"from": donor}), tmp_path / "out", progress=False)
    merged, sources = load_file(out / "model.safetensors"), parents(grown)
    for name in ROWS:
        assert merged[name].shape[0] == size
        shared = sum((n + 1) * parent[name][:64] for n, parent in enumerate(sources)) / 6
        assert torch.allclose(merged[name][:64], shared, atol=1e-6)
        assert torch.equal(merged[name][64:], sources[donor][name][64:])
    model = load(out)
    assert model.config.vocab_size == size
    assert model(torch.tensor([[0, size - 1]])).logits.shape[-1] == size
    assert (out / "tokenizer.json").read_bytes() == (grown / f"source{donor}" / "tokenizer.json").read_bytes()


def test_a_vocabulary_as_large_as_the_model_is_wide(load, tmp_path):
    """A norm that happens to have as many elements as there are tokens is no table of tokens."""
    folder = save_family(tmp_path, tiny_config(tie_word_embeddings=False, vocab_size=32), torch.float32, 2)
    grow(folder / "source1", 35)
    recipe = recipe_of(folder, {"from": 1}, sources=("source0", "source1"))
    merged = load_file(build_model(recipe, tmp_path / "out", progress=False) / "model.safetensors")
    assert merged["model.norm.weight"].shape == (32,)
    assert merged["model.embed_tokens.weight"].shape == (35, 32)
    load(tmp_path / "out")


def test_a_base_of_fewer_tokens(grown, tmp_path):
    """Task vectors are made of the rows that the base has, and a base may give the vocabulary."""
    for vocabulary, size in (({"from": 1}, 69), ({"from": "base"}, 64)):
        recipe = recipe_of(
            grown, vocabulary, "task_arithmetic", ("source1", "source2"), base={"model": str(grown / "base")}, dtype="bfloat16"
        )
        out = build_model(recipe, tmp_path / str(size), progress=False)
        merged, base = load_file(out / "model.safetensors"), load_file(grown / "base" / "model.safetensors")
        for name in ROWS:
            first, second = (parent[name][:64] for parent in parents(grown)[1:])
            shared = base[name] + (first - base[name]) + 2 * (second - base[name])
            assert torch.equal(merged[name][:64], shared.bfloat16())
            assert torch.equal(merged[name][64:], parents(grown)[2][name][64:size].bfloat16())


def test_slices_and_vocabularies(grown, tmp_path):
    """A stack of slices may complete its vocabulary too: embeddings from the first slice's source, the rest from the donor."""
    slices = [{"layers": ["0:0"]}, {"layers": ["1:1"]}]
    recipe = recipe_of(grown, {"from": 1}, merge={"method": "passthrough", "slices": slices})
    merged = load_file(build_model(recipe, tmp_path / "out", progress=False) / "model.safetensors")
    first, second, _ = parents(grown)
    assert torch.equal(merged[ROWS[0]], torch.cat([first[ROWS[0]], second[ROWS[0]][64:]]))
    assert torch.equal(merged[ROWS[1]], second[ROWS[1]])


def test_other_sizes_are_refused_with_the_ways_out(grown, tmp_path):
    """Without a word about it, vocabularies of two sizes are refused, with both sizes and what could be written."""
    for vocabulary in (None, "refuse"):
        with pytest.raises(
            SourceError, match=r"vocabulary size differs: 64 in .*source0, 67 in .*source1.*vocabulary: truncate"
        ):
            build_model(recipe_of(grown, vocabulary), tmp_path / "out", progress=False)


def test_equal_vocabularies_need_nothing(grown, tmp_path):
    """Where all have one size the key changes nothing."""
    recipes = [recipe_of(grown, vocabulary, sources=("source0", "base")) for vocabulary in (None, "truncate", {"from": 1})]
    outs = [build_model(recipe, tmp_path / str(n), progress=False) for n, recipe in enumerate(recipes)]
    assert len({(out / "model.safetensors").read_bytes() for out in outs}) == 1


def test_tokens_that_differ_are_refused(grown, tmp_path):
    """Where a shared row stands for two different tokens, the vocabularies do not differ by rows at the end alone."""
    folder = shutil.copytree(grown, tmp_path / "family")
    tokenizer(folder / "source1", 67, change=5)
    with pytest.raises(SourceError, match=r"token 5 is 'w5' in .*source0, 'other' in .*source1, so their rows do not match"):
        build_model(recipe_of(folder, "truncate"), tmp_path / "out", progress=False)
    tokenizer(folder / "source1", 67, change=65)
    build_model(recipe_of(folder, "truncate"), tmp_path / "out", progress=False)


def test_other_shapes_are_refused_all_the_same(grown, tmp_path):
    """Only rows may differ: another width is refused whatever the vocabulary."""
    wide = save_family(tmp_path / "wide", tiny_config(tie_word_embeddings=False, hidden_size=64), torch.float32, 1)
    grow(wide / "source0", 70)
    data = recipe_of(grown, "truncate").model_dump()
    data["sources"][1]["model"] = str(wide / "source0")
    with pytest.raises(SourceError, match=r"embed_tokens.weight: shape \[64, 32\] in .*, \[70, 64\] in "):
        build_model(Recipe.model_validate(data), tmp_path / "out", progress=False)


def test_a_tokenizer_of_another_size_is_refused(grown, tmp_path):
    """A tokenizer that is named must have as many tokens as the result has rows."""
    with pytest.raises(
        SourceError, match=r"tokenizer: .*source2 has a vocabulary of 69, the merged model one of 67; name another"
    ):
        check_recipe(recipe_of(grown, {"from": 1}, tokenizer=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"merge": {"method": "linear", "sources": [0]}, "vocabulary": {"from": 1}},
            "vocabulary.from: 1 is no source that takes",
        ),
        ({"vocabulary": {"from": "base"}}, "vocabulary.from: there is no base"),
        ({"merge": None, "flow": {"path": ["0:0"]}, "vocabulary": "truncate"}, "vocabulary: there is no merge"),
    ],
)
def test_a_donor_takes_part(grown, fields, message):
    """The source of the vocabulary is one that is merged, or the base, and there is a merge."""
    data = {**recipe_of(grown).model_dump(exclude_none=True), **fields}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(json.dumps({key: value for key, value in data.items() if value is not None}))
    assert str(caught.value).startswith(message)


def test_the_merged_vocabulary_in_a_path(grown, load, tmp_path):
    """A path through the merged model has its rows and its tokenizer."""
    recipe = recipe_of(grown, {"from": 2}, flow={"path": ["3:0-1", "3:1"], "embedding_source": 3})
    model = load(build_model(recipe, tmp_path / "out", progress=False))
    assert model.config.text_config.vocab_size == 69
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (grown / "source2" / "tokenizer.json").read_bytes()
