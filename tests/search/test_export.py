import csv
import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from searches import minimal
from typer.testing import CliRunner

from hf_evomerge.cli import app
from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import FlowPart, MergePart, Recipe
from hf_evomerge.search.results.answers import Answer, export_answers
from hf_evomerge.search.results.export import export_csv, export_parquet, trial_rows
from hf_evomerge.search.study.study import Study, Trial

SOURCES = [{"model": "me/one"}, {"model": "me/two"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of two stages: merges, one of which failed, and paths."""
    folder = tmp_path_factory.mktemp("studies") / "my-search"
    study = Study.create(folder, minimal(space="hybrid", sources=SOURCES).model_dump(mode="json"))
    study.add_trial(
        Trial("ps", 0, 0, np.array([0.5, 0.5]), None, Scores.failed("no recipe, sorry"))
    )
    for number, weight in enumerate((0.25, 0.75, 1.5), 1):
        merge = MergePart(
            method="task_arithmetic",
            parameters=[{"weight": {"embed": weight, "default": 1.0}}, {"weight": 0.5}],
        )
        key = study.add_recipe(Recipe(sources=SOURCES, base={"model": "me/base"}, merge=merge))  # type: ignore[arg-type]
        scores = Scores([weight, weight + 1], correct=[True, False], seconds=2.0)
        study.add_trial(Trial("ps", number, 0, np.array([weight, 0.5]), key, scores, cost=0.5))
    key = study.add_recipe(Recipe(sources=SOURCES, flow=FlowPart(path=["0:0-1", "1:1"])))
    study.add_trial(Trial("dfs", 0, 0, np.array([1.0, -2.0, 3.0]), key, Scores([0.5, 0.5])))
    study.close()
    return folder


def test_csv(folder, tmp_path):
    """Every trial is a row with the values of its merge by name; a failed one says why."""
    assert export_csv(folder, tmp_path / "trials.csv") == 5
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["number"], row["state"]) for row in rows] == [
        ("ps", "0", "FAILED"),
        ("ps", "1", "COMPLETE"),
        ("ps", "2", "COMPLETE"),
        ("ps", "3", "COMPLETE"),
        ("dfs", "0", "COMPLETE"),
    ]
    assert (rows[0]["error"], rows[0]["fitness"]) == ("no recipe, sorry", "")
    assert [row["params.one.weight.embed"] for row in rows[1:4]] == ["0.25", "0.75", "1.5"]
    assert [row["params.two.weight"] for row in rows[1:4]] == ["0.5"] * 3
    assert [
        rows[1][name] for name in ("fitness", "accuracy", "evaluations", "seconds", "examples")
    ] == ["0.75", "0.5", "0.5", "2.0", "2"]
    assert [rows[4][f"params.x00{number}"] for number in range(3)] == ["1.0", "-2.0", "3.0"]


def test_parquet(folder, tmp_path):
    """Parquet holds the same rows."""
    from pyarrow import parquet

    assert export_parquet(folder, tmp_path / "trials.parquet") == 5
    rows = parquet.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["fitness"] for row in rows] == [None, 0.75, 1.25, 2.0, 0.5]
    assert rows[3]["params.one.weight.embed"] == 1.5


def test_several_objectives(tmp_path):
    """A trial of a search for several objectives has a column for each."""
    config = minimal(space="dfs", sources=SOURCES, objectives=["hops"], optimize=[{"by": "nsga2"}])
    study = Study.create(tmp_path / "front", config.model_dump(mode="json"))
    for number, (fitness, hops) in enumerate([(0.5, 3), (0.75, 6), (0.25, 5)]):
        key = study.add_recipe(Recipe(sources=SOURCES, flow=FlowPart(path=[f"0:0-{hops - 1}"])))
        scores = Scores([fitness], others={"hops": Scores([hops])})
        study.add_trial(Trial("dfs", number, 0, np.array([float(number)]), key, scores))
    study.close()
    rows = trial_rows(tmp_path / "front")
    assert [(row["fitness"], row["objective.hops"]) for row in rows] == [
        (0.5, 3.0),
        (0.75, 6.0),
        (0.25, 5.0),
    ]


@pytest.mark.parametrize("export", [export_csv, export_parquet])
def test_nothing_to_export(export, tmp_path):
    """A study without trials, and a folder without a study, are named."""
    Study.create(tmp_path / "empty", minimal().model_dump(mode="json")).close()
    with pytest.raises(SearchError, match="empty: no trial is finished yet"):
        export(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(SearchError, match=r"no study\.db here"):
        export(tmp_path / "none", tmp_path / "x")


def test_scores_of_given_answers_are_exported(tmp_path):
    """A search by likelihood writes no answers; every example's log-likelihood is exported, under
    the names of the table."""
    (tmp_path / "x.jsonl").write_text(
        '{"prompt": "1", "answer": "2"}\n{"prompt": "3", "answer": "4"}\n', encoding="utf-8"
    )
    data = {"test": {"jsonl": str(tmp_path / "x.jsonl")}}
    config = minimal(sources=SOURCES, base={"model": "b/base"}, data=data)
    study = Study.create(tmp_path / "study", config.model_dump(mode="json"))
    for label, values in (("base", [-3.0, -4.5]), ("0123", [-1.0, -2.5])):
        study.add_evaluation(label, "test", Scores(values, correct=[False, True]))
    study.close()
    rows = [{"label": "0123", "model": "random search", "winner": False}]
    (tmp_path / "study" / "results.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert export_answers(tmp_path / "study", tmp_path / "out.jsonl") == 4
    lines = [
        json.loads(line)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = {
        (line["model"], line["prompt"]): (line["answer"], line["score"], line["right"])
        for line in lines
    }
    assert found["base", "3"] == (None, -4.5, True)
    assert found["random search", "1"] == (None, -1.0, False)


def test_command(folder, tmp_path):
    """The command writes what it is asked for and says so; asked for nothing it says what there
    is."""
    run = CliRunner().invoke
    file = tmp_path / "trials.csv"
    done = run(
        app,
        ["export", str(folder), "--csv", str(file), "--answers", str(tmp_path / "answers.jsonl")],
    )
    assert done.exit_code == 0, done.output
    assert f"{file}: 5 trials" in done.output
    assert f"{tmp_path / 'answers.jsonl'}: 0 answers" in done.output
    assert (tmp_path / "answers.jsonl").read_text(encoding="utf-8") == ""
    before = (folder / "study.db").read_bytes()
    for option, there in (
        ("--csv", file),
        ("--parquet", folder / "study.db"),
        ("--answers", folder / "study.db"),
    ):
        refused = run(
            app, ["export", str(folder), "--csv", str(tmp_path / "new.csv"), option, str(there)]
        )
        assert (refused.exit_code, "exists already; choose another name" in refused.output) == (
            1,
            True,
        )
    assert (folder / "study.db").read_bytes() == before
    assert not (tmp_path / "new.csv").exists()
    refused = run(app, ["export", str(folder), "--csv", str(tmp_path / "nowhere" / "x.csv")])
    assert "there is no folder" in refused.output
    refused = run(app, ["export", str(folder)])
    assert refused.exit_code == 1
    assert "nothing to write; name a file with --csv, --parquet or --answers" in refused.output


@contextmanager
def _room(size):
    """A limit on the size of files, which a full disk is to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["csv", "parquet", "answers"])
def test_a_full_disk_leaves_no_half_of_a_table(folder, tmp_path, monkeypatch, kind):
    """What cannot be written whole is not there, and the line says what is full."""
    row = {
        "stage": "ps",
        "error": "".join(map(chr, np.random.default_rng(0).integers(48, 122, 200_000))),
    }
    monkeypatch.setattr("hf_evomerge.search.results.export.trial_rows", lambda study: [row])
    answer = Answer("m", "test", row["error"], "", None, 0.0, None, None)
    monkeypatch.setattr("hf_evomerge.search.results.answers.study_answers", lambda study: [answer])
    with _room(100_000):
        told = CliRunner().invoke(
            app, ["export", str(folder), f"--{kind}", str(tmp_path / "table")]
        )
    assert told.exit_code == 1
    assert "make room on the disk" in told.output
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path):
    """A recipe that cannot be written whole leaves the one before as it was, and nothing beside
    it."""
    recipe = Recipe(sources=SOURCES, flow=FlowPart(path=["0:0-1"]))
    recipe.save(tmp_path / "recipe.yaml")
    with _room(1000), pytest.raises(OSError, match="File too large"):
        recipe.model_copy(update={"flow": FlowPart(path=["0:0"] * 4000)}).save(
            tmp_path / "recipe.yaml"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_a_full_disk_is_no_damage(folder, tmp_path):
    """Where SQLite has no room for its own files the study is not called damaged."""
    with _room(1000):
        told = CliRunner().invoke(
            app, ["export", str(folder), "--csv", str(tmp_path / "table.csv")]
        )
    assert told.exit_code == 1
    assert (
        "study.db: cannot be read or written on this disk: disk I/O error; free memory"
        in told.output
    )
    assert "damaged" not in told.output
