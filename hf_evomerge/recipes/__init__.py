"""Recipes: what a merge is made of, as text. Knows nothing of tensors, and imports in
milliseconds."""
