"""The gradient of a live merge: how a loss changes with every number of the recipe, from one
backward pass.

With theta = M(weights, task vectors), d loss / d w_i = <d loss / d theta, d M / d w_i>, tensor by
tensor: for task arithmetic the inner product of a tensor's gradient with the task vector. How many
groups share the numbers costs nothing. (Yang et al., AdaMerging, arXiv:2310.02575; Gauthier-Caron
et al., DAM, arXiv:2410.08371.)

What decides elements one by one (which are the largest, which are dropped, the elected sign) is
held as it is at the point; what decides it (densities) has no gradient. Rounding to the model's
dtype is passed over.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecipeError
from ..recipes.layer_groups import ByGroup, Ramp, Rows
from .arithmetic import TensorJob
from .live import LiveMerger
from .method import Call, MergeMethod, Values
from .registry import all_methods
from .rows import row_count, row_spans
from .statistics import SUM_BLOCK

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Number = tuple[str, int | None, str | tuple[str, int] | None]
"""A number of a recipe: parameter, position of the source (None: an option), and where it applies:
the key of a group, a tensor's name and the number of a run of its rows, or None for the whole
model."""
Products = dict[tuple[str, int | None], list[float]]
"""The inner products of one tensor's gradient with its derivatives, by the parameter's name and the
position of the source (or None, for an option): one number, or one for each run of rows."""

_TINY = 1e-30
_STEP = 1e-6  # of the differences by which coefficients are differentiated, in float64


# Given: a loss L of the model, whose tensors theta are merged from numbers p of a recipe. By the
# chain rule
#
#   dL/dp = sum_e G_e dtheta_e/dp,   G = dL/dtheta   (1)
#
# over all elements e of the tensors that p belongs to. G comes from one backward pass of the model;
# a tensor's part of (1) is then one read of its inputs. So the cost is that of a backward pass,
# however many numbers there are. Where G of the whole model would be too large, each tensor's part
# is taken by a hook as soon as its gradient is there, and the gradient is freed.
#
# Three ways lead from G to (1), by what is known of the method:
#
#   theta = x_0 + lambda sum_i w_i d_i (`is_sum`): dL/dw_i = lambda <G, d_i>            (2)
#   and dL/dlambda = sum_i w_i <G, d_i>                                                 (3)
#   theta = sum_i c_i(p) x_i, the c_i being numbers: dL/dp = sum_i <G, x_i> dc_i/dp      (4)
#   all else: float64 autograd through the method's own function, slice by slice       (5)
#
# Masks and elected signs are constants there: they are piecewise constant in p, so their derivative
# is 0 wherever there is one. Sums are exact (`fsum`) or in a fixed order, so a search by gradient
# can be repeated to the bit.
class MergeGradient:
    """Differentiates merges of a `LiveMerger` with respect to the numbers of their recipe.

    Args:
        merger: Writes the merges into the model.
        model: Its model; parameters that no merge changes are not differentiated.
        memory_limit: Bytes that may be spent on gradients of the whole model. Above it, and for
            models that are not in float32, each tensor's gradient is used and freed as soon as it
            is there, once for each backward pass.

    Raises:
        RecipeError: The method has no gradient.

    Example:
        >>> japanese, maths, base = [open_source(name) for name in ("japanese", "maths", "base")]
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> merger = LiveMerger([japanese, maths], base, "ties", {}, seed=0, model=model)
        >>> gradient = MergeGradient(merger, model)
        >>> tokens = tokenizer("w1 w2 w3", return_tensors="pt").input_ids
        >>> loss = lambda: model(tokens, labels=tokens).loss
        >>> list(gradient([{"weight": 0.5}, {"weight": 0.5}], {}, lambda: loss().backward()))
        [('weight', 0, None), ('weight', 1, None), ('lambda', None, None)]
    """

    def __init__(
        self, merger: LiveMerger, model: PreTrainedModel, *, memory_limit: int = 2 << 30
    ) -> None:
        import torch

        check_differentiable(merger.method)
        self.merger = merger
        self._model = model
        self._parts: dict[nn.Parameter, list[tuple[TensorJob, int]]] = {}
        for parameter in model.parameters():
            begin = parameter.data_ptr()
            end = begin + parameter.numel() * parameter.element_size()
            inside = []
            for job, target in merger.jobs:
                if not begin <= target.data_ptr() < end:
                    continue
                blocks = chain.from_iterable(map(job.blocks, range(merger.source_count)))
                # where all task vectors are 0, so are the derivatives
                if not merger.method.task_vectors or any(block.any() for _, block in blocks):
                    inside.append((job, (target.data_ptr() - begin) // target.element_size()))
            if inside:
                self._parts[parameter] = inside
        size = sum(parameter.numel() * parameter.element_size() for parameter in self._parts)
        self._at_once = size > memory_limit or any(
            parameter.dtype != torch.float32 for parameter in self._parts
        )

    def __call__(
        self, parameters: Sequence[Values], options: Values | None, backward: Callable[[], object]
    ) -> dict[Number, float]:
        """Merge, run `backward`, and return the derivative with respect to every number that has
        one.

        Args:
            parameters, options: As `LiveMerger.apply` takes them; the model is left with this
                merge.
            backward: Runs the model and the backward pass, once or several times; the gradients add
                up.

        Raises:
            RecipeError: The parameters are wrong, or given as gradients over the layers.
        """
        self.merger.apply(parameters, options)
        complete, chosen = self.merger.complete(parameters, options)
        check_no_ramp(self.merger.method, [chosen, *complete])
        found: dict[str, list[Products]] = {job.name: [] for job, _ in self.merger.jobs}

        def take(parameter: Tensor) -> None:
            """Use a parameter's gradient and free it."""
            assert parameter.grad is not None
            flat = parameter.grad.reshape(-1)
            for job, offset in self._parts[parameter]:  # type: ignore[index]
                part = flat[offset : offset + job.numel]
                found[job.name].append(products(job, part, complete, chosen))
            parameter.grad = None

        before = [(parameter, parameter.requires_grad) for parameter in self._model.parameters()]
        hooks = []
        try:
            for parameter, _ in before:
                parameter.requires_grad_(parameter in self._parts)
            if self._at_once:
                hooks = [
                    parameter.register_post_accumulate_grad_hook(take) for parameter in self._parts
                ]
            backward()
            for parameter in self._parts:
                if parameter.grad is not None:
                    take(parameter)
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, required in before:
                parameter.requires_grad_(required)
                parameter.grad = None
        return by_number(found, complete, chosen)


def by_number(
    found: Mapping[str, Sequence[Products]], sources: Sequence[Values], options: Values
) -> dict[Number, float]:
    """Add up what belongs to one number of the recipe: of all tensors of its group, and of all
    backward passes.

    Args:
        found: The products of each tensor, by its name, in each pass.
        sources, options: The complete parameters and options of the merge.
    """
    terms: dict[Number, list[float]] = defaultdict(list)
    for tensor, passes in found.items():
        for (name, source), values in (item for each in passes for item in each.items()):
            value = options[name] if source is None else sources[source][name]
            key = value.key(tensor) if isinstance(value, ByGroup) else None
            by_rows = key is not None and isinstance(value[key], Rows)
            for run, number in enumerate(values):
                terms[name, source, (tensor, run) if by_rows else key].append(number)
    return {
        number: math.fsum(numbers) for number, numbers in terms.items()
    }  # exact, so in any order


def _has_gradient(method: MergeMethod) -> bool:
    return any(parameter.smooth for parameter in method.parameters)


def check_differentiable(method: MergeMethod) -> None:
    """Raise `RecipeError` unless the method has a parameter that its result changes smoothly
    with."""
    if not _has_gradient(method):
        names = [name for name, other in all_methods().items() if _has_gradient(other)]
        raise RecipeError(
            f"merge.method: {method.name} has no gradient; those that have one are "
            f"{', '.join(names)}"
        )


def products(
    job: TensorJob, gradient: Tensor, sources: Sequence[Values], options: Values
) -> Products:
    """The inner products of a tensor's gradient with the derivatives of the merged tensor.

    Sums are float64, element after element of slice after slice.

    Args:
        job: The tensor.
        gradient: The gradient of a loss with respect to it, flat.
        sources, options: As `TensorJob.call` takes them.

    Returns:
        Those of each smooth parameter.
    """
    whole = Call.of_tensor(job.name, sources, options)
    rows = row_count(job.shape)
    totals = zeros(job.method, whole)
    if job.method.is_sum and job.numel and not whole.options["normalize"]:
        for source in range(len(sources)):
            add_row_sums(whole, source, _row_sums(job, gradient, source), totals)
        return totals

    def part(first: int, last: int) -> tuple[Tensor, range]:
        return gradient, range(first * job.width, last * job.width, SUM_BLOCK)

    add_by_runs(job, whole, rows, part, totals)
    return totals


def add_by_runs(
    job: TensorJob,
    whole: Call,
    rows: int,
    part: Callable[[int, int], tuple[Tensor, range]],
    totals: Products,
) -> None:
    """Add the inner products of every run of rows for which one call holds.

    Args:
        job: The tensor.
        whole: The parameters of all rows.
        rows: Number of rows.
        part: Gives for a run, by its first and last row + 1, the flat gradient with respect to the
            tensor, and the starts of the blocks of its elements that belong to the run.
        totals: Totals to add to.
    """
    for first, last, call in whole.runs(rows):
        gradient, span = part(first, last)
        inner = _inner_products(job, gradient, call, list(totals), span)
        for place, value in zip(totals, inner, strict=True):
            totals[place][first * len(totals[place]) // rows] += value


def zeros(method: MergeMethod, call: Call) -> Products:
    """Products to be added to, for every smooth parameter of a call."""
    places = [
        (parameter.name, source)
        for parameter in method.parameters
        if parameter.smooth
        for source in (range(len(call.sources)) if parameter.scope == "source" else (None,))
    ]
    totals: Products = {}
    for place in places:
        value = _get(call, place)
        totals[place] = [0.0] * (len(value.numbers) if isinstance(value, Rows) else 1)
    return totals


def _row_sums(job: TensorJob, gradient: Tensor, source: int) -> NDArray[np.float64]:
    """The inner product of the gradient with one input, row by row."""
    import torch

    sums = np.zeros(row_count(job.shape))
    for start, stop in row_spans(job.numel, job.width):
        part = (gradient[start:stop].float() * job.tensor(source, start, stop)).view(-1, job.width)
        sums[start // job.width : stop // job.width] = part.sum(1, dtype=torch.float64).numpy(
            force=True
        )
    return sums


def add_row_sums(call: Call, source: int, sums: NDArray[np.float64], totals: Products) -> None:
    """Add the products of a method that ``is_sum``: lambda t for a weight w, and w t for lambda, of
    every run of rows.

    Here t is the inner product of the run's gradient with its task vector.

    Args:
        call: The parameters of the tensor.
        source: Source of the task vector.
        sums: The inner product of each row.
        totals: Totals to add to.
    """
    rows = len(sums)
    count = len(totals["weight", source])
    # Run n of `count` begins at row ceil(n rows / count): row r has number floor(r count / rows),
    # see `Rows`.
    edges = [-(-run * rows // count) for run in range(count)]
    inner = np.add.reduceat(sums, edges).tolist()
    totals["weight", source] = [call.options.get("lambda", 1.0) * value for value in inner]  # (2)
    if ("lambda", None) in totals:
        weight = call.sources[source]["weight"]
        weights = weight.numbers if isinstance(weight, Rows) else [weight]
        totals["lambda", None][0] += math.fsum(map(operator.mul, weights, inner))  # (3)


def _inner_products(
    job: TensorJob,
    gradient: Tensor,
    call: Call,
    places: Sequence[tuple[str, int | None]],
    span: range,
) -> list[float]:
    """The inner products over the elements of a span, for which the numbers of a call hold: one for
    each place."""
    import torch

    # Methods skip a source of weight 0 and a factor of 1, so no derivative flows through either.
    # Such a number is moved to a neighbour for which the arithmetic is done; the result is the same
    # to rounding. With `normalize` a weight of 0 is another thing: the source is not counted, so
    # its derivative is not asked for.
    counts = job.method.prepare is not None and call.options.get(
        "normalize", False
    )  # a source of weight 0 is not counted
    for place in places:
        if not (counts and _at(call, place) == 0):
            _set(call, place, _beside(_at(call, place)))
    prepared = job.method.prepare(job, call) if job.method.prepare is not None else None
    factors = (
        prepared
        if isinstance(prepared, list) and all(isinstance(each, (int, float)) for each in prepared)
        else None
    )
    values = factors if factors is not None else [_at(call, place) for place in places]
    leaves = [
        torch.tensor(float(value), dtype=torch.float64, device=job.device, requires_grad=True)
        for value in values
    ]
    smooth = _copy(call)
    if (
        factors is not None
    ):  # numbers that depend on the parameters and the whole tensor, such as those of an angle
        smooth.prepared = leaves
        totals = _backward(job, smooth, leaves, gradient, span)
        return [_through(job, call, place, totals) for place in places]
    smooth.prepared = prepared
    for place, leaf in zip(places, leaves, strict=True):
        _set(smooth, place, leaf)
    return _backward(job, smooth, leaves, gradient, span)


def _backward(
    job: TensorJob, call: Call, leaves: list[Tensor], gradient: Tensor, span: range
) -> list[float]:
    """The derivatives with respect to the leaves, which the call holds in the place of numbers."""
    import torch

    totals = [0.0] * len(leaves)
    with torch.enable_grad():
        for call.start in span:
            stop = min(call.start + SUM_BLOCK, span.stop)
            base, tensors = job.parts(call.start, stop)
            out = job.method.function(
                None if base is None else base.double(), [each.double() for each in tensors], call
            )
            if not out.requires_grad:
                raise RecipeError(
                    f"merge.method: {job.method.name} has no gradient with these options"
                )
            given = gradient[call.start : stop].double()
            for index, part in enumerate(
                torch.autograd.grad(out, leaves, given, allow_unused=True)
            ):
                totals[index] += 0.0 if part is None else float(part)
    return totals


def _through(
    job: TensorJob, call: Call, place: tuple[str, int | None], totals: Sequence[float]
) -> float:
    """The chain rule over coefficients that a method computes from its parameters and the whole
    tensor."""
    assert job.method.prepare is not None
    # (4): dc/dp by central differences, (c(p + h) - c(p - h)) / 2h. The error is of the order of
    # h^2; c is a smooth function of a few float64 numbers, so h = 1e-6 leaves about nine digits.
    ends = []
    for step in (_STEP, -_STEP):
        moved = _copy(call)
        _set(moved, place, _at(call, place) + step)
        ends.append(job.method.prepare(job, moved))
    return math.fsum(
        total * (high - low) / (2 * _STEP) for total, high, low in zip(totals, *ends, strict=True)
    )


def check_no_ramp(method: MergeMethod, mappings: Sequence[Values]) -> None:
    """Raise `RecipeError` where a smooth parameter runs over the layers."""
    for name in (parameter.name for parameter in method.parameters if parameter.smooth):
        for value in (mapping[name] for mapping in mappings if name in mapping):
            if any(
                isinstance(item, Ramp)
                for item in (value.values() if isinstance(value, Mapping) else [value])
            ):
                raise RecipeError(
                    f"{name}: numbers that run over the layers have no gradient; give "
                    "numbers per layer group"
                )


def _beside(value: float) -> float:
    """The number itself, or one beside 0 and 1, which methods take for a source, or a factor, that
    is not there."""
    if value == 0:
        return _TINY
    return math.nextafter(1, 2) if value == 1 else value


def _copy(call: Call) -> Call:
    return Call(dict(call.options), [dict(values) for values in call.sources])


def _at(call: Call, place: tuple[str, int | None]) -> float:
    return float(_get(call, place))


def _get(call: Call, place: tuple[str, int | None]) -> Any:
    name, source = place
    return call.options[name] if source is None else call.sources[source][name]


def _set(call: Call, place: tuple[str, int | None], value: Any) -> None:
    name, source = place
    (call.options if source is None else call.sources[source])[name] = value
