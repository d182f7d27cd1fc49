"""Searches over vision-language models: examples with pictures, candidates in memory, what is built
of the winner."""

import json

import pytest
import torch
from recipes import refs_in
from refusals import refused
from slowly import slow_beyond
from transformers import AutoModelForImageTextToText, AutoProcessor
from vlms import CLASSES, NEEDS, WORDS, picture, save_plain, save_vlm

from hf_evomerge import (
    FlowPart,
    MergePart,
    SearchConfig,
    SourceRef,
    build_model,
    plan_search,
    run_search,
)
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator


def _save(folder, name):
    save_vlm(folder / "sight", name, 0)
    rows = {} if name == "gemma3" else {"vocab_size": len(WORDS) - 8}
    for seed, model in enumerate(("plain", "base"), start=1):
        save_plain(folder / model, name, seed, **rows)
    lines = []
    for number, color in enumerate(("red", "blue", "green", "white")):
        picture(color).save(folder / f"{color}.png")
        asked = "what is it ?" + " ?" * (number % 2)
        lines.append({"prompt": asked, "answer": f" w{number}", "picture": f"{color}.png"})
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def parents(made_once):
    """Makes, once for each, a model of sight, a plain one and a base that lack its last words, and
    pictures to ask about."""

    def of(name):
        for library in NEEDS.get(name, []):
            pytest.importorskip(library)
        return made_once(f"sight-{name}", lambda folder: _save(folder, name))

    return of


def search_of(folder, output=None, **fields):
    """A search over the language parts, on the pictures."""
    data = {"jsonl": str(folder / "pictures.jsonl"), "image_field": "picture", "chat": True}
    sight, plain, base = refs_in(folder, "sight", "plain", "base")
    vocabulary = {} if "gemma3" in folder.name else {"vocabulary": "tokenizer"}
    given = {
        "space": "ps",
        "sources": [{**sight, "component": "text"}, plain],
        "base": base,
        "merge": {"method": "task_arithmetic", "groups": "model"},
        "optimize": [{"evaluations": 6}],
        "fitness": {"task": "likelihood", "batch_size": 4},
        "data": {"search": {**data, "count": 2}, "test": {**data, "start": 2}},
        "output": {**vocabulary, "dtype": "float32", **(output or {})},
        **fields,
    }
    return validate(
        SearchConfig, {key: value for key, value in given.items() if value is not None}, SearchError
    )


def recipe_of(config, **more):
    """A merge of the parts."""
    parameters = [{"weight": 0.4}, {"weight": 0.3}]
    merge = MergePart(method="task_arithmetic", sources=[0, 1], parameters=parameters)
    return config.recipe(merge=merge, **more)


def scored(evaluator, target, split):
    """Scores of a model that must not fail."""
    scores = evaluator.evaluate(target, split)
    assert scores.error is None, scores.error
    return scores


def assert_same_bits(folder, live):
    """The tensors of a build are those of the candidate in memory."""
    built = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    for key, tensor in built.items():
        assert torch.equal(tensor, live.state_dict()[key]), key


def by_hand(folder, processor, example):
    """The log-probability of an answer after text and picture, one example alone; and three tokens
    that are written."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
    message = {"role": "user", "content": content}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    image = example.pictures[0].load()
    before, whole = (
        processor(text=each, images=[[image]], return_tensors="pt")
        for each in (text, text + example.answer)
    )
    start = before["input_ids"].shape[1]
    with torch.inference_mode():
        logits = model(**whole).logits[0, start - 1 :].log_softmax(-1)
        written = model.generate(**before, max_new_tokens=3, do_sample=False)[0, start:]
    targets = [*whole["input_ids"][0, start:].tolist(), processor.tokenizer.eos_token_id]
    right = logits[range(len(targets)), targets].sum()
    return float(right), processor.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("name", slow_beyond(["llava"], CLASSES))
def test_a_candidate_in_memory_is_the_one_that_is_built(name, parents, tmp_path):
    """Its tensors have the bits of a build, its scores in batches are those of each example alone,
    and it writes the same."""
    folder = parents(name)
    config = search_of(folder)
    evaluator = Evaluator(config)
    recipe = recipe_of(config)
    out = build_model(recipe, tmp_path / "out")
    scores = scored(evaluator, recipe, "search")
    assert_same_bits(out, evaluator.models.model(recipe))
    processor = AutoProcessor.from_pretrained(out)
    writing = {"task": "generation", "max_new_tokens": 3, "extract": "all"}
    outputs = scored(Evaluator(search_of(folder, fitness=writing)), recipe, "search").outputs
    examples = evaluator.tasks.examples("search")
    for example, value, output in zip(examples, scores.values, outputs, strict=True):
        wanted, written = by_hand(out, processor, example)
        assert value == pytest.approx(wanted, abs=1e-3)
        assert output.split() == written.split()


def test_a_search_for_a_path_ends_with_a_model_that_sees(parents, tmp_path):
    """Weights first, then gates, by gradient; candidates in memory have the bits and the scores of
    what is built."""
    folder = parents("llava")
    path = {"kind": "gates", "max_hops": 5}
    steps = [{"by": "gradient", "evaluations": 5}]
    config = search_of(folder, space="hybrid", path=path, optimize=steps, compare={"baselines": []})
    assert "numbers to evolve" in plan_search(config).to_text().partition("\ndfs: ")[2]
    result = run_search(config, tmp_path / "search")
    assert [row.stage for row in result.rows] == ["base", "source", "source", "ps", "dfs"]
    hops = ["0:0", "1:1*0.5 + 2:0*0.5", "2:1"]
    recipe = recipe_of(config, flow=FlowPart(path=hops, scales=[1.0, 0.9, 1.2]))
    evaluator = Evaluator(config)
    out = build_model(recipe, tmp_path / "out")
    live = scored(evaluator, recipe, "test")
    built = scored(Evaluator(config), SourceRef(model=str(out)), "test")
    assert built.values == pytest.approx(live.values, abs=1e-4)
    assert_same_bits(out, evaluator.models.model(recipe))
    assert evaluator.answer(recipe, evaluator.tasks.examples("test")[0], 3) is not None


def test_what_does_not_go_with_parts_is_refused(parents):
    """Parts of other sources where whole models are merged, or nothing is."""
    folder = parents("llava")
    vision = {"components": {"vision": 1}}
    with refused(SearchError, "components: a merge puts other parts in place"):
        search_of(folder, {**vision, "vocabulary": None}, space="dfs")
    sources = refs_in(folder, "sight", "plain")
    with refused(SearchError, r"components.vision: no source names a component"):
        search_of(folder, vision, sources=sources)


def test_an_average_that_cannot_be_made_is_left_out_and_said(parents, tmp_path, caplog):
    """A path may run through sources with other vocabularies, which have no average: that is said,
    and there is no row."""
    config = search_of(
        parents("llava"),
        {"vocabulary": None},
        space="dfs",
        path={"kind": "paper", "scales": "none", "repetitions": 1},
        optimize=[{"evaluations": 2, "population": 2}],
        base=None,
        merge=None,
    )
    result = run_search(config, tmp_path / "search", build=False)
    assert [row.stage for row in result.rows] == ["source", "source", "dfs"]
    assert "no uniform average" in caplog.text
