"""Merge method: its function, its parameters, and what it must know before it sees the first
elements. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..recipes.layer_groups import Rows, resolve
from .parameters import Parameter

if TYPE_CHECKING:
    import torch

Values = Mapping[str, Any]
"""Options of a merge, or the parameters of one of its sources, by name."""


@dataclass(slots=True)
class Call:
    """Arguments of a method's function besides the tensors.

    Attributes:
        options: The global options, complete.
        sources: The per-source parameters, complete, one mapping per merged source; numbers for
            this tensor. A method is called for a run of rows at a time where numbers differ between
            them.
        prepared: What the method's ``prepare`` computed from the whole tensor; None where it has
            none.
        start: Position of the slice in the flattened tensor.
        owns: Whether the function may write to the tensors of the sources.
    """

    options: dict[str, Any]
    sources: list[dict[str, Any]]
    prepared: Any = None
    start: int = 0
    owns: bool = False

    @classmethod
    def of_tensor(cls, name: str, sources: Sequence[Values], options: Values) -> Call:
        """The parameters that apply to the tensor of this name; values may be one per layer
        group."""

        def resolved(values: Values) -> dict[str, Any]:
            return {key: resolve(value, name) for key, value in values.items()}

        return cls(resolved(options), [resolved(values) for values in sources])

    def runs(self, rows: int) -> Iterator[tuple[int, int, Call]]:
        """Cut the rows of a tensor where a number changes: first row, last row + 1, and the call
        that holds for them.

        Raises:
            RecipeError: A parameter has more numbers than there are rows.
        """
        values = [value for mapping in (self.options, *self.sources) for value in mapping.values()]
        counts = {len(value.numbers) for value in values if isinstance(value, Rows)}
        if not counts:
            yield 0, rows, self
            return
        if max(counts) > rows:
            raise RecipeError(
                f"merge.parameters: {max(counts)} numbers for the {rows} rows of a tensor; "
                "give fewer"
            )
        # n numbers divide R rows so that row r has number floor(r n / R); number k begins at row
        # ceil(k R / n). Several parameters may have different n: between two neighbours of all
        # their edges no number changes.
        edges = sorted(
            {-(-number * rows // count) for count in counts for number in range(count + 1)}
        )
        for first, last in pairwise(edges):
            options = _at(self.options, first, rows)
            sources = [_at(values, first, rows) for values in self.sources]
            yield first, last, Call(options, sources, self.prepared)

    @property
    def weights(self) -> list[float]:
        """The weight of each source."""
        return [values["weight"] for values in self.sources]


def _at(values: Values, row: int, rows: int) -> dict[str, Any]:
    """The parameters that hold for a row, of so many."""
    return {
        key: value.at(row, rows) if isinstance(value, Rows) else value
        for key, value in values.items()
    }


MergeFunction = Callable[[Any, "list[torch.Tensor]", Call], "torch.Tensor"]
"""Merges one slice of one flattened tensor, in float32, from the base's slice and the sources'; it
may change what it owns.

The base is None where the method works without one.
"""
Prepare = Callable[[Any, Call], Any]
"""Looks at one tensor of the model, a `TensorJob`, which imports this file."""
Check = Callable[[Call], None]
"""Raises `RecipeError` where numbers for one tensor, each of them right, do not go together."""


@dataclass(frozen=True)
class MergeMethod:
    """A merge method.

    Attributes:
        name: Its name in a recipe.
        function: The arithmetic. It sees slices, so each element of the result may depend on that
            element of the inputs only.
        parameters: All parameters it takes.
        task_vectors: Whether it is handed differences to the base (then it needs one) rather than
            the sources themselves.
        base_optional: True where a method on task vectors, without a base, is handed the sources
            themselves.
        prepare: Computes what depends on a whole tensor (a threshold, an angle); its result is
            ``call.prepared``.
        check: Refuses parameters that do not go together, before any work.
        is_sum: Whether the result is ``base + lambda * sum w_i d_i`` where the options do not
            normalize: its gradient is then made of the inner products with the task vectors (or
            tensors) alone.
        random: Whether it drops elements at random, by the recipe's seed and the name of the
            tensor.
        memory: Bytes per element and source that a search keeps of its statistics, next to the
            tensors: 4 for sorted magnitudes or for ranks, 2 for random numbers.
        count: Smallest and largest number of tensors it merges; None: no limit. A method without
            task vectors that needs two and is given one source takes the base as the first of the
            two.
        help: One sentence for the documentation.
    """

    name: str
    function: MergeFunction
    parameters: tuple[Parameter, ...] = ()
    task_vectors: bool = False
    base_optional: bool = False
    prepare: Prepare | None = None
    check: Check | None = None
    is_sum: bool = False
    random: bool = False
    memory: int = 0
    count: tuple[int, int | None] = (1, None)
    help: str = ""

    @property
    def needs_base(self) -> bool:
        """True where a recipe must name a base."""
        return self.task_vectors and not self.base_optional

    @property
    def source_parameters(self) -> tuple[Parameter, ...]:
        """The parameters with one value per source."""
        return tuple(parameter for parameter in self.parameters if parameter.scope == "source")

    @property
    def options(self) -> tuple[Parameter, ...]:
        """The parameters with one value."""
        return tuple(parameter for parameter in self.parameters if parameter.scope == "global")

    def adds(self, options: Values) -> bool:
        """Tell whether the result is ``base + lambda * sum w_i d_i`` with these options."""
        return self.is_sum and self.task_vectors and not options.get("normalize")

    @property
    def merges_one(self) -> bool:
        """True where one source and its base are enough to search between them and beyond."""
        if self.count[0] == 1:
            return self.task_vectors
        return self.count[0] == 2 and not self.task_vectors

    def takes_base_as_first(self, sources: int) -> bool:
        """Tell whether the base is the first tensor handed to the function."""
        return not self.task_vectors and sources < self.count[0]
