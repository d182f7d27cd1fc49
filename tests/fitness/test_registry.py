from typing import Literal

from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import AnyTaskSpec, Scores, TaskSpec, get_task, make_task, parse_task
from hf_evomerge.fitness import registry as registry_module
from hf_evomerge.fitness.registry import register_task, task_names
from hf_evomerge.recipes.strict_yaml import StrictModel, parse_yaml

from .conftest import refused


class LengthSpec(TaskSpec):
    """Settings of a user's own task."""

    task: Literal["length"] = "length"
    factor: float = 1.0


class LengthTask:
    """A user's own task: the length of the prompts."""

    spec_type = LengthSpec

    def __init__(self, spec):
        self.spec = spec

    def prepare(self, examples, tokenizer):
        self.examples = list(examples)

    def evaluate(self, model):
        return Scores([self.spec.factor * len(example.prompt) for example in self.examples])


class Whole(StrictModel):
    """A larger configuration with a task in it."""

    fitness: AnyTaskSpec


def test_own_task_in_yaml(monkeypatch):
    """A registered task is read from YAML, inside a larger configuration too, and written back; its
    name is taken."""
    monkeypatch.setattr(registry_module, "_TASKS", dict(registry_module._TASKS))
    register_task("length")(LengthTask)
    whole = parse_yaml(Whole, "fitness: {task: length, factor: 2}", SearchError)
    assert whole.fitness == LengthSpec(factor=2)
    assert whole.model_dump() == {"fitness": {"task": "length", "factor": 2.0}}
    assert isinstance(make_task(whole.fitness), LengthTask)
    assert {"generation", "length", "likelihood", "multiple_choice", "perplexity"} <= set(
        task_names()
    )
    with refused("'length' is registered twice"):
        register_task("length")(LengthTask)


def test_unknown_task():
    """An unknown or absent name is refused with the names that there are."""
    names = "agreement, classification, clip, generation, gsm8k, likelihood"
    with refused(f"unknown task 'zzz'; there are {names}"):
        get_task("zzz")
    with refused(r"unknown task 'clyp'; did you mean clip\?"):
        get_task("clyp")
    with refused(rf"task: which one\? There are {names}"):
        parse_task({"normalize": "sum"})
