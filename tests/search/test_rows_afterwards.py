"""Rows of the table of results may be asked for after the search."""

import pytest
from refusals import refused
from searches import facts
from toy_search import StoppedError, ToyRunner, table_rows, toy_search
from typer.testing import CliRunner

from hf_evomerge import resume_search, run_search
from hf_evomerge.cli import app
from hf_evomerge.errors import SearchError
from hf_evomerge.search.folder import check_out


def _config(search_config, *baselines, **more):
    steps = "[{by: random, population: 4, evaluations: 8}]"
    return search_config(optimize=steps, compare={"baselines": list(baselines), **more})


def test_a_row_is_added_to_a_finished_search(tmp_path, search_config):
    """Only the new phases are run: trials and winner stay, the table has the row, and the verdict
    counts the second look at the test split. The folder's file says so from then on."""
    first = run_search(_config(search_config, "average"), tmp_path)
    before = facts(tmp_path)
    recipe = tmp_path / "model" / "recipe.yaml"
    built = recipe.stat().st_mtime_ns
    more = _config(search_config, "average", "noise", contributions=True)
    check_out(more, tmp_path)
    assert facts(tmp_path) == before
    result = run_search(more, tmp_path)
    assert "scored once" in " ".join(first.verdict)
    assert "test split was scored 2 times, for evaluations or rows" in " ".join(result.verdict)
    assert [row.stage for row in result.rows if row not in first.rows] == ["noise"]
    assert len(result.contributions) == 2
    assert result.winner == first.winner
    for table in ("trials", "evaluations"):
        assert set(before[table]) <= set(facts(tmp_path)[table])
    assert recipe.stat().st_mtime_ns == built
    assert resume_search(tmp_path, build=False).to_json() == result.to_json()


def test_the_file_beside_a_study_asks_for_rows(tmp_path, search_config):
    """A row that is added or taken out in the folder's own file counts when the folder is gone on
    with, in a dry run too; a row that left takes no trial along, and comes back for nothing."""
    file = tmp_path / "search.yaml"
    first = run_search(_config(search_config, "average", "noise"), tmp_path, build=False)
    trials = facts(tmp_path)["trials"]
    _config(search_config).save(file)
    fewer = resume_search(tmp_path, build=False)
    assert {row.stage for row in fewer.rows} == {"base", "source", "ps"}
    assert "scored once" in " ".join(fewer.verdict), "nothing new was scored"
    _config(search_config, "noise").save(file)
    shown = CliRunner().invoke(app, ["search", str(tmp_path), "--dry-run"])
    assert "noise-ps: " in shown.output
    assert resume_search(tmp_path, build=False).row("noise") == first.row("noise")
    assert facts(tmp_path)["trials"] == trials


def test_anything_else_is_another_search(tmp_path, search_config):
    """Finalists choose the winner and retained data is data: a finished search takes neither."""
    run_search(_config(search_config, "average"), tmp_path, build=False)
    for more in ({"finalists": 5}, {"retain": {"old": {"jsonl": "old.jsonl"}}}):
        with refused(SearchError, r"another search: compare\.(finalists|retain)"):
            check_out(_config(search_config, "noise", **more), tmp_path)


@pytest.mark.parametrize("kind", ["ps", "hybrid"])
def test_a_row_asked_for_afterwards_is_the_row_asked_for_at_once(tmp_path, kind):
    """The random numbers of a stage do not depend on which baselines there are, and a search that
    was killed while it adds one ends the same."""

    def search(folder, *baselines, stop_after=None):
        settings = {
            "base": "{model: c}",
            "merge": "{groups: model}",
            "compare": {"finalists": 3, "baselines": list(baselines)},
        }
        runner = ToyRunner(stop_after=stop_after)
        return table_rows(toy_search(tmp_path / folder, runner, kind, **settings)[1])

    expected = search("a", "average", "alone")
    search("b", "average")
    with pytest.raises(StoppedError):
        search("b", "average", "alone", stop_after=9)
    assert search("b", "average", "alone") == expected
    assert facts(tmp_path / "b")["trials"] == facts(tmp_path / "a")["trials"]
