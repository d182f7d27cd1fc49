"""Builds the model of a recipe on disk: the merged weights, the path through them, or one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.model_folder import named_folder, put_in_place, scratch_folder, write_chat_template
from ..errors import RecipeError, SourceError
from ..recipes.recipe import RECIPE_FILE, FlowPart, Recipe, SourceRef

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ..checkpoints.source import Source


Report = Callable[[str], None]


def build_model(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
    overwrite: bool = False,
    max_shard_size: str | int = "4GB",
    report: Report | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Build the model of a recipe.

    A recipe with only a ``merge`` part gives a plain model of the parents' architecture, one with a ``flow`` part an
    `EvoMergedForCausalLM`. The recipe is saved beside the weights. Configs and headers are checked before any weights are
    downloaded. The folder appears under its name only when it is whole; what an interrupted build had finished stays in a
    hidden folder beside it, and the next build of the same recipe goes on from there.

    Args:
        recipe: What to build.
        out: The folder to make.
        progress: Whether to show a progress bar.
        overwrite: Whether to replace a folder that exists.
        max_shard_size: The largest file of weights, such as ``"4GB"``.
        report: Called with lines for the user: what is doubtful about the sources, and how they are related.
        trust_remote_code: Whether Python files that come with the sources may be run to read their configs; they are then
            copied to the result.

    Returns:
        The folder.

    Raises:
        RecipeError: The recipe names an unknown method or parameter, or the folder exists (with `overwrite`: and is no model,
            or is one of the sources).
        SourceError: A source cannot be read, or the sources do not fit each other.
        EvoMergeError: Another process is building this folder.

    Example:
        >>> folder = build_model(Recipe.load("recipe.yaml"), "merged", progress=False)
        >>> (folder / "model.safetensors").is_file()
        True
    """
    from ..checkpoints.source import build_key

    out = Path(out)
    if out.exists() and not overwrite:
        raise RecipeError(f"{out}: exists already; choose another folder, or pass --overwrite")
    _check_replaceable(recipe, out)
    sources, base = _open(recipe, trust_remote_code)
    checked = _check(recipe, sources, base)
    if report is not None:
        for line in checked.doubts:
            report(f"warning: {line}")
    key = build_key(recipe, [*sources.values(), *([base] if base is not None else [])], str(max_shard_size))
    how: dict[str, Any] = {"progress": progress, "max_shard_size": max_shard_size}
    with scratch_folder(out, key) as scratch:
        whole = _build_parts(recipe, scratch, sources=sources, base=base, how=how, report=report)
        recipe.save(whole / RECIPE_FILE)
        if not overwrite and out.exists() and not _is_empty(out):
            raise RecipeError(f"{out}: was made by somebody else meanwhile; choose another folder, or pass --overwrite")
        _check_replaceable(recipe, out)  # again: a build takes minutes
        _replace(out, whole, scratch / "replaced")
    return out


def _replace(out: Path, whole: Path, aside: Path) -> None:
    """Put the finished folder in the place of the old one, or leave the old one there."""
    if out.exists():
        out.rename(aside)
    try:
        put_in_place(whole, out)
    except BaseException:
        if aside.exists():
            aside.rename(out)
        raise


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _check_replaceable(recipe: Recipe, out: Path) -> None:
    """Refuse to replace anything but a model, and a model that the recipe needs."""
    if not out.exists() or _is_empty(out):
        return
    if not (out / "config.json").is_file():
        raise RecipeError(f"{out}: exists and is no model; choose another folder, or remove it yourself")
    for ref in [*recipe.sources, *([recipe.base] if recipe.base is not None else [])]:
        if named_folder(ref.model).resolve() == out.resolve():
            raise RecipeError(f"{out}: is one of the recipe's own sources; choose another folder")


def _open(recipe: Recipe, trust_remote_code: bool) -> tuple[dict[int, Source], Source | None]:
    """The sources that the recipe uses, by their numbers, and the base. Of repositories only small files are fetched."""
    from ..checkpoints.source import Source

    used = set(range(len(recipe.sources)))
    if recipe.flow is None:
        used = {*recipe.merge_sources, *([recipe.tokenizer] if isinstance(recipe.tokenizer, int) else [])}
        if recipe.dtype is None:
            used.add(0)  # the dtype of the result is the first source's, also where it takes no part
    trust = {"trust_remote_code": trust_remote_code}
    sources = {number: Source.open(recipe.sources[number], **trust) for number in sorted(used)}
    return sources, Source.open(recipe.base, **trust) if recipe.base is not None else None


def _build_parts(
    recipe: Recipe,
    scratch: Path,
    *,
    sources: Mapping[int, Source],
    base: Source | None,
    how: Mapping[str, Any],
    report: Report | None,
) -> Path:
    """The finished model, in a folder inside `scratch`."""
    from ..checkpoints.source import Source
    from .merged import merge_checkpoint
    from .routed import build_flow

    if recipe.merge is not None and recipe.dtype is None and recipe.merge_sources[0] != 0:
        stored = sources[0].config.dtype  # the dtype is the first source's, also where it takes no part
        recipe = recipe.model_copy(update={"dtype": None if stored is None else str(stored).removeprefix("torch.")})
    merged = scratch / "merged"
    if recipe.merge is not None and not merged.is_dir():  # it is there, and whole, where a build was stopped after it
        merge = recipe.model_copy(update={"flow": None})
        merge_checkpoint(merge, merged, sources=sources, base=base, report=report, **how)
    if recipe.flow is None:
        return merged
    along = list(sources.values())
    if recipe.merge is not None:
        along.append(Source(merged, SourceRef(model="merged")))
    whole = scratch / "model"
    if not whole.is_dir():
        owner = _tokenizer_of(recipe, sources, base)
        build_flow(along, recipe.flow, whole, dtype=recipe.dtype, tokenizer=owner, **how)
    if recipe.chat_template is not None:
        write_chat_template(whole, recipe.chat_template)
    return whole


def _tokenizer_of(recipe: Recipe, sources: Mapping[int, Source], base: Source | None) -> Source | None:
    """The source that the recipe names for the tokenizer."""
    return base if recipe.tokenizer == "base" else None if recipe.tokenizer is None else sources[recipe.tokenizer]


@dataclass(frozen=True)
class Checked:
    """What a recipe would give.

    Attributes:
        what: One line that says it.
        doubts: What a user should know before building it, one line each.
    """

    what: str
    doubts: list[str]

    def __str__(self) -> str:
        return "\n".join([f"fine: {self.what}", *(f"warning: {line}" for line in self.doubts)])


def check_recipe(recipe: Recipe, *, trust_remote_code: bool = False) -> str:
    """Check a recipe and its sources from configs and headers, without building and without downloading weights.

    Args:
        recipe: What to check.
        trust_remote_code: As for `build_model`.

    Returns:
        A line that says what it would be, and one for each doubt about the sources.

    Raises:
        RecipeError: The recipe names an unknown method or parameter.
        SourceError: A source cannot be read, or the sources do not fit each other.
        PathError: The path names a layer that is not there.
    """
    return str(_check(recipe, *_open(recipe, trust_remote_code)))


def _check(recipe: Recipe, sources: Mapping[int, Source], base: Source | None) -> Checked:
    from ..checkpoints.compatibility import doubts
    from .merged import merged_config, plan_recipe

    parts, layers, found = [], [source.layer_count for source in sources.values()], list[str]()
    along = list(sources.values())
    configs = [source.config for source in along]
    if recipe.merge is not None:
        plan, owner = plan_recipe(recipe, sources, base)
        depth = plan.sources[0].layer_count if plan.stack is None else len(plan.stack)
        stacked = f", stacked to {depth} layers" if plan.stack is not None else ""
        parts.append(f"{plan.method.name} of {len(plan.sources)} sources{stacked}")
        layers.append(depth)
        along.append(plan.sources[0])
        configs.append(merged_config(plan))
        found += doubts(plan.sources, base, owner)
    if recipe.flow is not None:
        path = recipe.flow.to_path()
        path.check(layers)
        check_flow(along, recipe.flow, configs=configs)
        embedding, tokens = along[recipe.flow.embedding_source], _tokenizer_of(recipe, sources, base)
        if tokens is not None and tokens.vocab_size != embedding.vocab_size:
            raise SourceError(
                f"tokenizer: {tokens} has a vocabulary of {tokens.vocab_size}, the embeddings of {embedding} one of "
                f"{embedding.vocab_size}; name another source"
            )
        parts.append(f"a path of {len(path)} hops over {len(path.unique_layers)} distinct layers")
        if recipe.merge is None:
            found += doubts(along, None, tokens or embedding)
    return Checked(f"{', then '.join(parts)}, as {recipe.dtype or along[0].config.dtype}", found)


def check_flow(
    sources: Sequence[Source], flow: FlowPart, *, configs: Sequence[PretrainedConfig] | None = None, anywhere: bool = False
) -> None:
    """Check from the configs that the layers of these sources can run in one model, along this path.

    Args:
        sources: The sources, by their numbers in the path.
        flow: The path.
        configs: Their configs, where one of them is not what its folder says.
        anywhere: Also that their layers compute the same in any place of a path, since a search tries them all.

    Raises:
        EvoMergeError: They cannot.
    """
    from ..modeling import EvoMergedConfig
    from ..modeling.modeling_evo_merged import check_scale_target
    from ..modeling.origins import check_rearrangeable

    path = flow.to_path()
    configs = [source.config for source in sources] if configs is None else list(configs)
    try:
        if anywhere:
            check_rearrangeable(configs)
        config = EvoMergedConfig.from_sources(
            configs, path.as_text(), path.scales, scale_target=flow.scale_target, embedding_source=flow.embedding_source
        )
        check_scale_target(config)
    except ValueError as cause:
        raise SourceError(" ".join(str(cause).split())) from cause
