"""A search over diffusion pipelines: scored by a Python function of what they draw, or by a person
who chooses."""

import json
import os
import re

import numpy as np
import pytest
from classes import CLASSES, random_class
from pipelines import save_dit, tokenizer
from refusals import refused
from searches import minimal, write_lines

from hf_evomerge import EvoMergeError, Example, FunctionTask, plan_search, run_search
from hf_evomerge.fitness import draw
from hf_evomerge.search.ask_tell.choice_page import choice_page
from hf_evomerge.search.ask_tell.choosing import Chooser
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.study.paths import settings_in
from hf_evomerge.search.study.study import Study

DIGITS = [
    Example(str(n), "", content=f"{n}, picture {seed}") for n in range(2) for seed in range(2)
]
SETTINGS = {"num_inference_steps": 2, "output_type": "np"}


def brightness(pipeline, tokenizer, examples):
    """More light is better."""
    assert tokenizer is None
    return [float(picture.mean()) for picture in draw(pipeline, examples, batch_size=3, **SETTINGS)]


def task():
    """What a worker imports."""
    return FunctionTask(brightness)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Two pipelines that draw classes."""
    folder = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate(("a", "b")):
        save_dit(folder / name, 10 * seed)
    return folder


def config_of(parents, **fields):
    """Two weights, two generations of four."""
    sources = [{"model": str(parents / name), "component": "transformer"} for name in ("a", "b")]
    return minimal(
        **{
            "sources": sources,
            "merge": "{method: linear, groups: model}",
            "optimize": "[{evaluations: 8, population: 4}]",
            "compare": "{finalists: 2}",
            **fields,
        }
    )


def test_what_is_drawn_depends_on_weights_and_examples_alone(parents):
    """The same example has the same picture in any company, another seed another one; texts are
    drawn as classes are."""
    evaluator = Evaluator(config_of(parents), task_factory=task, examples={"search": DIGITS})
    pipeline = evaluator.models.model(evaluator.config.sources[0])
    whole = draw(pipeline, DIGITS, **SETTINGS)
    alone = draw(pipeline, DIGITS[2:3], **SETTINGS)
    np.testing.assert_allclose(whole[2], alone[0], atol=1e-5)
    assert np.abs(whole[2] - whole[3]).max() > 0.01
    with refused(EvoMergeError, "'a cat' is no number of a class"):
        draw(pipeline, [Example("a cat", "")], **SETTINGS)


def test_a_winner_is_built(parents, tmp_path):
    """The winner is built to the very weights that were scored."""
    config = config_of(parents)
    given = {"search": DIGITS}
    result = run_search(config, tmp_path / "whole", task_factory=task, examples=given)
    winner = next(row for row in result.rows if row.winner)
    built = {"model": str(tmp_path / "whole" / "model"), "component": "transformer"}
    config = config_of(parents, sources=[built] * 2)
    again = Evaluator(config, task_factory=task, examples=given).evaluate(config.sources[0])
    assert again.values.tolist() == winner.scores.values.tolist()
    report = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert [row["stage"] for row in report["rows"]] == ["source", "source", "average", "ps"]


def test_what_cannot_score_a_pipeline_is_refused(parents, tmp_path):
    """A task of texts, a path, and a search that nobody can answer, in one line each."""
    for task, message in {
        "likelihood": "which likelihood cannot score; give a Python function",
        "choice": "a person chooses on a page; run `hf-evomerge search",
    }.items():
        config = config_of(parents, fitness={"task": task})
        with refused(EvoMergeError, message):
            run_search(config, tmp_path / "out", examples={"search": DIGITS})


# ---- a person who chooses


@pytest.fixture
def choices(parents, tmp_path):
    """Three generations of four, of which two classes are drawn."""
    data = write_lines(tmp_path / "prompts.jsonl", {"prompt": "0"}, {"prompt": "1"})
    return config_of(
        parents,
        optimize="[{evaluations: 12, population: 4}]",
        fitness="{task: choice, arguments: {num_inference_steps: 2}}",
        data={"search": {"jsonl": str(data)}},
    )


def bright(chooser):
    """What a person who likes light clicks."""
    return int(np.argmax([np.asarray(picture).mean() for picture in chooser.pictures]))


def _seen(chooser):
    return [picture.tobytes() for picture in chooser.pictures]


def test_choices_are_a_search(choices, parents, tmp_path):
    """Each choice makes a generation; a page that was closed goes on with the same candidates; the
    last choice is built."""
    assert "2 numbers to evolve" in plan_search(choices).to_text()
    chooser = Chooser(choices, tmp_path / "out")
    assert (chooser.generation, chooser.generations) == (0, 3)
    assert len(_seen(chooser)) == len({*_seen(chooser)}) == 4
    with refused(EvoMergeError, "nothing has been chosen yet"):
        chooser.build()
    for number in (4, -1, 0.5, 1.0, "1", None, [0]):
        message = re.escape(f"candidate {number!r}: there are 4")
        with refused(EvoMergeError, message):
            chooser.choose(0, number)
    for generation in range(2):
        assert chooser.choose(generation, bright(chooser))
    assert not chooser.choose(0, 0)  # an old page: nothing happens
    before = _seen(chooser)
    del chooser
    again = Chooser(choices, tmp_path / "out")
    assert (again.generation, _seen(again)) == (2, before)
    recipe = again._recipes[1]
    assert again.choose(2, 1)
    assert (again.generation, again.pictures, len(again.chosen)) == (3, [], 3)
    for folder in (again.build(), tmp_path / "out"):
        assert (folder / "recipe.yaml").read_text() == recipe.to_yaml()
    sums = [0.0] * 3
    for trial in Study.open(tmp_path / "out").trials("ps"):
        sums[trial.generation] += trial.fitness
    assert sums == [1.0, 2.0, 3.0]
    assert settings_in(tmp_path / "out").fitness.task == "choice"
    with refused(EvoMergeError, "needs no person"):
        Chooser(config_of(parents), tmp_path / "other")


@pytest.fixture
def page(choices, tmp_path):
    """The page, served, and the search behind it."""
    pytest.importorskip("gradio")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    chooser = Chooser(choices, tmp_path / "out")
    served = choice_page(chooser)
    served.launch(
        prevent_thread_lock=True,
        quiet=True,
        server_name="127.0.0.1",
        css=served.css,
        allowed_paths=[str(tmp_path)],
    )
    try:
        yield served, chooser
    finally:
        served.close()


def test_the_page_chooses(page):
    """One call a generation, through the page's own API; an old one is not taken; the model is
    there at the end."""
    from gradio_client import Client

    served, chooser = page
    client = Client(served.local_url, verbose=False)
    seen = client.predict(api_name="/look")
    assert (seen["generation"], seen["candidates"]) == (0, 4)
    for generation in range(3):
        seen = client.predict(generation, bright(chooser), api_name="/choose")
        assert (seen["taken"], seen["generation"]) == (True, generation + 1)
    assert not client.predict(0, 0, api_name="/choose")["taken"]
    assert seen["candidates"] == 0
    assert "Built" in client.predict(api_name="/build")
    assert (chooser.out / "model" / "model_index.json").is_file()


@pytest.mark.slow
def test_clip_judges_what_is_drawn(parents, tmp_path):
    """A search file that names a CLIP model evolves by its cosine of picture and answer; a model
    that is not there is said."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    words = tokenizer(tmp_path / "words")
    text = CLASSES["clip"][1]["text_config"]
    text = {**text, "vocab_size": len(words), "eos_token_id": len(words) - 1}
    judge = random_class("clip", 0, text_config=text)
    judge.save_pretrained(tmp_path / "clip")
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8), words)
    processor.save_pretrained(tmp_path / "clip")
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "1", "name": "a cat"}\n{"prompt": "2", "name": "a hat"}'
    )
    fitness = {
        "task": "clip",
        "model": str(tmp_path / "clip"),
        "arguments": {"num_inference_steps": 2},
    }
    data = {"search": {"jsonl": str(tmp_path / "prompts.jsonl"), "answer_field": "name"}}
    config = config_of(parents, fitness=fitness, data=data)
    evaluator = Evaluator(config)
    scores = evaluator.evaluate(config.sources[0])
    assert scores.error is None
    task = evaluator.tasks.prepared(config.sources[0])
    pictures = task.pictures(evaluator.models.model(config.sources[0]))
    given = processor(text=["a cat", "a hat"], images=pictures, return_tensors="pt", padding=True)
    found = judge(**given).logits_per_image.diagonal() / judge.logit_scale.exp()
    np.testing.assert_allclose(scores.values, found.detach().numpy(), atol=1e-5)
    result = run_search(config, tmp_path / "search", build=False)
    assert next(row for row in result.rows if row.winner).scores.mean is not None
    missing = config_of(parents, fitness={**fitness, "model": str(tmp_path / "none")}, data=data)
    assert "fitness.model" in str(Evaluator(missing).evaluate(missing.sources[0]).error)
