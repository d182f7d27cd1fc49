"""mergekit's YAML files, read as recipes and written from them. Knows no tensors, and nothing of
mergekit's own code."""

from .reader import Converted, from_mergekit, load
from .writer import to_mergekit

__all__ = ["Converted", "from_mergekit", "load", "to_mergekit"]
