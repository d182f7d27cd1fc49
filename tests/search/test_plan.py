"""The plan of a search: its phases, their times, its workers, and what it warns of."""

import pytest
from searches import BY_BOTH

from hf_evomerge import Example, SearchConfig, plan_search
from hf_evomerge.search.checks import check_search
from hf_evomerge.search.evaluation import memory
from hf_evomerge.search.evaluation.devices import product_seconds
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.tasks import SearchTasks
from hf_evomerge.search.phases import parents


def test_plan(search_config, tmp_path, monkeypatch):
    """A plan says what each phase does, adds up their times, counts workers where they help, and
    writes nothing."""
    monkeypatch.chdir(tmp_path)
    plan = plan_search(search_config("hybrid", compare="{finalists: 2}"))
    assert plan.examples == {"search": 5, "validation": 4, "test": 6}
    text = {phase.name: phase.text for phase in plan.phases}
    dfs = text.pop("dfs")
    assert dfs.startswith("gates (how much of each layer is kept), 6 numbers to evolve, 8 evaluat")
    assert text == {
        "start": "checks, and models are loaded",
        "parents": "3 models on all search examples",
        "ps": "task_arithmetic, 2 numbers to evolve, 8 evaluations, 2 generations of 4 on 5 of 5 "
        "examples",
        "finalists": "up to 4 of the best models on 4 validation examples, which name the winner",
        "test": "7 models on 6 test examples: all rows of the table",
    }
    assert all(0 < phase.seconds < 60 for phase in plan.phases)
    assert plan.minutes() == pytest.approx(sum(phase.seconds for phase in plan.phases) / 60)
    start = plan.phases[0].minutes(2)  # has no work for a second worker
    assert plan.minutes(2) == pytest.approx(start + (plan.minutes() - start) / 2)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_gradient(search_config):
    """Steps wait for each other, so workers do not shorten them, and cost three scores of their
    batch each."""
    steps = "[{by: gradient, evaluations: 60, batch: 1}]"
    plan = plan_search(search_config("ps", merge="{groups: tensor, starts: []}", optimize=steps))
    begin, stage = (phase for phase in plan.phases if phase.name in ("start", "ps"))
    assert stage.at_once == 1
    assert "60 evaluations, 95 gradient steps on 1 of 5 examples" in stage.text
    others = sum(phase.seconds for phase in plan.phases if phase.at_once > 1)
    assert plan.minutes(2) * 60 == pytest.approx(begin.seconds + stage.seconds + others / 2)
    few = "[{by: gradient, evaluations: 2}]"
    small = plan_search(search_config("ps", merge="{method: ties}", optimize=few))
    assert "ps: a gradient moves no density: those numbers stay at their start" in small.notes
    assert "gradient steps, and fewer than 20 hardly move" in "".join(small.warnings)
    fitness = "{task: generation, extract: all, max_new_tokens: 2}"
    both = plan_search(search_config("ps", **BY_BOTH["ps"], fitness=fitness))
    names = [phase.name for phase in both.phases]
    assert names == ["start", "parents", "ps-first", "ps", "finalists", "test"]
    assert "up to 2 of the best models" in both.phases[4].text


def test_a_plan_warns(search_config, search_settings):
    """Small or missing splits and budgets of few generations are named, with what to do."""
    data = search_settings()["data"]
    config = search_config(
        "ps",
        optimize="[{evaluations: 9, population: 8}]",
        data={"search": data["search"], "validation": data["test"]},
    )
    warnings = "\n".join(plan_search(config).warnings)
    for said in (
        "data.test: not given: the table is measured on what the winner was chosen on",
        "search: 5 examples: the standard error of an accuracy is up to 0.22",
        "validation: 6 examples: the standard error",
        "ps: evaluations: 9 do for 1.1 generations of 8, and fewer than 2 hardly move",
    ):
        assert said in warnings
    assert "ps" not in "".join(plan_search(search_config("ps")).warnings)
    at_random = search_config("ps", optimize="[{by: random, evaluations: 9, population: 8}]")
    assert "ps" not in "".join(plan_search(at_random).warnings), "which draws, and does not move"
    compare = {"baselines": ["average", "lora"], "retain": {"general": data["test"]}}
    steps = "[{evaluations: 9, population: 4}]"
    plan = plan_search(search_config("ps", optimize=steps, compare=compare))
    text = {phase.name: phase.text for phase in plan.phases}
    assert text["lora"] == (
        "LoRA from 5 starts, at rates that go on while that helps; about 8 times the cost of the "
        "search"
    )
    assert text["test"] == "7 models on 6 test + 6 retain:general examples: all rows of the table"


def test_answers_that_a_tokenizer_makes_one_are_named(search_config, monkeypatch):
    """Where two answers are the same tokens, a wrong one would count as right: the dry run says
    which."""
    config = search_config("ps")
    assert not any("same tokens" in line for line in plan_search(config).warnings)
    examples = [Example("w1", "zz9"), Example("w2", "yy8")]
    monkeypatch.setattr(SearchTasks, "examples", lambda self, split: examples)
    (line,) = parents._doubts_of_tokenizers(config, Evaluator(config))
    assert line.startswith("the answers 'zz9' and 'yy8' are the same tokens to a, which cannot")


@pytest.mark.parametrize(
    ("prompt", "lost"), [("w1 W2", ""), ("w1 34", "3, 4"), ("w1 \uff37\uff12", "")]
)
def test_a_tokenizer_that_loses_digits_is_named(prompt, lost, search_config, monkeypatch):
    """Where tokens do not give back the letters and digits of a prompt the dry run says which are
    lost; case, width and marks are no matter."""
    config = search_config("ps")
    monkeypatch.setattr(SearchTasks, "examples", lambda self, split: [Example(prompt, "w3")])
    monkeypatch.setattr(SearchTasks, "tokenizer", lambda self, ref: _Tokens())
    found = parents._doubts_of_tokenizers(config, Evaluator(config))
    assert [line.partition(" and gives")[0] for line in found] == [
        f"the tokenizer of a loses {lost} of the prompt {prompt!r}"
    ] * bool(lost)


class _Tokens:
    """A tokenizer that knows w1 and w2 in every case and width."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [0]}

    def decode(self, ids):
        return "w1 w2"


@pytest.mark.parametrize(("times", "warns"), [(78.0, True), (1.1, False), (0.5, False)])
def test_half_precision_is_measured(times, warns, search_config, tiny_half, monkeypatch):
    """On a processor one product in both dtypes says which is the quicker one, and what to write
    into the file; in float32, or on a GPU, nothing is measured."""
    asked = []

    def seconds(dtype):
        asked.append(str(dtype))
        return times if len(asked) % 2 else 1.0

    monkeypatch.setattr("hf_evomerge.search.checks.product_seconds", seconds)
    half, whole = (
        search_config(folder=tiny_half, **more) for more in ({}, {"output": "{dtype: float32}"})
    )
    assert not check_search(whole, Evaluator(whole)).notes
    assert asked == []
    found = check_search(half, Evaluator(half))
    slow = (
        "output.dtype: one product of matrices takes this processor 78 times as long in bfloat16 "
        "as in float32; write `output: {dtype: float32}`"
    )
    assert [line for line in found.warnings if line.startswith("output")] == [slow] * warns
    assert ("2.0 times as fast as float32 here" in found.notes[0]) == (times == 0.5)
    assert asked == ["torch.bfloat16", "float32"]


def test_a_product_takes_milliseconds():
    """Both dtypes are measured, by name or as torch has them."""
    import torch

    assert 0 < product_seconds("float32") < 1
    assert 0 < product_seconds(torch.bfloat16) < 5


def test_what_is_said_of_a_search(search_config, search_settings, tiny_half):
    """The plan notes sections that nobody looks at, and half precision on a processor; a quick one
    does not warn of itself."""
    gates = "{kind: gates, repetitions: 1}"
    steps = "[{evaluations: 8, population: 4}, {evaluations: 8, population: 4, space: dfs}]"
    unused = {
        "path": search_config("ps", path=gates, optimize="[{batch: 1}]"),
        "a step with space: dfs": search_config("ps", optimize=steps),
    }
    assert "not looked at" not in "".join(plan_search(search_config("hybrid")).notes)
    for what, config in unused.items():
        (note,) = (note for note in plan_search(config).notes if "looked" in note)
        left_out = "is not looked at, for space is ps; leave it out, or write space: hybrid"
        assert note == f"{what} {left_out}"
    text = plan_search(search_config("dfs", path=gates)).to_text()
    assert "paths of 2 to 4 hops" in text
    assert "memory of each worker: about 0.6 GB" in text
    half = plan_search(search_config("ps", tiny_half))
    assert [note.partition(":")[0] for note in half.notes] == ["output.dtype"]
    quick = search_settings("ps", optimize="quick")
    del quick["merge"]
    plan = plan_search(SearchConfig.model_validate(quick))
    assert "hardly move" not in "".join(plan.warnings)


@pytest.mark.parametrize(
    ("device", "threads", "models", "workers"),
    [
        ("cpu", 1, 10**9, 16),
        ("cpu", 4, 10**9, 4),
        ("cpu", 32, 10**9, 1),
        ("cuda:0", 1, 10**9, 1),
        (["cuda:0", "cuda:1"], 1, 10**9, 2),
        ("cpu", 1, 30 * 10**9, 2),
    ],
)
def test_workers_by_default(device, threads, models, workers, search_config, monkeypatch):
    """Threads times workers are no more than the cores, all workers fit into the free memory, and
    each GPU has one."""
    monkeypatch.setattr(memory, "cores", lambda: 16)
    monkeypatch.setattr(memory, "free_memory", lambda: 8e10)
    config = search_config("ps", compute={"device": device, "threads": threads})
    assert memory.default_workers(config, models) == workers
