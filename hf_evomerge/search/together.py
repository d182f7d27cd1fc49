"""Searches merge weights by gradient while LoRA learns beside them: free directions beside the parents' own, by the same steps.

A step costs what it costs a merge alone, three scores of its batch: one backward pass gives both gradients. The result is a
recipe: the merge, and the adapter of the base as one more source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SearchError
from ..fitness import DifferentiableTask, Scores
from ..merging.registry import get_method
from ..recipes.recipe import Recipe
from .evaluation.evaluator import Evaluator
from .file.config import SearchConfig
from .file.stages import Stage
from .finetune import Lora, LoraAscent, batches
from .optimizers.descent import GradientOptimizer
from .spaces.space import make_space

RATE, MANY = 5e-4, 256  # of the adapters, and the search examples from which on they have it


def together_stage(config: SearchConfig) -> Stage:
    """Find the stage whose merge weights are searched by gradient: LoRA may learn beside them.

    Raises:
        SearchError: The search has none; says what to leave out.
    """
    method, where = get_method(config.merge.method), "compare.baselines: merge+lora"
    options = config.merge.options
    if not (method.is_sum and method.task_vectors) or options.get("normalize") or options.get("lambda") == 0:
        plain = "task_arithmetic, without normalize and lambda: 0"
        raise SearchError(f"{where} adds an adapter to a sum of task vectors; leave it out, or write {plain}")
    if config.base is None or config.base.adapter is not None:
        raise SearchError(f"{where} needs a base, and one that is no adapter; name it, or leave merge+lora out")
    for stage in config.stages:
        if stage.space == "ps" and stage.algorithm == "gradient":
            return stage
    raise SearchError(f"{where} goes with merge weights that are searched by: gradient; leave it out")


def learn_together(
    evaluator: Evaluator, stage: Stage, rate: float | None = None, *, after_step: Callable[[float], None] = lambda spent: None
) -> tuple[Recipe, Any]:
    """Search as a stage does, from its start and with its budget, and train LoRA adapters by the same steps.

    Args:
        evaluator: Evaluator of the search.
        stage: A stage of `together_stage`.
        rate: Peak rate of the adapters; by default 5e-4 for 256 examples and more, in proportion below.
        after_step: Called with what has been spent, in scores of all search examples.

    Returns:
        The recipe of the merge without its adapters, and the live model that has both (peft's).

    Raises:
        FitnessError: A score is not finite.
    """
    config, examples = evaluator.config, evaluator.tasks.examples("search")
    space, count = make_space(config, stage, evaluator.sources.summary), len(examples)
    size, start, budget = stage.batch_sizes(count)[0], space.start(), stage.evaluations
    optimizer = GradientOptimizer(start, price=space.price, budget=budget, share=size / count, examples=count)
    rate, seed = RATE * min(1.0, count / MANY) if rate is None else rate, config.compute.seed
    recipe = space.decode(optimizer.average)
    assert recipe.merge is not None  # a space of merges
    _, model = evaluator.models.merge_gradient(recipe.merge)
    ascent = LoraAscent(model, Lora.for_cost(budget, count, rate=rate, batch=size, seed=seed))
    drawn, tokenizer = batches(examples, size, seed), evaluator.tasks.tokenizer(recipe)
    while (points := optimizer.ask()) is not None:
        request = optimizer.request
        batch = examples if request.full else next(drawn)
        found, slopes = list[Scores](), list[Any]()
        for point in points:
            recipe, task = space.decode(point), evaluator.tasks.differentiable_task()
            task.prepare(batch, tokenizer)

            def step(model: Any, task: DifferentiableTask = task, found: list[Scores] = found) -> None:
                found.append(ascent.step(task))

            if request.active is None:
                found.append(task.evaluate(evaluator.models.model(recipe)))
            else:
                slopes.append(space.slopes(point, request.active).take(evaluator.models, recipe, step))
        optimizer.tell([float(scores.values.mean()) for scores in found], slopes)
        after_step(optimizer.spent)
    return recipe, ascent.tuned


def with_adapter(recipe: Recipe, adapter: Path) -> Recipe:
    """Add an adapter of the base, whole, to the recipe of a sum of task vectors, as one more source."""
    assert recipe.merge is not None  # `together_stage` has looked
    assert recipe.base is not None
    if not (scale := float(recipe.merge.options.get("lambda", 1.0))):  # type: ignore[arg-type]
        raise SearchError("lambda is 0 at the end: nothing is added to the base")
    whole = {"weight": 1.0 / scale}
    places = [*recipe.merge_sources, len(recipe.sources)]
    merge = recipe.merge.model_copy(update={"sources": places, "parameters": [*recipe.merge.parameters, whole]})
    more = recipe.base.model_copy(update={"adapter": str(adapter)})
    return recipe.model_copy(update={"sources": [*recipe.sources, more], "merge": merge})
