"""Baselines of a search, one file each: what the table of results compares its winner with."""
