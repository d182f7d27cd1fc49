"""The live table holds what was reported, and nothing where nothing was."""

import io
from contextlib import suppress
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from searches import minimal

from hf_evomerge.lines import say
from hf_evomerge.search.callbacks import Progress
from hf_evomerge.search.reports.display import LiveTable


def _written(*reports, terminal=False, fails=False, config=None):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    with suppress(ValueError), LiveTable(console, config) as table:
        for report in reports:
            table.on_progress(None, report)  # it looks at no study
        if fails:
            raise ValueError
    return stream.getvalue()


def _table(*reports, fails=False):
    """The table at the end of a log, by lines."""
    lines = _written(*reports, fails=fails).splitlines()
    heading = next(i for i, line in enumerate(lines) if line.split()[:2] == ["done", "gen"])
    return lines[heading:]


PARENTS = Progress("parents", 3, 3, seconds=6.0, fresh=3)
ROW = Progress("ps", 30, 90, generation=4, sigma=0.1234, seconds=60.0, fresh=20)
STAGE = replace(
    ROW,
    best=-0.5,
    mean=-1.25,
    accuracy=0.25,
    left=180.0,
    to_come=("best, validated", "held-out test"),
)


def test_the_table_holds_what_was_reported():
    """In a log there is one table: a row per phase with the newest numbers, the rate, and, of a
    search that did not end, the time that is left."""
    reports = (PARENTS, replace(ROW, done=10, fresh=1, seconds=1.0), STAGE)
    lines = _table(*reports, fails=True)
    assert [line.split() for line in lines] == [
        ["done", "gen", "best", "accuracy", "mean", "per", "min", "left"],
        ["parents", "3/3", "30"],
        ["parameter", "space", "30/90", "4", "-0.5", "0.25", "-1.25", "20", "3:00"],
        ["to", "come:", "best,", "validated,", "held-out", "test"],
        ["best,", "mean:", "fitness,", "more", "is", "better"],
    ]
    ended = "\n".join(_table(*reports))
    assert "to come" not in ended
    assert "3:00" not in ended


def test_a_log_has_a_line_per_generation():
    """Under nohup and in CI, every generation writes one line, with the time that is left."""
    more = [replace(ROW, done=done) for done in (31, 32)]
    last = replace(ROW, done=90, generation=9, best=-0.25, seconds=90.0, fresh=80)
    *lines, heading = _written(PARENTS, replace(STAGE, left=360.2), *more, last).splitlines()[:4]
    assert lines == [
        "parents: 3/3",
        "parameter space: 30/90, generation 4, best -0.5, accuracy 0.25, mean -1.25, 6:00 left",
        "parameter space: 90/90, generation 9, best -0.25",
    ]
    assert "done" in heading
    steps = [
        replace(ROW, done=n / 10, total=100, generation=n, fresh=n / 10) for n in range(1, 1001)
    ]
    assert 35 < len(_written(*steps).splitlines()) < 48
    stored = replace(ROW, fresh=0.0)
    assert _written(stored).split()[0] == "done"


def test_the_legend_says_what_the_numbers_are():
    """Below the table stands one line, the unit of the fitness; where a stage has its own, whose it
    is."""
    nats = minimal()
    *_, row, legend = _written(PARENTS, replace(STAGE, to_come=()), config=nats).splitlines()
    assert row.startswith("parameter space ")
    assert legend == "best, mean: fitness, more is better: nats per answer"
    steps = "[{by: gradient, fitness: {task: likelihood, normalize: token}}, {}]"
    both = minimal(optimize=steps, fitness="{task: generation}")
    text = " ".join(_written(replace(STAGE, phase="ps-first"), STAGE, config=both).split())
    units = "nats per token (parameter space, first), share of right answers (parameter space)"
    assert f"best, mean: fitness, more is better: {units}" in text
    assert "nats" not in _written(STAGE)


def test_failures_and_duplicates_are_said_where_there_are_any():
    """Failed candidates and recipes seen before are counted below the table, by phase."""
    assert "failed" not in _written(STAGE)
    odd = replace(ROW, phase="dfs", failed=2, duplicates=5)
    assert "candidates of data flow space: 2 failed, 5 seen before" in _table(STAGE, odd)


def test_nothing_is_cut_in_80_columns():
    """The widest row of a long search, and the lines below, are whole in a terminal of 80
    columns."""
    row = Progress(
        "dfs-first",
        1033.125,
        20000,
        generation=9999,
        best=-0.000123,
        accuracy=0.969,
        mean=-1234.5,
        sigma=0.1,
        fresh=33.125,
        seconds=60.0,
        left=34355.0,
    )
    lines = _table(PARENTS, row, fails=True)
    assert max(map(len, lines)) <= 80
    assert lines[2].endswith("1033/20000 9999 -0.000123    0.969 -1.23e+03      33 9:32:35")


@pytest.mark.parametrize(
    ("fresh", "left", "text"), [(1, 59.0, "0:59"), (1, 5900.0, "1:38:20"), (0, None, "stored")]
)
def test_the_time_that_is_left(fresh, left, text):
    """It is that of the whole search, in hours where it takes hours; a phase whose trials were all
    stored before says so."""
    table = _table(replace(ROW, fresh=fresh, left=left), fails=True)
    assert table[1].split()[-1] == text


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_without_reports_nothing_is_printed(terminal, fails):
    """A search that is refused before its first evaluation leaves no table."""
    assert _written(terminal=terminal, fails=fails) == ""


def test_a_note_stands_above_the_table(capsys):
    """What is said while the table moves is written by its console, at the beginning of a line, and
    the table again below."""
    stream = io.StringIO()
    with LiveTable(Console(file=stream, width=80, force_terminal=True, color_system=None)) as table:
        table.on_progress(None, PARENTS)
        say("note: japanese alone solves 0 %", err=True)
        before, _, after = stream.getvalue().partition("note: japanese alone solves 0 %\n")
    assert before.endswith("\x1b[2K")
    assert "parents" in after
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("err", [False, True])
def test_long_lines_are_wrapped_in_a_terminal(err, monkeypatch, capsys):
    """A terminal gets lines of at most 100 columns, the further ones indented; a file or a pipe
    gets them as they are."""
    name = "err" if err else "out"

    def said(text, **more):
        say(text, err=err, **more)
        return getattr(capsys.readouterr(), name).splitlines()

    text = "a table   of columns\n- " + "word " * 40
    assert said(text, fg="red") == text.splitlines()
    monkeypatch.setattr(f"sys.std{name}.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    table, *lines = said(text)
    assert table == "a table   of columns"
    assert [line[:6] for line in lines] == ["- word", "  word", "  word"]
    assert max(map(len, lines)) <= 100
    monkeypatch.setenv("COLUMNS", "40")
    *wide, word = said("答え は " * 20 + "x" * 50)
    assert max(map(cell_len, wide)) <= 40, "a wide character takes two columns"
    assert word == "  " + "x" * 50


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_commands_no_terminal(terminal, monkeypatch, capsys):
    """Control characters of names and data are shown, and not carried out; tabs and ends of lines
    stay."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    say("note: nothing of \x1b[31ma\x9b1m is\tevolved\nnext\r", fg="red" if terminal else None)
    shown = capsys.readouterr().out.removeprefix("\x1b[31m").replace("\x1b[0m", "")
    assert shown.split() == ["note:", "nothing", "of", "?[31ma?1m", "is", "evolved", "next?"]
