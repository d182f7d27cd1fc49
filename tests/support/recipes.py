"""Recipes of a few models, for tests that merge them or lay a path through them."""

from hf_evomerge.recipes.recipe import Recipe


def ref_of(model):
    """What a recipe says of a model: its folder or name, the folders of a base and an adapter, or
    more."""
    if isinstance(model, tuple):
        return {"model": str(model[0]), "adapter": str(model[1])}
    return model if isinstance(model, dict) else {"model": str(model)}


def refs_in(folder, *names):
    """What a recipe says of models in a folder."""
    return [ref_of(folder / name) for name in names]


def merge_of(*models, method="linear", base=None, weights=(), **fields):
    """A merge of the models with these weights; further fields of the recipe, and under `merge` of
    that part."""
    merge = {
        "method": method,
        "parameters": [{"weight": weight} for weight in weights],
        **fields.pop("merge", {}),
    }
    based = {} if base is None else {"base": ref_of(base)}
    return Recipe.model_validate(
        {"sources": list(map(ref_of, models)), "merge": merge, **based, **fields}
    )


def path_of(*models, hops, **fields):
    """A path through the models; further fields of the recipe, and under `flow` of that part."""
    flow = {"path": hops, **fields.pop("flow", {})}
    return Recipe.model_validate({"sources": list(map(ref_of, models)), "flow": flow, **fields})
