"""Builds the model of a recipe on disk: the merged weights, the path through them, or one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .errors import RecipeError, SourceError
from .recipe import FlowPart, Recipe, SourceRef

if TYPE_CHECKING:
    from .sources import Source

RECIPE_FILE = "recipe.yaml"


def build_model(recipe: Recipe, out: str | os.PathLike[str], *, progress: bool = True, overwrite: bool = False) -> FilePath:
    """Build the model of a recipe.

    A recipe with only a ``merge`` part gives a plain model of the parents' architecture, one with a ``flow`` part an
    `EvoMergedForCausalLM`. The recipe is saved beside the weights. The folder appears under its name only when it is whole.

    Args:
        recipe: What to build.
        out: The folder to make.
        progress: Whether to show a progress bar.
        overwrite: Whether to replace a folder that exists.

    Returns:
        The folder.

    Raises:
        RecipeError: The recipe names an unknown method or parameter, or the folder exists (with `overwrite`: and is no model,
            or is one of the sources).
        SourceError: A source cannot be read, or the sources do not fit each other.

    Example:
        >>> build_model(Recipe.load("recipe.yaml"), "merged")  # doctest: +SKIP
        PosixPath('merged')
    """
    out = FilePath(out)
    if out.exists() and not overwrite:
        raise RecipeError(f"{out}: exists already; choose another folder, or pass --overwrite")
    _check_replaceable(recipe, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        whole = _build_parts(recipe, FilePath(scratch), progress)
        recipe.save(whole / RECIPE_FILE)
        replaced = FilePath(scratch) / "replaced"
        if out.exists():
            out.rename(replaced)
        whole.rename(out)
    return out


def _check_replaceable(recipe: Recipe, out: FilePath) -> None:
    """Refuse to replace anything but a model, and a model that the recipe needs."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "config.json").is_file():
        raise RecipeError(f"{out}: exists and is no model; choose another folder, or remove it yourself")
    for ref in [*recipe.sources, *([recipe.base] if recipe.base is not None else [])]:
        if FilePath(ref.model).expanduser().resolve() == out.resolve():
            raise RecipeError(f"{out}: is one of the recipe's own sources; choose another folder")


def _build_parts(recipe: Recipe, scratch: FilePath, progress: bool) -> FilePath:
    """The finished model, in a folder inside `scratch`."""
    from .merging.checkpoint import merge_checkpoint
    from .routing.checkpoint import build_flow
    from .sources import Source

    if recipe.merge is not None and recipe.dtype is None and recipe.merge_sources[0] != 0:
        stored = Source.open(recipe.sources[0]).config.dtype  # the dtype is the first source's, also where it takes no part
        recipe = recipe.model_copy(update={"dtype": None if stored is None else str(stored).removeprefix("torch.")})
    if recipe.flow is None:
        return merge_checkpoint(recipe, scratch / "merged", progress=progress)
    folders = [Source.open(ref).folder for ref in recipe.sources]
    refs = list(recipe.sources)
    if recipe.merge is not None:
        merged = merge_checkpoint(recipe.model_copy(update={"flow": None}), scratch / "merged", progress=progress)
        folders.append(merged)
        refs.append(SourceRef(model="merged"))
    return build_flow(folders, recipe.flow, scratch / "model", sources=refs, dtype=recipe.dtype, progress=progress)


def check_recipe(recipe: Recipe) -> str:
    """Check a recipe and its sources from configs and headers, without building; returns one line that says what it would be.

    Raises:
        RecipeError: The recipe names an unknown method or parameter.
        SourceError: A source cannot be read, or the sources do not fit each other.
        PathError: The path names a layer that is not there.
    """
    from .merging import check_part
    from .sources import Source, check_mergeable

    sources = [Source.open(ref) for ref in recipe.sources]
    base = Source.open(recipe.base) if recipe.base is not None else None
    layers = [source.layer_count for source in sources]
    parts = []
    if recipe.merge is not None:
        taking_part = [sources[index] for index in recipe.merge_sources]
        depth = taking_part[0].layer_count
        check_mergeable(taking_part, base)
        check_part(recipe.merge, sources=len(taking_part), has_base=base is not None, layer_count=depth)
        parts.append(f"{recipe.merge.method} of {len(taking_part)} sources")
        layers.append(depth)
    if recipe.flow is not None:
        path = recipe.flow.to_path()
        path.check(layers)
        check_flow([*sources, *([sources[recipe.merge_sources[0]]] if recipe.merge is not None else [])], recipe.flow)
        parts.append(f"a path of {len(path)} hops over {len(path.unique_layers)} distinct layers")
    return f"fine: {', then '.join(parts)}, as {recipe.dtype or sources[0].config.dtype}"


def check_flow(sources: Sequence[Source], flow: FlowPart) -> None:
    """Check from the configs that the layers of these sources can run in one model, along this path; raises `EvoMergeError`."""
    from .modeling import EvoMergedConfig
    from .modeling.modeling_evo_merged import check_scale_target
    from .modeling.origins import check_rearrangeable

    path = flow.to_path()
    configs = [source.config for source in sources]
    try:
        check_rearrangeable(configs)
        config = EvoMergedConfig.from_sources(
            configs, path.as_text(), path.scales, scale_target=flow.scale_target, embedding_source=flow.embedding_source
        )
        check_scale_target(config)
    except ValueError as cause:
        raise SourceError(" ".join(str(cause).split())) from cause
