"""The demo: tiny specialists that ship with the package, and a search that merges them."""

EVALUATIONS = 100
"""Budget of each search of the demo, in scores of all search problems."""
