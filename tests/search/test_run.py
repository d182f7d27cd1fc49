"""Whole searches of tiny models: what is left behind, and what a search can be made of."""

import json
import os
import shutil

import pytest
import torch
import warm
from searches import digests
from slowly import slow_beyond
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge.errors import SearchError, SourceError
from hf_evomerge.fitness import Example, FunctionTask, Scores
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.results.answers import Answer, export_answers, study_answers
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.runners.runner import LocalRunner
from hf_evomerge.search.score_model import Evaluation, evaluate_model
from hf_evomerge.search.study.study import Study

PICTURES = {
    "ps": {"fitness.png", "weights.png"},
    "dfs": {"fitness.png", "path.png"},
    "hybrid": None,
}  # of any stage


@pytest.mark.parametrize(("space", "pictures"), slow_beyond(["ps", "dfs"], PICTURES.items()))
def test_what_a_search_leaves(space, pictures, search_config, tmp_path):
    """A search leaves its settings, every trial, the winner's recipe and model, the comparison and
    the pictures; all agree."""
    config = search_config(space, compare={"baselines": ["average", "random"]})
    out = tmp_path / "deep" / "out"
    result = run_search(config, out)
    assert {
        item.name for item in out.iterdir() if not item.name.startswith(("study.db-", "study.db."))
    } == {"model", "plots", "recipe.yaml", "results.json", "search.yaml", "study.db"}
    assert SearchConfig.load(out / "search.yaml") == config
    assert (
        Recipe.load(out / "recipe.yaml")
        == Recipe.load(out / "model" / "recipe.yaml")
        == result.winner
    )
    assert {picture.name for picture in (out / "plots").iterdir()} == pictures or pictures is None
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in (out / "plots").iterdir())
    budget = 16 if space == "hybrid" else 8
    study = Study.open(out)
    counted = [(trial.stage, trial.state) for trial in study.trials()]
    assert counted.count(("random", "COMPLETE")) == budget
    assert len(counted) == 2 * budget
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (report["split"], report["examples"], report["space"]) == ("test", 6, space)
    assert [(row["stage"], row["model"]) for row in report["rows"]] == [
        (row.stage, row.model) for row in result.rows
    ]
    assert [row["evaluations"] for row in report["rows"] if row["stage"] == "random"] == [budget]
    winners = [row for row in report["rows"] if row["winner"]]
    assert len(winners) == 1
    assert winners[0]["stage"] != "random"
    assert f"fitness {winners[0]['fitness']:.3f}" in str(evaluate_model(str(out / "model"), config))
    assert winners[0]["fitness"] == pytest.approx(study.evaluation(result.winner.key, "test").mean)  # type: ignore[union-attr]


def test_a_finished_search_evaluates_nothing(search_config, tmp_path, monkeypatch):
    """Running a finished search again gives the same result and evaluates nothing; a model that was
    lost is built again."""
    config = search_config("dfs")
    first = run_search(config, tmp_path)
    before = digests(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    jobs = []
    usual = LocalRunner.run
    monkeypatch.setattr(
        LocalRunner, "run", lambda self, given: (jobs.extend(given), usual(self, given))[1]
    )
    second = resume_search(tmp_path)
    built = (tmp_path / "model").stat().st_ino
    resume_search(tmp_path)
    assert (tmp_path / "model").stat().st_ino == built
    assert jobs == []
    assert _table(first) == _table(second)
    assert digests(tmp_path / "model") == before


def _table(result):
    return [
        (row.model, row.scores.values.tolist(), row.evaluations, row.seconds, row.winner)
        for row in result.rows
    ]


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
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    done = warm.run(STRANGER, folder, prompt, env=environment, cwd=tmp_path)
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
    examples = {"search": [Example("w1", "2")], "test": [Example("w2", "3")]}
    config = search_config(
        optimize=[{"evaluations": 40}],
        data={},
        merge={"groups": "model", "parameters": {"weight": {"low": -9, "high": 9}}},
    )
    result = run_search(
        config,
        tmp_path,
        task_factory=lambda: FunctionTask(weight_score),
        examples=examples,
        build=False,
    )
    parents = [row.scores.mean for row in result.rows[:3]]
    assert result.rows[-1].scores.mean > max(fitness for fitness in parents if fitness is not None)
    assert result.rows[-1].scores.mean > -0.05
    assert (tmp_path / "recipe.yaml").is_file()
    assert not (tmp_path / "model").exists()


def test_a_quick_search(search_settings, tmp_path):
    """A quick search is a whole search of at most 48 scores, by gradient, from a good start."""
    settings = search_settings("ps", optimize="quick")
    del settings["merge"]
    result = run_search(validate(SearchConfig, settings, SearchError), tmp_path, build=False)
    trials = Study.open(tmp_path).trials("ps")
    starts = trials[
        : next(number for number, trial in enumerate(trials) if trial.scores.gradient is not None)
    ]
    assert len(starts) > 2
    assert (
        trials[len(starts)].genome.tolist()
        == max(starts, key=lambda trial: trial.fitness or -99).genome.tolist()
    )
    assert 45 < result.row("ps").evaluations <= 48


def test_evaluate_model_needs_only_the_model(tiny, search_config):
    """One model is scored by a search's task and data even where the search's own sources are not
    there."""
    config = search_config(sources=[{"model": "./nowhere/a"}, {"model": "./nowhere/b"}], base=None)
    evaluation = evaluate_model(str(tiny / "a"), config, split="validation", show=2)
    assert (evaluation.scores.values.size, len(evaluation.examples), len(evaluation.answers)) == (
        4,
        4,
        2,
    )
    text = str(evaluation)
    assert text.startswith("fitness -")
    assert text.splitlines()[0].endswith("on 4 examples")
    assert (text.count("expected: "), text.count("answered: ")) == (2, 2)
    with pytest.raises(SourceError, match="no such folder"):
        evaluate_model("./nowhere/model", config)
    for space, numbers in (
        ("dfs", {"path": {"kind": "gates", "order": [1, 0]}}),
        ("ps", {"merge": {"sources": [1, 0]}}),
    ):
        numbered = search_config(space, sources=config.sources, base=None, **numbers)
        assert (
            evaluate_model(str(tiny / "a"), numbered, split="validation").scores
            == evaluation.scores
        )
    alone = config.model_copy(update={"data": {"validation": config.data["validation"]}})
    assert evaluate_model(str(tiny / "a"), alone, split="validation").scores == evaluation.scores


def test_answers_are_shown_with_their_marks(tiny, search_config, monkeypatch):
    """Each answer says if it is right, and below its problem what that means; after right ones
    there is a wrong one, and the other way round."""
    scores = Scores([1, 1, 1, 0], correct=[True, True, True, False], outputs=["p", "q", "r", "s"])
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: scores)
    config = search_config(fitness={"task": "generation"})
    answers = {
        show: evaluate_model(str(tiny / "a"), config, split="validation", show=show).answers
        for show in (0, 1, 3, 9)
    }
    assert answers == {0: {}, 1: {0: "p"}, 3: {0: "p", 1: "q", 3: "s"}, 9: dict(enumerate("pqrs"))}
    few = Scores([0, 0, 1], correct=[False, False, True], outputs=["p", "q", "r"])
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: few)
    wrong = evaluate_model(str(tiny / "a"), config, split="validation", show=2).answers
    assert wrong == {0: "p", 2: "r"}
    problem = Example("二たす三は", "5", gloss="Two and three are")
    lines = str(Evaluation(scores, (problem,) * 4, answers[3])).splitlines()
    assert lines[1:6] == [
        "",
        "二たす三は",
        "  Two and three are",
        "  expected: 5",
        "  answered: p (right)",
    ]
    assert lines[-1] == "  answered: s (wrong)"
    assert str(Evaluation(Scores([1.0]), (problem,), {0: "p"})).splitlines()[-1] == "  answered: p"


def test_answers_and_what_is_retained(tiny, tmp_path, search_config):
    """A search on generated answers keeps each of them, says which were cut, and scores every model
    on retained data too."""
    fitness = {"task": "generation", "max_new_tokens": 2, "extract": "all"}
    old = [{"prompt": f"w1 w2 {number}", "answer": "w3"} for number in range(4)]
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, old)), encoding="utf-8")
    retained = {"old": {"jsonl": str(tmp_path / "old.jsonl")}}
    config = search_config(fitness=fitness, compare={"retain": retained})
    result = run_search(config, tmp_path, build=False)
    assert [list(row.retained) for row in result.rows] == [["old"]] * len(result.rows)
    assert all(row.retained["old"].values.size == 4 for row in result.rows)
    assert any("On old it is" in sentence for sentence in result.verdict)
    study = Study.open(tmp_path)
    for number, trial in enumerate(study.trials("ps")):
        outputs, cut = study.answers(f"ps:{number}")
        assert (outputs is None) == (trial.duplicate_of is not None)
        assert outputs is None or (cut is not None and len(outputs) == cut.size == 5)
    study.close()
    target = SourceRef(model=str(tiny / "a"))
    evaluator = Evaluator(config)
    scores = evaluator.evaluate(target, "test")
    exported = list(study_answers(tmp_path))
    assert {answer.model for answer in exported if answer.split == "test"} == {
        row.model for row in result.rows
    }
    mine = [answer for answer in exported if (answer.model, answer.split) == ("a", "test")]
    assert [answer.answer for answer in mine] == scores.outputs
    assert [answer.truncated for answer in mine] == scores.truncated.tolist()
    assert mine[0].expected == evaluator.tasks.examples("test")[0].answer
    assert export_answers(tmp_path, tmp_path / "answers.jsonl") == len(exported)
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Answer(**json.loads(line)) for line in lines] == exported
    evaluation = evaluate_model(str(tiny / "a"), config, show=3)
    assert list(evaluation.answers.values()) == (scores.outputs or [])[:3]
