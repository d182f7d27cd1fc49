"""What to do after a search: the model to take, or what stands against it."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from support.compared import row_of, rows_of, rows_with

from hf_evomerge import Scores, SourceRef
from hf_evomerge.cli.searching import _next, _run
from hf_evomerge.search import run
from hf_evomerge.search.reports import display
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.table import Against, Row
from hf_evomerge.search.results.verdict import instead, verdict


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (
            rows_with(0.9),
            ["next:   hf-evomerge eval mine --show 3", "        hf-evomerge push mine "],
        ),
        (rows_with(0.31, maths=0.3), ["next:   keep maths as it is"]),
        (
            rows_with(0.45, together=0.9),
            [
                "next:   take the merge with LoRA",
                "        hf-evomerge eval mine/model-with-lora --show 3",
                "        hf-evomerge push mine/model-with-lora ",
            ],
        ),
        (
            rows_with(0.2, together=0.4),
            ["next:   take the merge with LoRA", "        it solves 40% of the problems: give "],
        ),
        (
            [
                *rows_with(0.45),
                row_of("lora", "LoRA", 0.9, target=SourceRef(model="tiny", adapter="lora")),
            ],
            [
                "next:   take the LoRA in baselines/lora, an adapter of tiny",
                "        hf-evomerge eval tiny --adapter lora --search mine/search.yaml --show 3",
            ],
        ),
        (
            [
                *rows_with(0.1),
                row_of("lora", "LoRA", 0.4, target=SourceRef(model="tiny", adapter="lora")),
            ],
            [
                "next:   take the LoRA in baselines/lora, an adapter of tiny",
                "        hf-evomerge eval tiny --adapter lora",
                "        it solves 40% of the problems: give it more search examples",
            ],
        ),
        (
            rows_with(0.45),
            ["next:   hf-evomerge eval ", "        it solves 45% of the problems: give "],
        ),
    ],
)
def test_the_next_step_is_to_publish_what_nothing_simpler_equals(rows, lines):
    """A winner that is better than all is looked at and pushed; one that is not is not."""
    result = Result(None, "test", rows)
    said = _next(result, Path("mine"), build=True)
    assert [each[: len(start)] for each, start in zip(said, lines, strict=True)] == lines
    assert (_next(result, Path("mine"), build=False) == []) == ("eval" in lines[0])


@pytest.mark.parametrize(("together", "folder"), [(0.9, "model-with-lora"), (0.4, "model")])
def test_the_model_is_what_the_next_step_is_for(together, folder, monkeypatch, tmp_path, capsys):
    """Where the LoRA beside the merge is to be taken, its folder is called the model, the recipe is
    the one in it, and a plus marks it in the table."""
    monkeypatch.chdir(tmp_path)
    Path("mine/model-with-lora").mkdir(parents=True)
    Path("mine/model-with-lora/recipe.yaml").touch()
    result = Result(None, "test", rows_with(0.6, together=together))
    marked = [line for line in str(result).splitlines() if " +  " in line]
    assert len(marked) == (folder != "model")
    monkeypatch.setattr(display, "LiveTable", lambda config: nullcontext())
    monkeypatch.setattr(run, "run_search", lambda *_, **__: result)
    _run(None, Path("mine"), build=True, push=None)
    said = capsys.readouterr().out
    recipe = "mine" if folder == "model" else f"mine/{folder}"
    assert f"recipe: {recipe}/recipe.yaml\nmodel:  mine/{folder}\n" in said


@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_a_model_that_loses_a_skill_is_no_advice(kept):
    """Where the best model keeps less than half of a skill that was searched for, the next step is
    to keep the models."""
    rows = []
    for stage, name, shares in (
        ("source", "a", (1.0, 0.0)),
        ("source", "b", (0.0, 1.0)),
        ("ps", "evolved PS", (0.8, kept)),
    ):
        skills = zip("ab", shares, strict=True)
        each = {skill: row_of(stage, name, share).scores for skill, share in skills}
        whole = Scores(
            np.concatenate([scores.values for scores in each.values()]),
            correct=np.concatenate([scores.correct for scores in each.values()]),
        )
        rows.append(Row(stage, name, whole, retained=each, winner=stage == "ps"))
    result = Result(None, "test", rows)
    assert ("MORE THAN HALF IS LOST of b" in result.doubt) == (kept < 0.5)
    (first, *_) = _next(result, Path("mine"), build=True)
    advice = "next:   keep the models: evolved PS keeps 0.30 ("
    assert first.startswith(advice if kept < 0.5 else "next:   hf-evomerge eval mine")


@pytest.mark.parametrize(
    ("winner", "beside", "better", "advised", "few"),
    [
        (8, 13, 1.0, True, True),  # p of the answers is .06, and the scores tell them apart
        (8, 8, 1.0, False, False),  # surer of the same answers
        (8, 13, 0.0, False, True),
        (2, 16, 1.0, True, False),  # told apart by their answers
    ],
)
def test_few_examples_and_a_lora_beside_the_merge(winner, beside, better, advised, few):
    """With 16 examples a better score names the model that has more right, and `next:` agrees with
    the sentences."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16)
    merge = Row("ps", "evolved PS", _few(winner, noise), winner=True)
    against = Against("itself with LoRA", "that one is better", keep="take the merge with LoRA")
    lora = Row("together", "merge with LoRA", _few(beside, noise + better), against=against)
    rows = [Row("source", "a", _few(0, noise - 3)), merge, lora]
    text = " ".join(verdict(rows, "test"))
    assert (instead(rows) is lora) == ("that one is better" in text) == advised
    assert ("too few to tell which is right more often" in text) == few


def _few(right, values):
    """Scores of 16 examples, of which the first are right."""
    return Scores(values, correct=np.arange(16) < right)


@pytest.mark.parametrize(("parent", "winner", "advice"), [(3, 2, None), (8, 1, "a")])
def test_a_few_test_examples_give_no_advice(parent, winner, advice):
    """That eight examples do not tell a parent and the winner apart is no reason to keep the
    parent; a parent that is better on them is named."""
    source, won = (
        Scores(right - 1.0, correct=right)
        for right in (np.arange(8) < parent, np.arange(8) < winner)
    )
    parents = [Row("source", name, source) for name in ("a", "b")]
    found = instead([*parents, Row("ps", "evolved PS", won, winner=True)])
    assert (found and found.model) == advice


def test_a_model_that_was_cut_from_its_only_parent_may_be_level():
    """Of one parent less, and as good, is what was searched for; of two parents one is enough."""
    _, maths, japanese, *_, won = rows_with(0.5, maths=0.5)
    assert instead([maths, won]) is None
    assert instead([maths, japanese, won]).model == "maths"


def test_a_lora_that_forgets_more_is_no_substitute():
    """A LoRA that is level on the task, and has lost more of what was to be retained, is said to
    have; the winner is published."""
    shares = {"average": 0.3, "lora": 0.8, "ps": 0.8}
    rows = rows_of({"lora": 0.02, "ps": 0.38}, **shares)
    (said,) = (each for each in verdict(rows, "test") if "LoRA" in each)
    assert said.startswith(
        "The best of several LoRAs, each at this cost, is as good, and forgets more "
        "(0.02 against 0.38 of sums); it has "
    )
    assert instead(rows) is None
    rows = rows_of({"lora": 0.38, "ps": 0.38}, **shares)
    assert instead(rows).stage == "lora"
    # nor is one that is better on the task
    rows = rows_of({"lora": 0.02, "ps": 0.38}, **{**shares, "lora": 0.95})
    (said,) = (each for each in verdict(rows, "test") if "WORSE" in each)
    assert said.endswith(", but the latter forgets more (0.02 against 0.38 of sums)")
    assert instead(rows) is None


@pytest.mark.parametrize(("skills", "advised"), [(("a", "b"), False), (("a",), True)])
def test_a_parent_with_one_skill_of_two_is_no_advice(skills, advised):
    """Where the result is to have both skills, a parent that has nothing of one is not to be kept,
    however often it is right in all; without skills it is."""
    places = {"a": range(20), "b": range(20, 40)}

    def row(stage, model, right, **more):
        scores = Scores(right, correct=right)
        retained = {name: scores.take(places[name]) for name in skills}
        return Row(stage, model, scores, retained=retained, **more)

    own = np.arange(40) < 20
    rows = [row("source", "a", own), row("source", "b", ~own)]
    rows.append(row("ps", "evolved PS", np.arange(40) % 4 == 0, winner=True))
    assert (instead(rows) is not None) == advised
    assert ("but the latter has nothing of b" in verdict(rows, "test")[0]) != advised
    rows[-1] = row("ps", "evolved PS", np.arange(40) % 2 == 0, winner=True)
    level = "A is right as often in all, and has nothing of b; it has 0.500"
    assert verdict(rows, "test")[0].startswith(level) != advised
