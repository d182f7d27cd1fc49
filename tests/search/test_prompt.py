"""The baseline with search examples in the prompt."""

from dataclasses import replace
from functools import partial

import pytest
from watch import Watch

from hf_evomerge import Scores, plan_search, resume_search, run_search
from hf_evomerge.search import plan as plan_module
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.phases.baselines import prompt
from hf_evomerge.search.study.study import Study

PROMPT = "{baselines: [prompt]}"
MODELS = {"base": "base", "source:0": "a", "source:1": "b", "average": "the average"}


def _stored(folder, split):
    """The scores of the baseline that a study holds of a split, by label."""
    with Study.open(folder) as study:
        own = [each for each in study.evaluated() if each[0].startswith("prompt:")]
        return {label: study.evaluation(label, split) for label, of in own if of == split}


def test_the_best_model_with_examples_in_its_prompt_has_a_row(search_config, tmp_path):
    """Every plain model is scored with every number of shots that it has room for; the best on the
    validation split has a row, with what all took, and a sentence; going on scores nothing
    again."""
    told = []
    steps = [Watch(lambda step: told.append(step) if step.phase == "prompt" else None)]
    config = search_config(compare=PROMPT)
    result = run_search(config, tmp_path, build=False, callbacks=steps)
    chosen = _stored(tmp_path, "validation")
    # 48 positions have room for one shot of up to 12 tokens, and not for four
    assert set(chosen) == {f"prompt:{label}:1" for label in MODELS}
    best = max(chosen, key=lambda label: chosen[label].mean)
    row = result.row("prompt")
    assert row.label == best
    assert row.model == f"{MODELS[best.removeprefix('prompt:')[:-2]]} with 1 example in the prompt"
    assert row.evaluations == 4 * 4 / 5  # four scores of 4 examples; the search has 5
    assert row.seconds == pytest.approx(sum(each.seconds for each in chosen.values()))
    assert list(_stored(tmp_path, "test")) == [best]
    assert row.scores == Evaluator(config).evaluate(row.target, "test", shots=1)
    assert [(each.done, each.total) for each in told] == [(n, 4) for n in range(5)]
    again = resume_search(tmp_path, build=False, callbacks=steps)
    assert len(told) == 5
    assert again.row("prompt") == row


def test_shots_are_part_of_the_prompt(search_config):
    """A score with shots is the one of the questions with the solved problem written out before
    them; other seeds show others, and examples that are not the search's own have none."""
    shown = set()
    for seed in range(4):
        config = search_config(compute={"seed": seed})
        evaluator = Evaluator(config)
        values_of = partial(evaluator.evaluate, config.sources[0])
        tasks = evaluator.tasks
        asked = tasks.examples("test")
        values = values_of("test", shots=1).values
        assert values_of("test").values != pytest.approx(values)
        tasks.add("retain:test", asked)
        assert values_of("retain:test", shots=1) == values_of("test")
        matching = []
        for solved in tasks.examples("search"):
            text = f"{solved.prompt} {solved.answer}<eos>"
            tasks.add(text, [replace(each, prompt=f"{text} {each.prompt}") for each in asked])
            if values_of(text).values == pytest.approx(values):
                matching.append(text)
        assert len(matching) == 1
        shown.update(matching)
    assert len(shown) > 1


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
    told = "no room for one beside the longest question"
    assert told in "".join(plan_search(config).warnings)
    result = run_search(config, tmp_path, build=False)
    assert "prompt" not in [row.stage for row in result.rows]
    assert told in caplog.text
