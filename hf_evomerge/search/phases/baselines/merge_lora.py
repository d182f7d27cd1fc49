"""Baseline: merge weights by gradient while a LoRA learns beside them, by the same steps.

The LoRA has free directions beside the parents' own.

A step costs what it costs a merge alone, three scores of its batch: one backward pass gives both
gradients. There are trainings from several starts and at several rates, of which the best is kept.
The result is a recipe: the merge, and the adapter of the base as one more source.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
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
from ...results.table import Against, Row
from ...spaces.parameter import ALONE, BASE, SUM
from ...spaces.space import make_space
from ...study.files import TOGETHER_FOLDER
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun
from .finetune import Lora, LoraAscent, batches
from .lora import tune
from .trainings import Trainings, check_training

logger = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of the adapters, in the order in which they are tried
SHARE = 0.25  # of the cost of a search: a training that tells parents apart
SHARE_RATE = 1e-3  # its rate


@dataclass(frozen=True)
class Begin:
    """Beginning of a training.

    Attributes:
        key: Short name, for the study.
        name: Name of a start of the merge weights; the best by its score where it is empty.
        still: Whether the merge weights stay there.
    """

    key: str = ""
    name: str = ""
    still: bool = False

    def __str__(self) -> str:
        if self.still:
            return f" beside {self.name}"
        return f" from the {self.name}" if self.name else ""


# Where the merge weights begin decides what a LoRA finds beside them. The best start by its score
# suits some pairs, the sum of the task vectors others: it scores badly at first, and has whole what
# both parents have learned. So a training at the lowest rate goes from each, and the better one
# names the start.
#
# Which rate is best depends on the models: of 16 examples a pair of a million parameters learns
# nothing at 1e-4 and most at 1e-2, where other pairs have learned all by heart. So the rate rises
# for as long as that helps, and the highest that helped is taken.
#
# Where the parents have little to give each other, weights that move disturb the LoRA: beside one
# parent that stands still, which is a plain fine-tune of it, a third skill had .87 where it had .35
# beside the same parent and .24 from the sum. So short trainings find the parent that learns most,
# and it is trained at the rate that was found; the rate rises on where that helps.
class MergeWithLora(Phase):
    """Search of the merge weights again, with a LoRA of the base beside them, from the best of
    some starts, at rates that rise while that helps; the best model is built."""

    name = "together"
    title = "merge with LoRA beside it"
    baseline = "merge+lora"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse searches without a stage that a LoRA can learn beside."""
        together_stage(config)
        check_training("merge+lora", config, evaluator)

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a training as its stage, and a score of each where they are ranked."""
        planner.rows += 1
        name = together_stage(planner.config).name
        stage = next(phase for phase in planner.phases if phase.name == name)
        starts, parents = _starts(planner.config, planner.evaluator)
        most = _most(starts, parents)
        text = (
            f"merge weights and a LoRA beside them, by the same steps: at the lowest rate from "
            f"each start (starts: {len(starts)}), then at rates that rise while that helps, then "
            f"beside one parent that stands still; the cost of {most:g} searches at most"
        )
        sizes = planner.sizes
        score = sizes[sizes.ranked_on] * planner.second
        return PhasePlan(self.name, text, most * (stage.seconds + score), at_once=1, like=name)

    def run(self, run: SearchRun) -> None:
        """Train, and build the best model unless the study's folder holds it; a warning where that
        fails."""
        evaluator = run.evaluator
        assert evaluator is not None  # the search has been checked
        stage = together_stage(run.config)
        cost = stage.evaluations
        starts, parents = _starts(run.config, evaluator)
        trainings = Trainings(run, evaluator, self.name, _most(starts, parents) * cost)
        ranks: dict[tuple[Begin, float], float] = {}

        def name_of(begin: Begin, rate: float, spent: float = cost) -> str:
            return ":".join(filter(None, ("together", begin.key, f"{rate:g}", f"{spent:g}")))

        def trained(begin: Begin, rate: float, spent: float = cost) -> float:
            """Train, and return the mean score, the lowest where it failed."""
            name = name_of(begin, rate, spent)
            out = trainings.folder / name.replace(":", "-")
            train = partial(learn_together, evaluator, stage, rate, begin, spent)
            note = f"rate {rate:g}{begin}"
            try:
                return trainings.ranked(name, out, spent, train, note)
            except EvoMergeError as error:
                logger.warning(f"the results have no merge with LoRA, {note}: {error}")
                return -math.inf

        def helps(begin: Begin, rate: float) -> bool:
            """Train, and tell whether it is the best training so far."""
            before = max(ranks.values(), default=-math.inf)
            ranks[begin, rate] = trained(begin, rate)
            return ranks[begin, rate] > before

        def climb(begin: Begin, rate: float) -> float:
            """Train at higher rates while that helps, and return the highest that did."""
            for more in RATES:
                if more > rate:
                    if not helps(begin, more):
                        break
                    rate = more
            return rate

        for begin in starts:
            helps(begin, RATES[0])
        if max(ranks.values()) == -math.inf:
            return  # none could be trained
        begin, rate = max(ranks, key=ranks.__getitem__)
        rate = climb(begin, rate)
        if parents:
            parent = max(parents, key=lambda each: trained(each, SHARE_RATE, SHARE * cost))
            if helps(parent, rate):
                begin, rate = parent, climb(parent, rate)
        trainings.end()
        name = name_of(begin, rate)
        try:
            model = _built(run, evaluator, trainings.folder / name.replace(":", "-"))
        except EvoMergeError as error:
            logger.warning(f"the results have no merge with LoRA: {error}")
            return
        title = self.title
        named = f"the {title}"
        if begin.still:
            title = f"LoRA of {begin.name.removesuffix(ALONE)}"
            named = f"a {title}"
        against = Against(
            named,
            f"`{TOGETHER_FOLDER}` in the study is better",
            keep=f"take `{TOGETHER_FOLDER}` in the study, {named}",
        )
        run.rows.append(
            Row(
                "together",
                f"{title} (rate {rate:g}{begin}, {trainings.best_of(len(ranks))})",
                evaluations=trainings.done,
                seconds=trainings.seconds,
                label=name.replace("together:", "together:built:"),
                against=against,
                favoured=trainings.favoured,
                target=model,
            )
        )


def _starts(config: SearchConfig, evaluator: Evaluator) -> tuple[list[Begin], list[Begin]]:
    """Name the starts that are tried: the best by its score, and the sum of the task vectors where
    the search has it; and the parents among its starts, which stand still."""
    space = make_space(config, together_stage(config), evaluator.sources.summary)
    names = space.start().names
    parents = [name for name in names if name.endswith(ALONE) or name == BASE]
    return (
        [Begin(), *(Begin("sum", name) for name in names if name == SUM)],
        [Begin(f"still-{n}", name, still=True) for n, name in enumerate(parents)],
    )


def _most(starts: Sequence[Begin], parents: Sequence[Begin]) -> float:
    """The cost of all trainings at most, in searches: one from each start, one more at each higher
    rate, and the parents'."""
    beside = SHARE * len(parents) + 2 if parents else 0
    return len(starts) + len(RATES) - 1 + beside


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
    budget: float,
    after_step: Callable[[float], None] = lambda spent: None,
) -> tuple[Recipe, Any]:
    """Search as a stage does, and train LoRA adapters by the same steps.

    Args:
        evaluator: Evaluator of the search.
        stage: A stage of `together_stage`.
        rate: Peak rate of the adapters.
        begin: Where it begins.
        budget: Cost, in scores of all search examples.
        after_step: Called with what has been spent, in scores of all search examples.

    Returns:
        The recipe of the merge without its adapters, and the live model that has both (peft's).

    Raises:
        FitnessError: A score is not finite.
    """
    config = evaluator.config
    examples = evaluator.tasks.examples("search")
    space = make_space(config, stage, evaluator.sources.summary)
    count = len(examples)
    size = stage.batch_sizes(count)[0]
    start = space.start()
    seed = config.compute.seed
    lora = Lora.for_cost(budget, count, rate=rate, batch=size, seed=seed)
    if begin.name:
        point = start.candidates[start.names.index(begin.name)]
        start = replace(start, mean=point, candidates=(), names=())
    if begin.still:
        recipe = space.decode(start.mean)
        return recipe, tune(evaluator, recipe, lora, lambda share: after_step(budget * share))
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
        after_step(optimizer.spent)
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
