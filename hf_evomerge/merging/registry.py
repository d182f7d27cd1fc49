"""The registry of merge methods: what each is called, what its parameters are, and which function computes it. No torch.

A parameter is declared once, here or in the method's file; YAML validation, search bounds and documentation derive from it.
A new method is one function in ``methods/`` with one `register_method` line above it, and its module's name in
``methods/__init__.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import EvoMergeError, RecipeError
from ..recipes.layer_groups import check_keys, expand, one_of_each, parse_key
from ..recipes.recipe import MergePart

if TYPE_CHECKING:
    import torch

    from .arithmetic import ModelJob, TensorJob

Value = float | bool | str


@dataclass(frozen=True)
class Parameter:
    """One number, flag or choice that a merge method takes.

    Attributes:
        name: Its key in a recipe.
        kind: ``number``, ``flag`` (true or false) or ``choice``.
        default: Its value where a recipe does not give one.
        scope: ``source``: one value per source, under ``parameters``; ``global``: one value, under ``options``.
        low, high: The smallest and largest number allowed; None: no limit.
        choices: What a choice may be.
        search: Bounds that suit a search; None: not worth searching.
        grouped: Whether a value may be given per layer group or name pattern, and as a gradient over the layers.
        help: One sentence for the documentation.
    """

    name: str
    kind: Literal["number", "flag", "choice"]
    default: Value
    scope: Literal["source", "global"]
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    search: tuple[float, float] | None = None
    grouped: bool = False

    def with_default(self, default: Value) -> Parameter:
        """The same parameter with another default."""
        return replace(self, default=default)

    def check(self, value: Any, where: str, layer_count: int | None = None, names: Sequence[str] | None = None) -> None:
        """Raise `RecipeError`, beginning with `where`, unless the value is of the right kind and within the limits."""
        if not isinstance(value, Mapping):
            self._check_values(value, where)
            return
        if not self.grouped:
            raise RecipeError(f"{where}: takes one value, not one per layer group (found {dict(value)!r})")
        if not value:
            raise RecipeError(f"{where}: no layer groups; give a number, or default and the groups that differ")
        try:
            for key in value:
                parse_key(key)
            if layer_count is not None:
                check_keys(dict.fromkeys(value, 0.0), layer_count, names)
        except RecipeError as cause:
            raise RecipeError(f"{where}: {cause}") from cause
        for key, item in value.items():
            self._check_values(item, f"{where}.{key}")

    def _check_values(self, value: Any, where: str) -> None:
        if not isinstance(value, list):
            self._check_one(value, where)
            return
        if not self.grouped:
            raise RecipeError(f"{where}: takes one value, not a gradient over the layers (found {value!r})")
        if not value:
            raise RecipeError(f"{where}: an empty list; give the numbers of the gradient, from the first layer to the last")
        for position, item in enumerate(value):
            self._check_one(item, f"{where}[{position}]")

    def _check_one(self, value: Any, where: str) -> None:
        if self.kind == "flag" and not isinstance(value, bool):
            raise RecipeError(f"{where}: {value!r} is not true or false")
        if self.kind == "choice" and value not in self.choices:
            raise RecipeError(f"{where}: {value!r} is not one of {', '.join(self.choices)}")
        if self.kind != "number":
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RecipeError(f"{where}: {value!r} is not a finite number")
        low, high = self.low, self.high
        if (low is not None and value < low) or (high is not None and value > high):
            limits = f"from {low:g} to {high:g}" if None not in (low, high) else f"at least {low:g}" if high is None else ""
            raise RecipeError(f"{where}: {value!r} is out of range; give a number {limits or f'of at most {high:g}'}")


@dataclass(slots=True)
class Call:
    """What a method's function is handed besides the tensors.

    Attributes:
        options: The global options, complete.
        sources: The per-source parameters, complete, one mapping per source that takes part; numbers for this tensor.
        facts: What the method's ``prepare`` found out about the whole tensor; None where it has none.
        start: Position of the slice in the flattened tensor.
        model: What the method's ``survey`` found out about the whole model; None where it has none.
    """

    options: dict[str, Any]
    sources: list[dict[str, Any]]
    facts: Any = None
    start: int = 0
    model: Any = None

    @property
    def weights(self) -> list[float]:
        """The weight of each source."""
        return [values["weight"] for values in self.sources]


class MergeFunction(Protocol):
    """The arithmetic of a method on one slice of one flattened tensor, in float32. Changes none of its arguments."""

    def __call__(self, base: torch.Tensor | None, tensors: list[torch.Tensor], call: Call, /) -> torch.Tensor:
        """Merge one slice."""


class Survey(Protocol):
    """What a method wants to know of the whole model before the first tensor is merged."""

    def __call__(self, model: ModelJob, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], /) -> Any:
        """Look at all tensors; raise `RecipeError` where the parameters do not go together."""


class Check(Protocol):
    """What a method refuses although each parameter by itself is right."""

    def __call__(self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], names: Sequence[str], /) -> None:
        """Raise `RecipeError` where the complete parameters do not go together.

        Values may differ from tensor to tensor (`resolve` of the layer groups tells them); `names` are those of the
        tensors, and empty while they are not known.
        """


@dataclass(frozen=True)
class MergeMethod:
    """A merge method.

    Attributes:
        name: Its name in a recipe.
        function: The arithmetic. It sees slices, so each element of the result may depend on that element of the inputs only.
        parameters: All parameters it takes.
        task_vectors: Whether it is handed differences to the base (then it needs one) rather than the sources themselves.
        base_optional: For methods on task vectors: without a base they are handed the sources themselves.
        prepare: Computes what depends on a whole tensor (a threshold, an angle); its result is ``call.facts``.
        survey: Computes what depends on the whole model, from all tensors and the parameters; its result is ``call.model``.
        check: Refuses parameters that do not go together, before any work.
        memory: Bytes per element and source that its facts hold on to in a search, next to the tensors: 4 for sorted
            magnitudes or for ranks, 2 for random numbers.
        count: Smallest and largest number of tensors it merges; None: no limit. A method without task vectors that needs two
            and is given one source takes the base as the first of the two.
        help: One sentence for the documentation.
    """

    name: str
    function: MergeFunction
    parameters: tuple[Parameter, ...] = ()
    task_vectors: bool = False
    base_optional: bool = False
    prepare: Callable[[TensorJob, Call], Any] | None = None
    survey: Survey | None = None
    check: Check | None = None
    memory: int = 0
    count: tuple[int, int | None] = (1, None)
    help: str = ""

    @property
    def needs_base(self) -> bool:
        """Whether a recipe must name a base."""
        return self.task_vectors and not self.base_optional

    @property
    def source_parameters(self) -> tuple[Parameter, ...]:
        """The parameters with one value per source."""
        return tuple(parameter for parameter in self.parameters if parameter.scope == "source")

    @property
    def options(self) -> tuple[Parameter, ...]:
        """The parameters with one value."""
        return tuple(parameter for parameter in self.parameters if parameter.scope == "global")

    def takes_base_as_first(self, sources: int) -> bool:
        """Whether the base is the first tensor handed to the function."""
        return not self.task_vectors and sources < self.count[0]


METHODS: dict[str, MergeMethod] = {}


def register_method(
    name: str,
    *,
    parameters: Sequence[Parameter] = (),
    task_vectors: bool = False,
    base_optional: bool = False,
    prepare: Callable[[TensorJob, Call], Any] | None = None,
    survey: Survey | None = None,
    check: Check | None = None,
    memory: int = 0,
    count: tuple[int, int | None] = (1, None),
) -> Callable[[MergeFunction], MergeFunction]:
    """Register the function below as a merge method; see `MergeMethod` for the arguments.

    Raises:
        EvoMergeError: The name is taken, or two parameters have one name.

    Example:
        >>> @register_method("half", parameters=[])
        ... def half(base, tensors, call):
        ...     "Half of the first source."
        ...     return tensors[0] * 0.5
    """

    def register(function: MergeFunction) -> MergeFunction:
        if name in METHODS:
            raise EvoMergeError(
                f"merge method {name!r} is registered already, as {METHODS[name].function!r}; choose another name"
            )
        names = [parameter.name for parameter in parameters]
        if repeated := [key for key in names if names.count(key) > 1]:
            raise EvoMergeError(f"merge method {name!r} declares the parameter {repeated[0]!r} twice")
        summary = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        METHODS[name] = MergeMethod(
            name=name,
            function=function,
            parameters=tuple(parameters),
            task_vectors=task_vectors,
            base_optional=base_optional,
            prepare=prepare,
            survey=survey,
            check=check,
            memory=memory,
            count=count,
            help=summary,
        )
        return function

    return register


def all_methods() -> dict[str, MergeMethod]:
    """All merge methods by name, those of this package first."""
    from . import methods as _register_them  # noqa: F401

    return METHODS


def get_method(name: str) -> MergeMethod:
    """The method of that name; raises `RecipeError` listing the known names."""
    known = all_methods()
    if name not in known:
        raise RecipeError(f"merge.method: {name!r} is not known; choose one of {', '.join(sorted(known))}")
    return known[name]


def check_part(
    part: MergePart, *, sources: int, has_base: bool, layer_count: int | None = None, names: Sequence[str] | None = None
) -> MergeMethod:
    """Check the merge part of a recipe before any work, and return its method.

    Args:
        part: The merge part.
        sources: Number of sources that take part.
        has_base: Whether the recipe names a base.
        layer_count: Number of blocks of the sources; layer groups are checked against it where it is known.
        names: Raw names of the sources' tensors; patterns are checked against them where they are known.

    Raises:
        RecipeError: Naming the key: unknown method or parameter, wrong type, out of range, layer groups that do not exist,
            overlap or leave a part of the model out, patterns that name nothing, parameters that do not go together, no base
            where one is needed, too many or too few sources.
    """
    method = get_method(part.method)
    check_sources(method, sources, has_base)
    options = complete_options(method, part.options, layer_count, names)
    values = complete_parameters(method, part.parameters, sources, layer_count, names)
    check_together(method, values, options, layer_count=layer_count, names=names)
    return method


def check_together(
    method: MergeMethod,
    sources: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    layer_count: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Raise `RecipeError` where the complete parameters, each of them right, do not go together."""
    if method.check is None:
        return
    if names is None:
        keys = [
            key for values in (*sources, options) for value in values.values() if isinstance(value, Mapping) for key in value
        ]
        by_name = any(parse_key(key).kind == "pattern" for key in keys)
        names = [] if by_name or layer_count is None else one_of_each(layer_count)
    method.check(sources, options, names)


def check_sources(method: MergeMethod, sources: int, has_base: bool) -> None:
    """Raise `RecipeError` unless the method can merge so many sources, with or without a base."""
    if method.needs_base and not has_base:
        raise RecipeError(f"base: {method.name} works on differences to a common base; name the base model")
    low, high = method.count
    tensors = sources + (1 if method.takes_base_as_first(sources) and has_base else 0)
    if tensors < low or (high is not None and tensors > high):
        wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        hint = ", or one source and a base" if (low, high) == (2, 2) and not method.task_vectors else ""
        models, given = ("model", "source") if wanted == "1" else ("models", "sources")
        raise RecipeError(
            f"merge.sources: {method.name} merges {wanted} {models} (found {sources}); give {wanted} {given}{hint}"
        )


def complete_options(
    method: MergeMethod, given: Mapping[str, Any], layer_count: int | None = None, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The options with the defaults filled in and gradients laid over the blocks, where their number is known.

    Raises:
        RecipeError: An option is unknown or wrong.
    """
    return _complete(method, "global", given, "merge.options", layer_count, names)


def complete_parameters(
    method: MergeMethod,
    given: Sequence[Mapping[str, Any]],
    sources: int,
    layer_count: int | None = None,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The per-source parameters with the defaults filled in; see `complete_options`."""
    if given and len(given) != sources:
        raise RecipeError(f"merge.parameters: {len(given)} mappings for {sources} sources; give one per source")
    return [
        _complete(method, "source", mapping, f"merge.parameters[{index}]", layer_count, names)
        for index, mapping in enumerate(given or [{}] * sources)
    ]


def _complete(
    method: MergeMethod,
    scope: str,
    given: Mapping[str, Any],
    where: str,
    layer_count: int | None,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in (method.options if scope == "global" else method.source_parameters)}
    for name, value in given.items():
        if name not in known:
            other = next((p for p in method.parameters if p.name == name), None)
            place = "options" if other is not None and other.scope == "global" else "parameters, once per source"
            hint = f"it belongs in merge.{place}" if other else f"it takes {', '.join(known) or 'none'}"
            raise RecipeError(f"{where}.{name}: {method.name} has no such parameter here; {hint}")
        known[name].check(value, f"{where}.{name}", layer_count, names)
    complete = {name: given.get(name, parameter.default) for name, parameter in known.items()}
    if layer_count is None:
        return complete
    return {name: expand(value, 0, layer_count - 1) for name, value in complete.items()}
