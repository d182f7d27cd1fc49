"""The merge methods, one family a file. Importing this package registers them: one name here per file. No torch."""

from . import (
    arcee_fusion,
    breadcrumbs,
    dare,
    della,
    karcher,
    linear,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    ram,
    sce,
    slerp,
    task_arithmetic,
    ties,
)

__all__ = [
    "arcee_fusion",
    "breadcrumbs",
    "dare",
    "della",
    "karcher",
    "linear",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
]
