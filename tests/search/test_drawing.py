"""A search over diffusion pipelines: scored by a Python function of what they draw, by CLIP, or by
a person who chooses on the page of `examples/choose.py`."""

import json
import os
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from classes import CLASSES, random_class
from pipelines import save_dit, tokenizer
from refusals import refused
from searches import minimal, write_lines

from hf_evomerge import EvoMergeError, Example, FunctionTask, run_search
from hf_evomerge.fitness import draw
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.study.study import Study

ROOT = Path(__file__).parents[2]
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
    """A task of texts, in one line that says what can."""
    with refused(EvoMergeError, "likelihood cannot score; give a Python function .*{task: clip"):
        run_search(config_of(parents), tmp_path / "out", examples={"search": DIGITS})


@pytest.fixture(scope="module")
def example():
    """The example script, as a module."""
    pytest.importorskip("gradio")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    spec = spec_from_file_location("choose", ROOT / "examples" / "choose.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(parents, tmp_path):
    """Writes a search file, two generations of four, of which two classes are drawn."""

    def write(prompts=2, **fields):
        numbers = ({"prompt": str(number)} for number in range(prompts))
        data = write_lines(tmp_path / "prompts.jsonl", *numbers)
        fitness = {"task": "clip", "model": "none", "arguments": {"num_inference_steps": 2}}
        drawn = {"fitness": fitness, "data": {"search": {"jsonl": str(data)}}}
        config_of(parents, **drawn | fields).save(tmp_path / "search.yaml")
        return tmp_path / "search.yaml"

    return write


def seen(choices):
    """What a person sees."""
    return [picture.tobytes() for picture in choices.pictures]


def test_a_person_chooses(example, written, tmp_path):
    """A choice moves the next generation; opened again there are the same candidates; the last
    choice is built."""
    file, out = written(), tmp_path / "out"
    choices, other = (example.Choices(file, each, "cpu") for each in (out, tmp_path / "other"))
    assert len({*seen(choices)}) == 4
    choices.go_on(3)
    other.go_on(1)
    assert not {*seen(choices)} & {*seen(other)}
    again = example.Choices(file, out, "cpu")
    assert (again.first, seen(again)) == (4, seen(choices))
    again.go_on(1)
    assert again.pictures == []
    with Study.open(out) as study:
        trials = study.trials()
        recipe = study.recipe(trials[5].recipe_key)
    assert (again.build() / "recipe.yaml").read_text() == recipe.to_yaml()
    assert [trial.fitness for trial in trials] == [0, 0, 0, 1, 0, 2, 0, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimize": "[{evaluations: 8}, {evaluations: 8}]"}, "a person chooses in one step"),
        ({"fitness": "{task: likelihood}"}, "write task: clip"),
        ({"data": {}}, "data.search: not given"),
        ({"prompts": 17}, "17 prompts; write 16 at most"),
        ({"sources": "[{model: a}, {model: b}]"}, "are no diffusion pipelines"),
    ],
)
def test_what_a_person_cannot_choose_from_is_one_line(
    fields, message, example, written, tiny, tmp_path, monkeypatch
):
    """The script ends with a line that says what to write."""
    monkeypatch.chdir(tiny)
    file = str(written(**fields))
    monkeypatch.setattr(example.gr.Blocks, "launch", lambda page, **how: None)
    monkeypatch.setattr("sys.argv", ["choose.py", file, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=f"^[^\n]*{message}[^\n]*$"):
        example.main()


@pytest.mark.slow
def test_the_page_chooses(example, written, tmp_path):
    """In a browser: a click on a picture shows the next generation, one on an old page tells
    nothing, and the button builds."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    page = example.page_of(example.Choices(written(), tmp_path, "cpu"))
    page.launch(prevent_thread_lock=True, quiet=True)
    with playwright.sync_playwright() as started:
        chromium = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
        browser = started.chromium.launch(**chromium)
        pages = [browser.new_page() for _ in range(2)]
        for each in pages:
            each.goto(page.local_url)
            each.get_by_text("Candidates 1 to 4 of 8").wait_for()
        for each in pages:
            each.locator("#candidates .thumbnail-item").nth(2).click()
            each.get_by_text("Candidates 5 to 8 of 8").wait_for()
        each.get_by_role("button", name="Build").click()
        each.get_by_text("Built:").wait_for()
    page.close()
    assert (tmp_path / "model" / "model_index.json").is_file()


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
    pipeline = evaluator.models.model(config.sources[0])
    examples = evaluator.tasks.examples("search")
    pictures = draw(pipeline, examples, batch_size=4, num_inference_steps=2)
    given = processor(text=["a cat", "a hat"], images=pictures, return_tensors="pt", padding=True)
    found = judge(**given).logits_per_image.diagonal() / judge.logit_scale.exp()
    np.testing.assert_allclose(scores.values, found.detach().numpy(), atol=1e-5)
    result = run_search(config, tmp_path / "search", build=False)
    assert next(row for row in result.rows if row.winner).scores.mean is not None
    missing = config_of(parents, fitness={**fitness, "model": str(tmp_path / "none")}, data=data)
    assert "fitness.model" in str(Evaluator(missing).evaluate(missing.sources[0]).error)
