"""Data flow space: the layout of slots, the path of a genome, and the pool of layers that all
candidates share."""
