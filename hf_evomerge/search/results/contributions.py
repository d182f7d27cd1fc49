"""Contributions of the sources to a merge: the fitness that is lost without each of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import RecipeError
from ...fitness.comparison import compare
from ...fitness.scores import Scores
from ...recipes.recipe import Recipe
from ...recipes.strict_yaml import validate
from ...record import Contribution


def without(recipe: Recipe, source: int) -> Recipe:
    """Take one merged source, by its position, out of a recipe without a path; the tokenizer stays
    the same.

    Raises:
        RecipeError: The recipe names the source elsewhere.
    """
    merge = recipe.merge
    numbers = recipe.merge_sources
    assert merge is not None  # the search has been checked
    kept = [at for at in range(len(numbers)) if at != source]
    alone = {
        "sources": [numbers[at] for at in kept],
        "parameters": [merge.parameters[at] for at in kept if merge.parameters],
    }
    tokenizer = recipe.tokenizer
    if tokenizer is None and not isinstance(recipe.vocabulary, dict):
        tokenizer = numbers[0]
    changed = {"merge": merge.model_copy(update=alone), "tokenizer": tokenizer}
    return validate(Recipe, {**dict(recipe), **changed}, RecipeError)


def contributions(
    names: Sequence[str], whole: Scores, others: Sequence[Scores]
) -> list[Contribution]:
    """Compare a merge with what is left of it without each of its sources; nothing where there are
    fewer than two examples.

    Args:
        names: Names of the sources.
        whole: Scores of the merge.
        others: Scores without each source, in the order of the names.
    """
    lost = [compare(whole, other, "fitness") for other in others]
    pairs = zip(names, lost, strict=True)
    return [Contribution(source=name, left_out=each) for name, each in pairs if each is not None]


def sentence(measured: Sequence[Contribution], examples: str) -> str:
    """Name the sources whose absence costs fitness beyond chance, and the others."""
    gains = ", ".join(each.source for each in measured if each.left_out.low > 0)
    others = ", ".join(each.source for each in measured if each.left_out.low <= 0)
    if not gains:
        return f"On {examples} examples nothing shows that the winner needs {others}"
    said = f"The winner gains from {gains}, on {examples} examples"
    return f"{said}; nothing shows that it needs {others}" if others else said
