"""Annex: searches for several objectives, which end in a front. It has a file for each room that it
adds to, under the room's name."""
