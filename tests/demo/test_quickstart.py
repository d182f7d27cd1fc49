"""The demo on the specialists that ship with the package: a whole table, reloaded winners,
pictures, and nothing done twice."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import warm
from hub_fixtures import use_hub
from local_hub import LocalHub

from hf_evomerge.demo import quickstart
from hf_evomerge.demo.publish import publish_demo
from hf_evomerge.demo.quickstart import (
    SPECIALISTS,
    check_reload,
    demo_config,
    findings,
    run_demo,
    write_problems,
)
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.table import Against, Row
from hf_evomerge.search.runners.runner import LocalRunner
from hf_evomerge.search.study.study import Study

SIZES = {"search": 12, "validation": 12, "test": 32}
EVALUATIONS = 24
SMALL = {"evaluations": EVALUATIONS, "sizes": SIZES}


@pytest.fixture(scope="module", autouse=True)
def _warm_reloads():
    """Winners are loaded again in a process that has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            quickstart.subprocess,
            "run",
            lambda command, **_: warm.run(Path(command[1]).read_text(), *command[2:]),
        )
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, run once with a small budget."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, workers=0, **SMALL)


def test_the_table_is_complete(demo):
    """The table has every parent, plain merges, examples in the prompt, each source alone and each
    search's winner, on all held-out problems."""
    _, rows = demo
    wanted = {
        "base": "base",
        "source": "japanese, maths",
        "average": "uniform average, sum of the task vectors",
        "prompt": "in the prompt",
        "alone": "japanese alone, maths alone, japanese alone, a path, maths alone, a path",
        "ps": "evolved PS",
        "dfs": "evolved DFS",
    }
    found = {}
    for row in rows[:-1]:
        name = row.model if row.stage != "prompt" else row.model[-len("in the prompt") :]
        found.setdefault(row.stage, []).append(name)
    assert {stage: ", ".join(names) for stage, names in found.items()} == wanted
    assert rows[-1].model == "evolved PS+DFS"
    assert {row.scores.correct.size for row in rows} == {SIZES["test"]}
    assert all(16 < row.evaluations <= EVALUATIONS for row in rows[6:])
    assert not any(row.evaluations for row in rows[:5])


@pytest.mark.slow
def test_searches_beside_each_other_are_the_same(demo, tmp_path):
    """With two workers the searches run beside each other, and every model scores the same."""
    _, rows = demo
    beside = run_demo(tmp_path, workers=2, **SMALL)
    assert [(row.model, row.scores) for row in beside] == [(row.model, row.scores) for row in rows]


def test_winners_pictures_and_recipes_are_there(demo):
    """Each search leaves its model, its recipe and its pictures, and each winner scores what the
    table says of it."""
    out, rows = demo
    for picture in (
        "ps/plots/fitness",
        "ps/plots/weights",
        "dfs/plots/path",
        "hybrid/plots/fitness",
    ):
        assert (out / f"{picture}.png").is_file()
    for space, row in (("ps", rows[-3]), ("dfs", rows[-2])):
        recipe = Recipe.load(out / space / "recipe.yaml")
        assert (out / space / "model" / "config.json").is_file()
        config = demo_config(space, write_problems(out / "data", SIZES), EVALUATIONS, 0)
        assert Evaluator(config).evaluate(recipe, "test") == row.scores


def test_each_model_has_one_number_and_one_sentence(demo):
    """PS+DFS has the score of the model that it built, whichever stage that is of, and a sentence
    says which and why."""
    out, rows = demo
    results = json.loads((out / "hybrid" / "results.json").read_text(encoding="utf-8"))["rows"]
    (built,) = (row["accuracy"] for row in results if row["winner"])
    assert rows[-1].scores.accuracy == pytest.approx(built)

    def row(stage, right, **more):
        scores = Scores(np.arange(40.0), correct=np.arange(40) < right)
        return Row(stage, f"evolved {stage}", scores, **more)

    recipe = Recipe(sources=[{"model": "a"}, {"model": "b"}], merge={"method": "linear"})
    lone = row("alone", 10, against=Against("a alone", worse=""))
    table = [row("source", 0), row("ps", 30), row("dfs", 30), row("hybrid", 20)]
    found = {
        "ps": [row("ps", 30, winner=True)],
        "dfs": [lone, row("dfs", 40, winner=True)],
        "hybrid": [row("ps", 20), row("dfs", 30)],
    }
    results = {space: Result(recipe, "test", own) for space, own in found.items()}
    *evolved, needs, chosen = findings(table, results)
    subjects = [line.split(" is ")[0] for line in evolved]
    assert subjects == ["Evolved ps", "Evolved dfs", "Evolved hybrid"]
    assert needs.startswith("Evolved dfs needs more than one source: evolved alone has 0.250")
    assert "PS+DFS ended with its weights" in chosen
    assert "its weights solve 0.500 and its path 0.750" in chosen


def test_a_winner_is_published(demo, tmp_path, monkeypatch):
    """The winner and its sources, pinned in its recipe, are published, and the card is left; the
    winner loads from there."""
    out, rows = demo
    winner = Recipe.load(out / "dfs" / "recipe.yaml")
    result = Result(winner, "test", [replace(rows[-2], winner=True)])
    with LocalHub(tmp_path / "hub", user="demo") as hub:
        use_hub(monkeypatch, hub, tmp_path / "client")
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)  # for the process that loads it
        publish_demo(out / "dfs", SPECIALISTS, "demo/evolved", card=out / "card.md")
        told = check_reload({"demo/evolved": result}, out / "data" / "test.jsonl")
        assert "demo/evolved loads without this package" in told
        address = f"{hub.endpoint}/demo/evolved/resolve/main"
        weights, recipe, card = (
            urlopen(f"{address}/{name}").read()
            for name in ("model.safetensors", "recipe.yaml", "README.md")
        )
    assert weights == (out / "dfs" / "model" / "model.safetensors").read_bytes()
    assert card == (out / "card.md").read_bytes()
    sources = Recipe.from_yaml(recipe.decode()).sources
    assert [ref.model for ref in sources] == ["demo/evolved-japanese", "demo/evolved-maths"]
    assert all(ref.revision is not None for ref in sources)


def test_running_again_evaluates_nothing(demo, monkeypatch, capsys):
    """Run again, the demo prints the same table without evaluating anything, and says what is wrong
    with a wrong answer."""
    out, rows = demo
    jobs = []
    monkeypatch.setattr(LocalRunner, "run", lambda self, given: iter(jobs.extend(given) or ()))
    monkeypatch.setattr(quickstart, "check_reload", lambda *arguments: "")
    again = run_demo(out, **SMALL)
    assert jobs == []
    assert [(row.model, row.scores) for row in again] == [(row.model, row.scores) for row in rows]
    said = capsys.readouterr().out.split("one problem: ")[1].split("\n\n")[0]
    problem, gloss, right, *answers = said.splitlines()
    lines = (out / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    records = list(map(json.loads, lines))
    number = [record["prompt"] for record in records].index(problem)
    assert gloss == f"  {records[number]['gloss']}"
    assert right.endswith(records[number]["answer"])
    marks = [answer.rpartition("(")[2] for answer in answers]
    correct = [row.scores.correct[number] for row in (*rows[:3], *rows[-3:])]
    assert [mark == "right)" for mark in marks] == correct
    assert {"right)"} < set(marks) <= {"right)", "wrong number)", "wrong language)"}


def test_reloading_notices_another_model(demo):
    """A winner that answers otherwise than the table says is an error that names its folder."""
    out, rows = demo
    assert rows[1].scores.accuracy < 0.9
    right = Scores(np.zeros(SIZES["test"]), correct=np.ones(SIZES["test"], dtype=bool))
    result = Result(None, "test", [Row("ps", "winner", right, winner=True)])
    with pytest.raises(EvoMergeError, match=r"japanese: answers 0\.\d+ right after loading"):
        check_reload({str(SPECIALISTS / "japanese"): result}, out / "data" / "test.jsonl")


@pytest.mark.parametrize("budget", [8, 24, 150])
def test_budgets_are_comparable(budget, tmp_path):
    """PS, DFS and the two stages of PS+DFS together have the same budget."""
    data = write_problems(tmp_path, {"search": 2})
    configs = [demo_config(space, data, budget, 0) for space in ("ps", "dfs", "hybrid")]
    for config in configs:
        assert sum(step.evaluations for step in config.optimize) == budget
    assert ["alone" in config.compare.baselines for config in configs] == [True, True, False]


def test_the_seed_is_the_seed_of_the_searches(demo):
    """Another seed is another search: a study of one seed is not taken for that of another."""
    out, _ = demo
    with pytest.raises(EvoMergeError, match="seed was 0 and is 1"):
        run_demo(out, **SMALL, seed=1)
    cost = sum(trial.cost for trial in Study.open(out / "ps").trials("ps"))
    assert cost == pytest.approx(EVALUATIONS, abs=1)
