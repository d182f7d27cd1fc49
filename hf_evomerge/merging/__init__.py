"""Parameter space: merge methods, the executors that apply them to models, and each method as a
function of plain tensors.

Every registered method can be imported under its name:

    >>> import torch
    >>> from hf_evomerge.merging import task_arithmetic
    >>> base = torch.zeros(3)
    >>> japanese, maths = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    >>> task_arithmetic(base, [japanese, maths], weights=[0.5, 0.25])
    tensor([0.5000, 0.2500, 1.5000])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import methods as methods  # fills the registry
from .functions import tensor_function
from .method import MergeMethod
from .parameters import Parameter
from .registry import METHODS, all_methods, get_method, register_method

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MergeMethod", "Parameter", "all_methods", "get_method", "register_method"]
__all__.extend(METHODS)


def __getattr__(name: str) -> Callable[..., Any]:
    """The function of the merge method of that name, such as ``ties``."""
    if name not in METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return tensor_function(METHODS[name])


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted({*__all__, *METHODS})
