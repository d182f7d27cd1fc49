"""Rows of the table of results may be asked for after the search."""

import pytest
from searches import facts
from toy_search import StoppedError, ToyRunner, table_rows, toy_search
from typer.testing import CliRunner

from hf_evomerge.cli import app
from hf_evomerge.errors import SearchError
from hf_evomerge.search.folder import check_out
from hf_evomerge.search.run import resume_search, run_search


def _config(search_config, *baselines, **more):
    optimizer = {"by": "random", "population": 4, "evaluations": 8}
    return search_config(
        merge={"groups": "model"},
        optimize=[optimizer],
        compare={"baselines": list(baselines), **more},
    )


def _trials(folder, stage):
    return [row for row in facts(folder)["trials"] if row[0] == stage]


def test_a_row_is_added_to_a_finished_search(tmp_path, search_config, caplog):
    """Only the new phases are run: trials and winner stay, the table has the row, and the verdict
    counts the second look at the test split. The folder's file says so from then on."""
    first = run_search(_config(search_config, "average"), tmp_path)
    before = facts(tmp_path)
    built = (tmp_path / "model" / "recipe.yaml").stat().st_mtime_ns
    more = _config(search_config, "average", "random", contributions=True)
    check_out(more, tmp_path)
    assert facts(tmp_path) == before
    result = run_search(more, tmp_path)
    assert "scored once" in " ".join(first.verdict)
    assert "test split was scored 2 times, for evaluations or rows" in " ".join(result.verdict)
    assert [row.stage for row in result.rows if row not in first.rows] == ["random"]
    assert len(result.contributions) == 2
    assert result.winner == first.winner
    assert _trials(tmp_path, "ps") == before["trials"]
    assert set(before["evaluations"]) <= set(facts(tmp_path)["evaluations"])
    assert (tmp_path / "model" / "recipe.yaml").stat().st_mtime_ns == built
    again = resume_search(tmp_path, build=False)
    assert again.to_json() == result.to_json()


def test_the_file_beside_a_study_asks_for_rows(tmp_path, search_config):
    """A row that is added or taken out in the folder's own file counts when the folder is gone on
    with, in a dry run too; a row that left takes no trial along, and comes back for nothing."""
    run_search(_config(search_config, "average", "random"), tmp_path, build=False)
    trials = facts(tmp_path)["trials"]
    file = tmp_path / "search.yaml"
    _config(search_config).save(file)
    fewer = resume_search(tmp_path, build=False)
    assert {row.stage for row in fewer.rows} == {"base", "source", "ps"}
    assert "scored once" in " ".join(fewer.verdict), "nothing new was scored"
    _config(search_config, "random").save(file)
    shown = CliRunner().invoke(app, ["search", str(tmp_path), "--dry-run"])
    assert "random: " in shown.output
    again = resume_search(tmp_path, build=False)
    assert again.row("random") == run_search(_config(search_config, "random"), tmp_path).row(
        "random"
    )
    assert facts(tmp_path)["trials"] == trials


def test_anything_else_is_another_search(tmp_path, search_config):
    """Finalists choose the winner and retained data is data: a finished search takes neither."""
    run_search(_config(search_config, "average"), tmp_path, build=False)
    for more in ({"finalists": 5}, {"retain": {"old": {"jsonl": "old.jsonl"}}}):
        with pytest.raises(SearchError, match=r"another search: compare\.(finalists|retain)"):
            check_out(_config(search_config, "random", **more), tmp_path)


@pytest.mark.parametrize("kind", ["ps", "hybrid"])
def test_a_row_asked_for_afterwards_is_the_row_asked_for_at_once(tmp_path, kind):
    """The random numbers of a stage do not depend on which baselines there are, and a search that
    was killed while it adds one ends the same."""
    at_once, later = (
        {"compare": {"finalists": 3, "baselines": baselines}}
        for baselines in (["average", "random"], ["average"])
    )
    _, expected = toy_search(tmp_path / "a", ToyRunner(), kind, **at_once)
    toy_search(tmp_path / "b", ToyRunner(), kind, **later)
    with pytest.raises(StoppedError):
        toy_search(tmp_path / "b", ToyRunner(stop_after=9), kind, **at_once)
    _, result = toy_search(tmp_path / "b", ToyRunner(), kind, **at_once)
    assert table_rows(result) == table_rows(expected)
    assert facts(tmp_path / "b")["trials"] == facts(tmp_path / "a")["trials"]
