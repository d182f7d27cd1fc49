"""Parameter space: merge methods, and the two executors that apply them, to disk and to a model in memory."""

from ..recipes.layer_groups import Grouping, classify, resolve
from .registry import MergeMethod, Parameter, all_methods, check_part, get_method, register_method

__all__ = [
    "Grouping",
    "MergeMethod",
    "Parameter",
    "all_methods",
    "check_part",
    "classify",
    "get_method",
    "register_method",
    "resolve",
]
