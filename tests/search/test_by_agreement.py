"""Searches whose fitness is agreement with the parents."""

import random
import re
import sys
from pathlib import Path

import pytest
from refusals import refused
from searches import GRADIENT, facts, write_lines

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from specialists.texts import TextKind, write

from hf_evomerge import EvoMergeError, SearchConfig, build_model, plan_search, run_search
from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.model_pool import ModelPool
from hf_evomerge.search.evaluation.tasks import MORE
from hf_evomerge.search.phases.baselines import trainings
from hf_evomerge.search.phases.baselines.merge_lora import with_adapter
from hf_evomerge.search.score_model import evaluate_model
from hf_evomerge.search.study.study import Study

WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A folder with prompts of the sources ``a`` and ``b`` for every split."""
    folder = tmp_path_factory.mktemp("prompts")
    rng = random.Random(0)
    for name in ("a", "b"):
        for split, count in (("search", 4), ("validation", 2), ("test", 2)):
            lines = [
                f'{{"prompt": "{split} {name}{i} {" ".join(rng.choices(WORDS, k=6))}"}}'
                for i in range(count)
            ]
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def agreement(prompts):
    """The data of an agreement with both sources."""
    return {
        split: {"sources": {name: {"jsonl": f"{prompts}/{name}-{split}.jsonl"} for name in "ab"}}
        for split in ("search", "validation", "test")
    }


def test_answers_of_every_skill_are_shown(search_config, agreement, tiny):
    """Examples of each source come in turn, with what the source writes for an answer; weighted
    scores are said to be."""
    for split in agreement.values():
        split["sources"]["b"]["weight"] = 2.0
    config = search_config(fitness={"task": "agreement", "max_new_tokens": 4}, data=agreement)
    shown, of_b = (
        evaluate_model(str(tiny / name), config, split="search", show=4) for name in ("a", "b")
    )
    examples = [shown.examples[number] for number in shown.answers]
    assert [each.source for each in examples] == ["a", "b", "a", "b"]
    answers = zip(shown.answers.values(), of_b.answers.values(), strict=True)
    own = [two[number % 2] for number, two in enumerate(answers)]
    assert [each.answer for each in examples] == own
    assert "(nats of divergence per token, negative, weighted)" in str(shown)
    for split in agreement.values():
        split.update(split.pop("sources")["a"])
    by_b = search_config(fitness={**config.fitness.model_dump(), "source": "b"}, data=agreement)
    shown = evaluate_model(str(tiny / "b"), by_b, split="search", show=2)
    assert [shown.examples[number].answer for number in (0, 1)] == [*shown.answers.values()]
    assert any(shown.answers.values())


def test_prompts_are_made_of_the_search_prompts(search_config, agreement, tmp_path):
    """They are examples of the search alone, the same in every process, and the dry run shows
    one."""
    prompts = ("w1 w2 w3", "w1 w4 w3", "w5 w4 w3", "w5 w4 w6")
    data = write_lines(tmp_path / "prompts.jsonl", *({"prompt": prompt} for prompt in prompts))
    for part in agreement["search"]["sources"].values():
        part["jsonl"] = str(data)
    fitness = {"task": "agreement", "max_new_tokens": 2, "vary": 2}
    config = search_config(fitness=fitness, data=agreement, optimize=[{**GRADIENT, "batch": 2}])
    assert "of 4 prompts of b 2 more were made, such as" in str(plan_search(config))
    result = run_search(config, tmp_path / "whole", build=False)
    assert result.examples == 4
    run_search(config, tmp_path / "workers", workers=2, build=False)
    assert facts(tmp_path / "workers") == facts(tmp_path / "whole")
    write_lines(data, {"prompt": "w1"}, {"prompt": "w2 w3"})
    assert "of 2 prompts of a none were made" in str(plan_search(config))
    first = {**GRADIENT, "fitness": {**fitness, "source": "a"}}
    with refused(SearchError, "vary: goes with the search's own fitness"):
        plan_search(search_config(optimize=[first, {}]))


def test_prompts_of_validation_are_made_where_none_are_given(search_config, agreement, tmp_path):
    """Every fourth that is made is for validation, and not for the search; the result says so."""
    prompts = ("w1 w2 w3", "w1 w4 w3", "w5 w4 w3", "w5 w4 w6")
    data = write_lines(tmp_path / "prompts.jsonl", *({"prompt": prompt} for prompt in prompts))
    for part in agreement["search"]["sources"].values():
        part["jsonl"] = str(data)
    config = search_config(
        fitness={"task": "agreement", "max_new_tokens": 2, "vary": 3},
        data={"search": agreement["search"]},
        optimize=[{**GRADIENT, "batch": 2}],
    )
    tasks = Evaluator(config).tasks
    splits = {split: [each.prompt for each in tasks.examples(split)] for split in tasks.splits}
    assert list(splits) == ["search", "validation"]
    assert len(splits["validation"]) == 2
    assert len(splits["search"]) == 2 * 4 + 6
    assert not set(splits["validation"]) & set(splits["search"])
    result = run_search(config, tmp_path / "study", build=False)
    assert result.split == "validation"
    assert result.examples == 2
    assert any("validation prompts are made of the search's" in note for note in result.notes)
    assert len(evaluate_model(config.sources[0].model, config).examples) == 2


def test_prompts_of_which_none_can_be_made(search_config, agreement, tmp_path):
    """The search is judged on its own prompts then, and the dry run says what is missing."""
    data = write_lines(tmp_path / "prompts.jsonl", {"prompt": "w1"}, {"prompt": "w2 w3"})
    for part in agreement["search"]["sources"].values():
        part["jsonl"] = str(data)
    config = search_config(
        fitness={"task": "agreement", "max_new_tokens": 2, "vary": 3},
        data={"search": agreement["search"]},
        optimize=[{**GRADIENT, "batch": 2}],
    )
    said = str(plan_search(config))
    assert "of 2 prompts of a none were made" in said
    assert "data.test: not given" in said
    result = run_search(config, tmp_path / "study", build=False)
    assert result.split == "search"
    assert result.examples == 4
    assert not any("made of the search's" in note for note in result.notes)


def test_made_prompts_are_the_searchs_whatever_model_is_scored(
    search_config, agreement, tiny, tmp_path
):
    """New words are neighbours in the base, and not in the model that is scored."""
    # words that stand in one prompt each: new ones come in
    prompts = [f"w1 w{number} w2 w{number + 3} w1" for number in range(3, 6)]
    data = write_lines(tmp_path / "prompts.jsonl", *({"prompt": prompt} for prompt in prompts))
    for part in agreement["search"]["sources"].values():
        part["jsonl"] = str(data)
    fitness = {"task": "agreement", "max_new_tokens": 2, "vary": 6}
    config = search_config(fitness=fitness, data={"search": agreement["search"]})
    made = Evaluator(config).tasks.examples("validation")
    assert {word for each in made for word in each.prompt.split()} - set(" ".join(prompts).split())
    for name in ("a", "b", "base"):
        examples = evaluate_model(str(tiny / name), config).examples
        assert [each.prompt for each in examples] == [each.prompt for each in made]


@pytest.mark.parametrize("splits", [("search",), ("search", "validation", "test")])
def test_more_prompts_are_made_for_a_longer_training(splits, search_config, agreement, tmp_path):
    """They are the search's prompts and others, and none of those that models are chosen by or
    tested on; a search that makes none has no more."""
    prompts = [f"w{1 + i % 7} w{1 + i % 5} w{1 + i % 6}" for i in range(12)]
    data = {}
    for split, own in zip(splits, (prompts[:6], prompts[6:9], prompts[9:]), strict=False):
        file = write_lines(tmp_path / f"{split}.jsonl", *({"prompt": each} for each in own))
        data[split] = {"sources": {name: {"jsonl": str(file)} for name in "ab"}}
    fitness = {"task": "agreement", "max_new_tokens": 2, "vary": 3}
    config = search_config(fitness=fitness, data=data, optimize=[{**GRADIENT, "batch": 2}])
    tasks = Evaluator(config).tasks
    search, more = ([each.prompt for each in tasks.examples(split)] for split in ("search", MORE))
    assert MORE not in tasks.splits
    assert more[: 2 * 6] == search[: 2 * 6]
    assert len(more) > len(search)
    others = {each.prompt for split in tasks.splits[1:] for each in tasks.examples(split)}
    assert not others & set(more)
    plain = search_config(fitness={**fitness, "vary": 0}, data=data)
    tasks = Evaluator(plain).tasks
    assert tasks.examples(MORE) == tasks.examples("search")


def test_trainings_are_ranked_with_their_adapters(search_config, agreement, tmp_path, monkeypatch):
    """The sources answer the prompts before a LoRA is in a model, not between its training and its
    score: each score is that of the adapter that was written."""
    monkeypatch.setattr(trainings, "RATES", (0.05, 0.1, 0.2))
    config = search_config(
        fitness={"task": "agreement", "max_new_tokens": 2},
        data={split: agreement[split] for split in ("search", "test")},
        optimize=[{**GRADIENT, "batch": 2}],
        compare={"baselines": ["merge+lora"]},
        output={"dtype": "float32"},
    )
    run_search(config, tmp_path / "study", build=False)
    evaluator = Evaluator(config)
    with Study.open(tmp_path / "study") as study:
        ranked = [label for label, split in study.evaluated() if label.startswith("together:")]
        trained = [label for label in ranked if not label.startswith("together:built:")]
        for label in trained:
            adapter = tmp_path / "study" / "baselines" / label.replace(":", "-")
            recipe = with_adapter(Recipe.load(adapter / "recipe.yaml"), adapter)
            build_model(recipe, tmp_path / label, whole=True)
            built = evaluator.evaluate(SourceRef(model=str(tmp_path / label)), "test")
            assert study.evaluation(label, "test").mean == pytest.approx(built.mean, abs=1e-4)
    assert len(trained) > 3


def test_prompts_of_the_other_source(search_config, tmp_path):
    """Where files were exchanged, each specialist is surer of its answers to the other's prompts,
    and the dry run asks for their order; in the right order nothing is said."""
    rng = random.Random(0)
    kinds = {
        "maths": TextKind("solve", "en", "en", "en"),
        "japanese": TextKind("recall", "ja", "ja", "ja", 20),
    }
    prompts = {name: [write(kind, rng).prompt for _ in range(8)] for name, kind in kinds.items()}
    files = {
        name: str(write_lines(tmp_path / f"{name}.jsonl", *({"prompt": each} for each in own)))
        for name, own in prompts.items()
    }
    for order, asked in (("maths japanese", False), ("japanese maths", True)):
        data = {
            name: {"jsonl": files[given]}
            for name, given in zip(("maths", "japanese"), order.split(), strict=True)
        }
        config = search_config(
            sources=[{"model": str(SPECIALISTS / name)} for name in data],
            base={"model": str(SPECIALISTS / "base")},
            fitness={"task": "agreement"},
            data={"search": {"sources": data}},
        )
        assert ("in the order of the sources?" in str(plan_search(config))) is asked


@pytest.mark.parametrize("ended", [3, 8])
def test_prompts_that_are_not_answered(ended, search_config, tmp_path):
    """Where a source answers nothing to its prompts, to agree with it would be to answer nothing:
    some such prompts are told before the search, and none that are answered end it."""
    rng = random.Random(0)
    data = {}
    for name, kind in (
        ("maths", TextKind("solve", "en", "en", "en")),
        ("japanese", TextKind("recall", "ja", "ja", "ja", 20)),
    ):
        solved = [write(kind, rng) for _ in range(8)]
        count = ended if name == "maths" else 0  # whose answer is in the prompt already
        texts = [f"{each.prompt} {each.answer}" for each in solved[:count]]
        texts += [each.prompt for each in solved[count:]]
        file = write_lines(tmp_path / f"{name}.jsonl", *({"prompt": text} for text in texts))
        data[name] = {"jsonl": str(file)}
    config = search_config(
        sources=[{"model": str(SPECIALISTS / name)} for name in data],
        base={"model": str(SPECIALISTS / "base")},
        fitness={"task": "agreement"},
        data={"search": {"sources": data}},
    )
    said = rf"maths answers nothing to {ended} of 8 prompts, such as '.*; end them as it was"
    if ended < 8:
        assert re.search(said, str(plan_search(config)))
        result = run_search(config, tmp_path / "study", build=False)
        assert re.search(f"Warned before the search: {said}", str(result))
    else:
        with refused(SearchError, said):
            plan_search(config)
        with refused(SearchError, said):
            run_search(config, tmp_path / "study", build=False)
        assert not (tmp_path / "study").exists()


def test_agreement_with_the_base_is_an_objective(search_config, tmp_path):
    """How far a model is from the base on the search's own answers may be traded against the
    likelihood."""
    pytest.importorskip("pymoo")
    config = search_config(
        objectives="[{name: near, fitness: {task: agreement, source: base, separator: ' '}}]"
    )
    run_search(config, tmp_path, build=False)
    scores = Study.open(tmp_path).evaluation("base", "search")
    assert scores.others["near"].values == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.update(search=data["search"]["sources"]["a"]),
            "a-search.jsonl:1: belongs to no source; there are base,",
        ),
        (lambda data: data["search"]["sources"].update(c={"jsonl": "c.jsonl"}), "c.jsonl"),
        (
            lambda data: data["search"].update(chat=True),
            "'sources': each source has fields of its own; move 'chat' there",
        ),
        (
            lambda data: data["search"]["sources"]["a"].update(chat=True),
            "a has no chat template; set 'chat: false'",
        ),
        (lambda data: data.update(test=data["search"]), "the splits overlap"),
    ],
)
def test_refuses(change, message, search_settings, agreement, monkeypatch):
    """What cannot work is said in one line, before a model is loaded."""
    change(agreement)
    settings = search_settings(fitness={"task": "agreement"}, data=agreement)
    monkeypatch.setattr(ModelPool, "model", lambda *_: pytest.fail("a model was loaded"))
    with refused(EvoMergeError, rf"^.*{re.escape(message)}.*$"):
        plan_search(validate(SearchConfig, settings, SearchError))
