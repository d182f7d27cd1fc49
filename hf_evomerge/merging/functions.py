"""Merge methods as functions of plain tensors, made from the registry: arguments, documentation and
checks.

The arithmetic is that of the executors. Each function's documentation is the method's own
docstring, with the arguments that its declaration names. No torch until one of them is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from inspect import Parameter as Argument
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, SourceError
from .arithmetic import TensorJob
from .checks import number_of_models
from .method import Call, MergeMethod, Values
from .parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

_BASE = "The common ancestor's tensor: what is merged are the differences to it, the task vectors."
_NAME = (
    "Raw name of the tensor in a checkpoint. It decides with `seed` and a source's position "
    "which elements are dropped."
)
_SEED = "The recipe's seed."


@cache
def tensor_function(method: MergeMethod) -> Callable[..., Tensor]:
    """The function of a method.

    Its arguments are ``base`` (methods that need one), ``sources``, and by keyword ``base`` (where
    it is optional), the method's parameters, and ``name`` and ``seed`` (methods that drop elements
    at random). ``help()`` of it says more.
    """
    signature = inspect.Signature([*_tensors(method), *_values(method)], return_annotation="Tensor")

    def function(*args: Any, **kwargs: Any) -> Tensor:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as cause:
            raise TypeError(f"{method.name}(): {cause}") from None
        bound.apply_defaults()
        return _merge(method, bound.arguments)

    function.__name__ = function.__qualname__ = method.name
    function.__module__ = __package__
    function.__doc__ = _documentation(method)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _tensors(method: MergeMethod) -> Iterator[Argument]:
    if method.needs_base:
        yield Argument("base", Argument.POSITIONAL_OR_KEYWORD, annotation="Tensor")
    yield Argument("sources", Argument.POSITIONAL_OR_KEYWORD, annotation="Sequence[Tensor]")
    if method.base_optional:
        yield Argument("base", Argument.KEYWORD_ONLY, default=None, annotation="Tensor | None")


def _values(method: MergeMethod) -> Iterator[Argument]:
    kinds = {"number": "float", "flag": "bool", "choice": "str"}
    for parameter in method.parameters:
        kind = kinds[parameter.kind]
        annotation = f"{kind} | Sequence[{kind}]" if parameter.scope == "source" else kind
        yield Argument(
            _argument(parameter),
            Argument.KEYWORD_ONLY,
            default=parameter.default,
            annotation=annotation,
        )
    if method.random:
        yield Argument("name", Argument.KEYWORD_ONLY, default="", annotation="str")
        yield Argument("seed", Argument.KEYWORD_ONLY, default=0, annotation="int")


def _argument(parameter: Parameter) -> str:
    return parameter.argument or parameter.name


def _documentation(method: MergeMethod) -> str:
    """The docstring of the method's function with sections for the arguments, the result and the
    errors before its example."""
    text, example, code = inspect.cleandoc(method.function.__doc__ or "").partition("\nExample:\n")
    names = ", `name` and `seed`" if method.random else ""
    sections = {
        "Args:": _lines(method),
        "Returns:": [
            "A new tensor of the sources' shape, in the dtype and on the device of the "
            "first. It is computed in float32 and "
            "rounded once, to the bits that `build_model` writes for the same "
            f"parameters{names} and dtype."
        ],
        "Raises:": [
            "RecipeError: A parameter is of the wrong kind or out of range, parameters do "
            "not go together, or the number of "
            "sources is wrong.",
            "SourceError: The tensors are not all of one shape, or do not hold floats.",
        ],
    }
    wrapped = partial(
        fill, width=124, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False
    )
    written = [f"{title}\n" + "\n".join(map(wrapped, lines)) for title, lines in sections.items()]
    return "\n\n".join(
        [text.strip(), *written, *([example.strip() + "\n" + code] if example else [])]
    )


def _lines(method: MergeMethod) -> Iterator[str]:
    base = f"base: {_BASE}" + (
        " None: the tensors themselves are merged." if method.base_optional else ""
    )
    if method.needs_base:
        yield base
    yield (
        f"sources: The tensors to merge, {number_of_models(method)}; all of one shape, which may "
        "be any, and of float dtypes."
    )
    if method.base_optional:
        yield base
    for parameter in method.parameters:
        each = " One value, or a sequence of one per source." if parameter.scope == "source" else ""
        yield f"{_argument(parameter)}: {parameter.help}{each}{_range(parameter)}"
    if method.random:
        yield f"name: {_NAME}"
        yield f"seed: {_SEED}"


def _range(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        return f" One of {parameter.values}."
    return (
        ""
        if parameter.kind == "flag" or parameter.values == "any number"
        else f" {parameter.values.capitalize()}."
    )


def _merge(method: MergeMethod, given: Values) -> Tensor:
    import torch

    base = given.get("base")
    sources = given["sources"]
    _check_tensors(method, base, sources)
    sources = list(sources)
    values: list[dict[str, Any]] = [{} for _ in sources]
    for parameter in method.source_parameters:
        column = _one_each(method, parameter, given, len(sources))
        for mapping, value in zip(values, column, strict=True):
            mapping[parameter.name] = value
    options = {
        parameter.name: _one_each(method, parameter, given)[0] for parameter in method.options
    }
    if method.check is not None:
        method.check(Call(options, values))
    job = TensorJob(given.get("name", ""), method, base, sources, seed=given.get("seed", 0))
    with torch.no_grad():
        merged = torch.empty(sources[0].shape, dtype=sources[0].dtype, device=sources[0].device)
        job.run(values, options, merged)
    return merged


def _check_tensors(method: MergeMethod, base: Any, sources: Any) -> None:
    import torch

    if not isinstance(sources, (list, tuple)):
        raise SourceError(
            f"{method.name}: sources is a {type(sources).__name__}; give a list of tensors, "
            "one of each source"
        )
    low, high = method.count
    if len(sources) < low or (high is not None and len(sources) > high):
        raise RecipeError(
            f"{method.name}: sources: found {len(sources)} tensors; give {number_of_models(method)}"
        )
    named = {
        **{f"sources[{i}]": source for i, source in enumerate(sources)},
        **({"base": base} if base is not None else {}),
    }
    for where, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            hint = (
                "of a whole model: call it for each of its tensors"
                if isinstance(tensor, Mapping)
                else "no tensor of torch"
            )
            raise SourceError(
                f"{method.name}: {where} is a {type(tensor).__name__}, {hint}; give torch tensors"
            )
        if not tensor.is_floating_point():
            raise SourceError(
                f"{method.name}: {where} is of {tensor.dtype}; give tensors of floats"
            )
        if tensor.shape != sources[0].shape:
            shapes = f"the shape {list(tensor.shape)}, sources[0] {list(sources[0].shape)}"
            raise SourceError(f"{method.name}: {where} has {shapes}; give tensors of one shape")


def _one_each(
    method: MergeMethod, parameter: Parameter, given: Values, count: int | None = None
) -> list[Any]:
    """The value of each source; where nothing is counted, the one value of an option."""
    name = _argument(parameter)
    where = f"{method.name}: {name}"
    value = _plain(given[name])
    if count is None or not isinstance(value, (list, tuple)):
        parameter.check_one(value, where)
        return [value] * (count or 1)
    if len(value) != count:
        raise RecipeError(
            f"{where}: found {len(value)} values for {count} sources; give one, or one per source"
        )
    values = [_plain(item) for item in value]
    for index, item in enumerate(values):
        parameter.check_one(item, f"{where}[{index}]")
    return values


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch, and their arrays, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value
