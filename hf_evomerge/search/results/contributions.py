"""Shares of a merge's score among its sources: leave-one-out, and Shapley values, of each example.

A source outside a subset is absent: it is taken out of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb, sqrt

import numpy as np

from ...errors import RecipeError
from ...fitness.comparison import compare
from ...fitness.scores import Scores
from ...recipes.recipe import Recipe
from ...recipes.strict_yaml import validate
from ...record import Contribution
from ..optimizers.ask_tell import Vector

Subset = tuple[int, ...]
"""Positions among the merged sources, ascending."""
Score = Callable[[Sequence[Subset]], Mapping[Subset, Vector]]
"""Scores subsets, one number per example; none of them is empty."""


def subset_of(recipe: Recipe, kept: Subset) -> Recipe:
    """Take all but some merged sources out of a recipe without a path; it keeps the tokenizer that it had.

    Raises:
        RecipeError: The routers are those of a source that is left out.
    """
    merge, numbers = recipe.merge, recipe.merge_sources
    if merge is None or len(kept) == len(numbers):
        return recipe
    alone = {"sources": [numbers[at] for at in kept], "parameters": [merge.parameters[at] for at in kept if merge.parameters]}
    tokenizer = numbers[0] if recipe.tokenizer is None and not isinstance(recipe.vocabulary, dict) else recipe.tokenizer
    return validate(Recipe, {**dict(recipe), "merge": merge.model_copy(update=alone), "tokenizer": tokenizer}, RecipeError)


def shapley_values(
    count: int, budget: int, score: Score, *, empty: Vector | None = None, seed: int = 0
) -> tuple[Vector, Mapping[Subset, Vector]]:
    """Shapley values of some sources (Shapley 1953), within a number of scores; they add up to the whole less the empty subset.

    All subsets are scored where the budget does for them. Otherwise orders of the sources are drawn, and an order ends where
    the sources before are within a standard error of all: those that are left share the rest (truncated Monte Carlo,
    arXiv:1904.02868, which gives them 0).

    Args:
        count: Number of sources.
        budget: How many subsets may be scored, beside the whole and the empty one; at least three for each
            source, or all.
        score: What scores them.
        empty: Scores of the empty subset: the base; where None the mean of the single sources.
        seed: Decides the orders.

    Returns:
        Shape (count, examples); and all scores.
    """
    everyone, exact = tuple(range(count)), 2**count - 2 <= budget
    sizes = range(1, count + 1) if exact else (1, count - 1, count)
    values = dict(score([subset for size in sizes for subset in combinations(everyone, size)]))
    values[()] = np.mean([values[each,] for each in everyone], axis=0) if empty is None else empty
    shares = np.zeros((count, values[everyone].size))
    if exact:
        for subset in values:
            for source in set(everyone) - set(subset):
                gain = values[tuple(sorted((*subset, source)))] - values[subset]
                shares[source] += gain / (count * comb(count - 1, len(subset)))
        return shares, values
    rng, number = np.random.default_rng(seed), (budget - 2 * count) // (count - 3)
    orders = [[int(each) for each in rng.permutation(count)] for _ in range(number)]
    before, going = [values[()]] * number, list(range(number))
    for size in range(1, count):
        prefixes = {at: tuple(sorted(orders[at][:size])) for at in going}
        values |= score([each for each in dict.fromkeys(prefixes.values()) if each not in values])
        for at, prefix in prefixes.items():
            shares[orders[at][size - 1]] += (values[prefix] - before[at]) / number
            before[at], gap = values[prefix], values[everyone] - values[prefix]
            if size == count - 1 or abs(gap.mean()) <= gap.std() / sqrt(gap.size):
                shares[orders[at][size:]] += gap / (count - size) / number
                going.remove(at)
    return shares, values


def contributions(names: Sequence[str], shares: Vector, values: Mapping[Subset, Vector]) -> list[Contribution]:
    """The shares of named sources with their intervals; none where there are fewer than two examples."""
    everyone, found = tuple(range(len(names))), []
    for at, name in enumerate(names):
        without = values[tuple(each for each in everyone if each != at)]
        left_out = compare(Scores(values[everyone]), Scores(without), "fitness")
        shapley = compare(Scores(shares[at]), Scores(np.zeros_like(without)), "fitness")
        if left_out is not None and shapley is not None:
            found.append(Contribution(source=name, left_out=left_out, shapley=shapley))
    return found


def kept_sources(found: Sequence[Contribution]) -> Subset:
    """Positions of sources that give something; of the one with the largest share where none does."""
    best = max(range(len(found)), key=lambda at: found[at].shapley.difference)
    return tuple(at for at, each in enumerate(found) if not each.gives_nothing) or (best,)


def sentence(found: Sequence[Contribution], examples: str) -> str:
    """Name the sources whose absence costs fitness beyond chance, and the others."""
    gains = ", ".join(each.source for each in found if each.left_out.low > 0)
    others = ", ".join(each.source for each in found if each.left_out.low <= 0)
    if not gains:
        return f"On {examples} examples nothing shows that the winner needs {others}"
    said = f"The winner gains from {gains}, on {examples} examples"
    return f"{said}; nothing shows that it needs {others}" if others else said
