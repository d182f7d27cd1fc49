"""Evolve merges of existing language models: parameter space, data flow space, or both.

Public names are imported when they are first used, so that ``import hf_evomerge`` takes milliseconds. The model class is
registered with transformers' Auto classes as soon as these are imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import EvoMergeError
from .registration import register_when_imported

if TYPE_CHECKING:
    from .building.build import build_model
    from .building.folded import fold
    from .checkpoints.source import Source
    from .hub.push import PushOptions, push_model
    from .hub.reproduce import reproduce
    from .modeling import EvoMergedConfig, EvoMergedForCausalLM, EvoMergedModel
    from .recipes.layer_path import LayerPath
    from .recipes.recipe import Recipe
    from .routing.pool import LayerPool
    from .search.config import SearchConfig
    from .search.run import resume_search, run_search
    from .search.study import Study

__version__ = "0.1.0"

_HOMES = {
    "EvoMergedConfig": "modeling",
    "EvoMergedForCausalLM": "modeling",
    "EvoMergedModel": "modeling",
    "LayerPool": "routing.pool",
    "LayerPath": "recipes.layer_path",
    "PushOptions": "hub.push",
    "Recipe": "recipes.recipe",
    "SearchConfig": "search.config",
    "Source": "checkpoints.source",
    "Study": "search.study",
    "build_model": "building.build",
    "fold": "building.folded",
    "push_model": "hub.push",
    "reproduce": "hub.reproduce",
    "resume_search": "search.run",
    "run_search": "search.run",
}

__all__ = [
    "EvoMergeError",
    "EvoMergedConfig",
    "EvoMergedForCausalLM",
    "EvoMergedModel",
    "LayerPath",
    "LayerPool",
    "PushOptions",
    "Recipe",
    "SearchConfig",
    "Source",
    "Study",
    "build_model",
    "fold",
    "push_model",
    "reproduce",
    "resume_search",
    "run_search",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


register_when_imported()
