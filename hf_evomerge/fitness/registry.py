"""Fitness tasks by name: how a task's section of a YAML file becomes an object that scores a model.

A task is prepared once, with its examples and a tokenizer, and then evaluates any number of models that use this tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from ..errors import FitnessError
from ..recipes.strict_yaml import StrictModel, validate
from .data import Example


@dataclass(frozen=True)
class Scores:
    """What one model scored; more is better.

    Attributes:
        values: One finite number per example, in the order of the examples. Their mean is the fitness.
        outputs: What the model wrote, where it wrote anything.
        correct: Whether the answer was right, where the task can tell.
    """

    values: list[float]
    outputs: list[str] | None = None
    correct: list[bool] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise FitnessError("no scores: there must be one per example")
        for i, value in enumerate(self.values):
            if not math.isfinite(value):
                raise FitnessError(f"the score of example {i} is {value}, not a finite number")
        for name in ("outputs", "correct"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.values):
                raise FitnessError(f"{len(self.values)} scores but {len(given)} {name}; there must be one per example")

    @property
    def mean(self) -> float:
        """The fitness."""
        return math.fsum(self.values) / len(self.values)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over examples; nan for a single example."""
        n = len(self.values)
        if n < 2:
            return math.nan
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (n - 1) / n)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, where the task can tell."""
        return None if self.correct is None else sum(self.correct) / len(self.correct)


class TaskSpec(StrictModel):
    """A task's section of a YAML file; every task has its own kind.

    Attributes:
        task: The task's name.
    """

    task: str


class Task(Protocol):
    """Something that scores models."""

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the examples, once for all models."""

    def evaluate(self, model: Any) -> Scores:
        """Score one model.

        Raises:
            FitnessError: The model cannot be scored, for example because its logits are not finite.
        """


class RegisteredTask(Task, Protocol):
    """A task that YAML can name: it declares its section and is made from it."""

    spec_type: ClassVar[type[TaskSpec]]

    def __init__(self, spec: Any) -> None: ...


Registered = TypeVar("Registered", bound=type[RegisteredTask])
_TASKS: dict[str, type[RegisteredTask]] = {}


def register_task(name: str) -> Callable[[Registered], Registered]:
    """Make a task class available to YAML files as ``task: name``.

    Raises:
        FitnessError: The name is taken.
    """

    def register(task: Registered) -> Registered:
        if name in _TASKS:
            raise FitnessError(f"task {name!r} is registered twice: {_TASKS[name].__qualname__} and {task.__qualname__}")
        _TASKS[name] = task
        return task

    return register


def get_task(name: str) -> type[RegisteredTask]:
    """The task class of a name.

    Raises:
        FitnessError: There is none; the message lists those that there are.
    """
    if name not in _TASKS:
        raise FitnessError(f"unknown task {name!r}; there are {', '.join(task_names()) or 'none'}")
    return _TASKS[name]


def task_names() -> list[str]:
    """Names of all registered tasks."""
    return sorted(_TASKS)


def parse_task(section: Mapping[str, Any]) -> TaskSpec:
    """Read a task's section of a YAML file.

    Raises:
        FitnessError: The task is unknown, or a key is wrong; the message names the key.
    """
    name = section.get("task")
    if not isinstance(name, str):
        raise FitnessError(f"task: which one? There are {', '.join(task_names())} (found {name!r})")
    return validate(get_task(name).spec_type, dict(section), FitnessError)


def make_task(spec: TaskSpec) -> Task:
    """The task of a section, not yet prepared."""
    return get_task(spec.task)(spec)


def _by_name(section: Any) -> Any:
    if isinstance(section, Mapping):
        try:
            return parse_task(section)
        except FitnessError as error:
            raise ValueError(str(error)) from error
    return section


AnyTaskSpec = SerializeAsAny[Annotated[TaskSpec, BeforeValidator(_by_name)]]
"""For a field of a larger configuration: any registered task's section, read as that task's own kind."""
