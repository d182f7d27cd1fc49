"""The declaration of one parameter of a merge method, and the check of a value that a recipe gives
it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import RecipeError, told
from ..recipes.layer_groups import check_keys, is_tensor, parse_key

Value = float | bool | str


@dataclass(frozen=True)
class Parameter:
    """Number, flag or choice that a merge method takes.

    Attributes:
        name: Its key in a recipe.
        kind: ``number``, ``flag`` (true or false) or ``choice``.
        default: Its value where a recipe does not give one.
        scope: ``source``: one value per source, under ``parameters``; ``global``: one value, under
            ``options``.
        help: One sentence for the documentation.
        low, high: The smallest and largest number allowed; None: no limit.
        choices: Values of a choice.
        search: Bounds that suit a search; None: not worth searching.
        grouped: Whether a value may be given per layer group or name pattern, and as a gradient
            over the layers.
        smooth: Whether the merged tensor changes smoothly with it, so that a search may follow its
            gradient.
        argument: Its name as an argument of a Python function; the key in a recipe where this is
            empty.
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
    smooth: bool = False
    argument: str = ""

    @property
    def values(self) -> str:
        """Allowed values, in words: ``true, false``, the choices, ``any number``, or a range such
        as ``from 0 to 1``."""
        if self.kind != "number":
            return ", ".join(self.choices or ("true", "false"))
        if self.low is None:
            return "any number" if self.high is None else f"at most {self.high:g}"
        return (
            f"at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"
        )

    def with_default(self, default: Value) -> Parameter:
        """The same parameter with another default."""
        return replace(self, default=default)

    def check(
        self,
        value: Any,
        where: str,
        layer_count: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Raise `RecipeError`, beginning with `where`, unless the value is of the right kind and
        within the limits."""
        by_key = dict(value) if isinstance(value, Mapping) else {"default": value}
        over_blocks = (
            key
            for key, item in by_key.items()
            if parse_key(key).kind == "block" or (isinstance(item, list) and not is_tensor(key))
        )
        if layer_count == 0 and any(over_blocks):
            raise RecipeError(
                f"{where}: blocks are numbered within a component; name one, or give numbers to "
                "patterns such as 'unet/*'"
            )
        if not isinstance(value, Mapping):
            self._check_values(value, where)
            return
        if not self.grouped:
            raise RecipeError(
                f"{where}: takes one value, not one per layer group (found {dict(value)!r})"
            )
        if not value:
            raise RecipeError(
                f"{where}: no layer groups; give a number, or default and the groups that differ"
            )
        with told(RecipeError, RecipeError, f"{where}: "):
            for key in value:
                parse_key(key)
            if layer_count is not None:
                check_keys(dict.fromkeys(value, 0.0), layer_count, names)
        for key, item in value.items():
            self._check_values(item, f"{where}.{key}")

    def _check_values(self, value: Any, where: str) -> None:
        if not isinstance(value, list):
            self.check_one(value, where)
            return
        if not self.grouped:
            raise RecipeError(
                f"{where}: takes one value, not a gradient over the layers (found {value!r})"
            )
        if not value:
            raise RecipeError(
                f"{where}: an empty list; give the numbers of the gradient, from the first "
                "layer to the last"
            )
        for position, item in enumerate(value):
            self.check_one(item, f"{where}[{position}]")

    def check_one(self, value: Any, where: str) -> None:
        """Check, as `check` does, a value that holds for the whole model: no layer groups, no
        gradient."""
        if self.kind == "flag" and not isinstance(value, bool):
            raise RecipeError(f"{where}: {value!r} is not true or false")
        if self.kind == "choice" and value not in self.choices:
            raise RecipeError(f"{where}: {value!r} is not one of {', '.join(self.choices)}")
        if self.kind != "number":
            return
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise RecipeError(f"{where}: {value!r} is not a finite number")
        if (self.low is not None and value < self.low) or (
            self.high is not None and value > self.high
        ):
            raise RecipeError(f"{where}: {value!r} is out of range; give a number {self.values}")
