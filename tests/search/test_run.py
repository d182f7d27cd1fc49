"""Whole searches of tiny models: what is left behind, and what a search can be made of."""

import json
import os
import shutil
from unittest.mock import ANY

import pytest
import torch
import warm
from refusals import refused
from searches import digests
from slowly import slow_beyond
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge import (
    Example,
    FunctionTask,
    Recipe,
    Scores,
    SearchConfig,
    SourceRef,
    evaluate_model,
    resume_search,
    run_search,
)
from hf_evomerge.errors import SourceError
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.runners.runner import LocalRunner
from hf_evomerge.search.score_model import Evaluation
from hf_evomerge.search.study.study import Study

PICTURES = {
    "ps": ["fitness.png", "weights.png"],
    "dfs": ["fitness.png", "path.png"],
    "hybrid": None,  # those of any stage
}


@pytest.mark.parametrize("space", slow_beyond(["ps", "dfs"], PICTURES))
def test_what_a_search_leaves(space, search_config, tmp_path):
    """A search leaves its settings, every trial, the winner's recipe and model, the comparison and
    the pictures; all agree."""
    config = search_config(space)
    out = tmp_path / "deep" / "out"
    result = run_search(config, out)
    names = {item.name for item in out.iterdir()}
    assert {name for name in names if not name.startswith(("study.db-", "study.db."))} == {
        *("model", "plots", "recipe.yaml", "results.json", "search.yaml", "study.db")
    }
    assert SearchConfig.load(out / "search.yaml") == config
    recipes = [Recipe.load(folder / "recipe.yaml") for folder in (out, out / "model")]
    assert recipes == [result.winner] * 2
    pictures = sorted((out / "plots").iterdir())
    assert [picture.name for picture in pictures] == (PICTURES[space] or ANY)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    budget = 16 if space == "hybrid" else 8
    study = Study.open(out)
    assert [trial.state for trial in study.trials()] == ["COMPLETE"] * budget
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (report["split"], report["examples"], report["space"]) == ("test", 6, space)
    assert [row["model"] for row in report["rows"]] == [row.model for row in result.rows]
    assert report["rows"][-1]["evaluations"] == budget
    (winner,) = (row for row in report["rows"] if row["winner"])
    assert f"fitness {winner['fitness']:.3f}" in str(evaluate_model(str(out / "model"), config))
    assert winner["fitness"] == pytest.approx(study.evaluation(result.winner.key, "test").mean)


def test_a_finished_search_evaluates_nothing(search_config, tmp_path, monkeypatch):
    """Running a finished search again gives the same result and evaluates nothing; a model that was
    lost is built again."""
    first = run_search(search_config("dfs"), tmp_path)
    model = tmp_path / "model"
    before = digests(model)
    shutil.rmtree(model)
    jobs = []
    monkeypatch.setattr(LocalRunner, "run", lambda self, given: iter(jobs.extend(given) or ()))
    second = resume_search(tmp_path)
    built = model.stat().st_ino
    resume_search(tmp_path)
    assert model.stat().st_ino == built
    assert jobs == []
    assert second.rows == first.rows
    assert digests(model) == before


STRANGER = """
import json, sys
sys.modules["hf_evomerge"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([tokenizer(sys.argv[2])["input_ids"]])
print(json.dumps([type(model).__name__, model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()]))
"""  # noqa: E501


def test_the_winner_loads_without_the_package(search_config, tmp_path):
    """A data flow winner loads where this package cannot be imported, and generates the same tokens
    as here."""
    run_search(search_config("dfs"), tmp_path)
    folder = tmp_path / "model"
    prompt = "w1 w2 7 w3"
    places = {"HF_HOME": f"{tmp_path}/home", "HF_MODULES_CACHE": f"{tmp_path}/modules"}
    done = warm.run(STRANGER, folder, prompt, env={**os.environ, **places}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kind, tokens = json.loads(done.stdout.splitlines()[-1])
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]])
    assert kind == type(model).__name__ == "EvoMergedForCausalLM"
    assert tokens == model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()


def weight_score(model, tokenizer, examples):
    """Nearness of the first weight of the head to 0.1, for every example."""
    return [-abs(float(model.get_output_embeddings().weight[3, 3]) - 0.1)] * len(examples)


def test_a_fitness_of_ones_own(search_config, tmp_path):
    """A task and examples may come from Python: the search maximises what the function returns."""
    config = search_config(
        optimize="[{evaluations: 40}]",
        data="{}",
        merge="{groups: model, parameters: {weight: {low: -9, high: 9}}}",
    )
    result = run_search(
        config,
        tmp_path,
        task_factory=lambda: FunctionTask(weight_score),
        examples={"search": [Example("w1", "2")], "test": [Example("w2", "3")]},
        build=False,
    )
    *parents, won = (row.scores.mean for row in result.rows)
    assert won > max(*parents, -0.05)
    assert (tmp_path / "recipe.yaml").is_file()
    assert not (tmp_path / "model").exists()


def test_a_quick_search(search_settings, tmp_path):
    """A quick search is a whole search of at most 48 scores, by gradient, from a good start."""
    settings = search_settings("ps", optimize="quick")
    del settings["merge"]
    result = run_search(SearchConfig.model_validate(settings), tmp_path, build=False)
    trials = Study.open(tmp_path).trials("ps")
    steps = [trial for trial in trials if trial.scores.gradient is not None]
    starts = trials[: steps[0].number]
    assert len(starts) > 2
    best = max(starts, key=lambda trial: trial.fitness)
    assert steps[0].genome.tolist() == best.genome.tolist()
    assert 45 < result.row("ps").evaluations <= 48


def test_evaluate_model_needs_only_the_model(tiny, search_config):
    """One model is scored by a search's task and data even where the search's own sources are not
    there."""
    nowhere = {"sources": "[{model: ./nowhere/a}, {model: ./nowhere/b}]", "base": None}
    config = search_config(**nowhere)
    model = str(tiny / "a")
    evaluation = evaluate_model(model, config, split="validation", show=2)
    assert evaluation.scores.values.size == len(evaluation.examples) == 4
    text = str(evaluation)
    assert text.startswith("fitness -")
    assert text.splitlines()[0].endswith("on 4 examples")
    assert (text.count("expected: "), text.count("answered: ")) == (2, 2)
    with refused(SourceError, "no such folder"):
        evaluate_model("./nowhere/model", config)
    for same in (
        search_config("dfs", **nowhere, path="{kind: gates, order: [1, 0]}"),
        search_config(**nowhere, merge="{sources: [1, 0]}"),
        config.model_copy(update={"data": {"validation": config.data["validation"]}}),
    ):
        assert evaluate_model(model, same, split="validation").scores == evaluation.scores


def test_answers_are_shown_with_their_marks(tiny, search_config, monkeypatch):
    """Each answer says if it is right, and below its problem what that means; after right ones
    there is a wrong one, and the other way round."""
    config = search_config(fitness="{task: generation}")
    scores = Scores([1, 1, 1, 0], correct=[True, True, True, False], outputs=["p", "q", "r", "s"])
    few = Scores([0, 0, 1], correct=[False, False, True], outputs=["p", "q", "r"])
    for given, show, answers in (
        (scores, 0, {}),
        (scores, 1, {0: "p"}),
        (scores, 3, {0: "p", 1: "q", 3: "s"}),
        (scores, 9, dict(enumerate("pqrs"))),
        (few, 2, {0: "p", 2: "r"}),
    ):
        monkeypatch.setattr(Evaluator, "evaluate", lambda *_, given=given: given)
        found = evaluate_model(str(tiny / "a"), config, split="validation", show=show)
        assert found.answers == answers
    problem = Example("二たす三は", "5", gloss="Two and three are")
    lines = str(Evaluation(scores, (problem,) * 4, {0: "p", 3: "s"})).splitlines()
    told = ["", "二たす三は", "  Two and three are", "  expected: 5", "  answered: p (right)"]
    assert lines[1:6] == told
    assert lines[-1] == "  answered: s (wrong)"
    assert str(Evaluation(Scores([1.0]), (problem,), {0: "p"})).endswith("  answered: p")


def test_answers_and_what_is_retained(tiny, tmp_path, search_config):
    """A search on generated answers keeps each of them, says which were cut, and scores every model
    on retained data too."""
    old = [{"prompt": f"w1 w2 {number}", "answer": "w3"} for number in range(4)]
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, old)), encoding="utf-8")
    config = search_config(
        fitness="{task: generation, max_new_tokens: 2, extract: all}",
        compare={"retain": {"old": {"jsonl": str(tmp_path / "old.jsonl")}}},
    )
    result = run_search(config, tmp_path, build=False)
    assert all(row.retained["old"].values.size == 4 for row in result.rows)
    assert any("On old it is" in sentence for sentence in result.verdict)
    assert all(row.constant is None or row.constant.suffices for row in result.rows)
    with Study.open(tmp_path) as study:
        for trial in study.trials("ps"):
            outputs, cut = study.answers(f"ps:{trial.number}")
            assert (outputs is None) == (trial.duplicate_of is not None)
            assert outputs is None or len(outputs) == cut.size == 5
    evaluator = Evaluator(config)
    scores = evaluator.evaluate(SourceRef(model=str(tiny / "a")), "test")
    with Study.open(tmp_path) as study:
        labels = [row.label for row in result.rows]
        kept = {label: study.evaluation(label, "test") for label in labels}
    mine = kept["source:0"]
    assert (mine.outputs, mine.truncated.tolist()) == (scores.outputs, scores.truncated.tolist())
    assert all(each.outputs for each in kept.values())
    evaluation = evaluate_model(str(tiny / "a"), config, show=3)
    assert list(evaluation.answers.values()) == scores.outputs[:3]
