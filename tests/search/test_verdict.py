"""What a search says of its own result, in words, and of its parents before it begins."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from support.compared import N, row_of, rows_of, rows_with

from hf_evomerge import Example, Scores
from hf_evomerge.search.file.splits import Sizes
from hf_evomerge.search.phases.baselines import alone
from hf_evomerge.search.phases.held_out import _learned_by_heart
from hf_evomerge.search.results.constant import Constant
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


def test_nothing_right_and_nothing_chosen():
    """A winner without a right answer is said to have none; rows without a winner, or a failed one,
    say nothing."""
    assert verdict(rows_with(0.0), "test")[0] == f"EVERY ANSWER of evolved PS IS WRONG ({N} of {N})"
    assert verdict(rows_with(0.5)[:-1], "test") == []
    assert verdict([Row("ps", "evolved PS", Scores.failed("broke"), winner=True)], "test") == []


def test_models_that_know_no_more_than_chance():
    """Chance is what a guess has right; within two standard errors of it nothing is known."""
    none, weak, able = (row_of("source", "a", share).scores for share in (0.0, 0.3, 0.35))
    assert no_better_than_chance([weak]) is None
    assert "right than chance (25%)" in no_better_than_chance([none, weak], 0.25)
    assert no_better_than_chance([able], 0.25) is None
    assert "answers one right" in no_better_than_chance([none])
    assert no_better_than_chance([Scores([0.0, 0.0])]) is None


def test_the_best_source_alone_is_the_one_that_is_compared():
    """Whichever source alone is best on these examples is named and compared, in any order of the
    rows; and nothing needs both where a parent as it is does as well."""
    for lone in ({"alone_a": 0.2, "alone_b": 0.5}, {"alone_b": 0.5, "alone_a": 0.2}):
        winner = row_of("ps", "evolved PS", 0.7, winner=True)
        rows = [row_of("alone", f"{name[6:]} alone", share) for name, share in lone.items()]
        said = "\n".join(verdict([*rows, winner], "test"))
        assert "it beats the best alone by 0.200 of accuracy" in said
        assert said.count("alone has") == 2
        parents = [row_of("source", "a", 0.1), row_of("source", "b", 0.7)]
        assert "needs both" not in "\n".join(verdict([*parents, *rows, winner], "test"))


def test_stages_are_compared_and_the_split_is_named():
    """The stage that lost is compared with the winner; figures of a split that chose the winner are
    called optimistic."""
    *_, stages, split = verdict(
        [*rows_with(0.9), row_of("dfs", "evolved PS+DFS", 0.895)], "validation"
    )
    assert stages.startswith("Evolved PS is not distinguishable from evolved PS+DFS")
    assert split.startswith("The validation examples helped to choose the winner: its own figures")


def test_forgetting_is_named():
    """What the winner loses on examples that were not searched on is measured against the best
    parent there."""
    rows = rows_of({"base": 0.1, "maths": 0.8, "japanese": 0.2}, ps=0.9)
    sentence = next(s for s in verdict(rows, "test") if s.startswith("On sums"))
    worse = "On sums it is worse than the best there, maths: -0.400 of accuracy ("
    assert sentence.startswith(worse)
    assert "on sums" in rows_table(rows, "")
    assert published(rows, rows[1]).retained["sums"].accuracy == 0.8


@pytest.mark.parametrize(("share", "said"), [(0.01, False), (0.1, True)])
def test_answers_that_were_cut_are_warned_about(share, said):
    """More than 2 % of cut answers, retained examples too, are named with their model and shown in
    columns; 1 % is not worth a word."""
    *others, won = rows_of({}, ps=0.9)
    cut = won.scores.replace(outputs=["x"] * N, truncated=np.arange(N) < share * N)
    rows = [*others, replace(won, scores=cut, retained={"sums": cut})]
    warned = [each for each in verdict(rows, "test") if each.startswith("ANSWERS WERE CUT")]
    named = [each.endswith("evolved PS 10%, evolved PS on sums 10%") for each in warned]
    assert named == [True] * said
    assert rows_table(rows, "").count(f"{share:.1%}") == 2
    assert published(rows, rows[-1]).retained["sums"].truncated == pytest.approx(share)


def test_parents_that_complement_each_other():
    """Before a search: who solves what alone, how far apart the sources are, and how many examples
    a difference takes."""
    one = row_of("source", "a", 0.5).scores
    other = Scores([-1.0] * N, correct=np.arange(N) >= 0.75 * N)
    assert about_parents({"a": one, "b": other}, 100, "validation") == (
        [
            "search examples solved by a only 50%, by b only 25%, by every source 0%, "
            "by no source 25%",
            "100 validation examples tell an accuracy to ± 0.10",
        ],
        None,
    )


@pytest.mark.parametrize(
    ("one", "other", "warned"),
    [
        # a merge of such a pair was right in four answers of five
        (Scores([-15.0] * N, correct=[False] * N), Scores([-29.0] * N, correct=[False] * N), None),
        (Scores(np.arange(N) < 9), Scores(np.zeros(N)), "no other source solves a search example"),
        (Scores([0.0]), Scores([0.0]), "every source scores the same on every search example"),
        (Scores([0.0]), Scores.failed("broke"), None),
    ],
)
def test_a_parent_that_is_nowhere_ahead(one, other, warned):
    """Only what is known is said: no word against merging by a likelihood, a hint where right or
    wrong leads nowhere."""
    notes, warning = about_parents({"a": one, "b": other}, 100, "validation")
    assert (notes == []) == (other.error is not None)
    assert (warning or "").startswith(warned or "")
    assert (warning is None) == (warned is None)


def test_a_search_by_likelihood_is_judged_by_it():
    """Where no answer is right anywhere, the log-likelihood says which parent is the best, and that
    the winner is WORSE."""
    noise = np.random.default_rng(0).normal(0, 1, N)
    low, high, won = (Scores(mean + noise, correct=[False] * N) for mean in (-26.0, -23.6, -28.6))
    won = won.replace(values=-57.2 - won.values)
    rows = [Row("source", "a", low), Row("source", "b", high), Row("ps", "x", won, winner=True)]
    result = Result(None, "test", rows, unit="nats per answer")
    every, sentence, *_ = result.verdict
    assert every.startswith("EVERY ANSWER of x IS WRONG")
    assert sentence.startswith("X is WORSE than its best parent, b, which has -23.585, by 5.0")
    assert " nats per answer (4." in sentence
    assert "; in accuracy: +0.000 (" in sentence
    saved = result.to_json()
    lead = saved["rows"][1]["lead"]
    assert (saved["unit"], lead["measure"], lead["difference"]) == (
        "nats per answer",
        "accuracy",
        0,
    )


def test_accuracy_and_fitness_that_disagree():
    """A winner with more right answers and a worse log-likelihood has both said; accuracy goes
    first where it tells."""
    right = np.arange(N) < N / 2
    won = Scores(np.where(right, -1.0, -9.0), correct=right)
    parent = Scores(np.full(N, -1.0), correct=[False] * N)
    rows = [Row("source", "a", parent), Row("ps", "evolved PS", won, winner=True)]
    sentence = verdict(rows, "test", "nats per answer")[0]
    assert sentence.startswith("Evolved PS is better than its best parent, a, by 0.500 of accuracy")
    assert "; but WORSE in fitness (nats per answer): -4.000 (" in sentence


def test_an_interval_and_a_test_that_disagree_are_explained():
    """Five answers more of thirty: the interval excludes 0 and p is .062, so the words say hardly,
    and the footnote why."""
    won = Row("ps", "evolved PS", Scores(np.arange(30) < 5), winner=True)
    text = str(Result(None, "test", [Row("source", "a", Scores([0.0] * 30)), won]))
    assert "is hardly distinguishable from its best parent, a, on 30 examples: +0.167 (0" in text
    assert "hardly, that only one of these holds" in text


@pytest.mark.parametrize(("count", "told"), [(20, True), (40, False)])
def test_a_test_of_few_examples_says_so(count, told):
    """Where another model is right more often and few examples cannot show it, both figures are
    said."""
    rights = (np.arange(count) < share * count for share in (0.1, 0.2))
    few, more = (Scores(right, correct=right) for right in rights)
    rows = [Row("source", "a", more), Row("ps", "evolved PS", few, winner=True)]
    sentence = (
        "A has 0.200 right, and evolved PS 0.100: 20 examples are too few to tell which is right "
        "more often"
    )
    assert (sentence in verdict(rows, "test")) == told


RESCALED = "take maths alone, rescaled"


SINGLE = f"A single source, maths rescaled, does as well: {RESCALED}; it has "


SEARCHES = yaml.safe_load("""
both needed:
  shares: {average: 0.3, alone_maths: 0.21, alone_japanese: 0.13, noise: 0.1}
  said:
  - Evolved PS is better than its best parent, maths, by 0.600 of accuracy (0.5
  - Evolved PS is better than the plain average, by 0.500 of accuracy (0.4
  - 'Evolved PS needs both sources: maths alone has 0.210, japanese alone has 0.130; it beats the
    best alone by 0.590 of accuracy (0.5'
  - 'Evolved PS needs more than random changes of its sources'' size: it beats them by
    0.700 of accuracy (0.6'
  - The test split was scored once
a loss:
  shares: {base: 0.6, maths: 0.5, average: 0.95}
  said:
  - Evolved PS is WORSE than the plain average, which has 0.950, by 0.150
  - Evolved PS is better than the base (tiny), by 0.200 of accuracy
  advice: take the plain average
a source that is noise:
  shares: {japanese: 0.0, alone_maths: 0.8, alone_japanese: 0.05, ps: 0.805}
  said:
  - 'A single source, maths rescaled, does as well: take maths alone, rescaled; '
  - Evolved PS is better than its best parent, maths, by 0.605 of accuracy (
  advice: take maths alone, rescaled
a source twice:
  shares: {japanese: 0.2, average: 0.2, alone_maths: 0.7, alone_japanese: 0.7, ps: 0.7}
  said:
  - 'A single source, maths rescaled, does as well: take maths alone, rescaled; '
  advice: take maths alone, rescaled
a task that the base solves:
  shares: {base: 0.9, average: 0.9, alone_maths: 0.9, lora: 0.9, ps: 0.905}
  said:
  - 'The base (tiny) does as well: keep the base (tiny) as it is; it has 0.900 and evolved PS
    0.905, which 200 examples do not tell apart: +0.005 of accuracy ('
  - 'The plain average does as well; it has '
  - 'A single source, maths rescaled, does as well; it has '
  - 'The best of several LoRAs, each at this cost, is as good; it has '
  advice: keep the base (tiny) as it is
a task that nobody solves:
  shares: {base: 0, maths: 0, japanese: 0, average: 0, ps: 0}
  said:
  - 'EVERY ANSWER of evolved PS IS WRONG (200 of 200), and of all others too: nothing here s'
a task that hardly anybody solves:
  shares: {maths: 0.08, japanese: 0.05, average: 0.05, alone_maths: 0.09, ps: 0.08}
  said:
  - 'HARDLY ANYTHING here solves this task: the best, maths alone, has 0.090 right'
a parent is better:
  shares: {maths: 0.9, average: 0.3, alone_maths: 0.8, ps: 0.79}
  said:
  - Evolved PS is WORSE than its best parent, maths, which has 0.900, by 0.110
  advice: keep maths as it is
a parent is enough:
  shares: {maths: 0.8, average: 0.3, alone_maths: 0.8, alone_japanese: 0.2, ps: 0.79}
  said:
  - 'Maths does as well: keep maths as it is; it has '
  advice: keep maths as it is
the average is enough:
  shares: {average: 0.7, alone_maths: 0.3, alone_japanese: 0.1, ps: 0.7}
  said:
  - 'The plain average does as well: take it, no search is needed; it has '
  - Evolved PS is better than its best parent
  - 'Evolved PS needs both sources: maths alone has 0.300, japanese alone has 0.100; '
  advice: take the plain average
LoRA is better:
  shares: {average: 0.3, alone_maths: 0.3, alone_japanese: 0.1, lora: 0.9, ps: 0.7}
  said:
  - Evolved PS is WORSE than a LoRA from maths, rate 0.0003, which has 0.900, by 0.200
  - Evolved PS is better than its best parent
  advice: take the LoRA in baselines/lora, an adapter of tiny
LoRA is better, and beside the merge it is better still:
  shares: {average: 0.3, lora: 0.9, together: 0.97, ps: 0.7}
  said:
  - Evolved PS is WORSE than the LoRA beside the merge, which has 0.970, by 0.270
  advice: take the merge with LoRA
beside the merge a LoRA learns the rest:
  shares: {average: 0.68, alone_maths: 0.1, together: 0.97, ps: 0.7}
  said:
  - Evolved PS is WORSE than the LoRA beside the merge, which has 0.970, by 0.270
  - The plain average does as well; it has
  advice: take the merge with LoRA
a LoRA beside the merge solves what nobody solves:
  shares: {average: 0.02, alone_maths: 0.04, together: 0.9, ps: 0.0}
  said:
  - Evolved PS is WORSE than the LoRA beside the merge, which has 0.900, by 0.900
  - EVERY ANSWER of evolved PS IS WRONG (200 of 200)
  advice: take the merge with LoRA
a source alone is level in next to nothing:
  shares: {maths: 0.01, average: 0.04, alone_maths: 0.04, together: 0.9, ps: 0.05}
  said:
  - Evolved PS is WORSE than the LoRA beside the merge, which has 0.900, by 0.850
  - 'Evolved PS is '
  - 'The test split was scored once, '
  advice: take the merge with LoRA
beside the merge a LoRA learns next to nothing:
  shares: {average: 0.3, alone_maths: 0.1, together: 0.71, ps: 0.7}
  said:
  - Evolved PS is better than its best parent
the prompt is better:
  shares: {average: 0.3, prompt: 0.9, ps: 0.7}
  said:
  - Evolved PS is WORSE than the prompt, which has 0.900, by 0.200
  - Evolved PS is better than its best parent
  advice: keep the prompt
the prompt is worse:
  shares: {average: 0.3, prompt: 0.4, ps: 0.96}
  said:
  - Evolved PS is better than its best parent
  - Evolved PS is better than the plain average
  - Evolved PS beats the prompt by 0.560 of acc
random directions are enough:
  shares: {alone_maths: 0.6, alone_japanese: 0.6, noise: 0.9, ps: 0.9}
  said:
  - 'Random changes in place of its sources do as well: it needs none of them; it '
  - Evolved PS is better than its best parent
  advice: 'fine-tune the base, or take other sources: random changes do as well'
all level:
  shares: {base: 0.8, maths: 0.8, average: 0.8, prompt: 0.8, alone_maths: 0.8, noise: 0.8, lora:
    0.8}
  said:
  - 'The base (tiny) does as well: keep the base (tiny) as it is; '
  - 'The plain average does as well; it has '
  - 'The prompt does as well; it has '
  - 'A single source, maths rescaled, does as well; it has '
  - 'The best of several LoRAs, each at this cost, is as good; '
  advice: keep the base (tiny) as it is
LoRA is level with a level average, and better than it:
  shares: {average: 0.66, lora: 0.74, ps: 0.7}
  said:
  - Evolved PS is WORSE than a LoRA from maths, rate 0.0003, which has 0.740, by 0.040
  advice: take the LoRA in baselines/lora, an adapter of tiny
""")


@pytest.mark.parametrize("case", SEARCHES)
def test_searches_whose_truth_is_known(case):
    """Where something simpler does as well, the first sentence and the next step name the simplest;
    where not, the sentences say what the winner beats and needs."""
    given = SEARCHES[case]
    rows = rows_of(**{"ps": 0.8, **given["shares"]})
    said = verdict(rows, "test")
    starts = given["said"]
    assert [each[: len(start)] for each, start in zip(said, starts, strict=False)] == starts
    simpler = instead(rows)
    assert (simpler and (simpler.against.keep or f"keep {simpler.against.name}")) == given.get(
        "advice"
    )
    assert solves_nothing(rows) == case.endswith("body solves")
    doubt = said[0] if simpler or case.endswith("body solves") else ""
    assert Result(None, "test", rows).doubt == doubt


@pytest.mark.parametrize(("share", "needed"), [(0.08, False), (0.2, True)])
def test_a_source_is_needed_for_what_is_solved(share, needed):
    """A merge that solves next to nothing beats one source alone, and shows no need of the
    other."""
    nothing = dict.fromkeys(("base", "maths", "japanese", "alone_maths", "alone_japanese"), 0.0)
    said = verdict(rows_of(**nothing, together=0.9, ps=share), "test")
    (lone,) = (each for each in said if "alone" in each)
    assert lone.startswith("Evolved PS needs both sources: ") == needed
    assert lone.startswith("Evolved PS is better than ") != needed


def test_beside_the_merge_a_lora_is_better_than_what_is_level_with_the_merge():
    """It is advised where it is level with the merge and what is simpler is behind it."""
    where = np.arange(N)
    solved = {"uniform average": where < 98, "LoRA beside the merge": (where >= 20) & (where < 135)}
    rows = []
    for row in rows_of(average=0.49, together=0.575, ps=0.5):
        correct = solved.get(row.model, row.scores.correct)
        rows.append(replace(row, scores=Scores(correct.astype(float) - 2, correct=correct)))
    first, second, *_ = verdict(rows, "test")
    assert first.startswith("Evolved PS is hardly distinguishable from the LoRA beside the merge")
    assert "; the latter is better than the plain average by 0.085 of accuracy (0.0" in first
    assert second.startswith("The plain average does as well; it has 0.490")
    assert instead(rows).stage == "together"


def _record_of_together(rows):
    """The record's row of a LoRA beside the merge."""
    (row,) = (row for row in Result(None, "test", rows).published().rows if row.stage == "together")
    return row


def test_a_merge_with_lora_is_judged_by_itself():
    """The record has the verdict on the LoRA beside the merge too: what it beats, nothing
    that a merge alone would prove, and what speaks against publishing it."""
    shares = {"alone_maths": 0.4, "alone_japanese": 0.1, "noise": 0.1, "lora": 0.6}
    rows = rows_of(**shares, together=0.9, ps=0.5)
    row = _record_of_together(rows)
    text = "\n".join(row.verdict)
    assert text.startswith("LoRA beside the merge is better than the best source, maths, by")
    assert "better than maths alone, rescaled, by 0.500 of accuracy" in text
    assert "better than random changes in place of its sources, by 0.800" in text
    assert "better than evolved PS, by 0.400" in text
    assert "eeds" not in text
    assert row.doubt == ""
    level = _record_of_together(rows_of(lora=0.9, together=0.9, ps=0.5))
    assert level.doubt == level.verdict[0]
    assert "LoRA" in level.doubt.partition(";")[0]
    assert "is as good" in level.doubt
    one = Constant("no", 0.95, solved=0.9, rest=0.0)
    rows = [replace(each, constant=one if each.stage == "together" else None) for each in rows]
    constant = _record_of_together(rows).doubt
    assert constant.startswith("Always answering 'no', the most frequent answer of")
    assert "and LoRA beside the merge in 0.900" in constant


def test_a_row_that_the_test_chose_is_told():
    """Where the test split chose among trainings, the sentence on it says for which row."""
    rows = rows_with(0.5, together=0.9)
    rows = [replace(row, favoured=row.stage == "together") for row in rows]
    assert "; it also chose the best training for" in verdict(rows, "test")[-1]
    assert "also chose" not in " ".join(verdict(rows_with(0.5, together=0.9), "test"))


@pytest.mark.parametrize("right", [0.9, 0.0])
def test_equal_answers_are_as_good_whatever_their_likelihood(right):
    """A source alone that gives the same answers does as well, though they are less likely to it;
    one without a right answer does not."""
    correct = np.arange(N) < right * N
    noise = np.random.default_rng(0).normal(0, 0.1, N)
    lone, won = (Scores(mean + noise, correct=correct) for mean in (-0.5, -0.1))
    rows = [
        Row("alone", "maths alone", lone, against=alone.against("maths", "ps")),
        Row("ps", "evolved PS", won, winner=True),
    ]
    text = " ".join(verdict(rows, "test", "nats"))
    assert (SINGLE in text) == ("p = 1; but better in fitness (nats): +0.400 (" in text)
    assert (SINGLE in text) == (instead(rows) is not None) == (right > 0)


def test_differences_that_are_nothing_are_not_called_worse():
    """Of as many right answers a difference of a thousandth of a nat is no loss, however sure."""
    correct = np.arange(N) < 0.9 * N
    noise = np.random.default_rng(0).normal(0, 0.1, N)
    for lead, word in ((0.001, "not distinguishable from"), (0.2, "WORSE than")):
        won, better = (Scores(noise - more, correct=correct) for more in (lead, 0.0))
        rows = [
            Row("together", "both", better, against=Against("itself with LoRA", "")),
            Row("ps", "evolved PS", won, winner=True),
        ]
        said = verdict(rows, "test", "nats")[0]
        assert said.startswith(f"Evolved PS is {word} itself with LoRA,")
        assert ("WORSE" in said) == (lead > 0.1)


def test_a_fitness_that_rose_while_the_accuracy_fell_is_told():
    """Where some answers cannot be known a search by likelihood may lose right ones."""
    rows = rows_with(0.4, maths=0.8)
    won = rows[-1].scores
    rows[-1] = replace(rows[-1], scores=won.replace(values=np.full(N, -0.1)))
    said = next(each for each in verdict(rows, "test") if "best parent" in each)
    assert "the fitness rose and the accuracy fell: use maths instead" in said


@pytest.mark.parametrize(
    ("searched", "solved", "said"), [(90, 60, True), (90, 170, False), (66, 120, False)]
)
def test_examples_that_were_learned_by_heart_are_told(searched, solved, said):
    """Where the winner solves far more of 100 search examples than of 200 others, more search
    examples are asked for."""
    trial = Scores(np.zeros(100), correct=np.arange(100) < searched)
    held_out = Scores(np.zeros(N), correct=np.arange(N) < solved)
    study = SimpleNamespace(trials=lambda: [SimpleNamespace(recipe_key="key", scores=trial)])
    sizes = {"search": 100, "test": N}
    run = SimpleNamespace(sizes=Sizes(sizes), winner="key", study=study, evaluator=None)
    text = " ".join(_learned_by_heart(run, held_out))
    assert ("It solves 0.900 of the search examples and 0.300 of the others" in text) == said
    made = [Example("", "", made=number >= 40) for number in range(100)]
    run.evaluator = SimpleNamespace(tasks=SimpleNamespace(examples={"search": made}.get))
    assert "solves 1.000 of the search examples" in " ".join(_learned_by_heart(run, held_out))


def test_a_model_that_is_right_less_often_is_not_called_better():
    """Where the interval of the accuracy says the contrary, the likelihood does not come first."""
    parent = Scores(np.full(28, -9.0), correct=np.arange(28) < 18)
    winner = Scores(np.full(28, -1.5), correct=(np.arange(28) >= 12) & (np.arange(28) < 22))
    rows = [Row("source", "a", parent), Row("ps", "evolved PS", winner, winner=True)]
    assert not any(each.startswith("Evolved PS is better") for each in verdict(rows, "test"))


def test_one_source_of_many_is_named():
    """Of more than two sources the best three alone are named."""
    shares = {"alone_a": 0.3, "alone_b": 0.2, "alone_c": 0.25, "alone_d": 0.1, "ps": 0.8}
    (said,) = (each for each in verdict(rows_of(**shares), "test") if " needs " in each)
    assert said.startswith(
        "Evolved PS needs more than one source: a alone has 0.300, c alone has 0.250, b alone has "
        "0.200; it "
    )


@pytest.mark.parametrize("winner", [0.9, 0.1])
def test_the_results_have_the_lead(winner):
    """Every row but the winner's has the winner's lead over it in JSON; in the text the sentences
    say it, once."""
    rows = rows_with(winner)
    result = Result(None, "test", rows)
    assert max(map(len, rows_table(rows, "").splitlines())) <= 80
    said = "".join(result.verdict)
    assert str(result).replace(RULE, "").count(" p ") == said.count(" p ")
    saved = result.to_json()
    assert [row["lead"] is None for row in saved["rows"]] == [row.winner for row in rows]
    assert saved["rows"][1]["lead"]["difference"] == pytest.approx(winner - 0.2)
