"""The same search over a toy fitness, stopped, resumed or evaluated in another order: the same trials, or it is refused."""

import pytest
from slowly import slow_beyond
from toy_search import OPTIMIZER, StoppedError, ToyRunner, columns, table_rows, toy_search

from hf_evomerge.errors import SearchError
from hf_evomerge.search.study.study import Study


@pytest.mark.parametrize(
    "kind", slow_beyond(["ps", "dfs", "prune"], ["ps", "dfs", "none", "hybrid", "batches", "first", "prune"])
)
def test_resuming_changes_nothing(kind, tmp_path):
    """Stopped anywhere, once or many times, and resumed, a search ends with the trials and results of one never stopped."""
    whole = ToyRunner()
    study, result = toy_search(tmp_path / "whole", whole, kind)
    expected, table, total = columns(study), table_rows(result), len(whole.jobs)
    for stop in sorted({0, 3, min(9, total - 2), total - 5, total - 1}):  # the pieces below end at every eleventh job
        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            toy_search(folder, ToyRunner(stop_after=stop), kind)
        rest = ToyRunner()
        study, result = toy_search(folder, rest, kind)
        assert columns(study) == expected
        assert table_rows(result) == table
        assert len(rest.jobs) == total - stop
    folder, pieces = tmp_path / "pieces", 0
    while True:
        try:
            study, result = toy_search(folder, ToyRunner(stop_after=11, shuffle=pieces), kind)
            break
        except StoppedError:
            pieces += 1
    assert pieces == (total - 1) // 11
    assert (columns(study), table_rows(result)) == (expected, table)


@pytest.mark.parametrize("kind", slow_beyond(["ps"], ["ps", "none", "hybrid"]))
def test_the_order_of_finishing_changes_nothing(kind, tmp_path):
    """However many workers finish in whatever order, the trials are the same."""
    expected = columns(toy_search(tmp_path / "in order", ToyRunner(), kind)[0])
    for shuffle in range(2):
        assert columns(toy_search(tmp_path / str(shuffle), ToyRunner(shuffle=shuffle), kind)[0]) == expected


def test_another_seed_is_another_search(tmp_path):
    """The seed decides the genomes of every stage, and the stages of one search do not repeat each other's."""
    first = columns(toy_search(tmp_path / "0", ToyRunner(), "hybrid")[0])
    other = columns(toy_search(tmp_path / "1", ToyRunner(), "hybrid", compute={"seed": 1})[0])
    assert not {row[4] for row in first} & {row[4] for row in other if row[0] != "dfs"}
    random = {"optimize": [{**OPTIMIZER, "by": "random"}], "compare": {"baselines": ["average", "random"]}}
    both = columns(toy_search(tmp_path / "2", ToyRunner(), **random)[0])
    assert len({row[4] for row in both}) == len(both) == 62


def test_a_study_of_another_search_is_refused(tmp_path):
    """Going on with other settings is refused: by the first genome that differs, or by trials that are left over."""
    toy_search(tmp_path, ToyRunner())
    with pytest.raises(SearchError, match="ps trial 0: the stored genome is not the one"):
        toy_search(tmp_path, ToyRunner(), compute={"seed": 1})
    with pytest.raises(SearchError, match="the study holds trial 14, which this search never asked for"):
        toy_search(tmp_path, ToyRunner(), optimize=[{"evaluations": 14, "population": 7}])


def test_two_searches_cannot_write_to_one_study(tmp_path):
    """A search refuses a study that another holds, and writes nothing."""
    study = Study.create(tmp_path, {})
    with study.exclusive(), pytest.raises(SearchError, match="another process is running this study"):
        toy_search(tmp_path, ToyRunner())
    assert study.trials() == []
