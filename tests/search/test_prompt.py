"""The baseline with search examples in the prompt."""

from dataclasses import replace

import pytest

from hf_evomerge.fitness import Scores
from hf_evomerge.search import plan as plan_module
from hf_evomerge.search.callbacks import SearchCallback
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.phases.baselines import prompt
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.study.study import Study

PROMPT = {"baselines": ["prompt"]}
MODELS = {"base": "base", "source:0": "a", "source:1": "b", "average": "the average"}


class Steps(SearchCallback):
    """Keeps the progress of the baseline."""

    def __init__(self):
        self.steps = []

    def on_progress(self, study, progress):
        self.steps += [progress] if progress.phase == "prompt" else []


def _stored(folder, split):
    """The scores of the baseline that a study holds of a split, by label."""
    with Study.open(folder) as study:
        of_split = [label for label, where in study.evaluated() if where == split]
        own = [label for label in of_split if label.startswith("prompt:")]
        return {label: scores for label in own if (scores := study.evaluation(label, split))}


def test_the_best_model_with_examples_in_its_prompt_has_a_row(search_config, tmp_path):
    """Every plain model is scored with every number of shots that it has room for; the best on the
    validation split has a row, with what all took, and a sentence; going on scores nothing
    again."""
    told = Steps()
    config = search_config(compare=PROMPT)
    result = run_search(config, tmp_path, build=False, callbacks=[told])
    chosen = _stored(tmp_path, "validation")
    # 48 positions have room for one shot of up to 12 tokens, and not for four
    assert set(chosen) == {f"prompt:{label}:1" for label in MODELS}
    best = max(chosen, key=lambda label: chosen[label].mean)
    row = result.row("prompt")
    assert row.label == best
    assert row.model in {f"{name} with 1 example in the prompt" for name in MODELS.values()}
    assert row.evaluations == 4 * 4 / 5  # four scores of 4 examples; the search has 5
    assert row.seconds == pytest.approx(sum(each.seconds for each in chosen.values()))
    assert list(_stored(tmp_path, "test")) == [best]
    assert row.scores == Evaluator(config).evaluate(row.target, "test", shots=1)
    assert [(each.done, each.total) for each in told.steps] == [(n, 4) for n in range(5)]
    again = resume_search(tmp_path, build=False, callbacks=[told])
    assert len(told.steps) == 5
    assert again.row("prompt") == row


def test_shots_are_part_of_the_prompt(search_config):
    """A score with shots is the one of the questions with the solved problem written out before
    them; other seeds show others, and examples that are not the search's own have none."""
    config = search_config(fitness={"task": "likelihood", "separator": " "})
    evaluator = Evaluator(config)
    tasks = evaluator.tasks
    parent = config.sources[0]
    scores = evaluator.evaluate(parent, "test", shots=1)
    asked = tasks.examples("test")
    written = {}
    for number, solved in enumerate(tasks.examples("search")):
        text = f"{solved.prompt} {solved.answer}<eos>"
        split = f"written:{number}"
        tasks.add(split, [replace(each, prompt=f"{text} {each.prompt}") for each in asked])
        written[number] = evaluator.evaluate(parent, split).values
    (shown,) = (n for n, values in written.items() if values == pytest.approx(scores.values))
    plain = evaluator.evaluate(parent, "test").values
    assert plain != pytest.approx(scores.values)
    tasks.add("retain:test", asked)
    assert (evaluator.evaluate(parent, "retain:test", shots=1).values == plain).all()

    firsts = set()
    for seed in range(4):
        seeded = config.compute.model_copy(update={"seed": seed})
        other = Evaluator(config.model_copy(update={"compute": seeded}))
        values = other.evaluate(parent, "test", shots=1).values
        firsts.add(next(n for n, own in written.items() if own == pytest.approx(values)))
    assert shown in firsts
    assert len(firsts) > 1


def test_the_price_is_of_prompts_with_shots(search_config, monkeypatch):
    """The dry run times a score with the most shots; fewer lie between it and one without, and the
    row of the test split costs more than another."""

    def scored(self, target, split="search", batch=None, shots=0, **how):
        count = len(self.tasks.examples(split)) if batch is None else len(batch)
        return Scores([0.0] * count, seconds=count * (1.0 + 10 * shots))

    monkeypatch.setattr(Evaluator, "evaluate", scored)
    counts = {"base": [1, 4], "source:0": [1]}
    monkeypatch.setattr(prompt, "_counts", lambda evaluator: counts)
    monkeypatch.setattr(plan_module, "doubts_of_form", lambda evaluator: [])
    plan = plan_search(search_config(compare=PROMPT))
    phases = {phase.name: phase for phase in plan.phases}
    assert phases["prompt"].text == (
        "2 models with 1, 4 search examples in the prompt, on 4 validation examples"
    )
    assert phases["prompt"].seconds == pytest.approx(4 * (11 + 41 + 11))
    assert phases["test"].seconds == pytest.approx(6 * (5 + 40))
    assert phases["test"].text.startswith("5 models on 6 test examples")


def test_no_room_is_a_warning(search_config, search_settings, tmp_path, caplog):
    """Where not one example fits beside the longest question the search says so and has no such
    row."""
    long = {"template": "{prompt} {prompt} {prompt} {prompt}"}
    data = {split: {**spec, **long} for split, spec in search_settings()["data"].items()}
    config = search_config(compare=PROMPT, data=data)
    assert any("no room for one" in line for line in plan_search(config).warnings)
    result = run_search(config, tmp_path, build=False)
    assert "prompt" not in [row.stage for row in result.rows]
    assert "no room for one beside the longest question" in caplog.text
