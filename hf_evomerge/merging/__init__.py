"""Parameter space: merge methods, and the two executors that apply them, to disk and to a model in memory."""

from . import methods as methods  # fills the registry
from .method import MergeMethod
from .parameters import Parameter
from .registry import all_methods, check_part, get_method, register_method

__all__ = [
    "MergeMethod",
    "Parameter",
    "all_methods",
    "check_part",
    "get_method",
    "register_method",
]
