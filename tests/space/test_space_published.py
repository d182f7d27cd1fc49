"""What the Space reads of a published model, and what it makes of missing, broken and hostile
files."""

import json
import time
from dataclasses import replace
from pathlib import Path

import loading
import pyarrow as pa
import pytest
import reading
import views
from pyarrow import parquet
from refusals import refused
from texts import SpaceError

from hf_evomerge.hub.space import with_record
from hf_evomerge.record import Record


def test_the_record_is_read(dfs):
    """Configuration, recipe, study and every trial of a published search are there."""
    found = reading.read(str(dfs))
    config = json.loads((dfs / "config.json").read_text())
    assert list(found.path) == config["path"] == found.recipe.flow.path
    assert list(found.scales) == config["scales"]
    assert [trial.number for trial in found.trials] == list(range(12))
    assert {trial.generation for trial in found.trials} == {0, 1, 2}
    assert set(found.record.levels) == {"base", "a", "b"}
    assert (found.layers, found.labels, found.notes) == ((2, 2), ("a", "b"), ())
    assert not found.on_hub


def test_a_study_on_this_machine_is_shown(dfs, tmp_path):
    """`hf-evomerge space STUDY` shows the record beside links to the model's files; the model is
    read from its own folder, which no link leads out of."""
    study = dfs.parent / "search"
    found = reading.read(str(with_record(study, tmp_path / "search")))
    assert found.record.winner.winner
    assert found.model == str(study / "model")
    assert loading.weights_bytes(found.model, None) > 0
    assert reading.read(found.model).model == found.model


def _views(found):
    """Show a model on every tab."""
    for view in ("heading", "path_view", "fitness_view", "commands", "licenses"):
        getattr(views, view)(found)
    views.film_view(found, 1)


def test_variables_win_over_the_file(tmp_path, monkeypatch):
    """`space.json` names the model unless the variables do; a broken one counts as none."""
    monkeypatch.delenv("EVOMERGE_MODEL", raising=False)
    monkeypatch.delenv("EVOMERGE_REVISION", raising=False)
    assert reading.settings(tmp_path) == ("", None)
    (tmp_path / "space.json").write_text('{"model": "user/name", "revision": null}')
    assert reading.settings(tmp_path) == ("user/name", None)
    monkeypatch.setenv("EVOMERGE_MODEL", "other/model")
    monkeypatch.setenv("EVOMERGE_REVISION", "v1")
    assert reading.settings(tmp_path) == ("other/model", "v1")
    monkeypatch.delenv("EVOMERGE_MODEL")
    (tmp_path / "space.json").write_text("{")
    assert reading.settings(tmp_path) == ("", "v1")


@pytest.mark.parametrize(
    "model",
    ["", "no such folder", "../no such/../x", "a/b/c", "user/name?x", "<img src=x>", "user/\nname"],
)
def test_a_model_that_is_none_is_explained(model):
    """An unset or impossible model is one line that names the variable."""
    with refused(SpaceError, "EVOMERGE_MODEL"):
        reading.read(model)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch):
    """A repository that cannot be asked for is one line, not a trace."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits longer and longer
    with refused(SpaceError, "nobody/nothing"):
        reading.read("nobody/nothing")


def test_what_is_missing_is_left_out(broken):
    """A model without record and recipe is shown from its configuration alone."""
    found = reading.read(str(broken(study__json=None, trials__parquet=None, recipe__yaml=None)))
    assert found.path
    assert found.trials == ()
    assert found.record == Record()
    assert [parent.label for parent in found.parents] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("study__json", "{"),
        ("study__json", "[1]"),
        ("study__json", '{"results": 3, "examples": [1, {"prompt": 2}], "settings": null}'),
        ("trials__parquet", "not parquet"),
        ("recipe__yaml", "a: [1"),
        ("recipe__yaml", "- 1"),
        ("recipe__yaml", "sources: 5\nmerge: x\nflow: []"),
        ("recipe__yaml", "!!python/object/apply:os.system ['touch hacked']"),
        ("README__md", "---\na: [\n---\n"),
    ],
)
def test_what_is_broken_is_left_out(broken, name, text):
    """A file that cannot be read, or holds something else, never takes the page down."""
    found = reading.read(str(broken(**{name: text})))
    _views(found)
    assert found.path
    if name != "README__md":
        (note,) = found.notes
        assert note.startswith(f"{name.replace('__', '.')} cannot be read and is left out")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("hop", ["0", "<b>", 3, None, {}, "0:" + "9" * 20])
def test_a_path_that_cannot_be_read_is_left_out_and_said(broken, dfs, hop):
    """One bad hop in the configuration, or in a trial of the record, does not take the page
    down."""
    config = json.loads((dfs / "config.json").read_text())
    folder = broken(config__json=json.dumps({**config, "path": [*config["path"], hop]}))
    table = parquet.read_table(folder / "trials.parquet")
    column = table.column_names.index("path")
    table = table.set_column(column, "path", pa.array([[str(hop)]] * len(table)))
    parquet.write_table(table, folder / "trials.parquet")
    found = reading.read(str(folder))
    assert (found.path, found.context) == ((), 48)
    assert "The path in config.json cannot be read and is left out." in found.notes
    assert [trial.path for trial in found.trials] == [()] * 12
    _views(found)


@pytest.mark.parametrize("name", ["recipe__yaml", "README__md"])
@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "a: &a [*a]",
        "# " + "x" * (1 << 20),
    ],
    ids=["doubling", "endless", "long"],
)
def test_yaml_has_limits_in_the_space_too(broken, name, text):
    """A recipe or a card beyond the limits of YAML is left out, with a note, within seconds of the
    processor."""
    begin = time.process_time()
    around = "---" if name == "README__md" else ""
    found = reading.read(str(broken(**{name: f"{around}\n{text}\n{around}\n"})))
    assert time.process_time() - begin < 20
    assert found.path
    if name == "README__md":
        assert found.card == {}
    else:
        assert found.recipe is None
        assert any(note.startswith("recipe.yaml cannot be read") for note in found.notes)


def test_without_configuration_there_is_no_model(broken):
    """A folder whose config.json cannot be read is refused in one line."""
    with refused(SpaceError, r"config\.json"):
        reading.read(str(broken(config__json="{")))


def test_a_published_recipe_opens_no_folder_of_the_server(broken, monkeypatch):
    """Of a model from the Hub only repositories are parents: a folder's name in its recipe is never
    a folder here."""
    pin = "f" * 40
    models = ("/etc", "japanese", "user/maths", "other/maths")
    sources = [{"model": model} for model in models]
    sources[2]["revision"] = pin
    recipe = {"sources": sources, "base": {"model": "user/evolved"}, "flow": {"path": ["0:0"]}}
    folder = broken(recipe__yaml=json.dumps(recipe))
    snapshot = folder.rename(folder.parent / ("0123456789" * 4))
    asked = []

    def download(model, name, revision):
        asked.append(revision)
        return snapshot / name if (snapshot / name).is_file() else None

    monkeypatch.setattr(reading, "_download", download)
    found = reading.read("user/model", "main")
    assert (found.model, found.revision) == ("user/model", snapshot.name)
    assert asked[0] == "main"
    assert set(asked[1:]) == {snapshot.name}
    there = ["user/maths", "other/maths", "evolved (2)"]
    assert [parent.label for parent in found.parents] == ["etc", "japanese", *there]
    assert [parent.label for parent in found.parents if not parent.missing] == there
    assert found.parents[2].revision == pin
    names = {"source:0": "x/etc", "source:2": "u/maths", "source:3": "v/maths"}
    named = reading._parents(replace(found, record=Record(names=names)))
    labels = [parent.label for parent in named]
    assert labels[:4] == ["etc", "japanese", "u/maths", "v/maths"]


@pytest.mark.parametrize(("rows", "characters"), [(2000, 10_000), (1, 2 << 20)])
def test_a_small_file_of_endless_trials_is_left_out(broken, monkeypatch, rows, characters):
    """A few kilobytes that say one text thousands of times, or one without end, are never held
    whole."""
    monkeypatch.setattr(reading, "_MOST_READ", 1 << 20)
    folder = broken()
    read = []
    monkeypatch.setattr(reading, "_trial", read.append)
    one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), ["x" * characters])
    table = pa.table({"stage": ["ps"] * rows, "recipe": one})
    parquet.write_table(table, folder / "trials.parquet", compression="zstd")
    assert (folder / "trials.parquet").stat().st_size < 20_000
    found = reading.read(str(folder))
    assert found.trials == ()
    assert "trials.parquet holds more than 1 MiB and is left out." in found.notes
    assert len(read) < 150


def test_a_published_recipe_looks_for_no_run(broken, tmp_path):
    """A recipe that names a folder of checkpoints is left out: its folders would be listed on the
    page's own machine."""
    (tmp_path / "runs" / "private-1").mkdir(parents=True)
    (tmp_path / "runs" / "private-1" / "config.json").write_text("{}")
    text = json.dumps({"sources": {"run": str(tmp_path / "runs")}, "merge": {"method": "linear"}})
    found = reading.read(str(broken(recipe__yaml=text)))
    assert found.recipe is None
    assert [note for note in found.notes if "sources: must be a list" in note]
    assert "private-1" not in str(found.notes)
