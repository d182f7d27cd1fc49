"""The record of a search: what it holds, and what of this machine it does not."""

import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet

from hf_evomerge.errors import HubError, SearchError, SourceError
from hf_evomerge.fitness import Scores
from hf_evomerge.hub.record import (
    IMAGES_FOLDER,
    TRIALS_FILE,
    _public_settings,
    _without_folders,
    write_record,
)
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.record import STUDY_JSON, Record
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.folder import check_out, edited, open_study
from hf_evomerge.search.study.study import Study, Trial


def test_the_record_says_what_the_study_holds(hybrid_search, tmp_path):
    """Stages, levels, splits and results are those of the study, and every trial is a row with its
    path and its recipe."""
    record = write_record(hybrid_search, tmp_path)
    assert record == Record.load(tmp_path / STUDY_JSON)
    assert record.to_json() == json.loads((tmp_path / STUDY_JSON).read_text())
    assert [(stage.stage, stage.trials, stage.failed) for stage in record.stages] == [
        ("ps", 8, 0),
        ("dfs", 8, 0),
    ]
    assert [stage.algorithm for stage in record.stages] == ["cma", "cma"]
    assert record.splits == {"search": 5, "validation": 4, "test": 6}
    assert (
        record.to_json()["results"]["rows"]
        == json.loads((hybrid_search / "results.json").read_text())["rows"]
    )
    assert sorted(file.name for file in (tmp_path / IMAGES_FOLDER).iterdir()) == sorted(
        file.name for file in (hybrid_search / "plots").iterdir()
    )
    study = Study.open(hybrid_search)
    base = study.evaluation("base", "search")
    assert record.levels["base"] == base.mean
    rows = parquet.read_table(tmp_path / TRIALS_FILE).to_pylist()
    trials = [*study.trials("ps"), *study.trials("dfs")]
    assert len(rows) == len(trials)
    for row, trial in zip(rows, trials, strict=True):
        assert (row["stage"], row["number"], row["generation"]) == (
            trial.stage,
            trial.number,
            trial.generation,
        )
        assert row["fitness"] == trial.fitness
        assert row["genome"] == trial.genome.tolist()
        recipe = Recipe.from_yaml(row["recipe"])
        if trial.stage == "dfs":
            assert (row["path"], row["scales"]) == (recipe.flow.path, recipe.flow.to_path().scales)
        else:
            assert row["path"] is None
    assert record.winner is not None
    found = next(
        row for row in rows if (row["stage"], row["number"]) == (record.winner.stage, record.trial)
    )
    assert Recipe.from_yaml(found["recipe"]).flow == Recipe.load(hybrid_search / "recipe.yaml").flow
    study.close()


def test_edited_results_are_not_published(hybrid_search, tmp_path):
    """Figures in results.json that the search did not write there never get onto a card."""
    copy = shutil.copytree(hybrid_search, tmp_path / "search")
    results = json.loads((copy / "results.json").read_text())
    results["rows"][-1]["accuracy"] = 1.0
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(
        SearchError, match=r"results\.json: is not what the search ended with; .* writes it again"
    ):
        write_record(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_link_among_the_plots_is_not_published(hybrid_search, tmp_path, whole):
    """A study that came from somebody else would publish any file of this machine as a picture."""
    copy = shutil.copytree(hybrid_search, tmp_path / "search")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "fitness.png").write_text("secret")
    link = copy / "plots" if whole else copy / "plots" / "fitness.png"
    shutil.rmtree(link) if whole else link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "secret" if whole else tmp_path / "secret" / "fitness.png")
    with pytest.raises(SourceError, match=r"fitness\.png: a link to .*secret"):
        write_record(copy, tmp_path / "out")
    assert not list((tmp_path / "out").glob("images/*"))


def test_what_the_result_is_for_may_be_said_afterwards(hybrid_search, tmp_path):
    """`about` is read from the search file beside the study, where it may be written later; it
    makes no other search."""
    copy = shutil.copytree(hybrid_search, tmp_path / "search")
    file = copy / "search.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "about: Counts.\n", encoding="utf-8")
    assert write_record(copy, tmp_path / "record").settings.about == "Counts."
    assert write_record(copy, tmp_path / "pushed", about="Sings.").settings.about == "Sings."
    with pytest.raises(HubError, match=r"about.*at most 300 characters"):
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
    for name in ("rows.csv", "task.yaml"):
        (tmp_path / name).touch()
    data = {
        "search": {"data_files": [str(tmp_path / "rows.csv"), "https://x.org/b.csv"]},
        "test": {"dataset": "org/data"},
    }
    retain = {"other": {"lm_eval": ["arc_easy", str(tmp_path / "task.yaml")]}}
    published = _public_settings(
        search_config(data=data, compare={"retain": retain}), SourceRef.hidden
    )
    assert published["data"]["search"]["data_files"] == ["rows.csv", "https://x.org/b.csv"]
    assert published["data"]["test"]["dataset"] == "org/data"
    assert published["compare"]["retain"]["other"]["lm_eval"] == ["arc_easy", "task.yaml"]
    assert str(tmp_path) not in json.dumps(published)


def test_nothing_of_this_machine_is_in_it(hybrid_search, tiny, tmp_path):
    """No file of the record holds a folder of this machine or, unless asked, a problem."""
    write_record(hybrid_search, tmp_path)
    problem = json.loads((tiny / "test.jsonl").read_text().splitlines()[0])["prompt"]
    texts = [
        (tmp_path / STUDY_JSON).read_text(),
        *map(str, parquet.read_table(tmp_path / TRIALS_FILE).to_pylist()),
    ]
    for text in texts:
        assert str(tiny) not in text
        assert problem not in text
    assert json.loads(texts[0])["settings"]["data"]["test"]["jsonl"] == "test.jsonl"
    assert json.loads(texts[0])["settings"]["sources"] == [{"model": "a"}, {"model": "b"}]


def test_examples_are_published_where_they_are_asked_for(hybrid_search, tiny, tmp_path):
    """The first problems of the test split are there, with which models were right, and how many
    only the winner solves."""
    record = write_record(hybrid_search, tmp_path, examples=2)
    examples = record.examples
    problems = [json.loads(line) for line in (tiny / "test.jsonl").read_text().splitlines()]
    assert [(e.prompt, e.answer) for e in examples] == [
        (p["prompt"], p["answer"]) for p in problems[:2]
    ]
    study = Study.open(hybrid_search)
    labels = {
        "evolved": Recipe.load(hybrid_search / "recipe.yaml").key,
        "source:0": "source:0",
        "source:1": "source:1",
        "base": "base",
    }
    right = {}
    for name, label in labels.items():
        scores = study.evaluation(label, "test")
        right[name] = scores.correct.tolist()
    assert [e.right for e in examples] == [
        {name: each[i] for name, each in right.items()} for i in range(2)
    ]
    alone = [
        right["evolved"][i] and not any(right[name][i] for name in list(labels)[1:])
        for i in range(len(problems))
    ]
    assert record.alone == sum(alone)
    spread = [
        {"evolved": True, "a": True},
        {"a": True},
        {"evolved": True, "a": False},
        {"evolved": True},
    ]
    shown = [
        example.model_copy(update={"right": each})
        for example, each in zip([*examples, *examples], spread, strict=True)
    ]
    assert record.model_copy(update={"examples": shown}).telling is shown[2]
    study.close()


def test_failed_trials_and_unfinished_searches_have_a_record(search_config, tmp_path):
    """A search without results, with trials that failed, is recorded as it is, and errors name no
    folder."""
    config = search_config()
    study = Study.create(tmp_path / "study", config.model_dump(mode="json"))
    study.add_trial(
        Trial("ps", 0, 0, np.zeros(2), None, Scores.failed("/home/someone/model: cannot be read"))
    )
    study.close()
    record = write_record(tmp_path / "study", tmp_path / "record")
    assert record.results is None
    assert record.stages[0].failed == 1
    (row,) = parquet.read_table(tmp_path / "record" / TRIALS_FILE).to_pylist()
    assert (row["state"], row["fitness"], row["standard_error"], row["recipe"]) == (
        "FAILED",
        None,
        None,
        None,
    )
    assert row["error"] == "model: cannot be read"


@pytest.mark.parametrize(
    ("error", "published"),
    [
        (
            "[Errno 2] No such file: '/home/some one/a/x.safetensors'",
            "[Errno 2] No such file: 'x.safetensors'",
        ),
        ("cannot open (/data/private/y), or ~/z/w; stop", "cannot open (y), or w; stop"),
        (
            "file=/home/me/q and/or https://huggingface.co/u/m at 3/4",
            "file=q and/or https://huggingface.co/u/m at 3/4",
        ),
    ],
)
def test_errors_name_no_folder(error, published):
    """Wherever a path of this machine stands in an error, only its last name is published;
    addresses stay."""
    assert _without_folders(error) == published
