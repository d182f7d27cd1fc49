"""The study: every trial of a search, on disk."""
