"""A merge as a checkpoint: every tensor is merged while it is read, slice by slice, from
memory-mapped files.

What is held in memory does not grow with the model: for each thread one slice of each input and
output, where elements are chosen by size the magnitudes of one tensor that are close to the
threshold, and where rows count a few numbers per row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints.chat_template import template_warnings
from ..checkpoints.checkpoint import Origin, Parent
from ..checkpoints.compatibility import find_warnings
from ..checkpoints.diff import strangers
from ..checkpoints.headers import torch_dtype
from ..checkpoints.ledger import sources_of
from ..checkpoints.lora import add_product
from ..checkpoints.mapped import release_pages
from ..checkpoints.model_folder import CODE, SENTENCE, copy_files, write_json
from ..errors import SourceError
from ..merging.arithmetic import TensorJob
from ..merging.core import Core, factors_of
from ..recipes.layer_groups import classify
from ..recipes.recipe import FlowPart, Recipe, SourceRef, with_optional
from ..routing.config import check_configs, path_config
from .merge_plan import plan_merge
from .planned import PlannedCheckpoint
from .tokens import match_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


_SAMPLE = 1 << 13  # elements of each tensor by which sources are related


class Merged(PlannedCheckpoint):
    """The merge part of a recipe: a plain model of the sources' own class.

    Its config is that of the first source that is merged; generation settings, tokenizer and chat
    template too, unless the recipe says otherwise. Everything is checked when it is made, from
    configs and headers.

    Args:
        recipe: The recipe; its flow part is not looked at.
        sources: The sources that the recipe uses, by their numbers.
        base: The recipe's base.

    Raises:
        RecipeError: The merge part is wrong.
        SourceError: A source cannot be merged with the others.

    Example:
        >>> sources = {0: open_source("japanese"), 1: open_source("maths")}
        >>> merged = Merged(Recipe.load("recipe.yaml"), sources, open_source("base"))
        >>> merged.read("model.norm.weight").shape  # 16 wide
        torch.Size([16])
    """

    def __init__(
        self, recipe: Recipe, sources: Mapping[int, Parent], base: Parent | None = None
    ) -> None:
        self.ref = SourceRef(model="merged")
        if (
            recipe.dtype is None and recipe.merge_sources[0] != 0
        ):  # the first source's, also where that is not merged
            stored = sources[0].config.dtype
            recipe = recipe.model_copy(
                update={"dtype": None if stored is None else str(stored).removeprefix("torch.")}
            )
        self.recipe = recipe
        self.settings = (recipe,)
        self.chat_template = recipe.chat_template
        sources, base = match_tokens(recipe, sources, base)
        self.plan = plan_merge(recipe, [sources[number] for number in recipe.merge_sources], base)
        first = self.plan.sources[0]
        chosen = recipe.tokenizer_of(sources, self.plan.base, first)
        if chosen.vocab_size != first.vocab_size:
            raise SourceError(
                f"tokenizer: {chosen} has a vocabulary of {chosen.vocab_size}, the merged model "
                f"one of {first.vocab_size}; name another source"
            )
        self.tokenizer_source = chosen
        self.planned = self.plan.tensors
        # a part is checked in its model
        reshaped = self.plan.stack is not None and first.part is None
        laid_out = self if reshaped else first  # which was checked with the others
        # raises where the layers of slices cannot run in one model
        self._doubts = laid_out.architecture_warnings

    @property
    def merged(self) -> Merged:
        """Itself; of a part that is merged the merge alone."""
        return self

    @property
    def sources(self) -> list[Parent]:
        """Sources that are merged, and the base."""
        return sources_of(*self.plan.sources, self.plan.base)

    def origin(self, name: str) -> Origin:
        """The tensors that one is merged from; a mask, a table of positions or a router is copied
        from one source."""
        planned = self.planned[name]
        if not planned.is_merged:
            return super().origin(name)
        inputs = with_optional(planned.inputs, planned.base)
        return Origin(
            "merged", tuple(pair for source, own in inputs for pair in source.origin(own).inputs)
        )

    def unused(self, source: Parent, name: str) -> str:
        """A tensor is left out where its layer is in no slice, or where the result has another
        source's."""
        if self.plan.stack is not None:
            return "layer in no slice"
        if classify(name)[2] == "router":
            return "router, that of one source is kept"
        return "not merged, the first source's is kept"

    def stream(self, name: str) -> Iterator[Tensor]:
        """Merge one tensor, slice by slice."""
        import torch

        planned = self.planned[name]
        if not planned.is_merged:
            yield from super().stream(name)
            return
        if self.plan.core:
            left, right = self.factors(name)
            weight = planned.base[0].read(planned.base[1])  # type: ignore[index]  # it has one
            whole = add_product(weight, left.float(), right.float(), torch.float32)
            yield whole.reshape(-1).to(torch_dtype(planned.info.dtype))
            return
        job = self._job(name)
        call = job.call(planned.values, planned.options)
        dtype = torch_dtype(planned.info.dtype)
        for start, stop, here in job.slices(call):
            base, vectors = job.parts(start, stop)
            here.owns = job.is_fresh
            yield job.method.function(base, vectors, here).to(dtype)
        job.release()

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """The two matrices whose product a merge in core space adds to a weight of the base, in
        float64: rows x rank, and rank x columns."""
        planned = self.planned[name]
        sources = self.plan.sources
        factors = factors_of(sources, name)
        core = Core(name, self.plan.method, factors, len(sources), seed=self.recipe.seed)
        return core.merge(planned.values, planned.options), core.right

    def _job(self, name: str) -> TensorJob:
        planned = self.planned[name]
        dtype = torch_dtype(planned.info.dtype)
        base = planned.base[0].read(planned.base[1], dtype) if planned.base is not None else None
        sources = [source.read(own, dtype) for source, own in planned.inputs]
        return TensorJob(name, self.plan.method, base, sources, seed=self.recipe.seed)

    @property
    def warnings(self) -> list[str]:
        """Warnings about the sources."""
        found = self._doubts + find_warnings(
            self.plan.sources, self.plan.base, self.tokenizer_source
        )
        return found + template_warnings(self.tokenizer_source.beside, self.chat_template)

    def doubts(self) -> list[str]:
        """Say where the sources are strangers, by a sample of each merged tensor; of some where
        tensors are computed when they are read, by an adapter or from quantised numbers."""
        plan = self.plan
        names = []
        for name, planned in self.planned.items():
            # else it is of a slice in which other sources take part
            if planned.is_merged and len(planned.inputs) == len(plan.sources):
                names.append(name)
        plain = all(source.adapter is None and not source.is_quantized for source in plan.sources)
        # no number of tensors of a block: each kind has its turn
        step = 1 if plain or len(names) <= 128 else 17
        unit = 0.0  # squared length of the base, or of the first input where there is none
        squares = np.zeros(len(plan.sources) + 1)  # of the inputs' differences from it
        for name in names[::step]:
            job = self._job(name)
            base, vectors = job.parts(0, min(_SAMPLE, job.numel))
            if base is None:
                base, *others = vectors
                vectors = [other - base for other in others]
            unit += float(base.dot(base))
            for index, vector in enumerate(vectors):
                squares[index] += float(vector.dot(vector))
            job.release()
            release_pages()
        warning = strangers(math.sqrt(float(squares.max()) / unit)) if unit else ""
        return [warning] if warning else []

    @cached_property
    def config(self) -> PretrainedConfig:
        """The first source's config, with the result's dtype, vocabulary and layers."""
        return type(self.plan.sources[0].config).from_dict(self._config_fields())

    def _config_fields(self) -> dict[str, Any]:
        first = self.plan.sources[0]
        fields = (
            first.read_json("config.json")
            if self.plan.stack is None
            else json.loads(self._stacked().to_json_string())
        )
        return result_fields(first, fields, self.recipe.dtype)

    def _stacked(self) -> PretrainedConfig:
        """The first source's config with the layers of the slices."""
        configs = [source.config for source in self.plan.sources]
        check_configs(configs, names=self.plan.sources)
        flow = FlowPart(path=[f"{source}:{layer}" for source, layer in self.plan.stack or []])
        stacked = path_config(configs, flow).text_config
        stacked.architectures = configs[0].architectures
        stacked.dtype = configs[0].dtype
        return stacked

    def write_companions(self, folder: Path) -> None:
        """Write ``config.json``, and copy what else lies beside the weights."""
        write_json(folder / "config.json", self._config_fields())
        copy_files(self.plan.sources[0].sentence.folder, folder, SENTENCE)
        self.tokenizer_source.write_tokenizer(folder)
        for source in (self.plan.sources[0], self.tokenizer_source):
            if source.trust_remote_code:
                copy_files(source.folder, folder, CODE)

    def __str__(self) -> str:
        stack = self.plan.stack
        how = f", stacked to {len(stack)} layers" if stack is not None else ""
        how = ", in core space" if self.plan.core else how
        return f"{self.plan.method.name} of {len(self.plan.sources)} sources{how}"


def result_fields(
    source: Parent, fields: dict[str, Any], dtype: str | None, vocab_size: int | None = None
) -> dict[str, Any]:
    """Return the ``config.json`` of a result that is a `source` with another dtype or number of
    tokens.

    Args:
        source: Source of the model.
        fields: Fields of its config; the mapping is changed.
        dtype: The result's dtype; the source's where None.
        vocab_size: The result's number of tokens; the source's where None.
    """
    fields.pop("_name_or_path", None)
    if not source.trust_remote_code:
        fields.pop("auto_map", None)  # the code that it names is not copied
    for part in (fields, fields.get("text_config")):
        if not isinstance(part, dict):
            continue
        if dtype is not None:
            old = part.pop("torch_dtype", None)
            if part is fields or old is not None or "dtype" in part:
                part["dtype"] = dtype
        if vocab_size is not None and "vocab_size" in part:
            part["vocab_size"] = vocab_size
    return fields
