import sqlite3
import sys
from functools import partial
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from refusals import refused
from watch import killed

from hf_evomerge import plan_search, resume_search, run_search
from hf_evomerge.errors import SearchError
from hf_evomerge.search.study.study import Study


class Fake(ModuleType):
    """A tracker that notes its three calls."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **given):
        self.calls.append(("init", given))
        return self

    def log(self, values, step):
        self.calls.append(("log", (step, values)))

    def finish(self):
        self.calls.append(("finish", None))


def cut_short(config, out):
    """Run a search that is ended after six trials."""
    killed(lambda seen: seen.phase == "ps" and seen.done > 5, run_search, config, out)


def test_a_resumed_search_goes_on_in_its_run(search_config, tmp_path, monkeypatch):
    """wandb gets the same id again, and TensorBoard takes back what was logged and not noted."""
    fake = Fake("wandb")
    steps = []
    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = lambda _, purge_step: steps.append(purge_step) or MagicMock()
    for module in (fake, board, ModuleType("tensorboard")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    config = search_config("ps", report_to=["wandb", "tensorboard"])
    cut_short(config, tmp_path)
    run_search(config, tmp_path, build=False)
    first, second = (given["id"] for name, given in fake.calls if name == "init")
    assert first == second
    assert steps == [1, 2]


@pytest.mark.parametrize("failure", [ConnectionError, SystemExit])
def test_a_tracker_that_fails(search_config, tmp_path, monkeypatch, caplog, failure):
    """One that fails in the middle costs a warning, no trial; a resume tells it the rest; one that
    cannot begin is a line."""
    fake = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = fake.log

    def refuse(*_, step=2, **__):
        if step > 1:
            raise failure("the server\nis gone")
        log({}, step)

    monkeypatch.setattr(fake, "log", refuse)
    config = search_config("ps", report_to=["wandb"])
    run_search(config, tmp_path / "out", build=False)
    (said,) = (line for line in caplog.messages if "report_to" in line)
    told = "report_to: wandb has failed, and is told no more before a resume: the server is gone"
    assert said == told
    monkeypatch.setattr(fake, "log", log)
    resume_search(tmp_path / "out", build=False)
    steps = [given[0] for name, given in fake.calls if name == "log"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 2
    monkeypatch.setattr(fake, "init", refuse)
    with refused(SearchError, "report_to: wandb: the server is gone; mend that, or lea"):
        run_search(config, tmp_path / "other", build=False)


def test_trackio(search_config, tmp_path, monkeypatch):
    """trackio itself has one run with every generation and the results, however often the search
    was resumed."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("TRACKIO_PROJECT", "merges")
    config = search_config("ps", report_to=["trackio"])
    cut_short(config, tmp_path / "out")
    run_search(config, tmp_path / "out", build=False)
    connection = sqlite3.connect(tmp_path / "trackio" / "merges.db")
    query = "SELECT run_name, step, metrics FROM metrics ORDER BY step"
    names, steps, metrics = zip(*connection.execute(query), strict=True)
    assert len(set(names)) == 1
    trials = Study.open(tmp_path / "out").trials("ps")
    assert list(steps) == list(range(1, trials[-1].generation + 3))
    assert b"results/" in bytes(metrics[-1])


def test_says_what_to_install(search_config, tmp_path, monkeypatch):
    """A tracker that is missing is named before anything begins."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = search_config("ps", report_to=["wandb"])
    for begin in (plan_search, partial(run_search, out=tmp_path / "out")):
        with refused(SearchError, "report_to: wandb is not installed: pip install wan"):
            begin(config)
    assert not (tmp_path / "out").exists()
