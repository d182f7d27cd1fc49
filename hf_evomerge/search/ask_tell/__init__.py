"""Searches whose trials somebody else scores: ask and tell, and a person who chooses."""
