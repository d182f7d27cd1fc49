"""Averages of a run's checkpoints, without a search: all alike, by the weights of a decay, or those
that help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import RecipeError, SearchError
from ..recipes.recipe import MergePart, Recipe
from ..recipes.run import wsm_weights
from ..recipes.strict_yaml import parse_yaml, validate
from .answer_form import measure_form
from .evaluation.evaluator import Evaluator
from .evaluation.sources import Target
from .file.config import SearchConfig
from .file.scaffold import draft_search

Soup = Literal["uniform", "wsm", "greedy"]


def soup_recipe(
    run: str,
    soup: Soup = "uniform",
    *,
    checkpoints: str | Sequence[str] = "all",
    data: str | None = None,
    device: str = "cpu",
) -> tuple[Recipe, str]:
    """Make the recipe of an average of a run's checkpoints, and say in a line what is averaged.

    Args:
        run: A folder of checkpoints, or a repository whose revisions they are; see `Run`.
        soup: ``uniform``: all alike; ``wsm``: `wsm_weights`; ``greedy``: from the best on, each
            checkpoint that makes the average no worse on the data (arXiv:2203.05482, algorithm 1).
        checkpoints: Which of them: ``all``, ``last 12``, a pattern, or a list of names.
        data: For ``greedy``, a file of problems as `draft_search` takes it; those of its search
            split are scored.
        device: Where ``greedy`` scores.

    Raises:
        EvoMergeError: There are no two checkpoints, or they, or the data, cannot be read.

    Example:
        >>> recipe, line = soup_recipe("runs/pretrain", "wsm", checkpoints="last 2")
        >>> line
        'wsm average of 2 checkpoints'
    """
    if soup not in ("uniform", "wsm", "greedy"):
        raise RecipeError(f"soup: {soup!r} is unknown; there are uniform, wsm and greedy")
    if (data is not None) != (soup == "greedy"):
        raise RecipeError(
            "data: is what greedy scores on; give a file with greedy, and none without"
        )
    given = {
        "run": run,
        "checkpoints": checkpoints if isinstance(checkpoints, str) else list(checkpoints),
    }
    recipe = validate(Recipe, {"sources": given, "merge": {"method": "linear"}}, RecipeError)
    chosen = recipe.sources
    line = f"{len(recipe.sources)} checkpoints"
    if data is not None:
        draft = draft_search(
            [str(ref) for ref in chosen], data, device=device, measure=measure_form
        )
        kept, scores = _greedy(parse_yaml(SearchConfig, draft.text, SearchError))
        line = f"{len(kept)} of {line}: {scores[-1]:.4f}, the best alone {scores[0]:.4f}"
        chosen = [chosen[number] for number in sorted(kept)]
    merge = _linear(wsm_weights(len(chosen)) if soup == "wsm" else [])
    return recipe.model_copy(
        update={"sources": chosen, "merge": merge}
    ), f"{soup} average of {line}"


def _linear(weights: Sequence[float]) -> MergePart:
    return MergePart(method="linear", parameters=[{"weight": weight} for weight in weights])


def _greedy(config: SearchConfig) -> tuple[list[int], list[float]]:
    evaluator = Evaluator(config)
    count = len(config.sources)

    def score(target: Target) -> float:
        scores = evaluator.evaluate(target)
        if scores.error is not None:
            raise SearchError(
                f"{getattr(target, 'model', 'an average')}: cannot be scored: {scores.error}"
            )
        return float(scores.values.mean())

    # Greedy soup (Wortsman et al., arXiv:2203.05482, algorithm 1): sort by score; begin with the
    # best; keep each next one if the average with it scores no worse. It can never end below the
    # best alone on these examples.
    alone = [score(ref) for ref in config.sources]
    order = sorted(range(count), key=lambda number: -alone[number])
    kept = order[:1]
    best = [max(alone)]
    for number in order[1:]:
        value = score(
            config.recipe(merge=_linear([float(each in (*kept, number)) for each in range(count)]))
        )
        if value >= best[-1]:
            kept = [*kept, number]
            best = [*best, value]
    return kept, best
