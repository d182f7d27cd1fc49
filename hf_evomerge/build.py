"""Builds the model of a recipe on disk: the merged weights, the path through them, or one after the other."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory

from .errors import RecipeError
from .recipe import Recipe, SourceRef

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
        RecipeError: The recipe names an unknown method or parameter, or the folder exists.
        SourceError: A source cannot be read, or the sources do not fit each other.

    Example:
        >>> build_model(Recipe.load("recipe.yaml"), "merged")  # doctest: +SKIP
        PosixPath('merged')
    """
    out = FilePath(out)
    if out.exists() and not overwrite:
        raise RecipeError(f"{out}: exists already; choose another folder, or pass --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        whole = _build_parts(recipe, FilePath(scratch), progress)
        recipe.save(whole / RECIPE_FILE)
        replaced = FilePath(scratch) / "replaced"
        if out.exists():
            out.rename(replaced)
        whole.rename(out)
    return out


def _build_parts(recipe: Recipe, scratch: FilePath, progress: bool) -> FilePath:
    """The finished model, in a folder inside `scratch`."""
    from .merging.checkpoint import merge_checkpoint
    from .routing.checkpoint import build_flow
    from .sources import Source

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
        parts.append(f"a path of {len(path)} hops over {len(path.unique_layers)} distinct layers")
    return f"fine: {', then '.join(parts)}, as {recipe.dtype or sources[0].config.dtype}"
