"""Baseline: merge weights by gradient while a LoRA learns beside them, by the same steps.

The LoRA has free directions beside the parents' own.

A step costs what it costs a merge alone, three scores of its batch: one backward pass gives both
gradients. There are trainings from several starts and at several rates, of which the best is kept.
The result is a recipe: the merge, and the adapter of the base as one more source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ....checkpoints.lora import CONFIG_FILE
from ....errors import EvoMergeError, SearchError
from ....fitness import DifferentiableTask, Scores
from ....merging.registry import get_method
from ....recipes.recipe import RECIPE_FILE, Recipe, SourceRef
from ...evaluation.evaluator import Evaluator
from ...file.config import SearchConfig
from ...file.stages import Stage
from ...folder import build_winner
from ...optimizers.descent import GradientOptimizer
from ...results.table import Against
from ...spaces.parameter import ALONE, BASE, SUM
from ...spaces.space import make_space
from ...study.files import TOGETHER_FOLDER
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun
from .finetune import Lora, LoraAscent, batches
from .lora import tune
from .trainings import Course, Trainings, best_training, check_training, schedule, seconds_of

logger = logging.getLogger(__name__)

_LONGER = 1.4  # a step takes with a LoRA beside the merge: 1.2 to 1.5 in seven searches


@dataclass(frozen=True)
class Begin:
    """Beginning of a training.

    Attributes:
        name: Name of a start of the merge weights; the best by its score where it is empty.
        still: Whether the merge weights stay there.
    """

    name: str = ""
    still: bool = False

    def __str__(self) -> str:
        """Name of the training: ``LoRA beside maths``."""
        if not self.still:
            where = f" from the {self.name}" if self.name else ""
            return f"LoRA beside the merge{where}"
        model = f"the {SUM}" if self.name == SUM else self.name.removesuffix(ALONE)
        return f"LoRA beside {model}"


# Where the merge weights begin decides what a LoRA finds beside them. The best start by its score
# suits some pairs, the sum of the task vectors others: it scores badly at first, and has whole what
# both parents have learned.
#
# Where the parents have little to give each other, weights that move disturb the LoRA. Beside one
# parent that stands still, which is a plain fine-tune of it, a third skill had .87 where it had .35
# beside the same parent and .24 from the sum; beside the sum that stands still interleaved lists
# had .39 where they had .12 from it. So what stands still is tried as well.
class MergeWithLora(Phase):
    """Search of the merge weights again, with a LoRA of the base beside them, from several starts
    and at several rates; the best model is built."""

    name = "together"
    title = "LoRA beside the merge"
    baseline = "merge+lora"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse searches without a stage that a LoRA can learn beside."""
        together_stage(config)
        check_training("merge+lora", config, evaluator)

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a training as its stage, and a score of each where they are ranked."""
        planner.rows += 1
        name = together_stage(planner.config).name
        starts = _starts(planner.config, planner.evaluator)
        how = schedule(starts, planner.evaluator.tasks)
        text = f"merge weights and a LoRA beside them, by the same steps, {how}"
        seconds = seconds_of(starts, [name], planner)
        if planner.timed:
            seconds *= _LONGER
        return PhasePlan(self.name, text, seconds, at_once=1, like=name)

    def run(self, run: SearchRun) -> None:
        """Train, and build the best model unless the study's folder holds it; a warning where that
        fails."""
        evaluator = run.evaluator
        assert evaluator is not None  # the search has been checked
        stage = together_stage(run.config)
        starts = _starts(run.config, evaluator)
        trainings = Trainings(run, evaluator, self.name, stage.evaluations, starts)

        def name_of(course: Course) -> str:
            cost = trainings.cost_on(course.split)
            parts = ("together", course.start, f"{course.rate:g}", f"{cost:g}")
            return ":".join(filter(None, parts))

        def train(course: Course) -> Scores:
            """Train, and score the model."""
            name = name_of(course)
            begin = starts[course.start]
            out = trainings.folder / name.replace(":", "-")
            together = partial(learn_together, evaluator, stage, course.rate, begin, course.split)
            return trainings.ranked(name, out, course, together, f"{begin}, {course}")

        if (found := best_training(starts, train, more=trainings.more)) is None:
            return
        course, count = found
        name = name_of(course)
        try:
            model = _built(run, evaluator, trainings.folder / name.replace(":", "-"))
        except EvoMergeError as error:
            logger.warning(f"the results have no LoRA beside the merge: {error}")
            return
        named = f"the {starts[course.start]}"
        against = Against(
            named,
            f"`{TOGETHER_FOLDER}` in the study is better",
            keep=f"take `{TOGETHER_FOLDER}` in the study, {named}",
        )
        built = name.replace("together:", "together:built:")
        title = f"{starts[course.start]}, {course}"
        run.rows.append(trainings.row("together", title, count, built, against, model))


def _starts(config: SearchConfig, evaluator: Evaluator) -> dict[str, Begin]:
    """The starts that are tried, by key: the best by its score, and the sum of the task vectors
    where the search has it; the same sum, and the parents among its starts, which stand still."""
    space = make_space(config, together_stage(config), evaluator.sources.summary)
    names = space.start().names
    starts = {"": Begin()}
    if SUM in names:
        starts |= {"sum": Begin(SUM), "still-sum": Begin(SUM, still=True)}
    parents = [name for name in names if name.endswith(ALONE) or name == BASE]
    return starts | {f"still-{n}": Begin(name, still=True) for n, name in enumerate(parents)}


def _built(run: SearchRun, evaluator: Evaluator, adapter: Path) -> SourceRef:
    """The built model: a folder, or the base with an adapter where all sources are adapters."""
    folder = run.study.folder
    config = evaluator.config
    # a study may have been moved since
    parents = {"sources": config.sources, "base": config.base}
    recipe = with_adapter(Recipe.load(adapter / RECIPE_FILE).model_copy(update=parents), adapter)
    whole = None if all(ref.adapter for ref in recipe.sources) else True
    trusted = evaluator.sources.trust_remote_code
    build_winner(folder, recipe, TOGETHER_FOLDER, whole=whole, trust_remote_code=trusted)
    built = folder / TOGETHER_FOLDER
    if (built / CONFIG_FILE).exists():
        return recipe.sources[-1].model_copy(update={"adapter": str(built)})
    return SourceRef(model=str(built))


def together_stage(config: SearchConfig) -> Stage:
    """Find the stage whose merge weights are searched by gradient: LoRA may learn beside them.

    Raises:
        SearchError: The search has none; says what to leave out.
    """
    method = get_method(config.merge.method)
    where = "compare.baselines: merge+lora"
    options = config.merge.options
    if not method.adds(options) or options.get("lambda") == 0:
        plain = "task_arithmetic, without normalize and lambda: 0"
        raise SearchError(
            f"{where} adds an adapter to a sum of task vectors; leave it out, or write {plain}"
        )
    if config.base is None or config.base.adapter is not None:
        raise SearchError(
            f"{where} needs a base, and one that is no adapter; name it, or leave merge+lora out"
        )
    for stage in config.stages:
        if stage.space == "ps" and stage.algorithm == "gradient":
            return stage
    raise SearchError(
        f"{where} goes with merge weights that are searched by: gradient; leave it out"
    )


# One forward and one backward pass give both gradients. The merge is written into the model's
# weights, peft's layers add B A x to it: with W = W_0 + sum_i w_i tau_i + (alpha / r) B A, dL/dW is
# what both chain rules start from. The merge weights take a step of `GradientOptimizer` and the
# adapters one of AdamW, side by side, for the cost of a merge by gradient alone.
#
# Examples come from permutations here and not from `StageRun`'s batches: this phase is no stage,
# and is trained in one piece or not at all.
def learn_together(
    evaluator: Evaluator,
    stage: Stage,
    rate: float,
    begin: Begin,
    split: str = "search",
    after_step: Callable[[float], None] = lambda spent: None,
) -> tuple[Recipe, Any]:
    """Search as a stage does, and train LoRA adapters by the same steps.

    Args:
        evaluator: Evaluator of the search.
        stage: A stage of `together_stage`.
        rate: Peak rate of the adapters.
        begin: Where it begins.
        split: Split of the examples.
        after_step: Called with what has been spent, in scores of all search examples.

    Returns:
        The recipe of the merge without its adapters, and the live model that has both (peft's).

    Raises:
        FitnessError: A score is not finite.
    """
    config = evaluator.config
    examples = evaluator.tasks.examples(split)
    space = make_space(config, stage, evaluator.sources.summary)
    count = len(examples)
    cost = count / len(evaluator.tasks.examples("search"))  # of a score of all examples
    budget = stage.evaluations
    size = stage.batch_sizes(count)[0]
    start = space.start()
    seed = config.compute.seed
    lora = Lora.for_cost(budget, count, rate=rate, batch=size, seed=seed)
    if begin.name:
        point = start.candidates[start.names.index(begin.name)]
        start = replace(start, mean=point, candidates=(), names=())
    if begin.still:
        recipe = space.decode(start.mean)
        told = budget * cost
        return recipe, tune(evaluator, recipe, lora, examples, lambda each: after_step(told * each))
    optimizer = GradientOptimizer(
        start, price=space.price, budget=budget, share=size / count, examples=count
    )
    recipe = space.decode(optimizer.average)
    assert recipe.merge is not None  # a space of merges
    _, model = evaluator.models.merge_gradient(recipe.merge)
    ascent = LoraAscent(model, lora)
    drawn = batches(examples, size, seed)
    tokenizer = evaluator.tasks.tokenizer(recipe)
    while (points := optimizer.ask()) is not None:
        request = optimizer.request
        batch = examples if request.full else next(drawn)
        scored = list[Scores]()
        slopes = list[Any]()
        for point in points:
            recipe = space.decode(point)
            task = evaluator.tasks.differentiable_task()
            task.prepare(batch, tokenizer)

            def step(
                model: Any, task: DifferentiableTask = task, scored: list[Scores] = scored
            ) -> None:
                scored.append(ascent.step(task))

            if request.active is None:
                scored.append(task.evaluate(evaluator.models.model(recipe)))
            else:
                slopes.append(
                    space.slopes(point, request.active).take(evaluator.models, recipe, step)
                )
        optimizer.tell([float(scores.values.mean()) for scores in scored], slopes)
        after_step(optimizer.spent * cost)
    return recipe, ascent.tuned


def with_adapter(recipe: Recipe, adapter: Path) -> Recipe:
    """Add an adapter of the base, whole, to the recipe of a sum of task vectors, as one more
    source."""
    assert recipe.merge is not None  # `together_stage` has looked
    assert recipe.base is not None
    if not (scale := float(recipe.merge.options.get("lambda", 1.0))):  # type: ignore[arg-type]
        raise SearchError("lambda is 0 at the end: nothing is added to the base")
    # The recipe is base + lambda sum_i w_i tau_i. The adapter was trained beside this sum, not
    # inside, so its weight undoes lambda.
    whole = {"weight": 1.0 / scale}
    places = [*recipe.merge_sources, len(recipe.sources)]
    merge = recipe.merge.model_copy(
        update={"sources": places, "parameters": [*recipe.merge.parameters, whole]}
    )
    more = recipe.base.model_copy(update={"adapter": str(adapter)})
    return recipe.model_copy(update={"sources": [*recipe.sources, more], "merge": merge})
