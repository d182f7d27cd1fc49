"""Baseline."""

from ..results.table import Against

AGAINST = Against(
    "random directions",
    worse="what was found is in the base",
    better="needs what its sources have learned: it beats random directions",
    level="random directions do as well: what was found is in the base",
    keep="fine-tune the base, or take other sources: random directions do as well as these",
)
