"""The demo: tiny specialists that ship with the package, and a search that merges them."""
