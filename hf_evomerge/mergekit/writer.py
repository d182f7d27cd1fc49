"""Writes recipes as mergekit's YAML files. What mergekit cannot say is refused with the key's
name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RecipeError
from ..merging.method import MergeMethod
from ..merging.registry import get_method
from ..recipes.recipe import (
    MergePart,
    Recipe,
    SlicePart,
    SourceRef,
    TokenPart,
    TokenRow,
    with_optional,
)
from ..recipes.strict_yaml import to_yaml
from .reader import REQUIRED, Fields


def to_mergekit(recipe: Recipe) -> tuple[str, list[str]]:
    """Write a recipe as a mergekit file.

    Args:
        recipe: A recipe with a merge, or with a serial path without scales, which becomes a
            passthrough merge.

    Returns:
        The YAML text, and lines for the user about what mergekit does otherwise.

    Raises:
        RecipeError: The recipe says what mergekit cannot, naming the key.

    Example:
        >>> text, notes = to_mergekit(Recipe.load("recipe.yaml"))
        >>> text.splitlines()[0]
        'merge_method: task_arithmetic'
    """
    if recipe.merge is not None and recipe.flow is not None:
        raise RecipeError("flow: mergekit has no path through a merged model")
    if recipe.has_components:
        raise RecipeError("component: mergekit merges whole models")
    notes: list[str] = []
    data = (
        _write_flow(recipe) if recipe.merge is None else _write_merge(recipe, recipe.merge, notes)
    )
    if recipe.dtype is not None:
        data["dtype"] = "float32"  # sums are made in float32 here, and in this dtype there
        if recipe.dtype != "float32":
            data["out_dtype"] = recipe.dtype
    number = (
        recipe.merge_sources[0]
        if recipe.tokenizer is None and recipe.flow is None
        else recipe.tokenizer
    )
    if number is not None:
        owner = recipe.base if number == "base" else recipe.sources[number]
        assert owner is not None  # the recipe was checked
        # without the key mergekit takes the tokenizer of the base, or of any model where there is
        # no base
        if data.get(
            "base_model", _reference(owner) if recipe.tokenizer is None else None
        ) != _reference(owner):
            passes = data["merge_method"] == "passthrough" and recipe.vocabulary is None
            data["base_model" if passes else "tokenizer_source"] = _reference(
                owner
            )  # the first asks nothing of other tokens
    if recipe.vocabulary is not None:
        _write_tokens(recipe, recipe.tokens or TokenPart(), data)
    if recipe.chat_template is not None:
        data["chat_template"] = recipe.chat_template
    return to_yaml(data), notes


def _write_merge(recipe: Recipe, part: MergePart, notes: list[str]) -> Fields:
    method = get_method(part.method)
    data: Fields = {"merge_method": method.name}
    stands_apart = recipe.base is not None and method.task_vectors
    if recipe.base is not None and (
        stands_apart or method.takes_base_as_first(len(recipe.merge_sources))
    ):
        data["base_model"] = _reference(recipe.base)
    elif method.name == "slerp":
        data["base_model"] = _reference(recipe.sources[recipe.merge_sources[0]])
    if method.random:
        notes.append(f"{method.name} drops elements at random: mergekit draws other ones")
    if isinstance(part.router, int):
        raise RecipeError("merge.router: mergekit merges routers as everything else; write merge")
    if part.core_space:
        raise RecipeError("merge.core_space: mergekit merges whole weights; leave it out")
    if part.slices is None:
        names = [_reference(recipe.sources[number]) for number in recipe.merge_sources]
        if len(set(names)) < len(names):
            raise RecipeError(
                f"merge.sources: mergekit takes a model once (found {', '.join(names)})"
            )
        values = part.parameters or [{}] * len(names)
        models = [
            _with_parameters(
                {"model": name}, _written(method, "source", given, f"merge.parameters[{number}]")
            )
            for number, (name, given) in enumerate(zip(names, values, strict=True))
        ]
        first = data.get("base_model")
        data["models"] = models if first is None or first in names else [{"model": first}, *models]
    else:
        data["slices"] = [
            _write_slice(recipe, method, piece, f"merge.slices[{number}]", stands_apart)
            for number, piece in enumerate(part.slices)
        ]
    has_own = part.slices is not None and all("t" in piece.options for piece in part.slices)
    return _with_parameters(
        data, _written(method, "global", part.options, "merge.options", needed=not has_own)
    )


def _write_slice(
    recipe: Recipe, method: MergeMethod, piece: SlicePart, where: str, stands_apart: bool
) -> Fields:
    sources: list[Fields] = []
    for number, run in enumerate(piece.runs()):
        entry = {
            "model": _reference(recipe.sources[run[0][0]]),
            "layer_range": _span([layer for _, layer in run], where),
        }
        given = piece.parameters[number] if piece.parameters else {}
        if entry["model"] in [other["model"] for other in sources]:
            raise RecipeError(
                f"{where}.layers: mergekit takes a model once in a slice (found "
                f"{entry['model']} twice)"
            )
        sources.append(
            _with_parameters(
                entry, _written(method, "source", given, f"{where}.parameters[{number}]")
            )
        )
    base = _reference(recipe.base) if recipe.base is not None else None
    listed = any(entry["model"] == base for entry in sources)
    if (
        recipe.base is not None
        and not listed
        and (stands_apart or method.takes_base_as_first(len(sources)))
    ):
        sources.append(
            {"model": _reference(recipe.base), "layer_range": _span(piece.base_layers(), where)}
        )
    own = _written(method, "global", piece.options, f"{where}.options", needed=False)
    return _with_parameters({"sources": sources}, own)


def _write_flow(recipe: Recipe) -> Fields:
    """A serial path as a passthrough merge: a plain model, in which a repeated layer is stored
    again."""
    flow = recipe.flow
    assert flow is not None  # a recipe has at least one part
    path = flow.to_path()
    if not path.is_serial:
        raise RecipeError("flow.path: mergekit has no hop of several layers")
    if any(scale != 1 for scale in path.scales):
        raise RecipeError(
            "flow.scales: mergekit scales tensors, not the stream; fold the model instead"
        )
    layers = [(hop.terms[0].source, hop.terms[0].layer) for hop in path.hops]
    for place, (source, _) in (("first", layers[0]), ("last", layers[-1])):
        if source != flow.embedding_source:
            raise RecipeError(
                "flow.embedding_source: mergekit takes embeddings and head from the first "
                f"and the last slice, and the {place} "
                f"hop is of source {source}"
            )
    # Neighbours that go on in one source become one slice [first, last + 1]. A step back or to
    # another source begins a new one, and so does a repeated layer.
    runs: list[tuple[int, int, int]] = []
    for source, layer in layers:
        if runs and runs[-1][0] == source and runs[-1][2] == layer:
            runs[-1] = (source, runs[-1][1], layer + 1)
        else:
            runs.append((source, layer, layer + 1))
    slices = [
        {"sources": [{"model": _reference(recipe.sources[s]), "layer_range": [a, b]}]}
        for s, a, b in runs
    ]
    return {"merge_method": "passthrough", "slices": slices}


def _write_tokens(recipe: Recipe, part: TokenPart, data: Fields) -> None:
    """Say in `data` which tokens the result has; its ``tokenizer_source``, if any, is whose
    tokenizer goes with it."""
    owner = data.pop("tokenizer_source", data.get("base_model"))
    if recipe.vocabulary == "union":
        if owner is not None and data.get("base_model") != owner and recipe.tokenizer is not None:
            raise RecipeError(
                f"tokenizer: mergekit's union begins with the base_model's tokens (found {owner})"
            )
        owner = "union"
    elif owner is None:
        owner = _reference(recipe.sources[recipe.merge_sources[0]])
    default = part.default
    if default is None and recipe.base is not None:
        default = "base"
    if (
        default is not None
        and recipe.base is None
        and not get_method(data["merge_method"]).task_vectors
    ):
        data.setdefault("base_model", _party(recipe, default))
    if default is not None and data.get("base_model") != _party(recipe, default):
        raise RecipeError(
            f"tokens.default: mergekit takes the base_model's rows first (found {default})"
        )
    if not part.rows and part.multiple_of == 1:
        data["tokenizer_source"] = owner
        return
    data["tokenizer"] = {"source": owner}
    if part.rows:
        data["tokenizer"]["tokens"] = {
            token: _written_row(recipe, row) for token, row in part.rows.items()
        }
    if part.multiple_of > 1:
        data["tokenizer"]["pad_to_multiple_of"] = part.multiple_of


def _written_row(recipe: Recipe, row: TokenRow) -> Fields:
    source: Any = {"kind": "zero"} if row.source == "zero" else _party(recipe, row.source)
    if row.source != "zero" and (row.token is not None or row.id is not None):
        source = {"kind": "model_token", "model": source}
        source |= {"token": row.token} if row.token is not None else {"token_id": row.id}
    return {"source": source, **({"force": True} if row.force else {})}


def _party(recipe: Recipe, key: int | str) -> str:
    ref = recipe.base if key == "base" else recipe.sources[int(key)]
    assert ref is not None  # the recipe was checked
    return _reference(ref)


def _span(layers: Sequence[int], where: str) -> list[int]:
    if list(layers) != list(range(layers[0], layers[0] + len(layers))):
        raise RecipeError(
            f"{where}.layers: mergekit's layers go up one by one (found {list(layers)}); "
            "write several slices"
        )
    return [layers[0], layers[-1] + 1]


def _with_parameters(data: Fields, parameters: Fields) -> Fields:
    return {**data, "parameters": parameters} if parameters else data


def _written(
    method: MergeMethod, scope: str, given: Mapping[str, Any], where: str, *, needed: bool = True
) -> Fields:
    """The parameters of a scope as mergekit writes them."""
    declared = [parameter for parameter in method.parameters if parameter.scope == scope]
    found = {}
    for parameter in declared:
        name = parameter.name
        value = given.get(parameter.name)
        if value is None and not (needed and name in REQUIRED and method.name != "karcher"):
            continue
        value = parameter.default if value is None else value
        place = f"{where}.{name}"
        if name == "rescale":
            if value == "expected":
                raise RecipeError(f"{place}: mergekit knows l1 and none (found {value!r})")
            found[name] = value == "l1"
        elif method.name == "karcher" and name == "weight":
            if value != parameter.default:
                raise RecipeError(f"{place}: mergekit has nothing like it (found {value!r})")
        else:
            found[name] = _written_value(value, place)
    return found


def _written_value(value: Any, where: str) -> Any:
    """A number, a gradient, or conditions in their order."""
    if not isinstance(value, Mapping):
        return value
    found = []
    default = None
    for key, item in value.items():
        inner = key[1:-1]
        if key == "default":
            default = {"value": item}
        elif key.startswith("*") and key.endswith("*") and inner and "*" not in inner:
            found.append({"filter": inner, "value": item})
        else:
            raise RecipeError(
                f"{where}.{key}: mergekit knows parts of names, such as '*mlp*', and no "
                "layer groups; `hf-evomerge merge` "
                "builds the recipe as it is"
            )
    return with_optional(found, default)


def _reference(ref: SourceRef) -> str:
    text = str(ref).replace(" + ", "+")
    if text.count("+") > (ref.adapter is not None) or text.count("@") > sum(
        revision is not None for revision in (ref.revision, ref.adapter_revision)
    ):
        raise RecipeError(
            f"sources: {ref} has a + or an @ in a name, which mergekit takes for its own; "
            "rename the folder"
        )
    return text
