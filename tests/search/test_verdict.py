"""What a search says of its own result, in words, and of its parents before it begins."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_evomerge.cli.searching import _next
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.search.phases.baselines import alone, average, lora, noise
from hf_evomerge.search.phases.held_out import _learned_by_heart
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.table import Against, Row, published, rows_table
from hf_evomerge.search.results.verdict import (
    RULE,
    about_parents,
    instead,
    no_better_than_chance,
    solves_nothing,
    verdict,
)

N = 200


def _row(stage, model, right, **more):
    """A model that solves the first share of the examples."""
    correct = np.arange(N) < right * N
    adapter = SourceRef(model="tiny", adapter="baselines/lora")
    against = {
        "average": average.AGAINST,
        "alone": alone.against(model.removesuffix(" alone"), "ps"),
        "noise": noise.AGAINST,
        "prompt": Against(
            "the same examples in the prompt",
            "put the examples in the prompt",
            better="beats the same examples in the prompt",
            level="the same examples in the prompt do as well: no search is needed",
            keep="put the examples in the prompt",
        ),
        "random": Against(
            "the random search", "random search found the better one", "over random search"
        ),
        "lora": lora.against(model.rpartition(" (")[0], adapter),
        "ps": Against(model, "the validation split chose the other one"),
        "dfs": Against(model, "the validation split chose the other one"),
    }.get(stage)
    return Row(
        stage,
        model,
        Scores(np.where(correct, -0.5, -2.0), correct=correct),
        against=against,
        **more,
    )  # type: ignore[arg-type]


def _rows(winner, parent=0.2, average=0.3, random=0.4):
    return [
        _row("base", "base (tiny)", 0.05),
        _row("source", "maths", parent),
        _row("source", "japanese", parent / 2),
        _row("average", "uniform average", average),
        _row("ps", "evolved PS", winner, winner=True),
        _row("random", "random search", random),
    ]


@pytest.mark.parametrize(
    ("rows", "sentences"),
    [
        (
            _rows(0.9),
            [
                r"Evolved PS is better than its best parent, maths, by 0\.700 of accuracy \(0\.6",
                r"Evolved PS is better than the plain average, by 0\.600 of accuracy",
                r"Evolved PS is better than the random search, by 0\.500 of accuracy",
                "The test split was scored once",
            ],
        ),
        (
            _rows(0.31, parent=0.3, average=0.3),
            [
                (
                    r"A parent does as well: keep maths as it is; it has 0\.300 and evolved PS "
                    r"0\.310, which 200 examples do not tell apart: \+0\.010 \("
                ),
                (
                    r"The plain average does as well; it has 0\.300 and evolved PS 0\.310, which "
                    r"200 examples do not tell apart: \+0\.010 \("
                ),
            ],
        ),
        (
            _rows(0.1, parent=0.5, average=0.4),
            [
                (
                    r"Evolved PS is WORSE than its best parent, maths, by 0\.400 of accuracy "
                    r"\(0\.3.*: use that one instead$"
                ),
                ".*WORSE than the plain average",
            ],
        ),
        (
            [_row("base", "base (tiny)", 0.6), *_rows(0.4)[1:]],
            [
                r"Evolved PS is WORSE than the base \(tiny\), by 0\.200 of accuracy",
                "Evolved PS is better than the plain average",
            ],
        ),
    ],
    ids=["gain", "nothing", "loss", "below the base"],
)
def test_the_winner_is_compared(rows, sentences):
    """Gains and losses beside parents, base, average and random search have their size; two answers
    of 200 are neither."""
    for said, sentence in zip(verdict(rows, "test"), sentences, strict=False):
        assert re.match(sentence, said), said


def test_nothing_right_and_nothing_chosen():
    """A winner without a right answer is said to have none; rows without a winner, or a failed one,
    say nothing."""
    assert verdict(_rows(0.0), "test")[0] == f"EVERY ANSWER of evolved PS IS WRONG ({N} of {N})"
    assert verdict([_row("source", "a", 0.5), _row("source", "b", 0.5)], "test") == []
    assert verdict([Row("ps", "evolved PS", Scores.failed("broke"), winner=True)], "test") == []


def test_models_that_know_no_more_than_chance():
    """Chance is what a guess has right; within two standard errors of it nothing is known."""
    guesses = [_row("source", "a", 0.3).scores, _row("source", "b", 0.25).scores]
    assert no_better_than_chance(guesses) is None
    assert "right than chance (25%)" in no_better_than_chance(guesses, 0.25)
    assert no_better_than_chance([_row("source", "a", 0.35).scores], 0.25) is None
    assert "answers one right" in no_better_than_chance([_row("source", "a", 0.0).scores])
    assert no_better_than_chance([Scores([0.0, 0.0])]) is None


def test_stages_are_compared_and_the_split_is_named():
    """The stage that lost is compared with the winner; figures of a split that chose the winner are
    called optimistic."""
    rows = [*_rows(0.9), _row("dfs", "evolved PS+DFS", 0.895)]
    sentences = verdict(rows, "validation")
    assert any(
        s.startswith("Evolved PS is not distinguishable from evolved PS+DFS") for s in sentences
    )
    assert (
        sentences[-1]
        == "The validation examples helped to choose the winner: its own figures are optimistic"
    )


def test_forgetting_is_named():
    """What the winner loses on examples that were not searched on is measured against the best
    parent there."""
    rows = _rows(0.9)
    kept = {"base (tiny)": 0.1, "maths": 0.8, "japanese": 0.2}
    rows = [
        Row(
            **{
                **vars(row),
                "retained": {"sums": _row("source", "", kept.get(row.model, 0.4)).scores},
            }
        )
        for row in rows
    ]
    sentence = next(s for s in verdict(rows, "test") if s.startswith("On sums"))
    assert sentence.startswith("On sums it is worse than the best there, maths: -0.400 (")
    assert "on sums" in rows_table(rows, "")
    assert (
        Result.to_json(Result(None, "test", rows))["rows"][1]["retained"]["sums"]["accuracy"] == 0.8
    )  # type: ignore[arg-type]


def test_answers_that_were_cut_are_warned_about():
    """More than 2 % of cut answers are named with their model and shown in a column; 1 % is not
    worth a word."""
    rows = _rows(0.9)
    for share, said in ((0.01, False), (0.1, True)):
        cut = rows[-2].scores.replace(outputs=["x"] * N, truncated=np.arange(N) < share * N)
        marked = [*rows[:-2], Row("ps", "evolved PS", cut, winner=True), rows[-1]]
        assert (
            any(
                s.startswith("ANSWERS WERE CUT") and "evolved PS 10%" in s
                for s in verdict(marked, "test")
            )
            == said
        )
        assert f"{share:.1%}" in rows_table(marked, "")


def test_parents_that_complement_each_other():
    """Before a search: who solves what alone, how far apart the sources are, and how many examples
    a difference takes."""
    one = _row("source", "a", 0.5).scores
    other = Scores([-1.0] * N, correct=np.arange(N) >= 0.75 * N)
    notes, warning = about_parents({"a": one, "b": other}, 100)
    assert (
        notes[0] == "search examples solved by a alone 50%, by b alone 25%, by all 0%, by none 25%"
    )
    assert notes[1] == (
        "a difference of 0.05 in accuracy needs about 2353 test examples to be seen; there are 100"
    )
    assert warning is None


def test_a_parent_that_is_nowhere_ahead():
    """Only what is known is said: no word against merging by a likelihood, a hint where right or
    wrong leads nowhere."""
    form = Scores([-15.0] * N, correct=[False] * N)
    number = Scores([-29.0] * N, correct=[False] * N)
    _, warning = about_parents({"form": form, "number": number}, 100)
    assert warning is None  # a merge of such a pair was right in four answers of five
    solves = np.arange(N) < N / 2
    none = Scores([0.0] * N)
    _, warning = about_parents({"a": Scores(solves), "b": none}, 100)
    assert warning.startswith("no other source solves a search example that a does not: ")
    _, warning = about_parents({"a": none, "b": none}, 100)
    assert warning.startswith("every source scores the same on every search example")
    assert about_parents({"a": form, "b": Scores.failed("broke")}, 100) == ([], None)


def test_a_search_by_likelihood_is_judged_by_it():
    """Where no answer is right anywhere, the log-likelihood says which parent is the best, and that
    the winner is WORSE."""
    noise = np.random.default_rng(0).normal(0, 1, N)
    wrong = [False] * N
    parents = [
        Row("source", name, Scores(mean + noise, correct=wrong))
        for name, mean in (("a", -26.0), ("b", -23.6))
    ]
    rows = [*parents, Row("ps", "evolved PS", Scores(-28.6 - noise, correct=wrong), winner=True)]
    result = Result(None, "test", rows, unit="nats per answer")  # type: ignore[arg-type]
    every, sentence, *_ = result.verdict
    assert every.startswith("EVERY ANSWER of evolved PS IS WRONG")
    assert sentence.startswith("Evolved PS is WORSE than its best parent, b, by 5.0")
    assert " nats per answer (4." in sentence
    assert "; in accuracy: +0.000 (" in sentence
    saved = result.to_json()
    assert saved["unit"] == "nats per answer"
    assert saved["rows"][1]["lead"]["measure"] == "accuracy"
    lead = saved["rows"][1]["fitness_lead"]
    assert lead["measure"] == "fitness"
    assert lead["high"] < -4
    assert lead["difference"] == pytest.approx(rows[2].scores.mean - parents[1].scores.mean)


def test_accuracy_and_fitness_that_disagree():
    """A winner with more right answers and a worse log-likelihood has both said; accuracy goes
    first where it tells."""
    right = np.arange(N) < N / 2
    rows = [
        Row("source", "a", Scores(np.full(N, -1.0), correct=[False] * N)),
        Row("ps", "evolved PS", Scores(np.where(right, -1.0, -9.0), correct=right), winner=True),
    ]
    sentence = verdict(rows, "test", "nats per answer")[0]
    assert sentence.startswith(
        "Evolved PS is better than its best parent, a, by 0.500 of accuracy ("
    )
    assert "; but WORSE in fitness (nats per answer): -4.000 (" in sentence


def test_an_interval_and_a_test_that_disagree_are_explained():
    """Five answers more of thirty: the interval excludes 0 and p is .062, so the words say hardly,
    and the footnote why."""
    won = np.arange(30) < 5
    rows = [
        Row("source", "a", Scores([0.0] * 30)),
        Row("ps", "evolved PS", Scores(won), winner=True),
    ]
    text = str(Result(None, "test", rows))  # type: ignore[arg-type]
    assert (
        "is hardly distinguishable from its best parent, a, on 30 examples: +0.167 (0.016 to "
        "0.296), p = 0.062"
    ) in text
    assert "with hardly, only one of these holds" in text


def test_cut_answers_on_retained_data_are_warned_about():
    """Answers to retained examples that were cut are counted in table and file, and named above 2
    %."""
    cut = Scores([1.0] * N, outputs=["x"] * N, truncated=np.arange(N) < 0.1 * N)
    rows = [Row(**{**vars(row), "retained": {"sums": cut}}) for row in _rows(0.9)[3:5]]
    warned = next(s for s in verdict(rows, "test") if s.startswith("ANSWERS WERE CUT"))
    assert "evolved PS on sums 10%" in warned
    assert "on sums, cut" in rows_table(rows, "")
    assert published(rows, rows[0]).retained["sums"].truncated == pytest.approx(0.1)


NAMES = {
    "base": "base (tiny)",
    "average": "uniform average",
    "prompt": "maths, 16 examples in the prompt",
    "noise": "noise",
    "lora": "LoRA from maths, rate 0.0003 (best of 4)",
    "ps": "evolved PS",
}


def _search(retained=None, **shares):
    """Rows of a search with these shares of right answers, by stage or by source."""
    rows = []
    for name, share in {"base": 0.05, "maths": 0.2, "japanese": 0.1, **shares}.items():
        lone = name.startswith("alone_")
        stage = "alone" if lone else name if name in NAMES else "source"
        model = f"{name.removeprefix('alone_')} alone" if lone else NAMES.get(name, name)
        row = _row(stage, model, share, winner=name == "ps")  # type: ignore[arg-type]
        if lone and any(each.stage == "alone" for each in rows):
            row = replace(row, against=None)  # the best comes first
        if retained:
            kept = _row("source", "", retained.get(name, 0.4)).scores
            row = replace(row, retained={"sums": kept})
        rows.append(row)
    return rows


SEARCHES = {
    "both needed": (
        {"average": 0.3, "alone_maths": 0.21, "alone_japanese": 0.13, "noise": 0.1, "ps": 0.8},
        [
            "Evolved PS is better than its best parent, maths, by 0.600 of accuracy (0.5",
            "Evolved PS is better than the plain average, by 0.500 of accuracy (0.4",
            (
                "Needs both sources: maths alone has 0.210, japanese alone has 0.130; it beats the "
                "best alone by 0.590 of accuracy (0.5"
            ),
            (
                "Needs more than random changes of its sources' size: it beats them by 0.700 of "
                "accuracy (0.6"
            ),
        ],
        None,
    ),
    "a source that is noise": (
        {"japanese": 0.0, "alone_maths": 0.8, "alone_japanese": 0.05, "ps": 0.805},
        [
            ("A single source does as well: take maths as its own search rescaled it; it has "),
            "Evolved PS is better than its best parent, maths, by 0.605 of accuracy (",
        ],
        "take maths as its own search rescaled it",
    ),
    "a source twice": (
        {"japanese": 0.2, "average": 0.2, "alone_maths": 0.7, "alone_japanese": 0.7, "ps": 0.7},
        ["A single source does as well: take maths as its own search rescaled it; it has "],
        "take maths as its own search rescaled it",
    ),
    "a source that is the base": (
        {"japanese": 0.05, "alone_maths": 0.6, "ps": 0.59},
        ["A single source does as well: take maths as its own search rescaled it; it has "],
        "take maths as its own search rescaled it",
    ),
    "a task that the base solves": (
        {"base": 0.9, "maths": 0.8, "average": 0.9, "alone_maths": 0.9, "lora": 0.9, "ps": 0.905},
        [
            ("The base (tiny) does as well: keep the base (tiny) as it is; it has "),
            "The plain average does as well; it has ",
            "A single source does as well; it has ",
            "The best of several LoRAs, each at this cost, is as good; it has ",
        ],
        "keep the base (tiny) as it is",
    ),
    "a task that nobody solves": (
        {"base": 0, "maths": 0, "japanese": 0, "average": 0, "ps": 0},
        [
            (
                "EVERY ANSWER of evolved PS IS WRONG (200 of 200), and of all others too: nothing "
                "here solves this task"
            )
        ],
        None,
    ),
    "a task that hardly anybody solves": (
        {"maths": 0.08, "japanese": 0.05, "average": 0.05, "alone_maths": 0.09, "ps": 0.08},
        ["HARDLY ANYTHING here solves this task: the best, maths alone, has 0.090 right"],
        None,
    ),
    "a parent is enough": (
        {"maths": 0.8, "average": 0.3, "alone_maths": 0.8, "alone_japanese": 0.2, "ps": 0.79},
        ["A parent does as well: keep maths as it is; it has "],
        "keep maths as it is",
    ),
    "the average is enough": (
        {"average": 0.7, "alone_maths": 0.3, "alone_japanese": 0.1, "ps": 0.7},
        [
            "The plain average does as well: take it, no search is needed; it has ",
            "Evolved PS is better than its best parent",
            "Needs both sources: maths alone has 0.300, japanese alone has 0.100; ",
        ],
        "take the plain average",
    ),
    "LoRA is better": (
        {"average": 0.3, "alone_maths": 0.3, "alone_japanese": 0.1, "lora": 0.9, "ps": 0.7},
        [
            ("Evolved PS is WORSE than a LoRA from maths, rate 0.0003, by 0.200 of accuracy (0.1"),
            "Evolved PS is better than its best parent",
        ],
        "take the LoRA in baselines/lora",
    ),
    "the prompt is better": (
        {"average": 0.3, "prompt": 0.9, "alone_maths": 0.3, "alone_japanese": 0.1, "ps": 0.7},
        ["Evolved PS is WORSE than the same examples in the prompt, by 0.200 of accuracy (0.1"],
        "put the examples in the prompt",
    ),
    "the prompt is worse": (
        {"average": 0.3, "prompt": 0.4, "alone_maths": 0.2, "alone_japanese": 0.1, "ps": 0.96},
        [
            "Evolved PS is better than its best parent",
            "Evolved PS is better than the plain average",
            "Beats the same examples in the prompt by 0.560 of accuracy (0.48",
            "Needs both sources: ",
        ],
        None,
    ),
    "random directions are enough": (
        {"alone_maths": 0.6, "alone_japanese": 0.6, "noise": 0.9, "ps": 0.9},
        [
            ("Random changes do as well as the sources: what was found is in the base; it has "),
            "Evolved PS is better than its best parent",
        ],
        "fine-tune the base, or take other sources: random changes do as well as these",
    ),
    "all level": (
        {
            "base": 0.5,
            "maths": 0.5,
            "japanese": 0.5,
            "average": 0.5,
            "prompt": 0.5,
            "alone_maths": 0.5,
            "alone_japanese": 0.5,
            "noise": 0.5,
            "lora": 0.5,
            "ps": 0.5,
        },
        [
            "The base (tiny) does as well: keep the base (tiny) as it is; ",
            "The plain average does as well; it has ",
            "The same examples in the prompt do as well; it has ",
            "A single source does as well; it has ",
            "Random changes do as well as the sources; it has ",
            "The best of several LoRAs, each at this cost, is as good; ",
        ],
        "keep the base (tiny) as it is",
    ),
    "LoRA is level with a level average, and better than it": (
        {"average": 0.66, "lora": 0.74, "ps": 0.7},
        ["Evolved PS is WORSE than a LoRA from maths, rate 0.0003, by 0.040 of accuracy (0."],
        "take the LoRA in baselines/lora",
    ),
}


@pytest.mark.parametrize("case", SEARCHES)
def test_searches_whose_truth_is_known(case):
    """Where something simpler does as well, the first sentence and the next step name the simplest;
    where not, the sentences say what the winner beats and needs."""
    shares, sentences, keep = SEARCHES[case]
    rows = _search(**shares)
    said = verdict(rows, "test")
    for sentence, start in zip(said, sentences, strict=False):
        assert sentence.startswith(start), sentence
    assert len(said) >= len(sentences)
    simpler = instead(rows)
    assert (simpler and simpler.against.keep) == keep
    assert solves_nothing(rows) == case.endswith(("nobody solves", "anybody solves"))


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (
            0.9,
            "A single source does as well: take maths as its own search rescaled it; it has "
            "0.900 and evolved PS 0.900, which 200 examples do not tell apart: +0.000 (-0.010 to "
            "0.010), p = 1 of accuracy; but better in fitness (nats): +0.400 (",
        ),
        (0.0, None),  # two that solve nothing
    ],
)
def test_equal_answers_are_as_good_whatever_their_likelihood(right, sentence):
    """A source alone that gives the same answers does as well, though they are less likely to it;
    one without a right answer does not."""
    correct = np.arange(N) < right * N
    noise = np.random.default_rng(0).normal(0, 0.1, N)
    lone, won = (Scores(mean + noise, correct=correct) for mean in (-0.5, -0.1))
    rows = [
        Row("alone", "maths alone", lone, against=alone.against("maths", "ps")),
        Row("ps", "evolved PS", won, winner=True),
    ]
    said = [each for each in verdict(rows, "test", "nats") if "source" in each]
    assert [each.startswith(sentence or "") for each in said] == [True] * (right > 0)
    assert (instead(rows) is None) == (right == 0)


def test_the_next_step_is_to_publish_what_nothing_simpler_equals():
    """A winner that is better than all is looked at and pushed; one that is not is not."""
    won = Result(None, "test", _rows(0.9))  # type: ignore[arg-type]
    look, push = _next(won, Path("mine"), build=True)
    assert look == "next:   hf-evomerge eval mine --show 3"
    assert push.startswith("        hf-evomerge push mine YOUR-NAME/YOUR-MERGE")
    assert _next(won, Path("mine"), build=False) == []
    level = Result(None, "test", _rows(0.31, parent=0.3))  # type: ignore[arg-type]
    assert _next(level, Path("mine"), build=True) == ["next:   keep maths as it is"]
    poor = Result(None, "test", _rows(0.45))  # type: ignore[arg-type]
    _, more = _next(poor, Path("mine"), build=True)
    assert more.startswith("        it solves 45% of the problems: raise evaluations")


@pytest.mark.parametrize(
    ("searched", "solved", "said"), [(90, 60, True), (90, 170, False), (66, 120, False)]
)
def test_examples_that_were_learned_by_heart_are_told(searched, solved, said):
    """Where the winner solves far more of 100 search examples than of 200 others, more search
    examples are asked for."""
    trial = Scores(np.zeros(100), correct=np.arange(100) < searched)
    held_out = Scores(np.zeros(N), correct=np.arange(N) < solved)
    run = SimpleNamespace(
        sizes={"search": 100, "test": N},
        winner="key",
        judged_on="test",
        study=SimpleNamespace(trials=lambda: [SimpleNamespace(recipe_key="key", scores=trial)]),
    )
    lines = _learned_by_heart(run, held_out)
    assert [
        "It solves 0.900 of the search examples and 0.300 of the others" in x for x in lines
    ] == [True] * said


def test_a_few_test_examples_give_no_advice():
    """That eight examples do not tell a parent and the winner apart is no reason to keep the
    parent; a parent that is better on them is named."""

    def rows(parent, winner):
        made = []
        for stage, model, right in (("source", "a", parent), ("ps", "evolved PS", winner)):
            correct = np.arange(8) < right
            scores = Scores(np.where(correct, 0.0, -1.0), correct=correct)
            made.append(Row(stage, model, scores, winner=stage == "ps"))
        return [*made, replace(made[0], model="b")]

    assert instead(rows(3, 2)) is None
    assert instead(rows(8, 1)).model == "a"


def test_a_lora_that_forgets_more_is_no_substitute():
    """A LoRA that is level on the task, and has lost more of what was to be retained, is said to
    have; the winner is published."""
    shares = {"average": 0.3, "lora": 0.8, "ps": 0.8}
    rows = _search({"lora": 0.02, "ps": 0.38}, **shares)
    (said,) = (each for each in verdict(rows, "test") if "LoRA" in each)
    assert said.startswith(
        "The best of several LoRAs, each at this cost, is as good, and forgets more "
        "(0.02 against 0.38 of sums); it has "
    )
    assert instead(rows) is None
    rows = _search({"lora": 0.38, "ps": 0.38}, **shares)
    assert instead(rows).stage == "lora"


def test_one_source_of_many_is_named():
    """Of more than two sources the best three alone are named."""
    shares = {"alone_a": 0.3, "alone_b": 0.2, "alone_c": 0.25, "alone_d": 0.1, "ps": 0.8}
    (said,) = (each for each in verdict(_search(**shares), "test") if each.startswith("Needs"))
    assert said.startswith(
        "Needs more than one source: a alone has 0.300, c alone has 0.250, b alone has 0.200; it "
    )


@pytest.mark.parametrize("winner", [0.9, 0.1])
def test_the_results_have_the_lead(winner):
    """Every row but the winner's has the winner's lead over it in JSON; in the text the sentences
    say it, once."""
    rows = _rows(winner)
    text = str(Result(None, "test", rows))  # type: ignore[arg-type]
    assert max(map(len, rows_table(rows, "").splitlines())) <= 80
    assert text.replace(RULE, "").count(" p ") == sum(s.count(" p ") for s in verdict(rows, "test"))
    saved = Result(None, "test", rows).to_json()  # type: ignore[arg-type]
    assert [row["lead"] is None for row in saved["rows"]] == [row.winner for row in rows]
    assert saved["rows"][1]["lead"]["difference"] == pytest.approx(winner - 0.2)
    assert saved["verdict"] == verdict(rows, "test")
