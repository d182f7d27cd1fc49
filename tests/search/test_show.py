"""What a study holds, what a search found and what a model is, in plain text and in pictures."""

import numpy as np
import pytest
from recipes import merge_of, path_of
from scenes import marks_of

from hf_evomerge import Recipe, Scores, Trial
from hf_evomerge.pictures.marks import Text
from hf_evomerge.record import Figures
from hf_evomerge.search.folder import save_results
from hf_evomerge.search.results import plots
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.show import describe_recipe, describe_result, describe_study
from hf_evomerge.search.results.table import Row
from hf_evomerge.search.study.paths import settings_of
from hf_evomerge.search.study.study import Study

SOURCES = [{"model": "org/a"}, {"model": "org/b"}]
SETTINGS = {
    "sources": SOURCES,
    "fitness": {"task": "likelihood"},
    "data": {"search": {"jsonl": "problems.jsonl"}},
}
RECIPES = [merge_of("org/a", "org/b", weights=[w, 1]) for w in (0.1, 0.2, 0.3)]
PATH = path_of("org/a", "org/b", hops=["0:0-3", "1:2"], flow={"scales": [1, 1, 1, 1, 0.5]})


def _scores(*values):
    return Scores(values, correct=np.array(values) > 0, seconds=2.0)


def _trial(study, number, recipe, scores, stage="ps", same=None):
    key = study.add_recipe(recipe)
    trial = Trial(stage, number, number // 2, np.zeros(2), key, scores, duplicate_of=same)
    study.add_trial(trial)


@pytest.fixture
def study(tmp_path):
    """Five trials: one that failed, one that shares another's scores, one of a second stage."""
    study = Study.create(tmp_path, {**SETTINGS, "space": "hybrid"})
    _trial(study, 0, RECIPES[0], _scores(1, -1))
    _trial(study, 1, RECIPES[1], _scores(2, 4))
    _trial(study, 2, RECIPES[1], _scores(2, 4), same=1)
    _trial(study, 3, RECIPES[2], Scores.failed("no memory"))
    _trial(study, 0, PATH, _scores(1, 2), stage="dfs")
    return study


def test_a_study(study):
    """A study is shown stage by stage: how many trials, the best of them with standard errors, and
    the first failure."""
    text = describe_study(study.folder, 5)
    lines = text.splitlines()
    assert lines[0] == "hybrid search over a, b"
    assert "dfs (data flow space): 1 trials, 0 failed, 0 with a recipe seen before" in lines
    stage = lines.index("ps (parameter space): 4 trials, 1 failed, 1 with a recipe seen before")
    heads, best = (line.split() for line in lines[stage + 1 : stage + 3])
    assert heads[:3] == ["trial", "gen", "fitness"]
    assert " ".join(best) == ("1 0 3.000 ± 1.000 1.000 ± 0.000 linear: a weight 0.2, b weight 1")
    assert "fitness: nats per answer" in lines
    assert lines.index("the first failure, trial 3: no memory") > stage
    assert lines[-2].split()[:4] == ["0", "0", "1.500", "±"]
    assert lines[-2].endswith("0:0, 0:1, 0:2, 0:3, 1:2 (scale 0.5)")
    assert max(map(len, lines)) <= 80
    assert text.count("linear") == 2
    assert describe_study(study.folder, 1).count("linear") == 1


def test_the_result_is_shown_and_while_there_is_none_where_it_stands(study):
    """Table, verdict, winner and cost of a search that has ended; before, each stage's budget and
    best, and how to go on."""
    lines = describe_result(study.folder).splitlines()
    assert lines[0] == "hybrid search over a, b"
    stands = "parameter space: 4 of 1000 evaluations in 6 s, 4 trials, 1 failed"
    assert f"{stands}; best 3.000 ± 1.000" in lines
    assert lines[-1].startswith(f"the search has not ended; `hf-evomerge search {study.folder}`")
    won = Row("ps", "evolved PS", _scores(3, 5), evaluations=40, winner=True)
    result = Result(RECIPES[1], "test", [Row("base", "base", _scores(-1, -3)), won])
    save_results(settings_of(study), study, result)
    text = describe_result(study.folder)
    assert str(result) in text
    assert "winner: linear: a weight 0.2, b weight 1" in text
    assert f"{stands}\n" in text
    assert "has not ended" not in text


def test_only_what_was_scored_alike_is_listed(study):
    """A better score of a batch is not put below a worse one of all examples; that there are such
    is said. Long paths fold."""
    _trial(study, 4, RECIPES[2], _scores(5))
    path = path_of("org/a", hops=[f"0:{layer}" for layer in range(30)])
    _trial(study, 1, path, _scores(1, 2), stage="dfs")
    text = describe_study(study.folder)
    assert ("3.000" in text, "5.000" in text) == (True, False)
    assert text.count("others were scored on fewer examples") == 1
    assert "0:29" in text
    assert max(map(len, text.splitlines())) <= 80


def test_adapters_of_one_model_are_told_apart(tmp_path):
    """Sources that are one model with several adapters are shown with these, by their short names
    like everywhere."""
    sources = [{"model": "org/a", "adapter": f"org/{name}"} for name in ("ja", "maths")]
    Study.create(tmp_path, {**SETTINGS, "sources": sources, "space": "ps"})
    assert describe_study(tmp_path).startswith("ps search over a+ja, a+maths")


def test_a_recipe_in_one_line():
    """Weights of groups are shown from the least to the greatest, with the source's name; a hybrid
    has its path behind them."""
    recipe = merge_of(
        *("org/a", "org/b"),
        method="ties",
        base="org/c",
        weights=[{"default": 0.25, "head": 1.5}, [0.5, 0.75]],
        merge={"options": {"density": 0.5}},
        flow={"path": ["2:0-1"], "scales": [1, 0.8]},
    )
    assert describe_recipe(recipe) == (
        "ties: density 0.5, a weight 0.25 to 1.5, b weight 0.5 to 0.75; path 2:0, 2:1 (scale 0.8)"
    )


def test_the_table_of_results():
    """The table has a line per model with standard errors, costs for those that cost something, and
    a mark on the winner."""
    rows = [
        Row("base", "base", Scores([1.0, 3.0])),
        Row("average", "uniform average", Scores.failed("too wide")),
        Row("ps", "evolved PS", _scores(3, 5), evaluations=40, seconds=61.6, winner=True),
    ]
    lines = [" ".join(line.split()) for line in str(Result(RECIPES[0], "test", rows)).splitlines()]
    assert lines[1:4] == [
        "base 2.000 ± 1.000",
        "uniform average failed",
        "evolved PS * 4.000 ± 1.000 1.000 ± 0.000 40 62",
    ]
    assert lines[5].startswith("2 test examples; ± is one standard error, (...) an interval of 95 ")


def test_numbers():
    """Fitness and accuracy are means with the standard error of the mean; what is not known is left
    out."""
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    text = f"0.600 ± {values.std(ddof=1) / np.sqrt(5):.3f}"
    for scores, fitness, accuracy in (
        (Scores(values), text, ""),
        (Scores(values, correct=values > 0), text, text),
        (Scores([0.25]), "0.250", ""),
        (Scores([0.25], correct=[True]), "0.250", "1.000"),
        (Scores.failed("x"), "failed", ""),
    ):
        figures = Figures.of(scores)
        assert (figures.fitness_text, figures.accuracy_text) == (fitness, accuracy)


# ---- pictures


def test_a_search_has_pictures_of_what_its_winner_is(hybrid_search, tmp_path, monkeypatch):
    """A hybrid has its fitness with its unit, the weights by source, and the path, whose last
    source is the merge."""
    drawn = {}

    def keep(scenes, file):
        (scene,) = scenes
        drawn[file.name] = [mark.words for mark in marks_of(scene) if isinstance(mark, Text)]

    monkeypatch.setattr(plots, "save_scenes", keep)
    with Study.open(hybrid_search) as study:
        config = settings_of(study)
        winner = Recipe.load(hybrid_search / "recipe.yaml")
        plots.draw_pictures(config, study, winner, [4, 4], tmp_path / "plots")
    assert list(drawn) == ["fitness.png", "weights.png", "path.png"]
    assert "fitness (nats per answer)" in drawn["fitness.png"]
    assert set(config.source_names) <= set(drawn["weights.png"])
    assert "merged" in " ".join(drawn["path.png"])
