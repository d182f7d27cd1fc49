"""Looks into scenes."""

from hf_evomerge.pictures.marks import Group
from hf_evomerge.pictures.scene import Panel, Scene


def marks_of(drawn):
    """All marks, those in groups too, as they are painted."""
    for part in drawn.panels if isinstance(drawn, Scene) else drawn.marks:
        if not isinstance(part, Panel):
            yield part
        if isinstance(part, Panel | Group):
            yield from marks_of(part)
