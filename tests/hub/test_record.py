"""The record of a search: what it holds, and what of this machine it does not."""

import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet
from refusals import refused
from searches import copy_of

from hf_evomerge import Recipe, Scores, SearchConfig, SourceRef, Trial
from hf_evomerge.errors import HubError, SearchError, SourceError
from hf_evomerge.hub.record import IMAGES_FOLDER, TRIALS_FILE, _public_settings, write_record
from hf_evomerge.record import STUDY_JSON, Record, Results
from hf_evomerge.search.folder import check_out, edited, open_study
from hf_evomerge.search.study.study import Study


def test_the_record_says_what_the_study_holds(hybrid_search, tmp_path):
    """Stages, levels, splits and results are those of the study, and every trial is a row with its
    path and its recipe."""
    record = write_record(hybrid_search, tmp_path)
    assert record == Record.load(tmp_path / STUDY_JSON)
    assert [
        (stage.stage, stage.algorithm, stage.trials, stage.failed) for stage in record.stages
    ] == [("ps", "cma", 8, 0), ("dfs", "cma", 8, 0)]
    assert record.splits == {"search": 5, "validation": 4, "test": 6}
    results = json.loads((hybrid_search / "results.json").read_text())
    assert record.to_json()["results"]["rows"] == results["rows"]
    pictures = {file.name for file in (tmp_path / IMAGES_FOLDER).iterdir()}
    assert pictures == {file.name for file in (hybrid_search / "plots").iterdir()}
    with Study.open(hybrid_search) as study:
        assert record.levels["base"] == study.evaluation("base", "search").mean
        trials = [*study.trials("ps"), *study.trials("dfs")]
    rows = parquet.read_table(tmp_path / TRIALS_FILE).to_pylist()
    for row, trial in zip(rows, trials, strict=True):
        for key in ("stage", "number", "generation", "fitness"):
            assert row[key] == getattr(trial, key)
        assert row["genome"] == trial.genome.tolist()
        flow = Recipe.from_yaml(row["recipe"]).flow
        ran = (flow.path, flow.to_path().scales) if trial.stage == "dfs" else (None, None)
        assert (row["path"], row["scales"]) == ran
    winner = (record.winner.stage, record.trial)
    (found,) = [row for row in rows if (row["stage"], row["number"]) == winner]
    assert Recipe.from_yaml(found["recipe"]).flow == Recipe.load(hybrid_search / "recipe.yaml").flow


def test_edited_results_are_not_published(hybrid_search, tmp_path):
    """Figures in results.json that the search did not write there never get onto a card."""
    copy = copy_of(hybrid_search, tmp_path / "search")
    results = json.loads((copy / "results.json").read_text())
    results["rows"][-1]["accuracy"] = 1.0
    (copy / "results.json").write_text(json.dumps(results))
    message = r"results\.json: is not what the search ended with; .* writes it again"
    with refused(SearchError, message):
        write_record(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_link_among_the_plots_is_not_published(hybrid_search, tmp_path, whole):
    """A study that came from somebody else would publish any file of this machine as a picture."""
    copy = copy_of(hybrid_search, tmp_path / "search")
    shutil.rmtree(copy / "plots")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "fitness.png").write_text("secret")
    if whole:
        (copy / "plots").symlink_to(secret)
    else:
        (copy / "plots").mkdir()
        (copy / "plots" / "fitness.png").symlink_to(secret / "fitness.png")
    with refused(SourceError, r"fitness\.png: a link to .*secret"):
        write_record(copy, tmp_path / "out")
    assert not list((tmp_path / "out").glob("images/*"))


def test_what_the_result_is_for_may_be_said_afterwards(hybrid_search, tmp_path):
    """`about` is read from the search file beside the study, where it may be written later; it
    makes no other search."""
    copy = copy_of(hybrid_search, tmp_path / "search")
    file = copy / "search.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "about: Counts.\n", encoding="utf-8")
    assert write_record(copy, tmp_path / "record").settings.about == "Counts."
    assert write_record(copy, tmp_path / "pushed", about="Sings.").settings.about == "Sings."
    with refused(HubError, r"about.*at most 300 characters"):
        write_record(copy, tmp_path / "long", about="x" * 301)
    with Study.open(copy) as study:
        assert edited(study)[1] is None
    other = SearchConfig.load(file).model_copy(update={"about": "Adds."})
    check_out(other, copy)
    open_study(other, copy, {}, other).close()
    assert write_record(copy, tmp_path / "record").settings.about == "Adds."


def test_settings_name_no_file_of_this_machine(search_config, tmp_path):
    """Files of data and of tasks are published by their last names, names on the Hub and addresses
    as they are."""
    rows = tmp_path / "rows.csv"
    task = tmp_path / "task.yaml"
    rows.touch()
    task.touch()
    files = [str(rows), "https://x.org/b.csv"]
    data = {"search": {"data_files": files}, "test": {"dataset": "org/data"}}
    retain = {"other": {"lm_eval": ["arc_easy", str(task)]}}
    config = search_config(data=data, compare={"retain": retain})
    published = _public_settings(config, SourceRef.hidden)
    assert published["data"]["search"]["data_files"] == ["rows.csv", "https://x.org/b.csv"]
    assert published["data"]["test"]["dataset"] == "org/data"
    assert published["compare"]["retain"]["other"]["lm_eval"] == ["arc_easy", "task.yaml"]


def test_nothing_of_this_machine_is_in_it(hybrid_search, tiny, tmp_path, monkeypatch):
    """No file of the record holds a folder of this machine, not in a warning either, or, unless
    asked, a problem."""
    usual = Results.load

    def load(*arguments):
        warnings = [f"tokenizers differ: 3 tokens in {tiny}/a, 4 in b"]
        return usual(*arguments).model_copy(update={"warnings": warnings})

    monkeypatch.setattr(Results, "load", load)
    record = write_record(hybrid_search, tmp_path)
    assert record.results.warnings == ["tokenizers differ: 3 tokens in a, 4 in b"]
    problem = json.loads((tiny / "test.jsonl").read_text().splitlines()[0])["prompt"]
    text = (tmp_path / STUDY_JSON).read_text()
    rows = parquet.read_table(tmp_path / TRIALS_FILE).to_pylist()
    assert str(tiny) not in f"{text} {rows}"
    assert problem not in f"{text} {rows}"
    settings = json.loads(text)["settings"]
    assert settings["data"]["test"]["jsonl"] == "test.jsonl"
    assert settings["sources"] == [{"model": "a"}, {"model": "b"}]


def test_examples_are_published_where_they_are_asked_for(
    hybrid_search, tiny, tmp_path, monkeypatch
):
    """The first problems of the test split are there, with which models were right, and how many
    only the winner solves."""
    right = dict.fromkeys(("source:0", "source:1", "base"), [False] * 6)
    right["source:1"] = [True, *[False] * 5]
    right[Recipe.load(hybrid_search / "recipe.yaml").key] = [True] * 3 + [False] * 3
    usual = Study.evaluation

    def evaluation(study, label, split):
        scores = usual(study, label, split)
        if split == "test" and label in right:
            scores.correct = np.array(right[label])
        return scores

    monkeypatch.setattr(Study, "evaluation", evaluation)
    record = write_record(hybrid_search, tmp_path, examples=2)
    problems = [json.loads(line) for line in (tiny / "test.jsonl").read_text().splitlines()]
    shown = [{"prompt": e.prompt, "answer": e.answer} for e in record.examples]
    assert shown == problems[:2]
    others = {"source:0": False, "source:1": False, "base": False, "evolved": True}
    assert [e.right for e in record.examples] == [{**others, "source:1": True}, others]
    assert record.alone == 2


def test_the_example_that_tells_the_winner_from_the_others():
    """Shown first is what only the winner solves, of what its parents were asked too."""
    winner = {"evolved": True}
    spread = [{**winner, "a": True}, {"a": True}, {**winner, "a": False}, winner]
    examples = [{"prompt": "q", "answer": "1", "right": right} for right in spread]
    record = Record.model_validate({"examples": examples})
    assert record.telling is record.examples[2]


@pytest.mark.parametrize(
    ("error", "published"),
    [
        ("No such file: '/home/some one/a/x.safetensors'", "No such file: 'x.safetensors'"),
        ("cannot open (/data/private/y), or ~/z/w; stop", "cannot open (y), or w; stop"),
        (
            "file=/home/me/q and/or https://hf.co/u/m at 3/4",
            "file=q and/or https://hf.co/u/m at 3/4",
        ),
    ],
)
def test_failed_trials_and_unfinished_searches_have_a_record(
    search_config, tmp_path, error, published
):
    """A search without results, with trials that failed, is recorded as it is. Wherever a path of
    this machine stands in an error, only its last name is published; addresses stay."""
    settings = search_config().model_dump(mode="json")
    with Study.create(tmp_path / "study", settings) as study:
        study.add_trial(Trial("ps", 0, 0, np.zeros(2), None, Scores.failed(error)))
    record = write_record(tmp_path / "study", tmp_path / "record")
    assert record.results is None
    assert record.stages[0].failed == 1
    (row,) = parquet.read_table(tmp_path / "record" / TRIALS_FILE).to_pylist()
    assert (row["state"], row["error"]) == ("FAILED", published)
    assert {row[key] for key in ("fitness", "standard_error", "recipe")} == {None}
