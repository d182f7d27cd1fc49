"""Searches whose fitness is a sum of terms, or agreement with the parents."""

import json
import random
from typing import Any

import pytest
from searches import GRADIENT, facts
from slowly import slow_beyond

from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.checks import check_search
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

Given = dict[str, Any]
OWN = {"task": "likelihood", "separator": " ", "weight": 0.5}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A folder with prompts of the sources ``a`` and ``b`` for every split."""
    folder = tmp_path_factory.mktemp("prompts")
    rng = random.Random(0)
    for name in ("a", "b"):
        for split, count in (("search", 4), ("validation", 2), ("test", 2)):
            texts = [" ".join(f"w{rng.randint(0, 11)}" for _ in range(6)) for _ in range(count)]
            lines = [
                json.dumps({"prompt": f"{split} {name}{i} {text}"}) for i, text in enumerate(texts)
            ]
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def agreement(prompts):
    """The data of an agreement with both sources."""
    return {
        split: {
            "sources": {
                name: {"jsonl": str(prompts / f"{name}-{split}.jsonl")} for name in ("a", "b")
            }
        }
        for split in ("search", "validation", "test")
    }


@pytest.fixture
def terms(agreement):
    """A sum of the likelihood and the agreement."""
    return {
        "terms": [OWN, {"task": "agreement", "weight": 0.2, "max_new_tokens": 4, "data": agreement}]
    }


@pytest.mark.parametrize(
    ("space", "more"), slow_beyond(["ps"], [("ps", {}), ("dfs", {"evaluations": 20})])
)
def test_a_search_by_terms(space, more, search_config, terms, tmp_path):
    """By gradient and in batches it shows every term; two workers give the same trials."""
    steps = [{**GRADIENT, "batch": 2, **more}]
    config = search_config(
        space, optimize=steps, fitness=terms, merge={"groups": "tensor"}, path={"kind": "gates"}
    )
    result = run_search(config, tmp_path / "whole", build=False)
    study = Study.open(tmp_path / "whole")
    steps = [trial for trial in study.trials(space) if trial.scores.gradient is not None]
    assert len(steps) > 2
    row = next(row for row in result.rows if row.winner)
    parts = [row.scores.others[name].mean or 0.0 for name in ("likelihood", "agreement")]
    assert row.scores.mean == pytest.approx(0.5 * parts[0] + 0.2 * parts[1], rel=1e-5)
    assert row.scores.values.size == 6
    assert row.scores.others["agreement"].values.size == 4
    assert row.scores.accuracy is not None
    assert "agreement" in str(result)

    if space == "dfs":  # workers take long to start
        run_search(config, tmp_path / "workers", workers=2, build=False)
        assert facts(tmp_path / "workers") == facts(tmp_path / "whole")


def test_agreement_with_the_base_is_an_objective(search_config, agreement, tmp_path):
    """How far a model is from the base on the search's own answers may be traded against the
    likelihood."""
    pytest.importorskip("pymoo")
    objectives = [
        {
            "name": "near-the-base",
            "fitness": {"task": "agreement", "source": "base", "separator": " "},
        }
    ]
    config = search_config(objectives=objectives)
    run_search(config, tmp_path, build=False)
    scores = Study.open(tmp_path).evaluation("base", "search")
    assert scores.others["near-the-base"].values == pytest.approx(0, abs=1e-5)


def test_a_term_by_evolution(search_config, terms, tmp_path):
    """A black-box search climbs the same sum, and a term without a gradient may be in it."""
    writes = {"task": "generation", "extract": "all", "max_new_tokens": 2}
    config = search_config(fitness={"terms": [*terms["terms"], writes]})
    result = run_search(config, tmp_path, build=False)
    row = next(row for row in result.rows if row.winner)
    assert row.scores.outputs is not None
    assert list(row.scores.others) == ["likelihood", "agreement", "generation"]
    by_gradient = search_config(
        optimize=[GRADIENT], fitness={"terms": [OWN, {**writes, "weight": 2.0}]}
    )
    with pytest.raises(
        EvoMergeError, match=r"fitness\.task: generation has no gradient; use likelihood"
    ):
        check_search(by_gradient, Evaluator(by_gradient))


def test_a_study_stands_on_the_data_of_its_terms(search_config, terms, prompts, tmp_path):
    """A search whose prompts have changed does not go on: its scores would not be comparable."""
    copied = json.loads(json.dumps(terms).replace(str(prompts), str(tmp_path)))
    for file in prompts.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = search_config(fitness=copied)
    run_search(config, tmp_path / "search", build=False)
    run_search(config, tmp_path / "search", build=False)
    file = tmp_path / "b-search.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("b1", "b9"), encoding="utf-8")
    with pytest.raises(
        EvoMergeError, match=r"the search examples .* are not what this study was begun on"
    ):
        run_search(config, tmp_path / "search", build=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["fitness"]["terms"][1].pop("data"),
            "search.jsonl:1: belongs to no source; there are base, a, b: write",
        ),
        (
            lambda s: s["fitness"]["terms"][1]["data"].pop("test"),
            "has data for search, validation, and the search for search",
        ),
        (
            lambda s: s["fitness"]["terms"][1].update(weight=0),
            "fitness: terms.1.weight: must be more than 0 (found 0)",
        ),
        (
            lambda s: s["fitness"]["terms"][1]["data"]["search"]["sources"].update(
                c={"jsonl": "c.jsonl"}
            ),
            "c.jsonl",
        ),
        (
            lambda s: s["fitness"]["terms"][1]["data"]["search"].update(chat=True),
            "'sources': each source has fields of its own; move 'chat' there",
        ),
        (
            lambda s: s["fitness"]["terms"][1]["data"]["search"]["sources"]["a"].update(chat=True),
            "agreement: a: data.chat: the tokenizer has no chat template",
        ),
        (
            lambda s: s.update(optimize=[{"fitness": s["fitness"]}, {}]),
            "terms: have data in the search's own fitness only",
        ),
        (
            lambda s: s["fitness"]["terms"][1]["data"].update(
                test=s["fitness"]["terms"][1]["data"]["search"]
            ),
            "the splits overlap",
        ),
    ],
)
def test_refuses(change, message, search_settings, terms):
    """What cannot work is said in one line, before a model is loaded."""
    settings = json.loads(json.dumps(search_settings(fitness=terms)))
    change(settings)

    def check():
        evaluator = Evaluator(validate(SearchConfig, settings, SearchError))
        evaluator.models.model = lambda _: pytest.fail("a model was loaded")  # type: ignore[method-assign]
        check_search(evaluator.config, evaluator)

    with pytest.raises(EvoMergeError) as caught:
        check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
