"""Fitness from the user's own Python function. Python only: a YAML file cannot name code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from ...errors import FitnessError, shown, told
from ..example import Example
from ..prepared import PreparedTask
from ..scores import Scores
from ..text.encoding import scoring

FitnessFunction = Callable[[Any, Any, list[Example]], Iterable[float]]


class FunctionTask(PreparedTask):
    """Score a model by a function of the model, the tokenizer and the examples.

    The function returns one number per example, in their order; more is better. It runs in
    inference mode with the model in evaluation mode, and must not change the model.

    Example:
        >>> def brevity(model, tokenizer, examples):
        ...     return [-len(example.prompt) for example in examples]
        >>> task = FunctionTask(brevity)
        >>> task.prepare([Example("2 + 3 =", "5"), Example("2 + 3 + 4 =", "9")], tokenizer)
        >>> task.evaluate(model).mean
        -9.0
    """

    def __init__(self, function: FitnessFunction) -> None:
        super().__init__(None)
        self.function = function

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        with scoring(model):
            returned = self.function(model, self._tokenizer, list(self._examples))
        return Scores(numbers(f"fitness function {name}", returned, len(self._examples)))


def numbers(what: str, returned: Any, count: int, *, nothing: float | None = None) -> list[float]:
    """The numbers that a user's function returned, `nothing` for None; raises `FitnessError` unless
    there is one an example."""
    expected = f"{what}: expected one number per example: "
    with told(FitnessError, (TypeError, ValueError), expected):
        if isinstance(returned, str | bytes | Mapping | Set):
            raise TypeError(f"found a {type(returned).__name__}")
        values = [_number(nothing if value is None else value) for value in returned]
    if len(values) != count:
        raise FitnessError(f"{what}: {len(values)} numbers for {count} examples")
    return values


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"found the text {shown(value)}")
    return float(value)
