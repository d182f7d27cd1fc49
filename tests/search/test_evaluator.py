"""The evaluator: a live candidate scores what the built model scores, whatever was scored before
it."""

import gc
import json
import re
import shutil
import weakref

import numpy as np
import pytest
import torch
import yaml
from classes import edit_json
from quantized import to_fp8
from recipes import refs_in
from refusals import refused
from safetensors.torch import load_file, save_file
from searches import GRADIENT, write_lines
from slowly import slow_beyond
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge import FunctionTask, Recipe, build_model
from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.fitness import make_task
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.memory import PROCESS, worker_memory
from hf_evomerge.search.spaces.space import make_space, uniform_average

PARTS = yaml.safe_load("""
ps:
  merge: &merge
    method: dare_ties
    parameters: [{weight: 0.9, density: 0.6}, {weight: {default: 0.4, head: 1.2}}]
other weights:
  merge: {method: dare_ties, parameters: [{weight: 0.3, density: 0.9}, {}]}
another method:
  merge: {method: slerp, options: {t: {default: 0.3, embed: 0.8}}}
other sources:
  merge: {method: ties, sources: [1, 0], parameters: [{weight: 1.5}, {weight: 0.2}]}
dfs:
  flow: {path: ["0:0", "1:0", "1:1*0.5 + 0:1*0.7", "0:1"], scales: [1, 0.7, 1.2, 0.9]}
mlp_delta:
  flow: {path: ["1:0-1 x2"], scales: [1.1, 0.7, 1.2, 0.9], scale_target: mlp_delta}
other embeddings:
  flow: {path: ["1:0", "0:1"], embedding_source: 1}
hybrid:
  merge: *merge
  flow: {path: ["2:0", "0:0-1", "2:1"], scales: [1, 0.8, 1, 1.1], embedding_source: 2}
""")


def _recipe(config, part):
    recipe = config.recipe(merge=config.merge.part())
    fields = PARTS[part] if isinstance(part, str) else part
    return Recipe.model_validate({**recipe.model_dump(exclude={"merge"}), **fields})


def _is_as_built(evaluator, recipe, folder, target=None):
    """Build the model, load it as a stranger does, and compare its scores by the plain task with
    the evaluator's."""
    build_model(recipe, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    task = make_task(evaluator.config.fitness)
    task.prepare(evaluator.tasks.examples("search"), AutoTokenizer.from_pretrained(folder))
    scores = evaluator.evaluate(target or recipe)
    assert scores.error is None
    assert scores.values.tolist() == task.evaluate(model.eval()).values.tolist()
    return scores


@pytest.mark.parametrize("space", ["ps", "dfs"])
def test_models_that_are_not_needed_are_let_go(space, search_config):
    """One whole model is in memory at a time in a search of weights; one of paths keeps the
    sources, and no other parent."""
    evaluator = Evaluator(search_config(space))
    order = [*evaluator.config.sources, evaluator.config.base]
    references = [weakref.ref(evaluator.models.model(ref)) for ref in order]
    gc.collect()
    assert [reference() is not None for reference in references] == [False, False, True]
    recipe = _recipe(evaluator.config, space)
    before = evaluator.evaluate(recipe)
    gc.collect()
    assert not any(reference() for reference in references)
    live = weakref.ref(evaluator.models.model(recipe if space == "ps" else order[0]))
    assert evaluator.evaluate(evaluator.config.base).error is None
    gc.collect()
    assert (live() is None) == (space == "ps")
    assert evaluator.evaluate(recipe) == before


def test_the_memory_of_a_worker_is_estimated(tiny_half, search_config):
    """Weights are one model and float32 task vectors, twice with gradients; paths are all sources,
    and the merge."""
    size = (tiny_half / "a" / "model.safetensors").stat().st_size  # bfloat16, and a header

    def models(space, **changes):
        config = search_config(space, tiny_half, output="{dtype: bfloat16}", **changes)
        return worker_memory(config, Evaluator(config)) - PROCESS

    one = models("dfs") / 2
    assert 0.6 * size < one < size
    vectors = 2 * 3 * one  # two sources and the base, at twice the width
    assert models("ps") == one + vectors
    assert models("ps", optimize=[GRADIENT]) == one + vectors + one
    assert models("hybrid") == one + vectors + 2 * one


@pytest.mark.parametrize("dtype", slow_beyond([None], ["float32", "bfloat16", None]))
def test_a_live_model_scores_what_the_built_model_scores(dtype, tiny_half, search_config, tmp_path):
    """One evaluator gives every kind of recipe, one after the other, the scores of the built and
    loaded model, bit for bit; and again in another order, and after one that failed."""
    config = search_config("hybrid", folder=tiny_half, output={"dtype": dtype})
    evaluator = Evaluator(config)
    seen = {}
    for part in PARTS:
        seen[part] = _is_as_built(evaluator, _recipe(config, part), tmp_path / part)
    assert len({scores.mean for scores in seen.values()}) == len(PARTS)
    merge = {"method": "linear", "parameters": [{"wait": 1}, {}]}
    assert evaluator.evaluate(_recipe(config, {"merge": merge})).error is not None
    for part in [*reversed(PARTS), "hybrid", "ps", "hybrid"]:
        assert evaluator.evaluate(_recipe(config, part)) == seen[part], part


def test_sources_that_differ_in_dtype_or_settings(tiny, tiny_half, search_config, tmp_path):
    """Where sources differ in dtype or rope base, the live merge is still that of its own first
    source, as the built one."""
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_half / "b")
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 50.0}
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_half / "b").save_pretrained(other)
    config = search_config(sources=[*refs_in(tiny, "a"), *refs_in(tmp_path, "other")])
    evaluator = Evaluator(config)
    average = uniform_average(config)
    for number, recipe in enumerate([average, _recipe(config, "other sources"), average]):
        _is_as_built(evaluator, recipe, tmp_path / str(number))


def test_sources_of_different_depth_share_a_path(tiny, search_config, tmp_path):
    """A path may run through sources of different depth, and scores what the built model scores."""
    config = search_config("dfs", sources=refs_in(tiny, "a", "deep"), base=None)
    evaluator = Evaluator(config)
    assert evaluator.sources.layers == [2, 3]
    path = {"path": ["0:0", "1:2", "1:0", "0:1"]}
    _is_as_built(evaluator, _recipe(config, {"flow": path}), tmp_path / "built")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flow": {"path": ["0:0"] * 9, "scales": [1e6] * 9}}, "not finite"),
        ({"flow": {"path": ["0:0", "1:7"]}}, "layer 7 of source 1"),
        (
            {"flow": {"path": ["0:0", "0:1"]}, "sources": [{"model": "other/model"}]},
            "the recipe is of other sources than the",
        ),
        (
            {"flow": {"path": ["0:0", "0:1"]}, "base": {"model": "other/base"}},
            "the recipe is of other sources than the search",
        ),
        ({"merge": {"method": "task_arithmetic", "parameters": [{"wieght": 1.0}, {}]}}, "wieght"),
    ],
)
def test_a_broken_candidate_has_an_error(fields, message, search_config):
    """A candidate that cannot be scored has scores that failed, with one line that says why, not an
    exception."""
    config = search_config()
    scores = Evaluator(config).evaluate(_recipe(config, fields))
    assert (scores.mean, scores.values.size) == (None, 0)
    assert message in str(scores.error)
    assert "\n" not in str(scores.error)


def test_an_exception_of_the_task_has_an_error(search_config):
    """Whatever a user's own function raises becomes the candidate's error, on one line with the
    exception's name."""

    def fails(model, tokenizer, examples):
        raise RuntimeError("two\n  lines")

    config = search_config()
    scores = Evaluator(config, task_factory=lambda: FunctionTask(fails)).evaluate(config.sources[0])
    assert scores.error == "RuntimeError: two lines"


def test_a_batch_is_part_of_the_split(search_config):
    """A batch of examples gets their scores of the whole split, in the batch's order, and another
    batch its own."""
    evaluator = Evaluator(search_config())
    recipe = _recipe(evaluator.config, "ps")
    whole = evaluator.evaluate(recipe)
    for batch in ((1, 3), (0, 4), (4, 0)):
        part = evaluator.evaluate(recipe, "search", batch).values
        assert part.tolist() == pytest.approx([whole.values[at] for at in batch], abs=1e-5)
    assert evaluator.evaluate(recipe) == whole


def test_splits_have_their_own_scores(search_config):
    """Each split is scored on its own examples, and a split that is not given is refused."""
    evaluator = Evaluator(search_config())
    parent = evaluator.config.sources[0]
    splits = evaluator.tasks.splits
    assert splits == ["search", "validation", "test"]
    assert [evaluator.evaluate(parent, split).values.size for split in splits] == [5, 4, 6]
    data = {"search": evaluator.config.data["search"]}
    lonely = Evaluator(evaluator.config.model_copy(update={"data": data}))
    assert lonely.tasks.splits == ["search"]
    with refused(FitnessError, r"data\.validation: not given"):
        lonely.tasks.examples("validation")


def test_a_parent_is_scored_as_it_is(tiny, search_config):
    """A parent scores what the model in its folder scores, before and after candidates that share
    its layers."""
    config = search_config()
    evaluator = Evaluator(config)
    task = make_task(config.fitness)
    task.prepare(evaluator.tasks.examples("search"), AutoTokenizer.from_pretrained(tiny / "b"))
    expected = task.evaluate(AutoModelForCausalLM.from_pretrained(tiny / "b")).values.tolist()
    for part in (None, "dfs", "hybrid", "ps"):
        if part is not None:
            evaluator.evaluate(_recipe(config, part))
        assert evaluator.evaluate(config.sources[1]).values.tolist() == expected
        assert evaluator.evaluate(config.base).values.tolist() != expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wish",
    [{"num_return_sequences": 2}, {"compile_config": {"fullgraph": True}}, {"max_new_tokens": -1}],
)
def test_generation_settings_end_no_search(wish, tiny, search_config, tmp_path):
    """Settings for which transformers refuses a generation config do not count; special tokens
    do."""
    shutil.copytree(tiny / "b", tmp_path / "b")
    settings = json.dumps({**wish, "eos_token_id": [5, 7]})
    (tmp_path / "b" / "generation_config.json").write_text(settings)
    config = search_config(sources=[*refs_in(tiny, "b"), *refs_in(tmp_path, "b")])
    evaluator = Evaluator(config)
    plain, wishing = (evaluator.evaluate(ref) for ref in config.sources)
    assert (wishing.error, wishing.values.tolist()) == (None, plain.values.tolist())
    loaded = evaluator.models.load(evaluator.sources[1]).generation_config
    assert loaded.eos_token_id == [5, 7]


@pytest.mark.parametrize("part", ["ps", "dfs"])
def test_answer_is_what_the_model_writes(part, search_config, tmp_path):
    """The answer that is shown is the built model's own greedy continuation of the prompt."""
    config = search_config()
    evaluator = Evaluator(config)
    recipe = _recipe(config, part)
    example = evaluator.tasks.examples("test")[0]
    folder = build_model(recipe, tmp_path / "built")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(example.prompt)["input_ids"]])
    output = AutoModelForCausalLM.from_pretrained(folder).generate(
        ids, max_new_tokens=5, do_sample=False
    )
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert evaluator.answer(recipe, example, 5) == expected
    assert expected


def test_a_source_with_missing_weights_is_refused(tiny, search_config, tmp_path):
    """A source that lacks weights is an error that names one, not a score of weights that were made
    up at random."""
    broken = shutil.copytree(tiny / "a", tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    config = search_config("dfs", sources=[*refs_in(tmp_path, "broken"), *refs_in(tiny, "b")])
    scores = Evaluator(config).evaluate(config.sources[0])
    assert "model.layers.1.mlp.up_proj.weight" in str(scores.error)


def test_one_tokenisation_for_all_candidates(search_config):
    """Candidates of one kind share one prepared task; none is prepared twice for the same
    examples."""
    config = search_config()
    prepared = []

    class Counting(FunctionTask):
        def prepare(self, examples, tokenizer):
            prepared.append(len(examples))
            super().prepare(examples, tokenizer)

    def ones(model, tokenizer, examples):
        return [1.0] * len(examples)

    evaluator = Evaluator(config, task_factory=lambda: Counting(ones))
    for part in ("ps", "other weights", "another method"):
        assert evaluator.evaluate(_recipe(config, part)).mean == 1.0
    assert prepared == [5]


@pytest.mark.parametrize("terms", [1, "all"])
def test_a_gradient_of_gates_is_that_of_the_score(terms, search_config):
    """The slopes of gates at a point are those of the score of its recipe, of a slot that is off
    too; others are not asked."""
    path = {"kind": "gates", "terms": terms, "repetitions": 2}
    config = search_config("dfs", path=path, optimize="[{by: gradient}]")
    evaluator = Evaluator(config)
    space = make_space(config, config.stages[0], evaluator.sources.summary)
    genome = np.random.default_rng(0).uniform(0.3, 1.0, space.start().mean.size)
    off = 3
    genome[off] = 0.0
    everywhere = np.ones(genome.size, dtype=np.bool_)

    def score(point, slopes=None):
        scores = evaluator.evaluate(space.decode(point), slopes=slopes)
        assert scores.error is None
        return scores

    found = score(genome, space.slopes(genome, everywhere))
    assert found.mean == pytest.approx(score(genome).mean, rel=1e-4)
    for place in set(range(genome.size)) - {off}:
        step = 0.001 * (np.arange(genome.size) == place)
        slope = (score(genome + step).mean - score(genome - step).mean) / 0.002
        assert found.gradient[place] == pytest.approx(slope, rel=0.03, abs=0.02), place
    active = np.arange(genome.size) != 6
    fewer = score(genome * active, space.slopes(genome * active, active))
    assert (fewer.gradient == 0).tolist() == (~active).tolist()


@pytest.mark.parametrize("space", ["ps", "dfs"])
def test_recomputed_gradients_are_the_same(space, search_config):
    """With gradient checkpointing a gradient has the same bits, and the layers are left as they
    were."""
    found = []
    for checkpointing in (False, True):
        config = search_config(
            space,
            path="{kind: gates, repetitions: 1}",
            optimize="[{by: gradient}]",
            compute={"gradient_checkpointing": checkpointing},
        )
        evaluator = Evaluator(config)
        here = make_space(config, config.stages[0], evaluator.sources.summary)
        genome = here.start().mean
        slopes = here.slopes(genome, np.ones(genome.size, dtype=np.bool_))
        found.append(evaluator.evaluate(here.decode(genome), slopes=slopes))
        layers = evaluator.models.model(config.sources[0]).modules()
        assert not any("forward" in vars(module) for module in layers)
    assert found[0].error is None
    assert found[0] == found[1]
    assert found[0].gradient.any()


@pytest.fixture(scope="module")
def other_words(tiny, tmp_path_factory):
    """The tiny family, in which ``c`` has three words more, all of them in another order."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("words") / "family")
    model = AutoModelForCausalLM.from_pretrained(folder / "b")
    torch.manual_seed(3)
    model.resize_token_embeddings(29, mean_resizing=False)
    torch.nn.init.normal_(model.get_input_embeddings().weight.data[26:], std=0.4)
    model.save_pretrained(shutil.copytree(tiny / "b", folder / "c", dirs_exist_ok=True))
    data = json.loads((folder / "c" / "tokenizer.json").read_text())
    words = [*data["model"]["vocab"], "more1", "more2", "more3"]
    order = [*range(4), *reversed(range(4, 29))]
    vocabulary = {words[place]: number for number, place in enumerate(order)}
    edit_json(folder / "c" / "tokenizer.json", model={**data["model"], "vocab": vocabulary})
    return folder


VOCABULARIES = [("ps", "tokenizer"), ("hybrid", "union"), ("ps", "union"), ("hybrid", "tokenizer")]


@pytest.mark.parametrize(("space", "vocabulary"), slow_beyond(VOCABULARIES[:2], VOCABULARIES))
def test_vocabularies_that_differ(space, vocabulary, other_words, search_config, tmp_path):
    """A live merge of vocabularies that differ has the built model's tensors, bit for bit, and its
    tokenizer and scores."""
    records = [{"prompt": f"w{n} more{n} 3", "answer": f"more{n}"} for n in (1, 2, 3)]
    data = write_lines(tmp_path / "more.jsonl", *records)
    config = search_config(
        space,
        folder=other_words,
        sources=refs_in(other_words, "a", "c"),
        data={"search": {"jsonl": str(data)}},
        output={"vocabulary": vocabulary, "chat_template": "{{ messages }}"},
    )
    evaluator = Evaluator(config)
    recipes = [_recipe(config, "ps"), uniform_average(config)]
    if space == "hybrid":
        recipes.append(_recipe(config, "hybrid"))
    rows = 26 if vocabulary == "tokenizer" else 29
    for number, recipe in enumerate(recipes):
        folder = tmp_path / str(number)
        _is_as_built(evaluator, recipe, folder)
        live = evaluator.models.model(recipe).state_dict()
        state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert live.keys() == state.keys()
        for key, tensor in state.items():
            assert torch.equal(live[key], tensor), key
            assert len(tensor) == rows or not re.search("embed_tokens|lm_head", key)
        tokenizer = evaluator.tasks.tokenizer(recipe)
        assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
        assert tokenizer.chat_template == "{{ messages }}"


def test_attention_is_computed_as_the_file_says(search_config):
    """The models of candidates and of parents have the search's implementation of attention; code
    of the Hub is refused."""
    for more, used in ({"attn_implementation": "eager"}, "eager"), ({}, "sdpa"):
        config = search_config(compute=more)
        models = Evaluator(config).models
        for target in (config.sources[0], config.recipe(merge=config.merge.part())):
            assert models.model(target).config._attn_implementation == used
            assert not models.model(
                target
            ).use_kernels  # which transformers would fetch from the Hub
    with refused(SearchError, "attn_implementation"):
        search_config(compute="{attn_implementation: kernels-community/flash-attn}")


def test_quantised_sources_score_what_is_built(tiny_half, search_config, tmp_path):
    """Sources in FP8 are evaluated as they are merged, dequantised: alone, in a merge and on a path
    they score what the built model does, to the bit."""
    family = shutil.copytree(tiny_half, tmp_path / "family")
    for name in ("base", "a", "b"):
        to_fp8(family / name)
    config = search_config("hybrid", folder=family, output="{dtype: bfloat16}")
    evaluator = Evaluator(config)
    alone = {"merge": {"method": "linear", "sources": [0], "parameters": [{"weight": 1.0}]}}
    for part in ("ps", "dfs", "hybrid"):
        _is_as_built(evaluator, _recipe(config, part), tmp_path / part)
    _is_as_built(evaluator, _recipe(config, alone), tmp_path / "alone", config.sources[0])
