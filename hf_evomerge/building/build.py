"""A recipe as a checkpoint, checked or written: the merged weights, the path through them, or
both."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..checkpoints.chat_template import most_common_template
from ..checkpoints.checkpoint import Checkpoint, Parent
from ..checkpoints.compatibility import check_tokenizer
from ..checkpoints.component import as_parts
from ..checkpoints.ledger import Ledger
from ..checkpoints.model_folder import remove_leftovers
from ..checkpoints.open import open_source
from ..checkpoints.writer import check_target, write_checkpoint
from ..errors import RecipeError, SourceError
from ..recipes.names import named_folder
from ..recipes.recipe import RECIPE_FILE, Recipe, SourceRef, with_optional
from .adapter import AdapterCheckpoint, MergedAdapter
from .build_record import write_build_record
from .composed import Composed
from .composed_pipeline import ComposedPipeline
from .merged import Merged
from .pipeline_adapter import PipelineAdapter
from .replicated import PathAdapter
from .routed import Routed

logger = logging.getLogger(__name__)


def build_model(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    max_shard_size: str | int = "4GB",
    trust_remote_code: bool = False,
    whole: bool | None = None,
) -> Path:
    """Build the model of a recipe.

    A recipe with only a ``merge`` part gives a plain model of the parents' architecture, one with a
    ``flow`` part an `EvoMergedForCausalLM`, or for vision-language models an
    `EvoMergedForImageTextToText`. Where the sources are LoRA adapters of one base, and the method
    adds what they change, the result is an adapter; where the recipe asks for it, so is a path
    through one model without scales. The recipe is saved beside the weights, its
    sources at the commits that were read. Configs and headers are checked before any weights are
    downloaded. The folder appears under its name only when it is whole; whole files of an
    interrupted build of several files stay in a hidden folder beside it, and the next build of the
    same recipe goes on from there. What is doubtful about the sources is logged.

    Args:
        recipe: What to build.
        out: The folder to make.
        overwrite: Whether to replace a model that is there.
        max_shard_size: The largest file of weights, such as ``"4GB"``.
        trust_remote_code: Whether Python files that come with the sources may be run to read their
            configs; they are then copied to the result.
        whole: Whether to write the whole model. False: an adapter, or nothing. None: an adapter
            where it is one.

    Returns:
        The folder.

    Raises:
        RecipeError: The recipe names an unknown method or parameter.
        SourceError: A source cannot be read, or the sources do not fit each other, or the result is
            no adapter.
        PathError: The path names a layer that is not there, or cannot run.
        EvoMergeError: The folder exists (with `overwrite`: and is no model, or is one of the
            sources), or another process is building it.

    Example:
        >>> folder = build_model(Recipe.load("recipe.yaml"), "merged")
        >>> (folder / "model.safetensors").is_file()
        True
    """
    remove_leftovers(Path(out))
    check_target(
        Path(out), overwrite=overwrite, keep=[named_folder(ref.model) for ref in recipe.parents]
    )

    def pin(ref: SourceRef) -> SourceRef:
        """Name the commit, so that the recipe is rebuilt from it or not at all."""
        try:
            return open_source(ref, trust_remote_code=trust_remote_code).pinned
        except SourceError:  # raised again where the source takes part
            return ref

    recipe = recipe.renamed(pin)
    checkpoint = open_result(recipe, trust_remote_code=trust_remote_code, whole=whole)
    is_adapter = isinstance(checkpoint, AdapterCheckpoint)

    def finish(folder: Path) -> None:
        energy = checkpoint.energy if isinstance(checkpoint, AdapterCheckpoint) else {}
        write_build_record(
            folder,
            "; ".join(filter(None, (str(Ledger.of(checkpoint)), checkpoint.remark()))),
            energy or None,
        )

    return write_checkpoint(
        checkpoint,
        out,
        files={RECIPE_FILE: recipe.to_yaml()},
        max_shard_size=sys.maxsize if is_adapter else max_shard_size,
        overwrite=overwrite,
        finish=finish,
    )


def open_result(
    recipe: Recipe, *, trust_remote_code: bool = False, whole: bool | None = None
) -> Checkpoint:
    """Open a recipe as the checkpoint that `build_model` writes, an adapter or a whole model; same
    arguments and errors."""
    merged = open_recipe(recipe, trust_remote_code=trust_remote_code)
    check_tokenizer(merged.tokenizer_source)
    if recipe.rank is not None and whole:
        raise RecipeError(
            "rank: the whole model has none; take it out of the recipe, or let an adapter be "
            "written"
        )
    draws = isinstance(merged, ComposedPipeline)
    if whole or (
        whole is None
        and recipe.rank is None
        and recipe.adapter is None
        and (draws or all(source.adapter is None for source in merged.sources))
    ):
        return merged
    try:
        if isinstance(merged, ComposedPipeline):
            return PipelineAdapter(recipe, merged)
        return PathAdapter(merged) if isinstance(merged, Routed) else MergedAdapter(recipe, merged)
    except SourceError as error:
        if whole is False or recipe.rank is not None:
            raise SourceError(
                f"the result is no adapter: {error}; write the whole model"
            ) from error
        logger.info("the whole model is written, as the result is no adapter: %s", error)
        return merged


@dataclass(frozen=True)
class RecipeCheck:
    """Result of checking a recipe; nothing has been built, and no weights were read.

    Attributes:
        summary: Summary in one line.
        warnings: Warnings for the user before building it, one line each.
        ledger: Account of every tensor of the sources.
    """

    summary: str
    warnings: list[str]
    ledger: Ledger = field(repr=False)

    def __str__(self) -> str:
        return "\n".join([f"fine: {self.summary}", *(f"warning: {line}" for line in self.warnings)])


def check_recipe(
    recipe: Recipe, *, trust_remote_code: bool = False, whole: bool | None = None
) -> RecipeCheck:
    """Check a recipe and its sources from configs and headers, without building and without
    downloading weights.

    Args:
        recipe: What to check.
        trust_remote_code, whole: As for `build_model`.

    Raises:
        RecipeError: The recipe names an unknown method or parameter.
        SourceError: A source cannot be read, or the sources do not fit each other.
        PathError: The path names a layer that is not there, or cannot run.

    Example:
        >>> print(check_recipe(Recipe.load("recipe.yaml")))  # doctest: +ELLIPSIS
        fine: ...
    """
    checkpoint = open_result(recipe, trust_remote_code=trust_remote_code, whole=whole)
    own = (
        checkpoint.dtype
        if isinstance(checkpoint, AdapterCheckpoint)
        else recipe.dtype or checkpoint.config.dtype
    )
    return RecipeCheck(
        f"{checkpoint}, as {str(own).removeprefix('torch.')}",
        checkpoint.warnings,
        Ledger.of(checkpoint),
    )


def open_recipe(
    recipe: Recipe,
    *,
    trust_remote_code: bool = False,
    opened: Callable[[SourceRef], Parent] | None = None,
) -> Checkpoint:
    """The model of a recipe as a checkpoint that can be read, inspected or written; see
    `build_model` for what it raises.

    Of repositories only small files are fetched, and headers of weights.

    Args:
        recipe: The recipe.
        trust_remote_code: As for `build_model`.
        opened: Gives a source, in place of opening it anew.

    Example:
        >>> checkpoint = open_recipe(Recipe.load("recipe.yaml"))
        >>> checkpoint.read("model.norm.weight").shape  # one merged tensor; nothing is written
        torch.Size([16])
    """
    recipe, sources, base = _parents(
        recipe, opened or partial(open_source, trust_remote_code=trust_remote_code)
    )
    merge = _merge(recipe, sources, base) if recipe.merge is not None else None
    if recipe.flow is None:
        assert merge is not None  # a recipe has at least one part
        return merge
    return Routed(
        list(sources.values()),
        recipe.flow,
        merge,
        dtype=recipe.dtype,
        tokenizer=recipe.tokenizer_of(sources, base, None),
        processor=None if recipe.processor is None else sources[recipe.processor],
        chat_template=recipe.chat_template,
    )


def open_merge(recipe: Recipe, opened: Callable[[SourceRef], Parent]) -> Merged:
    """The merge of a recipe alone: without the model that a part is put into, and without a path.
    See `open_recipe`."""
    return _merge(*_parents(recipe, opened)).merged


def _parents(
    recipe: Recipe, opened: Callable[[SourceRef], Parent]
) -> tuple[Recipe, dict[int, Parent], Parent | None]:
    """The sources that a recipe uses by their numbers, and its base, as the parts that take part;
    and the recipe's template."""
    used = set(range(len(recipe.sources)))
    if recipe.flow is None:
        named = (recipe.tokenizer, recipe.processor, *(recipe.components or {}).values())
        used = {*recipe.merge_sources, *(number for number in named if isinstance(number, int))}
        if recipe.dtype is None:
            used.add(
                0
            )  # the dtype of the result is the first source's, also where it is not merged
    sources = {number: opened(recipe.sources[number]) for number in sorted(used)}
    base = opened(recipe.base) if recipe.base is not None else None
    if recipe.chat_template == "auto":
        chosen = most_common_template(
            source.beside for source in with_optional(sources.values(), base)
        )
        recipe = recipe.model_copy(update={"chat_template": chosen})
    if recipe.has_components:
        numbers = recipe.merge_sources if recipe.flow is None else list(sources)
        parts = as_parts(with_optional((sources[number] for number in numbers), base))
        sources |= dict(zip(numbers, parts, strict=False))
        base = parts[-1] if base is not None else None
        wider = next((part for part in parts if not part.is_whole), None)
        if recipe.flow is not None and wider is not None:
            embedding = sources.get(recipe.flow.embedding_source)
            if embedding is not None and embedding.is_whole:
                raise SourceError(
                    f"flow.embedding_source: {embedding} is all text, and {wider} is more; give "
                    "that of the model whose class the result has"
                )
    return recipe, sources, base


def _merge(recipe: Recipe, sources: Mapping[int, Parent], base: Parent | None) -> Merged | Composed:
    """The merge of whole models, or of a part in the model or the pipeline whose part it is."""
    if sources[recipe.merge_sources[0]].whole.entries:
        return ComposedPipeline(recipe, sources, base)
    kind = Composed if recipe.has_components else Merged
    return kind(recipe, sources, base)
