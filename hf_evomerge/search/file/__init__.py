"""The search file: its keys, their defaults, and the scaffold that `init` writes."""
