"""Fitness tasks by name: how a task's section of a YAML file becomes an object that scores a model.

A task is prepared once, with its examples and a tokenizer, and then evaluates any number of models
that use this tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BeforeValidator, SerializeAsAny

from ..errors import FitnessError, nearest, told
from ..recipes.strict_yaml import StrictModel, validate
from .example import Example
from .scores import Scores

LANGUAGE_MODELS = ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING")


class TaskSpec(StrictModel):
    """A task's section of a YAML file; every task has its own kind."""

    task: str
    """The task's name."""
    takes_shots: ClassVar[bool] = False
    """Permission to put solved examples into the prompt, before the question. A task that takes
    them says by ``append_eos`` whether an answer ends with the end-of-text token."""
    scores_version: ClassVar[int] = 1
    """Number of the way of scoring, which a study keeps: raise it when the same answers would score
    otherwise, and a search that began with the old scores does not go on with the new ones."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Models that it scores, by the names of transformers' mappings of classes."""
        return LANGUAGE_MODELS

    @property
    def unit(self) -> str:
        """Unit of the fitness; empty where the task does not say."""
        return ""

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A section of ``data`` with what this task knows of its examples and the section leaves
        out; by default nothing."""
        return dict(data)


class Task(Protocol):
    """Task that scores models."""

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the examples, once for all models."""

    def evaluate(self, model: Any) -> Scores:
        """Score one model.

        Raises:
            FitnessError: The model cannot be scored, for example because its logits are not finite.
        """


@runtime_checkable
class DifferentiableTask(Task, Protocol):
    """A task whose fitness has a gradient."""

    def backward(self, model: Any) -> Scores:
        """Score one model, and add the gradient of the mean score to ``grad`` of the tensors that
        want one.

        Raises:
            FitnessError: As `evaluate`.
        """


@runtime_checkable
class JudgingTask(Task, Protocol):
    """A task that can tell whether one response is right: the rule behind ``correct`` of its
    scores."""

    def judge(self, output: str, example: Example) -> bool:
        """Tell whether what a model wrote answers the example right."""


class RegisteredTask(Task, Protocol):
    """A task that YAML can name: it declares its section and is made from it."""

    spec_type: type[Any]

    def __init__(self, spec: Any) -> None: ...


Registered = TypeVar("Registered", bound=type[RegisteredTask])
_TASKS: dict[str, type[RegisteredTask]] = {}


def register_task(name: str) -> Callable[[Registered], Registered]:
    """Make a task class available to YAML files as ``task: name``.

    Args:
        name: What the class is called in YAML. The class has a ``spec_type`` with its settings; see
            `RegisteredTask`.

    Returns:
        A decorator for the class, which stays as it is.

    Raises:
        FitnessError: The name is taken.
    """

    def register(task: Registered) -> Registered:
        if name in _TASKS:
            raise FitnessError(
                f"task {name!r} is registered twice: {_TASKS[name].__qualname__} and "
                f"{task.__qualname__}"
            )
        _TASKS[name] = task
        return task

    return register


def get_task(name: str) -> type[RegisteredTask]:
    """The task class of a name.

    Raises:
        FitnessError: There is none; the message says which is meant, or lists those that there are.
    """
    if name not in _TASKS:
        raise FitnessError(f"unknown task {name!r}; {nearest(name, task_names())}")
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
        with told(ValueError, FitnessError):
            return parse_task(section)
    return section


AnyTaskSpec = SerializeAsAny[Annotated[TaskSpec, BeforeValidator(_by_name)]]
"""For a field of a larger configuration: any registered task's section, read as that task's own
kind."""
