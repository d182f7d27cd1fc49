"""Searches that are watched, or ended as a killed process is; processes that are there; studies
that are changed."""

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from hf_evomerge.search.callbacks import SearchCallback


class Watch(SearchCallback):
    """Calls a function after every trial and evaluation."""

    def __init__(self, see):
        self.see = see

    def on_progress(self, study, progress):
        self.see(progress)


class KilledError(BaseException):
    """As if the process had been killed."""


def killed(when, run, *given, **more):
    """Run a search, or go on with it, and end it where its progress is such."""

    def see(progress):
        if when(progress):
            raise KilledError

    with pytest.raises(KilledError):
        run(*given, **{"build": False, "callbacks": [Watch(see)], **more})


def runs(pid):
    """Whether a process is there and not only waiting to be noticed."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def are_gone(*pids):
    """Whether processes end, within seconds of the one that they watch."""
    begin = time.monotonic()
    while any(map(runs, pids)) and time.monotonic() - begin < 30:
        time.sleep(0.05)
    return not any(map(runs, pids))


def descendants(pid):
    """Processes that a process has begun, and those that they have."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [each for task in tasks for each in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*map(int, children), *(each for child in children for each in descendants(child))]


def sql(folder, statement):
    """Change a study behind its back."""
    with closing(sqlite3.connect(folder / "study.db")) as connection, connection:
        connection.execute(statement)
