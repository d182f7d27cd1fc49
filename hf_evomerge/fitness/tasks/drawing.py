"""Pictures that a diffusion pipeline draws of examples, the same for the same weights, and CLIP as
their judge."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ...errors import FitnessError, told
from ...recipes.strict_yaml import Count, Number, Whole
from ..example import Example
from ..prepared import PreparedTask
from ..registry import TaskSpec, register_task
from ..scores import Scores
from ..text.encoding import scoring

Argument = bool | Annotated[Whole, Field(le=1 << 20)] | Number | str


def seed_of(example: Example) -> int:
    """The seed of an example's picture, made of its text: another example has another one, on every
    machine the same."""
    return int(sha256((example.content or example.prompt).encode()).hexdigest()[:8], 16)


def asked(pipeline: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """Arguments by which a pipeline draws prompts, or the classes with these numbers; raises
    `FitnessError` where it draws neither."""
    taken = inspect.signature(type(pipeline).__call__).parameters
    count = {"batch_size": len(prompts)} if "batch_size" in taken else {}
    if "prompt" in taken:
        return {"prompt": list(prompts), **count}
    if "class_labels" not in taken:
        raise FitnessError(f"{type(pipeline).__name__} takes neither a prompt nor class_labels")
    if bad := [prompt for prompt in prompts if not prompt.isdecimal()]:
        raise FitnessError(
            f"prompt {bad[0]!r:.60} is no number of a class, such as 3, which this pipeline draws"
        )
    return {"class_labels": [int(prompt) for prompt in prompts], **count}


def draw(
    pipeline: Any, examples: Sequence[Example], *, batch_size: int = 16, **arguments: Any
) -> list[Any]:
    """A picture for each example, from its prompt, or its number of a class, and its own seed.

    Args:
        pipeline: A diffusion pipeline that takes ``prompt`` or ``class_labels``.
        examples: Examples to draw. Two with one prompt and another ``content`` have pictures of
            their own.
        batch_size: How many at a time; the last bits may depend on it.
        **arguments: Further arguments of the pipeline's call, such as ``num_inference_steps``.

    Returns:
        What the pipeline gives: pictures of PIL, or arrays with ``output_type="np"``.

    Raises:
        FitnessError: The pipeline takes neither, or a prompt is no number of a class.

    Example:
        >>> def fitness(pipeline, tokenizer, examples):
        ...     pictures = draw(pipeline, examples, num_inference_steps=4, output_type="np")
        ...     return [picture.mean() for picture in pictures]  # the brighter, the better
    """
    import torch

    pictures = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        chosen = asked(pipeline, [example.prompt for example in batch])
        generators = [torch.Generator("cpu").manual_seed(seed_of(example)) for example in batch]
        pictures += list(pipeline(**chosen, generator=generators, **arguments).images)
    return pictures


class ClipSpec(TaskSpec):
    """Nearness of what is drawn to a text, by a model of pictures and texts: ``fitness: {task:
    clip, model: ...}``."""

    model: str
    """Repository or folder of the model that judges, in safetensors; none of its code is run."""
    revision: str | None = None
    """Its branch, tag or commit."""
    batch_size: Count = 4
    """Pictures in one call of the pipeline."""
    arguments: dict[str, Argument] = Field(default_factory=dict)
    """Arguments of the pipeline's call, such as ``num_inference_steps: 4``."""

    kinds: ClassVar[tuple[str, ...]] = ()  # pipelines alone
    unit: ClassVar[str] = "cosine of picture and text"

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Prompts have no answers: the text of a picture is the prompt."""
        return {"answer_field": data.get("prompt_field", "prompt"), **data}


@register_task("clip")
class ClipTask(PreparedTask):
    """The cosine between a picture and the text that is the example's answer, by default the
    prompt."""

    spec_type = ClipSpec
    spec: ClipSpec

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        import torch

        judge, processor = self._judge
        size = self.spec.batch_size
        texts = [example.answer for example in self._examples]
        values: list[float] = []
        with scoring(model), torch.inference_mode():
            pictures = draw(model, self._examples, batch_size=size, **self.spec.arguments)
            for start in range(0, len(texts), size):
                batch = slice(start, start + size)
                given = processor(
                    text=texts[batch],
                    images=pictures[batch],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                )
                found = judge(**given)
                values += torch.cosine_similarity(found.image_embeds, found.text_embeds).tolist()
        return Scores(values)

    @cached_property
    def _judge(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoProcessor

        name = self.spec.model
        revision = self.spec.revision
        refused = f"fitness.model: {name} cannot be loaded: "
        with told(FitnessError, (OSError, ValueError), refused):
            judge = AutoModel.from_pretrained(
                name,
                revision=revision,
                use_safetensors=True,
                use_kernels=False,
                trust_remote_code=False,
            ).eval()
            return judge, AutoProcessor.from_pretrained(
                name, revision=revision, trust_remote_code=False
            )
