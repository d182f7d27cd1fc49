"""Building: a recipe as a checkpoint that can be read, merged, routed or folded, and written to
disk."""
