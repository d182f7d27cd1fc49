"""Searches over vision-language models: examples with pictures, candidates in memory, what is built
of the winner."""

import json

import pytest
import torch
from slowly import slow_beyond
from transformers import AutoModelForImageTextToText, AutoProcessor
from vlms import CLASSES, NEEDS, WORDS, picture, save_plain, save_vlm

from hf_evomerge.building.build import build_model
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import FlowPart, Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.run import run_search

COLORS = ("red", "blue", "green", "white")


def _save(folder, name):
    save_vlm(folder / "sight", name, 0)
    rows = {} if name == "gemma3" else {"vocab_size": len(WORDS) - 8}
    for seed, model in enumerate(("plain", "base"), start=1):
        save_plain(folder / model, name, seed, **rows)
    lines = []
    for number, color in enumerate(COLORS):
        picture(color).save(folder / f"{color}.png")
        lines.append(
            {
                "prompt": "what is it ?" + " ?" * (number % 2),
                "answer": f" w{number}",
                "picture": f"{color}.png",
            }
        )
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


def search_of(folder, fitness=None, **fields):
    """A search over the language parts, on the pictures."""
    data = {"jsonl": str(folder / "pictures.jsonl"), "image_field": "picture", "chat": True}
    given = {
        "space": "ps",
        "sources": [
            {"model": str(folder / "sight"), "component": "text"},
            {"model": str(folder / "plain")},
        ],
        "base": {"model": str(folder / "base")},
        "merge": {"method": "task_arithmetic", "groups": "model"},
        "optimize": [{"evaluations": 6}],
        "fitness": fitness or {"task": "likelihood", "batch_size": 4},
        "data": {"search": {**data, "count": 2}, "test": {**data, "start": 2}},
        **fields,
    }
    output = {"vocabulary": None if "gemma3" in folder.name else "tokenizer", "dtype": "float32"}
    given["output"] = output | fields.get("output", {})
    return validate(
        SearchConfig, {key: value for key, value in given.items() if value is not None}, SearchError
    )


def recipe_of(config, *weights):
    """The merge with these weights."""
    merge = {
        "method": "task_arithmetic",
        "sources": [0, 1],
        "parameters": [{"weight": weight} for weight in weights],
    }
    return config.recipe(
        merge=Recipe.model_validate({"sources": config.sources, "merge": merge}).merge
    )


def by_hand(folder, processor, example):
    """The log-probability of an answer after text and picture, one example alone; and three tokens
    that are written."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    message = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": example.prompt}],
    }
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    image = example.pictures[0].load()
    before = processor(text=text, images=[[image]], return_tensors="pt")
    whole = processor(text=text + example.answer, images=[[image]], return_tensors="pt")
    start = before["input_ids"].shape[1]
    with torch.inference_mode():
        logits = model(**whole).logits[0].log_softmax(-1)
        written = model.generate(**before, max_new_tokens=3, do_sample=False)[0, start:].tolist()
    targets = [*whole["input_ids"][0, start:].tolist(), processor.tokenizer.eos_token_id]
    return sum(
        float(logits[start - 1 + place, token]) for place, token in enumerate(targets)
    ), written


@pytest.mark.parametrize("name", slow_beyond(["llava"], CLASSES))
def test_a_candidate_in_memory_is_the_one_that_is_built(name, parents, tmp_path):
    """Its tensors have the bits of a build, its scores in batches are those of each example alone,
    and it writes the same."""
    folder = parents(name)
    config = search_of(folder)
    evaluator = Evaluator(config)
    recipe = recipe_of(search_of(folder), 0.4, 0.3)
    out = build_model(recipe, tmp_path / "out")
    scores = evaluator.evaluate(recipe, "search")
    assert scores.error is None, scores.error
    live = evaluator.models.model(recipe).state_dict()
    for key, tensor in AutoModelForImageTextToText.from_pretrained(out).state_dict().items():
        assert torch.equal(tensor, live[key]), key
    processor = AutoProcessor.from_pretrained(out)
    writing = {"task": "generation", "max_new_tokens": 3, "extract": "all"}
    generated = Evaluator(search_of(folder, writing)).evaluate(recipe, "search")
    assert generated.error is None, generated.error
    for example, value, output in zip(
        evaluator.tasks.examples("search"), scores.values, generated.outputs or [], strict=True
    ):
        wanted, written = by_hand(out, processor, example)
        assert value == pytest.approx(wanted, abs=1e-3)
        assert (
            output.split() == processor.tokenizer.decode(written, skip_special_tokens=True).split()
        )


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
    flow = {"path": ["0:0", "1:1*0.5 + 2:0*0.5", "2:1"], "scales": [1.0, 0.9, 1.2]}
    recipe = recipe_of(config, 0.4, 0.3)
    recipe = config.recipe(merge=recipe.merge, flow=FlowPart.model_validate(flow))
    evaluator = Evaluator(config)
    out = build_model(recipe, tmp_path / "out")
    live = evaluator.evaluate(recipe, "test")
    assert live.error is None, live.error
    built = Evaluator(config).evaluate(SourceRef(model=str(out)), "test")
    assert built.error is None, built.error
    assert built.values.tolist() == pytest.approx(live.values.tolist(), abs=1e-4)
    for key, tensor in AutoModelForImageTextToText.from_pretrained(out).state_dict().items():
        assert torch.equal(tensor, evaluator.models.model(recipe).state_dict()[key]), key
    assert evaluator.answer(recipe, evaluator.tasks.examples("test")[0], 3) is not None


def test_what_does_not_go_with_parts_is_refused(parents):
    """Parts of other sources where whole models are merged, or nothing is."""
    folder = parents("llava")
    with pytest.raises(SearchError, match="components: a merge puts other parts in place"):
        search_of(folder, space="dfs", output={"components": {"vision": 1}, "vocabulary": None})
    sources = [{"model": str(folder / name)} for name in ("sight", "plain")]
    with pytest.raises(SearchError, match=r"components.vision: no source names a component"):
        search_of(folder, sources=sources, output={"components": {"vision": 1}})


def test_an_average_that_cannot_be_made_is_left_out_and_said(parents, tmp_path, caplog):
    """A path may run through sources with other vocabularies, which have no average: that is said,
    and there is no row."""
    folder = parents("llava")
    path = {"kind": "paper", "scales": "none", "repetitions": 1}
    steps = [{"evaluations": 2, "population": 2}]
    given = {
        "path": path,
        "optimize": steps,
        "base": None,
        "merge": None,
        "output": {"vocabulary": None},
    }
    config = search_of(folder, space="dfs", **given)
    result = run_search(config, tmp_path / "search", build=False)
    assert [row.stage for row in result.rows] == ["source", "source", "dfs"]
    assert "no uniform average" in caplog.text
