"""Fine-tunes a model with LoRA on the examples that a search has, by the package's own likelihood
of the right answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....errors import MAX_MESSAGE, FitnessError, SearchError, one_line, optional
from ....fitness import DifferentiableTask, Example, Scores

# of a step, in scores of its batch: a forward and a backward pass, as a gradient of merge weights
# has
STEP_COST = 3


@dataclass(frozen=True)
class Lora:
    """Settings of a LoRA fine-tune.

    Attributes:
        rate: Peak learning rate of AdamW; it falls as a cosine to a hundredth.
        steps: Optimizer steps.
        batch: Examples of a step; all examples where there are fewer.
        warmup: Steps until the peak; a tenth of all where None.
        rank: Rank of the adapters, on all linear layers of the blocks.
        seed: Seed of the adapters' initial weights and of the order of the examples.
        bfloat16: Whether the passes run in bfloat16 (the adapters stay in float32).
    """

    rate: float
    steps: int
    batch: int = 8
    warmup: int | None = None
    rank: int = 16
    seed: int = 0
    bfloat16: bool = False

    @classmethod
    def for_cost(
        cls,
        cost: float,
        examples: int,
        *,
        rate: float,
        batch: int = 8,
        rank: int = 16,
        seed: int = 0,
    ) -> Lora:
        """Take as many steps as a cost, in scores of so many examples, pays for."""
        batch = min(batch, examples)
        steps = max(1, math.floor(cost * examples / (STEP_COST * batch) + 1e-9))
        return cls(rate, steps, batch, rank=rank, seed=seed)


# LoRA (Hu et al., arXiv:2106.09685, equation 3): a linear layer becomes
#   h = W_0 x + (alpha / r) B A x
# with B = 0 at first, so training starts at the model as it is. alpha = 2 r. Only A and B are
# trained, in float32: updates of bfloat16 numbers would often round to nothing. The optimizer is
# AdamW without decay; the rate rises linearly, then falls as half a cosine to 1 % of its peak.
class LoraAscent:
    """LoRA adapters (peft's) in a model, and AdamW, which raises a score by them. The same steps
    give the same adapters.

    Args:
        model: A plain model; adapters are put into it.
        settings: Settings.

    Attributes:
        tuned: The model with its adapters.
    """

    def __init__(self, model: Any, settings: Lora) -> None:
        import torch

        library = optional("peft", "lora", "fine-tuning", SearchError)
        # no class of classifiers leaves the head in place
        kind = "CAUSAL_LM" if model.can_generate() else None
        adapters = library.LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank,
            target_modules="all-linear",
            task_type=kind,
        )
        with torch.random.fork_rng(
            devices=[]
        ):  # adapters begin on the processor, whatever the device
            torch.default_generator.manual_seed(settings.seed)
            self.tuned = library.get_peft_model(model, adapters)
        # peft has put a set in place of "all-linear"; in the file its order would be another each
        # time
        adapters.target_modules = sorted(adapters.target_modules)
        self.settings = settings
        self.done = 0
        self._model = model
        self._trained = [
            parameter for parameter in self.tuned.parameters() if parameter.requires_grad
        ]
        for parameter in self._trained:
            parameter.data = parameter.data.float()
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=settings.rate, weight_decay=0.0, maximize=True
        )

    def step(self, task: DifferentiableTask) -> Scores:
        """Score a prepared task, and take a step along its gradient; other parameters keep the
        gradients that they ask for. Raises `FitnessError` where memory does not suffice."""
        import torch

        settings = self.settings
        self.done = self.done + 1
        warmup = max(1, settings.steps // 10) if settings.warmup is None else settings.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (self.done - 1) / settings.steps)))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, self.done / warmup) * (0.01 + 0.99 * cosine)
        self._optimizer.zero_grad()
        for parameter in self._trained:
            parameter.requires_grad_(True)
        autocast: AbstractContextManager[Any] = nullcontext()
        if settings.bfloat16:
            autocast = torch.autocast(self._trained[0].device.type, torch.bfloat16)
        try:
            with autocast:
                scores = task.backward(self._model)  # which has the adapters now
        except torch.cuda.OutOfMemoryError as error:
            raise FitnessError(f"no memory for a step: {one_line(error, MAX_MESSAGE)}") from error
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        return scores


def fine_tune(
    model: Any,
    make_task: Callable[[], DifferentiableTask],
    examples: Sequence[Example],
    tokenizer: Any,
    settings: Lora,
    *,
    after_step: Callable[[int, Any], None] = lambda step, model: None,
) -> Any:
    """A model with trained adapters (peft's). The same arguments give the same adapters.

    Args:
        model: A plain model; adapters are put into it.
        make_task: Makes the task whose score is raised.
        examples: All of them are seen once before any is seen again.
        tokenizer: The model's.
        settings: Settings.
        after_step: Called with the number of steps done and the model.

    Raises:
        SearchError: peft is not installed.
        FitnessError: A score is not finite.
    """
    ascent = LoraAscent(model, settings)
    drawn = batches(examples, settings.batch, settings.seed)
    for step in range(1, settings.steps + 1):
        task = make_task()
        task.prepare(next(drawn), tokenizer)
        ascent.step(task)
        after_step(step, ascent.tuned)
    return ascent.tuned


# Without replacement: a permutation is used up before the next one is drawn. What is left of one,
# if it is less than a batch, is dropped, so a batch never holds an example twice.
def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Draw batches without end: all examples once, in an order of the seed, before any is seen
    again."""
    rng = np.random.default_rng(seed)
    order = list[int]()
    while True:
        if len(order) < size:
            order = [int(i) for i in rng.permutation(len(examples))]
        yield [examples[order.pop()] for _ in range(min(size, len(examples)))]
