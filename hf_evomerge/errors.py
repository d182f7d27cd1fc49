"""The errors this package raises: one kind per thing that can be wrong, so that callers can tell them apart."""

from __future__ import annotations


class EvoMergeError(Exception):
    """Base of every error that a user can cause. The message says what, where, what was there and what to do."""


class PathError(EvoMergeError):
    """A layer path (or its text) cannot be read, or names a layer that does not exist."""


class RecipeError(EvoMergeError):
    """A recipe is incomplete, contradicts itself, or names an unknown method or parameter."""


class SourceError(EvoMergeError):
    """A checkpoint cannot be opened, or two checkpoints cannot be merged with each other."""


class FitnessError(EvoMergeError):
    """A fitness task is unknown or misconfigured, or its data cannot be read."""


class SearchError(EvoMergeError):
    """A search file or a study cannot be used as asked."""


class HubError(EvoMergeError):
    """A model cannot be published or fetched: the Hub, the licenses or the folder do not allow it."""
