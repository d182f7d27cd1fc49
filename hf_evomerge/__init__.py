"""Evolve merges of existing language models: parameter space, data flow space, or both.

Public names are imported when they are first used, so that ``import hf_evomerge`` takes
milliseconds. The model class is registered with transformers' Auto classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_lazily

if TYPE_CHECKING:  # what `_HOMES` says, for type checkers and editors
    from .building.build import build_model as build_model
    from .building.build import check_recipe as check_recipe
    from .building.build import open_recipe as open_recipe
    from .building.extracted import extract_adapter as extract_adapter
    from .building.folded import fold as fold
    from .checkpoints.diff import diff_models as diff_models
    from .checkpoints.inspect import inspect_model as inspect_model
    from .checkpoints.open import open_source as open_source
    from .errors import EvoMergeError as EvoMergeError
    from .fitness import DataSpec as DataSpec
    from .fitness import Example as Example
    from .fitness import FunctionTask as FunctionTask
    from .fitness import Scores as Scores
    from .fitness import load_examples as load_examples
    from .fitness import register_task as register_task
    from .hub.push import preview_push as preview_push
    from .hub.push import push_model as push_model
    from .hub.push_plan import PushOptions as PushOptions
    from .hub.reproduce import reproduce as reproduce
    from .hub.space import push_space as push_space
    from .mergekit import from_mergekit as from_mergekit
    from .mergekit import to_mergekit as to_mergekit
    from .merging import register_method as register_method
    from .modeling import EvoMergedConfig as EvoMergedConfig
    from .modeling import EvoMergedForCausalLM as EvoMergedForCausalLM
    from .modeling import EvoMergedForImageTextToText as EvoMergedForImageTextToText
    from .modeling import EvoMergedModel as EvoMergedModel
    from .recipes.layer_path import LayerPath as LayerPath
    from .recipes.recipe import FlowPart as FlowPart
    from .recipes.recipe import MergePart as MergePart
    from .recipes.recipe import Recipe as Recipe
    from .recipes.recipe import SourceRef as SourceRef
    from .routing.pool import LayerPool as LayerPool
    from .search.ask_tell import Search as Search
    from .search.callbacks import SearchCallback as SearchCallback
    from .search.file.config import SearchConfig as SearchConfig
    from .search.plan import plan_search as plan_search
    from .search.run import resume_search as resume_search
    from .search.run import run_search as run_search
    from .search.score_model import evaluate_model as evaluate_model
    from .search.study.study import Study as Study
    from .search.study.study import Trial as Trial

__version__ = "0.1.0"

_HOMES: dict[str, tuple[str, ...]] = {
    "building.build": ("build_model", "check_recipe", "open_recipe"),
    "building.extracted": ("extract_adapter",),
    "building.folded": ("fold",),
    "checkpoints.diff": ("diff_models",),
    "checkpoints.inspect": ("inspect_model",),
    "checkpoints.open": ("open_source",),
    "errors": ("EvoMergeError",),
    "fitness": ("DataSpec", "Example", "FunctionTask", "Scores", "load_examples", "register_task"),
    "hub.push": ("preview_push", "push_model"),
    "hub.push_plan": ("PushOptions",),
    "hub.reproduce": ("reproduce",),
    "hub.space": ("push_space",),
    "mergekit": ("from_mergekit", "to_mergekit"),
    "merging": ("register_method",),
    "modeling": (
        "EvoMergedConfig",
        "EvoMergedForCausalLM",
        "EvoMergedForImageTextToText",
        "EvoMergedModel",
    ),
    "recipes.layer_path": ("LayerPath",),
    "recipes.recipe": ("FlowPart", "MergePart", "Recipe", "SourceRef"),
    "routing.pool": ("LayerPool",),
    "search.callbacks": ("SearchCallback",),
    "search.file.config": ("SearchConfig",),
    "search.ask_tell": ("Search",),
    "search.plan": ("plan_search",),
    "search.run": ("resume_search", "run_search"),
    "search.score_model": ("evaluate_model",),
    "search.study.study": ("Study", "Trial"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "merging":
        return import_module(".merging", __name__)  # which makes it an attribute
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return [*__all__, "__version__", "merging"]


register_lazily()
