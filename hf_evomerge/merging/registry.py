"""The registry of merge methods: finds a method by its name. No torch.

A method is one function in ``methods/`` with one `register_method` line above it, which declares
its parameters once: YAML validation, search bounds, the functions of `hf_evomerge.merging` and the
documentation derive from that declaration. Methods import this file, and not the other way round:
the package ``merging`` imports ``methods``, which fills the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import EvoMergeError, RecipeError, nearest
from ..recipes.recipe import MergePart
from .method import MergeFunction, MergeMethod
from .parameters import Parameter

METHODS: dict[str, MergeMethod] = {}


def register_method(
    name: str, *, parameters: Sequence[Parameter] = (), **more: Any
) -> Callable[[MergeFunction], MergeFunction]:
    """Register the function below as a merge method.

    Args:
        name: Its name in a recipe.
        parameters: All parameters that it takes.
        more: The further attributes of `MergeMethod`.

    Raises:
        EvoMergeError: The name is taken, or `is_sum` does not fit the parameters.

    Example:
        >>> @register_method("half", parameters=[])
        ... def half(base, tensors, call):
        ...     "Half of the first source."
        ...     return tensors[0] * 0.5
    """

    def register(function: MergeFunction) -> MergeFunction:
        if name in METHODS:
            raise EvoMergeError(
                f"merge method {name!r} is registered already, as "
                f"{METHODS[name].function!r}; choose another name"
            )
        names = {parameter.name for parameter in parameters} - {"lambda"}
        if more.get("is_sum") and names != {"weight", "normalize"}:
            raise EvoMergeError(
                f"merge method {name!r} is no plain sum: weight, normalize and lambda are all that "
                "one takes; leave is_sum out"
            )
        summary = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        METHODS[name] = MergeMethod(
            name=name, function=function, parameters=tuple(parameters), help=summary, **more
        )
        return function

    return register


def all_methods() -> dict[str, MergeMethod]:
    """Return all merge methods by name, those of this package first."""
    return METHODS


def get_method(name: str) -> MergeMethod:
    """The method of that name; raises `RecipeError` naming the nearest."""
    if name not in METHODS:
        raise RecipeError(f"merge.method: {name!r} is not known; {nearest(name, METHODS)}")
    return METHODS[name]


def in_core(part: MergePart) -> bool:
    """Tell whether a merge is made in core space. A sum is the same merge there, and made of the
    adapters as they are."""
    return bool(part.core_space) and not get_method(part.method).adds(part.options)
