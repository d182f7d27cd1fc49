"""The live table holds what was reported, and nothing where nothing was."""

import io
from dataclasses import replace
from typing import cast

import pytest
from rich.cells import cell_len
from rich.console import Console
from searches import minimal

from hf_evomerge.lines import say
from hf_evomerge.search.callbacks import Progress
from hf_evomerge.search.reports.display import LiveTable
from hf_evomerge.search.study.study import Study


def _print(*reports, terminal=False, fails=False):
    """What is written; of a log the table at the end."""
    lines = _written(*reports, terminal=terminal, fails=fails).splitlines(keepends=True)
    heading = next((i for i, line in enumerate(lines) if line.split()[:2] == ["done", "gen"]), 0)
    return "".join(lines if terminal else lines[heading:])


def _written(*reports, terminal=False, fails=False, config=None):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    try:
        with LiveTable(console, config) as table:
            for report in reports:
                table.on_progress(cast(Study, None), report)  # it looks at no study
            if fails:
                raise ValueError
    except ValueError:
        pass
    return stream.getvalue()


NATS = minimal()
PARENTS = Progress("parents", 3, 3, seconds=6.0, fresh=3)
STAGE = Progress(
    "ps",
    30,
    90,
    generation=4,
    best=-0.5,
    mean=-1.25,
    accuracy=0.25,
    sigma=0.1234,
    seconds=60.0,
    fresh=20,
    left=180.0,
    to_come=("best, validated", "held-out test"),
)


def test_the_table_holds_what_was_reported():
    """In a log there is one table: a row per phase with the newest numbers, the rate, and the time
    that is left."""
    text = _print(PARENTS, Progress("ps", 10, 90, sigma=0.5, fresh=1, seconds=1.0), STAGE)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["done", "gen", "best", "accuracy", "mean", "per", "min", "left"]
    assert lines[1] == ["parents", "3/3", "30"]
    assert lines[2] == ["parameter", "space", "30/90", "4", "-0.5", "0.25", "-1.25", "20", "3:00"]
    assert lines[3] == ["to", "come:", "best,", "validated,", "held-out", "test"]
    assert len(lines) == 5
    assert text.endswith("\n")


def test_a_log_has_a_line_per_generation():
    """Under nohup and in CI, every generation writes one line, with the time that is left."""
    more = [
        Progress("ps", done, 90, generation=4, sigma=0.1, seconds=60.0, fresh=20)
        for done in (31, 32)
    ]
    last = Progress("ps", 90, 90, generation=9, best=-0.25, sigma=0.1, seconds=90.0, fresh=80)
    lines = _written(PARENTS, replace(STAGE, left=360.2), *more, last).splitlines()
    assert lines[0] == "parents: 3/3"
    assert (
        lines[1]
        == "parameter space: 30/90, generation 4, best -0.5, accuracy 0.25, mean -1.25, 6:00 left"
    )
    assert lines[2] == "parameter space: 90/90, generation 9, best -0.25"
    assert "done" in lines[3]
    steps = [
        Progress("ps", n / 10, 100, generation=n, sigma=0.1, seconds=1.0, fresh=n / 10)
        for n in range(1, 1001)
    ]
    assert 35 < len(_written(*steps).splitlines()) < 48
    stored = Progress("ps", 30, 90, generation=1, sigma=0.1)
    assert _written(stored).splitlines()[0].split()[0] == "done"


def test_the_legend_says_what_the_numbers_are():
    """Below the table stands one line, the unit of the fitness; where a stage has its own, whose it
    is."""
    lines = _written(PARENTS, replace(STAGE, to_come=()), config=NATS).splitlines()
    assert lines[-2].startswith("parameter space ")
    assert lines[-1] == "best, mean: fitness, more is better: nats per answer"
    steps = [{"by": "gradient", "fitness": {"task": "likelihood", "normalize": "token"}}, {}]
    both = NATS.model_validate(
        {**NATS.model_dump(), "optimize": steps, "fitness": {"task": "generation"}}
    )
    text = " ".join(_written(replace(STAGE, phase="ps-first"), STAGE, config=both).split())
    units = "nats per token (parameter space, first), share of right answers (parameter space)"
    assert f"best, mean: fitness, more is better: {units}" in text
    assert "nats" not in _written(STAGE)


def test_failures_and_duplicates_are_said_where_there_are_any():
    """Failed candidates and recipes seen before are counted below the table, by phase."""
    assert "failed" not in _print(STAGE)
    odd = Progress(
        "dfs", 9, 10, generation=1, sigma=0.1, failed=2, duplicates=5, seconds=9.0, fresh=9
    )
    assert (
        "candidates of data flow space: 2 failed, 5 seen before" in _print(STAGE, odd).splitlines()
    )


def test_nothing_is_cut_in_80_columns():
    """The widest row of a long search, and the lines below, are whole in a terminal of 80
    columns."""
    long = {
        "generation": 9999,
        "best": -0.000123,
        "accuracy": 0.969,
        "mean": -1234.5,
        "sigma": 0.1,
        "fresh": 33.125,
    }
    row = Progress("dfs-first", 1033.125, 20000, **long, seconds=60.0, left=34355.0)  # type: ignore[arg-type]
    text = _print(PARENTS, row)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "1033/20000 9999 -0.000123    0.969 -1.23e+03      33 9:32:35" in text


@pytest.mark.parametrize(
    ("fresh", "left", "text"), [(1, 59.0, "0:59"), (1, 5900.0, "1:38:20"), (0, None, "stored")]
)
def test_the_time_that_is_left(fresh, left, text):
    """It is that of the whole search, in hours where it takes hours; a phase whose trials were all
    stored before says so."""
    row = Progress("ps", 1, 60, sigma=0.1, seconds=1.0, fresh=fresh, left=left)
    assert _print(row).splitlines()[1].split()[-1] == text


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_without_reports_nothing_is_printed(terminal, fails):
    """A search that is refused before its first evaluation leaves no table."""
    assert _print(terminal=terminal, fails=fails) == ""


def test_a_note_stands_above_the_table(capsys):
    """What is said while the table moves is written by its console, at the beginning of a line, and
    the table again below."""
    stream = io.StringIO()
    with LiveTable(Console(file=stream, width=80, force_terminal=True, color_system=None)) as table:
        table.on_progress(cast(Study, None), PARENTS)
        say("note: japanese alone solves 0 %", err=True)
        before, _, after = stream.getvalue().partition("note: japanese alone solves 0 %\n")
    assert before.endswith("\x1b[2K")
    assert after.count("parents") >= 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("err", [False, True])
def test_long_lines_are_wrapped_in_a_terminal(err, monkeypatch, capsys):
    """A terminal gets lines of at most 100 columns, the further ones indented; a file or a pipe
    gets them as they are."""
    name = "err" if err else "out"
    text = "a table   of columns\n- " + "word " * 40
    say(text, err=err, fg="red")
    assert getattr(capsys.readouterr(), name).splitlines() == text.splitlines()
    monkeypatch.setattr(f"sys.std{name}.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    say(text, err=err)
    table, *lines = getattr(capsys.readouterr(), name).splitlines()
    assert table == "a table   of columns"
    assert [line[:6] for line in lines] == ["- word", "  word", "  word"]
    assert all(len(line) <= 100 for line in lines)
    monkeypatch.setenv("COLUMNS", "40")
    say("答え は " * 20 + "x" * 50, err=err)
    *wide, word = getattr(capsys.readouterr(), name).splitlines()
    assert all(cell_len(line) <= 40 for line in wide), "a wide character takes two columns"
    assert word == "  " + "x" * 50


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_commands_no_terminal(terminal, monkeypatch, capsys):
    """Control characters of names and data are shown, and not carried out; tabs and ends of lines
    stay."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    say("note: nothing of \x1b[31ma\x9b1m is\tevolved\nnext\r", fg="red" if terminal else None)
    shown = capsys.readouterr().out.removeprefix("\x1b[31m").replace("\x1b[0m", "")
    assert shown.split() == ["note:", "nothing", "of", "?[31ma?1m", "is", "evolved", "next?"]
